"""How a batch looks while it runs: a live table on a terminal, lines in a file, JSON events with --json."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.text import Text

from fourdfy_cli.console import Output, clean, duration, emit, say

if TYPE_CHECKING:
    from fourdfy_cli.run.batch import Job, SceneStatus

Rows = list[tuple["Job", "SceneStatus"]]
FIRST = ("running", "failed", "stopped", "waiting", "done")  # where the table has no room for all
STYLES = {"running": "bold", "failed": "red", "stopped": "yellow", "waiting": "dim", "done": "green"}
EVERY = 10.0  # seconds between two lines about the same scene in a file


def counts(rows: Rows) -> str:
    """ "2 running, 3 waiting, 1 done"."""
    found = Counter(row.state for _, row in rows)
    return ", ".join(f"{found[state]} {state}" for state in FIRST if found[state])


def picture(rows: Rows, height: int) -> Group:
    """All scenes with stage, step and time left, or as many as `height` lines hold: those that run first."""
    from rich.table import Table

    room = max(1, height - 4)
    shown = sorted(rows, key=lambda pair: FIRST.index(pair[1].state))[: room if len(rows) > room else None]
    more = f"; {len(rows) - len(shown)} not shown" if len(shown) < len(rows) else ""
    grid = Table(box=None, pad_edge=False)
    for name in ("scene", "", "stage", "step", "left"):
        grid.add_column(name, justify="right" if name in ("step", "left") else "left", no_wrap=True)
    for job, row in shown:
        begun = row.state != "waiting" and row.stage > 0
        place = (f"{row.stage}/3", f"{row.step}/{row.steps}") if begun else ("", "")
        left = duration(row.eta) if row.state == "running" else ""
        grid.add_row(Text(clean(job.folder.name)), Text(row.state, STYLES[row.state]), *place, left)
    return Group(grid, Text(counts(rows) + more))


class LiveTable:
    """The live table."""

    def __init__(self, console: Console):
        from rich.live import Live

        self.rows: Rows = []
        self.live = Live(console=console, get_renderable=lambda: picture(self.rows, console.height), refresh_per_second=2)

    def scenes(self, rows: Rows) -> None:
        self.rows = rows

    def note(self, text: str) -> None:
        say(self.live.console, text)


class Lines:
    """A line for each scene that begins, gets on (every EVERY seconds) or ends."""

    def __init__(self, console: Console):
        self.console = console
        self.told: dict[int, tuple[str, int, float]] = {}

    def scenes(self, rows: Rows) -> None:
        for number, (job, row) in enumerate(rows):
            state, stage, when = self.told.get(number, ("waiting", 0, 0.0))
            if (row.state, row.stage) != (state, stage) or (row.state == "running" and time.monotonic() - when > EVERY):
                self.told[number] = (row.state, row.stage, time.monotonic())
                self.tell(job, row, rows)

    def tell(self, job: Job, row: SceneStatus, rows: Rows) -> None:
        at = f" stage {row.stage}/3 step {row.step}/{row.steps}, {duration(row.eta)} left" if row.state == "running" else ""
        say(self.console, f"{job.folder.name}: {row.state}{at} ({counts(rows)})")

    def note(self, text: str) -> None:
        say(self.console, text)


class Events(Lines):
    """The same as JSON objects."""

    def tell(self, job: Job, row: SceneStatus, rows: Rows) -> None:
        emit({"event": "scene", "prompt": job.prompt, "seed": job.seed, "run_dir": job.folder, **vars(row)})

    def note(self, text: str) -> None:
        emit({"event": "note", "text": text})


@contextmanager
def watching(output: Output) -> Iterator[Any]:
    """The watcher of a batch for this output."""
    if output.as_json:
        yield Events(output.people)
    elif output.people.is_terminal:
        table = LiveTable(output.people)
        with table.live:
            yield table
    else:
        yield Lines(output.people)
