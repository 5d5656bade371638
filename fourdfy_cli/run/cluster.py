"""The scenes of a batch as tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from fourdfy_cli.errors import ENVIRONMENT, FAILURE, INTERRUPTED, MEMORY, FourdfyError, typed
from fourdfy_cli.memory import Machine
from fourdfy_cli.run.batch import GAP, JobResult, Work
from fourdfy_cli.run.engines import DEATHS, died, make
from fourdfy_cli.run.processors import allowed
from fourdfy_cli.run.signals import CODES, StopSignals
from fourdfy_cli.store.lock import STALE, holder


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

    def run(self, jobs: Mapping[int, Work], tick: Callable[[], None], signals: StopSignals) -> Iterator[JobResult]:
        with contextlib.redirect_stdout(cast(Any, OwnThread(sys.stdout))), connected(self.address) as ray:
            self.check(ray)
            wants = self.wants()
            remote = ray.remote(on_cluster).options(
                num_cpus=wants["CPU"], num_gpus=wants.get("GPU", 0), memory=wants.get("memory") or None, max_retries=DEATHS
            )
            machine = replace(self.machine, threads=None)
            tasks = {remote.remote(number, absolute(job), machine, self.processors): number for number, job in jobs.items()}
            yield from waited(ray, tasks, jobs, tick, signals)

    def check(self, ray: Any) -> None:
        """Raises FourdfyError (exit 3) if no machine is large enough: the task would wait for ever."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for name, count in self.wants().items():
            most = max((node.get(name, 0) for node in nodes), default=0)
            if most < count:
                message = f"a scene wants {count:.3g} {name}, and no machine of the Ray cluster has more than {most:.3g}"
                raise FourdfyError(message, "ray status", ENVIRONMENT)


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`, or to one of its own on this machine that ends with the block. Raises FourdfyError
    (exit 3)."""
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray tells its makers
    try:
        import ray
    except ImportError:
        raise no_ray() from None
    own = (None, None) if address else (allowed(), False)
    handlers = {number: handler for number in CODES if (handler := signal.getsignal(number)) is not None}
    try:
        ray.init(address=address or "local", num_cpus=own[0], include_dashboard=own[1], log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise FourdfyError(f"no Ray cluster at {address or 'this machine'}: {line}", "ray start --head", ENVIRONMENT) from None
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray has put its own in their place, which abort at SIGTERM
    try:
        yield ray
    finally:
        ray.shutdown()


class OwnThread:
    """A stream for the main thread alone: one of Ray's tells stories on stdout, where --json has an object a line."""

    def __init__(self, stream: Any):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self.stream.write(text) if threading.current_thread() is threading.main_thread() else len(text)


def no_ray() -> FourdfyError:
    return FourdfyError("--engine ray wants a package that is not installed: ray", "pip install 'fourdfy[ray]'", ENVIRONMENT)


def absolute(job: Work) -> Work:
    return replace(cast(Any, job), out=job.out.absolute(), start=job.start and job.start.absolute())


def waited(
    ray: Any, tasks: dict[Any, int], jobs: Mapping[int, Work], tick: Callable[[], None], signals: StopSignals
) -> Iterator[JobResult]:
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


def result(ray: Any, task: Any, number: int, job: Work) -> JobResult:
    try:
        return ray.get(task)
    except ray.exceptions.TaskCancelledError:
        return JobResult(number, INTERRUPTED, "stopped; what was saved is kept", "type the same command again to go on")
    except ray.exceptions.OutOfMemoryError:
        return JobResult(number, MEMORY, "Ray ended it: its machine ran out of memory", "how much is free: ray status")
    except ray.exceptions.WorkerCrashedError as error:
        return died(number, job, str(error).splitlines()[0])
    except ray.exceptions.RayError as error:
        line = str(error).strip().splitlines()[-1]
        return JobResult(number, FAILURE, line, typed("fourdfy", "generate", job.prompt, "--seed", job.seed, "--out", job.out))


def on_cluster(number: int, job: Work, machine: Machine, threads: int) -> JobResult:
    """The task: `make`, on a machine that must see the folder; a lock that a machine left behind which died is waited for."""
    import torch

    if not job.out.is_dir():
        message = f"{job.out} is not on {socket.gethostname()}: a batch on Ray wants a folder that all machines share"
        return JobResult(number, ENVIRONMENT, message, "fourdfy batch PROMPTS.txt --engine ray --out /SHARED/FOLDER")
    torch.set_num_threads(threads)
    until = time.monotonic() + STALE
    while (other := holder(job.folder)) and other.get("host") != socket.gethostname() and time.monotonic() < until:
        time.sleep(5)
    return make(number, job, machine)
