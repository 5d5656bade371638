"""Many scenes: each a run folder in one place, made by an engine (run/engines.py), watched through what their folders hold."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fourdfy_cli.config import Recipe, from_dict
from fourdfy_cli.diffusion import sets
from fourdfy_cli.errors import DIVERGED, INTERRUPTED, OK, STOPPED, USAGE, FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import train
from fourdfy_cli.run.progress import Events
from fourdfy_cli.run.signals import StopSignals
from fourdfy_cli.run.state import read_about
from fourdfy_cli.run.train import RunResult
from fourdfy_cli.store.folder import make_writable, metrics_lines, metrics_row, read_json, run_folder
from fourdfy_cli.store.lock import NAME as LOCK

ANOTHER = "another folder for these prompts and settings: --out outputs-2"
TAIL = 2**14  # bytes of metrics.jsonl that a pace is taken from
GAP = 0.5  # seconds between two looks at the folders
AHEAD = 256  # scenes not yet begun that each look asks about


@dataclass(frozen=True)
class Job:
    """A scene to be made: prompt and seed by a recipe in the folder `out`; from the end of another run's stage, the checkpoint `start`, if
    that is told and the folder has none of its own yet."""

    prompt: str
    seed: int
    recipe: Recipe
    out: Path
    start: Path | None = None

    @property
    def folder(self) -> Path:
        return run_folder(self.out, self.prompt, self.seed)

    def go(self, machine: Machine, events: Events) -> RunResult:
        """Run it from wherever it stands to its end. Raises FourdfyError as `train.run`."""
        start = None if any(self.folder.glob("[!.]*.pt")) else self.start
        stages = {"stage1.pt": (2, 3), "stage2.pt": (3,)}.get(start.name if start else "", (1, 2, 3))
        return train.run(self.prompt, self.recipe, self.out, self.seed, stages, start, machine, events)


@dataclass(frozen=True)
class JobResult:
    """How a job ended: its number, the exit code that it alone would have ended with, message and hint if it failed, and what it told."""

    number: int
    code: int = OK
    message: str = ""
    hint: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SceneStatus:
    """Where a scene stands: "waiting", "running", "done", "failed" or "stopped"; seconds left, None where that is not known yet."""

    state: str = "waiting"
    stage: int = 0
    step: int = 0
    steps: int = 0
    eta: float | None = None


@runtime_checkable
class Work(Protocol):
    """What an engine does: a Job, or whatever else can be begun again at any time. Machines of a cluster share its folder `out`."""

    @property
    def prompt(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def out(self) -> Path: ...
    @property
    def start(self) -> Path | None: ...
    @property
    def folder(self) -> Path: ...
    def go(self, machine: Machine, events: Events) -> object: ...


@runtime_checkable
class Engine(Protocol):
    """Where jobs are computed. `run` yields each as it ends, calls `tick` in between, and takes `signals.raised` for the end: what runs is
    saved, and the rest is not begun."""

    def run(self, jobs: Mapping[int, Work], tick: Callable[[], None], signals: StopSignals) -> Iterator[JobResult]: ...


@runtime_checkable
class Watcher(Protocol):
    """Whoever looks at a batch."""

    def scenes(self, rows: list[tuple[Job, SceneStatus]]) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class BatchProgress:
    """Where all scenes of a batch stand."""

    jobs: list[Job]
    watcher: Watcher
    rows: list[SceneStatus] = field(default_factory=list)
    last: float = 0.0

    def look(self) -> None:
        """Ask the folders of what runs, or may run by now, at most every GAP seconds."""
        if time.monotonic() - self.last < GAP:
            return
        self.last, begun = time.monotonic(), [k for k, row in enumerate(self.rows) if row.state == "running"]
        waiting = [k for k, row in enumerate(self.rows) if row.state == "waiting"]
        for k in begun + waiting[:AHEAD]:
            if (self.jobs[k].folder / LOCK).exists():
                self.rows[k] = running(self.jobs[k])
        self.show()

    def end(self, ended: JobResult) -> None:
        job, row = self.jobs[ended.number], self.rows[ended.number]
        state = "done" if ended.code == OK else "stopped" if ended.code in STOPPED else "failed"
        self.rows[ended.number] = SceneStatus(state, row.stage, row.step, row.steps)
        for text in (*ended.notes, *([f"{state}: {ended.message}"] if ended.code else [])):
            self.watcher.note(f"{job.folder.name}: {text}")
        self.show()

    def show(self) -> None:
        self.watcher.scenes(list(zip(self.jobs, self.rows, strict=True)))


def check(jobs: Iterable[Job]) -> None:
    """Raises FourdfyError (exit 2), with nothing written: two jobs that have one folder, or a folder that holds another run."""
    owners: dict[Path, Job] = {}
    for job in jobs:
        other = owners.setdefault(job.folder, job)
        if other is not job:
            raise FourdfyError(f"{other.prompt!r} and {job.prompt!r} have one folder, {job.folder}", ANOTHER, USAGE)
        if theirs := conflict(job.folder, job.prompt, job.recipe):
            raise FourdfyError(f"{job.folder} holds {theirs}, not what is asked for", ANOTHER, USAGE)


def conflict(folder: Path, prompt: str, recipe: Recipe) -> str | None:
    """What a folder holds that does not go with a prompt and a recipe; None where a run may start or go on."""
    about = read_about(folder / "run.json")
    if about is None:
        return None
    if about["prompt"] != prompt:
        return f"another prompt ({about['prompt']!r})"
    return "a run with other settings" if from_dict(about["recipe"]) != recipe else None


def finished(job: Job) -> bool:
    """Whether a job's folder, that `check` found to be its own, says that nothing is left to do."""
    about = read_json(job.folder / "run.json") or {}
    return about.get("status") == "done" and all((job.folder / name).exists() for name in ("stage3.pt", "orbit.mp4"))


