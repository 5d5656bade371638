"""Where the scenes of a batch are computed: in this process, in one process for each GPU, or as tasks of a Ray cluster.

Whatever the engine, a scene is a run of `train.run` in its own folder, so that it goes on from its checkpoint wherever it is taken up.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

from fourdfy_cli.errors import ENVIRONMENT, FAILURE, INTERRUPTED, MEMORY, STOPPED, FourdfyError, typed
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import train
from fourdfy_cli.run.batch import GAP, Ended, Engine, Job
from fourdfy_cli.run.progress import StepInfo
from fourdfy_cli.run.signals import StopSignals
from fourdfy_cli.store.lock import STALE, holder

DEATHS = 3  # of a job's process, after each of which it is begun again


def none() -> None:
    """A tick of nobody."""


class Quiet:
    """Events of a scene among many: notes are kept for its end, and `tick` is called at everything that happens."""

    def __init__(self, tick: Callable[[], None] = none):
        self.tick, self.notes = tick, list[str]()

    def start(self, stage: int, stages: tuple[int, ...], steps: int, done: int) -> None:
        self.tick()

    def step(self, info: StepInfo) -> None:
        self.tick()

    def preview(self, path: Path) -> None:
        self.tick()

    def saved(self, path: Path) -> None:
        self.tick()

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.tick()


def make(number: int, job: Job, machine: Machine, tick: Callable[[], None] = none) -> Ended:
    """Run one job to its end; what a user can mend is told by the result, as the command line would have told it."""
    events, error = Quiet(tick), None
    try:
        train.run(job.prompt, job.recipe, job.out, job.seed, job.stages, job.start, machine, events)
    except FourdfyError as failure:
        error = failure
    except KeyboardInterrupt:
        error = FourdfyError("stopped; what was saved is kept", "type the same command again to go on", INTERRUPTED)
    except MemoryError:
        error = FourdfyError("out of memory", "how much is free: free -m", MEMORY)
    except OSError as failure:
        error = FourdfyError(f"{failure.filename or job.folder}: {failure.strerror or failure}", typed("df", "-h", job.out), FAILURE)
    return Ended(number, error.code, error.message, error.hint, tuple(events.notes)) if error else Ended(number, notes=tuple(events.notes))


@dataclass(frozen=True)
class Here:
    """One after another, in this process."""

    machine: Machine

    def run(self, jobs: dict[int, Job], tick: Callable[[], None], signals: StopSignals) -> Iterator[Ended]:
        for number, job in jobs.items():
            if signals.raised is not None:
                return
            ended = make(number, job, self.machine, tick)
            yield ended
            if ended.code in STOPPED:
                return


@dataclass(frozen=True)
class Processes:
    """As many at once as there are machines (the GPUs of this one), each scene in a process of its own."""

    machines: tuple[Machine, ...]

    def run(self, jobs: dict[int, Job], tick: Callable[[], None], signals: StopSignals) -> Iterator[Ended]:
        free, waiting, working, deaths = list(self.machines), list(jobs), [], dict.fromkeys(jobs, 0)
        while working or (waiting and signals.raised is None):
            while free and waiting and signals.raised is None:
                number = waiting.pop(0)
                working.append(Worker(number, jobs[number], free.pop(0)))
            ready = connection.wait([worker.process.sentinel for worker in working], GAP)
            tick()
            for worker in [worker for worker in working if worker.process.sentinel in ready]:
                working.remove(worker)
                free.append(worker.machine)
                ended, deaths[worker.number] = worker.ended(), deaths[worker.number] + 1
                if ended is None and deaths[worker.number] <= DEATHS and signals.raised is None:
                    waiting.insert(0, worker.number)
                else:
                    yield ended or died(worker.number, jobs[worker.number])
            if signals.raised is not None:
                for worker in working:
                    worker.stop()


class Worker:
    """A process with one job. Ctrl-C, which a terminal sends to all of its processes, is its parent's affair."""

    def __init__(self, number: int, job: Job, machine: Machine):
        context = multiprocessing.get_context("spawn")
        self.number, self.machine, self.told = number, machine, False
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(sender, number, job, machine), daemon=True)
        self.process.start()
        sender.close()

    def stop(self) -> None:
        """Have it finish its step and save; once."""
        if not self.told:
            self.process.terminate()
        self.told = True

    def ended(self) -> Ended | None:
        """What it told before it ended; None if it died."""
        self.process.join()
        try:
            return self.receiver.recv() if self.receiver.poll() else None
        except EOFError:
            return None


def _work(sender: connection.Connection, number: int, job: Job, machine: Machine) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sender.send(make(number, job, machine))


def died(number: int, job: Job, why: str = "") -> Ended:
    message = f"its process died {DEATHS + 1} times{why and f', the last time: {why}'}"
    return Ended(number, FAILURE, message, typed("fourdfy", "generate", job.prompt, "--seed", job.seed, "--out", job.out))


