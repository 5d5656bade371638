"""What the user sees. Everything for people goes to stderr, results to stdout.

`Output` is made once per command line: notes, results, errors, and the `events` object that a run reports to:
`Live` (a terminal), `Lines` (a file or a pipe: a line every ten seconds) or `JsonLines` (--json: an object a line, two a
second at most; the last line is the envelope of `Output.finish`). Text from users is never read as markup, and control
characters in it are shown, not sent.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

from rich.console import Console, Group
from rich.text import Text

from fourdfy_cli import __version__
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.store.folder import finite
from fourdfy_cli.store.stream import Willing

if TYPE_CHECKING:  # bars and tables are loaded when they are shown, not for --help
    from rich.table import Table

Clock = Callable[[], float]
T = TypeVar("T")


@runtime_checkable
class Step(Protocol):
    """What a run tells of a step: `step` of `steps` of stage 1 to 3, the branch drawn, losses by branch, steps a second,
    seconds left, resident MB, and how often each branch was drawn so far."""

    stage: int
    step: int
    steps: int
    branch: str
    losses: dict[str, float]
    rate: float
    eta_stage: float
    eta_total: float
    memory_mb: float
    counts: dict[str, int]


class Output:
    """Where one command line's words go; `args` are the words it came with."""

    def __init__(self, command: str = "", as_json: bool = False, args: Sequence[str] = ()):
        self.command, self.as_json, self.args = command, as_json, args
        self.people = Console(file=cast(Any, Willing(sys.stderr)), highlight=False)

    def note(self, text: str) -> None:
        """A remark for people (and an event with --json)."""
        if self.as_json:
            emit({"event": "note", "text": text})
        else:
            say(self.people, text)

    def finish(self, data: dict[str, Any]) -> None:
        """The result of the command: the envelope with --json, else tables on stdout."""
        if self.as_json:
            self._envelope(True, data, None)
        else:
            show(Console(file=cast(Any, Willing(sys.stdout)), highlight=False), data)

    def failed_in_part(self, event: str, data: dict[str, Any], error: FourdfyError) -> FourdfyError:
        """Show what a command came to before it ends with `error`, which is returned; as an event with --json, whose envelope of a failure
        holds no data."""
        if self.as_json:
            emit({"event": event, **data})
        else:
            self.finish(data)
        return error

    def fail(self, error: FourdfyError) -> int:
        """One line of message, one line of hint; returns the exit code."""
        say(self.people, Text.assemble(("error: ", "bold red"), one_line(error.message)))
        if error.hint:
            say(self.people, Text.assemble(("hint:  ", "bold cyan"), clean(" ".join(error.hint.splitlines()))))
        if self.as_json:
            self._envelope(False, {}, {"code": error.code, "message": one_line(error.message), "hint": error.hint})
        return error.code

    def _envelope(self, ok: bool, data: dict[str, Any], error: dict[str, Any] | None) -> None:
        emit({"ok": ok, "command": self.command, "version": __version__, "data": data, "error": error})

    def counted(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """The items, with a bar on a terminal while they come."""
        from rich.progress import track

        quiet = self.as_json or not self.people.is_terminal
        yield from track(items, what, total, console=self.people, transient=True, disable=quiet)

    @contextmanager
    def events(self) -> Iterator[Live | Lines | JsonLines]:
        """The object that a run reports to; on a terminal its display ends with the block."""
        if self.as_json:
            yield JsonLines()
        elif self.people.is_terminal:
            with Live(self.people) as live:
                yield live
        else:
            yield Lines(self.people)


class Lines:
    """Plain lines: each stage's first and last step, one every `every` seconds between, previews, checkpoints, notes."""

    def __init__(self, console: Console, every: float = 10.0, clock: Clock = time.monotonic):
        self.console, self.every, self.clock = console, every, clock
        self.stage, self.last = 0, -math.inf
        self.saved_at: float | None = None

    def start(self, stage: int, stages: tuple[int, ...], steps: int, done: int) -> None:
        say(self.console, f"stage {stage}/3: {steps} steps" + (f", going on after step {done}" if done else ""))

    def step(self, info: Step) -> None:
        now = self.clock()
        if info.stage != self.stage or info.step == info.steps or now - self.last >= self.every:
            self.stage, self.last = info.stage, now
            say(self.console, f"{headline(info)}, {', '.join(details(info, self.saved_at, now))}")

    def preview(self, path: Path) -> None:
        say(self.console, f"preview {path}")

    def saved(self, path: Path) -> None:
        self.saved_at = self.clock()
        say(self.console, f"saved {path}")

    def note(self, text: str) -> None:
        say(self.console, text)


class JsonLines:
    """One object a line on stdout; steps are dropped so that at most `rate` a second appear, first and last ones never."""

    def __init__(self, rate: float = 2.0, clock: Clock = time.monotonic):
        self.gap, self.clock, self.last = 1 / rate, clock, -math.inf

    def start(self, stage: int, stages: tuple[int, ...], steps: int, done: int) -> None:
        emit({"event": "start", "stage": stage, "stages": stages, "steps": steps, "done": done})

    def step(self, info: Step) -> None:
        now = self.clock()
        if now - self.last >= self.gap or info.step == info.steps:
            self.last = now
            emit({"event": "step", **vars(info)})

    def preview(self, path: Path) -> None:
        emit({"event": "preview", "path": path})

    def saved(self, path: Path) -> None:
        emit({"event": "saved", "path": path})

    def note(self, text: str) -> None:
        emit({"event": "note", "text": text})


class Live:
    """A rich display on a terminal: the stage's bar with speed and times left, and what the last step was like."""

    def __init__(self, console: Console, clock: Clock = time.monotonic):
        from rich.live import Live as RichLive
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.clock: Clock = clock
        self.info: Step | None = None
        self.saved_at: float | None = None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rest]}"))
        self.progress = Progress(*columns, console=console)
        self.bar = self.progress.add_task("starting", total=None, rest="")
        self.live = RichLive(console=console, get_renderable=self.picture, refresh_per_second=4)

    def __enter__(self) -> Live:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def picture(self) -> Group:
        """What is on screen now."""
        lines = [Text("  " + text, style="dim") for text in details(self.info, self.saved_at, self.clock())] if self.info else []
        return Group(self.progress, *lines)

    def start(self, stage: int, stages: tuple[int, ...], steps: int, done: int) -> None:
        self.progress.update(self.bar, description=f"stage {stage}/3", total=steps, completed=done, rest="")

    def step(self, info: Step) -> None:
        self.info = info
        left = f"{info.rate:.1f} it/s, {duration(info.eta_stage)} left, {duration(info.eta_total)} in all"
        self.progress.update(self.bar, completed=info.step, rest=left)

    def preview(self, path: Path) -> None:
        say(self.live.console, f"preview {path}")

    def saved(self, path: Path) -> None:
        self.saved_at = self.clock()

    def note(self, text: str) -> None:
        say(self.live.console, text)