def run(jobs: list[Job], engine: Engine, watcher: Watcher) -> list[JobResult]:
    """Make what is not there yet: how each job ended, in order. Models are fetched before the first.

    A job that fails is listed, and the others go on. Raises FourdfyError: exit 2 as `check`, 3 for models that cannot be had or an engine
    that is not there, and 75, 129, 130 or 143 when stopped: all that ran is saved, and the same call goes on.
    """
    check(jobs)
    left = {k: job for k, job in enumerate(jobs) if not finished(job)}
    board = BatchProgress(jobs, watcher, [SceneStatus("waiting" if k in left else "done") for k in range(len(jobs))])
    board.show()
    found = {k: JobResult(k) for k in range(len(jobs)) if k not in left}
    for out in dict.fromkeys(job.out for job in left.values()):
        make_writable(out)
    fetch(job.recipe for job in left.values())
    with StopSignals() as signals:
        for ended in engine.run(left, board.look, signals) if left else ():
            found[ended.number] = ended
            board.end(ended)
    codes = [ended.code for ended in found.values() if ended.code in STOPPED]
    if codes or signals.raised is not None or len(found) < len(jobs):
        code = signals.raised or next(iter(codes), INTERRUPTED)
        raise FourdfyError("interrupted; everything so far is saved", "type the same command again to go on", code)
    return [found[k] for k in range(len(jobs))]


def made(jobs: list[Job], engine: Engine, watcher: Watcher) -> dict[Path, str]:
    """Make jobs for a command that then looks at them: the folders of those that diverged, and why. Raises FourdfyError as `run`, and for
    the first that failed in another way."""
    ended = run(jobs, engine, watcher)
    for one in ended:
        if one.code not in (OK, DIVERGED):
            raise FourdfyError(f"{jobs[one.number].folder}: {one.message}", one.hint, one.code)
    return {jobs[one.number].folder: one.message for one in ended if one.code == DIVERGED}


def fetch(recipes: Iterable[Recipe]) -> None:
    """Have every model on this machine, each once. Raises FourdfyError (exit 2, 3) as `sets.specs`."""
    wanted = {}
    for recipe in dict.fromkeys(recipes):
        wanted[recipe.models, sets.roles(sets.drawn(recipe), recipe.vsd)] = None
    for models, roles in wanted:
        sets.specs(models, roles)


def running(job: Job) -> SceneStatus:
    """Where a run that is at work stands, and its pace, from the end of its metrics."""
    rows = list(_tail(job.folder / "metrics.jsonl"))
    stage, step = (rows[-1]["stage"], rows[-1]["step"] + 1) if rows else (1, 0)
    steps = job.recipe.stage(stage).steps
    same = [row for row in rows if row["stage"] == stage]
    seconds = same[-1]["seconds"] - same[0]["seconds"] if len(same) > 1 else 0
    left = steps - step + sum(job.recipe.stage(s).steps for s in (1, 2, 3) if s > stage)
    return SceneStatus("running", stage, step, steps, left * seconds / (len(same) - 1) if seconds > 0 else None)


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    """The last whole lines of a metrics.jsonl; none where it is not there yet."""
    with contextlib.suppress(FourdfyError):
        for row in filter(None, map(metrics_row, metrics_lines(path, TAIL))):
            if row["stage"] in (1, 2, 3) and isinstance(row.get("seconds"), (int, float)):
                yield row


def summary(jobs: list[Job], ended: list[JobResult]) -> dict[str, Any]:
    """What a batch came to: counts, the folders, and each failure with its code, message and hint."""
    failures = [
        {"prompt": jobs[one.number].prompt, "seed": jobs[one.number].seed, "run_dir": jobs[one.number].folder}
        | {key: value for key, value in asdict(one).items() if key in ("code", "message", "hint")}
        for one in ended
        if one.code
    ]
    return {"scenes": len(jobs), "done": len(ended) - len(failures), "failed": len(failures), "failures": failures}