@dataclass(frozen=True)
class Ray:
    """One task of a Ray cluster for each scene, on any machine that has the processors and GPUs free; a task whose worker dies is begun
    again, up to DEATHS times. `memory` in bytes is what Ray books of a machine without GPU. All machines share the folder `Job.out`."""

    machine: Machine
    address: str | None = None
    processors: int = 1
    memory: int = 0

    def wants(self) -> dict[str, float]:
        """What a task takes of a machine, by Ray's names."""
        gpu = self.machine.device != "cpu"
        return {"CPU": self.processors, **({"GPU": 1} if gpu else {"memory": self.memory})}

    def run(self, jobs: dict[int, Job], tick: Callable[[], None], signals: StopSignals) -> Iterator[Ended]:
        ray = connected(self.address)
        try:
            self.check(ray)
            wants = self.wants()
            remote = ray.remote(on_cluster).options(
                num_cpus=wants["CPU"], num_gpus=wants.get("GPU", 0), memory=wants.get("memory", 0) or None, max_retries=DEATHS
            )
            machine = replace(self.machine, threads=None)
            tasks = {remote.remote(number, absolute(job), machine, self.processors): number for number, job in jobs.items()}
            yield from waited(ray, tasks, jobs, tick, signals)
        finally:
            ray.shutdown()

    def check(self, ray: Any) -> None:
        """Raises FourdfyError (exit 3) if no machine is large enough: the task would wait for ever."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for name, count in self.wants().items():
            most = max((node.get(name, 0) for node in nodes), default=0)
            if most < count:
                message = f"a scene wants {count:.3g} {name}, and no machine of the Ray cluster has more than {most:.3g}"
                raise FourdfyError(message, "ray status", ENVIRONMENT)


def connected(address: str | None) -> Any:
    """Ray, connected to the cluster at `address`, or to one of its own on this machine. Raises FourdfyError (exit 3)."""
    try:
        import ray
    except ImportError:
        raise no_ray() from None
    own = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise FourdfyError(f"no Ray cluster at {address or 'this machine'}: {line}", "ray start --head", ENVIRONMENT) from None
    return ray


def no_ray() -> FourdfyError:
    return FourdfyError("--engine ray wants a package that is not installed: ray", "pip install 'fourdfy[ray]'", ENVIRONMENT)


def absolute(job: Job) -> Job:
    return replace(job, out=job.out.absolute(), start=job.start and job.start.absolute())


def waited(ray: Any, tasks: dict[Any, int], jobs: dict[int, Job], tick: Callable[[], None], signals: StopSignals) -> Iterator[Ended]:
    """Each task's result as it ends; when a signal comes, all are told to save and leave."""
    told = False
    while tasks:
        ready, _ = ray.wait(list(tasks), timeout=GAP)
        tick()
        for task in ready:
            number = tasks.pop(task)
            yield result(ray, task, number, jobs[number])
        if signals.raised is not None and not told:
            told = True
            for task in tasks:
                ray.cancel(task)


def result(ray: Any, task: Any, number: int, job: Job) -> Ended:
    try:
        return ray.get(task)
    except ray.exceptions.TaskCancelledError:
        return Ended(number, INTERRUPTED, "stopped; what was saved is kept", "type the same command again to go on")
    except ray.exceptions.OutOfMemoryError:
        return Ended(number, MEMORY, "Ray ended it: its machine ran out of memory", "how much is free: ray status")
    except ray.exceptions.WorkerCrashedError as error:
        return died(number, job, str(error).splitlines()[0])
    except ray.exceptions.RayError as error:
        line = str(error).strip().splitlines()[-1]
        return Ended(number, FAILURE, line, typed("fourdfy", "generate", job.prompt, "--seed", job.seed, "--out", job.out))


def on_cluster(number: int, job: Job, machine: Machine, threads: int) -> Ended:
    """The task: `make`, on a machine that must see the folder; a lock that a machine left behind which died is waited for."""
    import torch

    if not job.out.is_dir():
        message = f"{job.out} is not on {socket.gethostname()}: a batch on Ray wants a folder that all machines share"
        return Ended(number, ENVIRONMENT, message, "fourdfy batch PROMPTS.txt --engine ray --out /SHARED/FOLDER")
    torch.set_num_threads(threads)
    until = time.monotonic() + STALE
    while (other := holder(job.folder)) and other.get("host") != socket.gethostname() and time.monotonic() < until:
        time.sleep(5)
    return make(number, job, machine)


def chosen(name: str, address: str | None, machine: Machine, threads: int | None, memory: int) -> Engine:
    """The engine of a name, "local" or "ray"; "cuda" without a number is every GPU of this machine."""
    if name == "ray":
        return Ray(machine, address, threads or 1, memory)
    import torch

    count = torch.cuda.device_count() if machine.device == "cuda" else 1
    return Processes(tuple(replace(machine, device=f"cuda:{k}", threads=None) for k in range(count))) if count > 1 else Here(machine)