def headline(info: Step) -> str:
    """Stage, step, speed and what is left, on one line."""
    left = f"{duration(info.eta_stage)} left in the stage, {duration(info.eta_total)} in all"
    return f"stage {info.stage}/3 step {info.step}/{info.steps}, {info.rate:.1f} it/s, {left}"


def details(info: Step, saved_at: float | None, now: float) -> list[str]:
    """Losses, branch counts, memory and the age of the last checkpoint."""
    losses = " ".join(f"{name} {value:.4g}" for name, value in info.losses.items())
    counts = " ".join(f"{name} {count}" for name, count in info.counts.items())
    saved = "no checkpoint yet" if saved_at is None else f"checkpoint {duration(now - saved_at)} old"
    return [f"loss {losses or '-'}", f"drawn {counts or '-'}", f"{info.memory_mb:.0f} MB, {saved}"]


def duration(seconds: float | None) -> str:
    """Seconds as 5s, 1:05 or 1:00:05; "?" for what is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest}s"


def clean(text: str) -> str:
    """Text with control characters (the terminal's commands) written out, lines and tabs kept."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def one_line(text: str) -> str:
    return clean(" ".join(str(text).split()))


def say(console: Console, text: str | Text) -> None:
    """Print without markup and without wrapping."""
    console.print(clean(text) if isinstance(text, str) else text, markup=False, soft_wrap=True)


def show(console: Console, data: dict[str, Any], title: str = "") -> None:
    """A result for people: scalars as `name  value` lines, lists of rows as tables, dictionaries under their name."""
    rows: dict[str, Any] = {
        key: value for key, value in data.items() if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict)
    }
    groups = {key: value for key, value in data.items() if isinstance(value, dict) and value}
    flat = {key: value for key, value in data.items() if key not in rows and key not in groups}
    if title:
        say(console, Text(clean(title), style="bold"))
    width = max(map(len, flat), default=0)
    for key, value in flat.items():
        say(console, f"{key:<{width}}  {cell(value)}")
    for key, value in groups.items():
        show(console, value, key)
    for key, value in rows.items():
        say(console, Text(clean(key), style="bold"))
        console.print(table(value))


def table(rows: list[dict[str, Any]]) -> Table:
    """Rows of one shape as a table; lists inside them are left to --json."""
    from rich.table import Table

    names = [name for name, value in rows[0].items() if not isinstance(value, (dict, list))]
    grid = Table(box=None, pad_edge=False)
    for name in names:
        grid.add_column(Text(clean(name)), justify="right" if isinstance(rows[0][name], (int, float)) else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell(row.get(name))) for name in names))
    return grid


def cell(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(item) for item in value)
    return one_line(f"{value:.4g}" if isinstance(value, float) else str(value))


def emit(event: dict[str, Any]) -> None:
    """One JSON object as a line of stdout; numbers that JSON has no word for become null."""
    out = Willing(sys.stdout)
    out.write(json.dumps(finite(event), allow_nan=False, default=str) + "\n")
    out.flush()
