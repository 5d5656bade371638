"""Where the scenes of a batch are computed: in this process or in one process for each GPU; run/cluster.py has Ray.

Whatever the engine, a scene is a run of `train.run` in its own folder, so that it goes on from its checkpoint wherever it is taken up.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from fourdfy_cli.errors import FAILURE, INTERRUPTED, MEMORY, STOPPED, FourdfyError, typed
from fourdfy_cli.memory import Machine
from fourdfy_cli.run.batch import GAP, JobResult, Work
from fourdfy_cli.run.progress import StepInfo
from fourdfy_cli.run.signals import StopSignals

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


def make(number: int, job: Work, machine: Machine, tick: Callable[[], None] = none) -> JobResult:
    """Run one job to its end; what a user can mend is told by the result, as the command line would have told it."""
    events, error = Quiet(tick), None
    try:
        job.go(machine, events)
    except FourdfyError as failure:
        error = failure
    except KeyboardInterrupt:
        error = FourdfyError("stopped; what was saved is kept", "type the same command again to go on", INTERRUPTED)
    except MemoryError:
        error = FourdfyError("out of memory", "how much is free: free -m", MEMORY)
    except OSError as failure:
        error = FourdfyError(f"{failure.filename or job.folder}: {failure.strerror or failure}", typed("df", "-h", job.out), FAILURE)
    notes = tuple(events.notes)
    return JobResult(number, error.code, error.message, error.hint, notes) if error else JobResult(number, notes=notes)


@dataclass(frozen=True)
class InProcess:
    """One after another, in this process."""

    machine: Machine

    def run(self, jobs: Mapping[int, Work], tick: Callable[[], None], signals: StopSignals) -> Iterator[JobResult]:
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

    def run(self, jobs: Mapping[int, Work], tick: Callable[[], None], signals: StopSignals) -> Iterator[JobResult]:
        free, waiting, working, deaths = list(self.machines), list(jobs), [], dict.fromkeys(jobs, 0)
        while working or (waiting and signals.raised is None):
            while free and waiting and signals.raised is None:
                number = waiting.pop(0)
                working.append(Worker(number, jobs[number], free.pop(0)))
            ready = connection.wait([worker.receiver for worker in working], GAP)  # what it told, or its end
            tick()
            for worker in [worker for worker in working if worker.receiver in ready]:
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

    def __init__(self, number: int, job: Work, machine: Machine):
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

    def ended(self) -> JobResult | None:
        """What it told before it ended; None if it died."""
        try:
            return self.receiver.recv()
        except EOFError:
            return None
        finally:
            self.process.join()


def _work(sender: connection.Connection, number: int, job: Work, machine: Machine) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sender.send(make(number, job, machine))


def died(number: int, job: Work, why: str = "") -> JobResult:
    message = f"its process died {DEATHS + 1} times{why and f', the last time: {why}'}"
    return JobResult(number, FAILURE, message, typed("fourdfy", "generate", job.prompt, "--seed", job.seed, "--out", job.out))
