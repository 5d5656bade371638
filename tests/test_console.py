"""What people and programs see: plain when piped, escaped, throttled."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from fourdfy_cli import console
from fourdfy_cli.errors import FourdfyError, typed


@dataclass
class Step:
    stage: int = 1
    step: int = 1
    steps: int = 100
    branch: str = "multiview"
    losses: dict[str, float] = field(default_factory=lambda: {"multiview": 0.25, "image": 1234567.0})
    rate: float = 3.21
    eta_stage: float = 61.0
    eta_total: float = 3725.0
    memory_mb: float = 812.4
    counts: dict[str, int] = field(default_factory=lambda: {"multiview": 7, "image": 2})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(width: int = 40) -> Console:
    return Console(file=io.StringIO(), width=width)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})


def text(target: Console) -> str:
    return target.file.getvalue()  # type: ignore[attr-defined]


def test_lines_are_sparse_and_whole():
    clock, target = Clock(), plain()
    lines = console.Lines(target, every=10.0, clock=clock)
    lines.start(1, (1, 2), 100, 0)
    for step in range(1, 101):
        clock.now = step * 0.5
        if step == 5:
            lines.saved(Path("last.pt"))
        lines.step(Step(step=step))
    printed = text(target).splitlines()
    assert printed[0] == "stage 1/3: 100 steps" and "\x1b" not in text(target)
    steps = [line for line in printed if " step " in line]
    assert [int(line.split("/")[1].split()[-1]) for line in steps] == [1, 21, 41, 61, 81, 100]
    assert steps[-1] == (
        "stage 1/3 step 100/100, 3.2 it/s, 1:01 left in the stage, 1:02:05 in all, loss multiview 0.25 image 1.235e+06, "
        "drawn multiview 7 image 2, 812 MB, checkpoint 48s old"
    )
    assert "no checkpoint yet" in steps[0]


def test_json_lines_are_throttled_to_two_a_second(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = console.JsonLines(clock=clock)
    lines.start(1, (1,), 100, 0)
    for step in range(1, 101):
        clock.now = step * 0.1
        lines.step(Step(step=step, losses={"image": math.nan}))
    lines.preview(Path("p.png"))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert 20 <= len(steps) <= 22 and steps[0]["step"] == 1 and steps[-1]["step"] == 100
    assert steps[0]["losses"] == {"image": None} and set(steps[0]) == {"event", *vars(Step())}
    assert events[0] == {"event": "start", "stage": 1, "stages": [1], "steps": 100, "done": 0}
    assert events[-1] == {"event": "preview", "path": "p.png"}


def test_live_shows_stage_speed_losses_and_age():
    clock, target = Clock(), terminal()
    with console.Live(target, clock) as live:
        live.start(2, (1, 2, 3), 100, 0)
        live.step(Step(stage=2, step=40))
        live.saved(Path("last.pt"))
        clock.now = 12.0
        sheet = Console(file=io.StringIO(), width=120)
        sheet.print(live.picture())
    seen = text(sheet)
    for part in (
        "stage 2/3",
        "40/100",
        "3.2 it/s",
        "1:01 left",
        "1:02:05 in all",
        "multiview 0.25",
        "multiview 7 image 2",
        "812 MB",
        "12s old",
    ):
        assert part in seen


@pytest.mark.parametrize("hostile", ["[bold]x[/bold]", "[/nonsense]", "\x1b[31mred", "a\x07b", "[link=http://x]y[/link]"])
def test_user_text_is_neither_markup_nor_command(hostile: str, capsys: pytest.CaptureFixture[str]):
    output = console.Output("generate")
    output.note(hostile)
    output.fail(FourdfyError(hostile, hostile, 2))
    output.finish({"prompt": hostile, "rows": [{hostile: hostile}], hostile: {"x": hostile}})
    captured = capsys.readouterr()
    shown = console.clean(hostile)
    assert "\x1b" not in captured.out + captured.err and "\x07" not in captured.out + captured.err
    assert captured.err.count(shown) == 3 and captured.out.count(shown) == 5


def test_error_is_one_line_and_one_hint(capsys: pytest.CaptureFixture[str]):
    code = console.Output("generate").fail(FourdfyError("it " + "very " * 60 + "failed\nbadly", "type this", 5))
    lines = capsys.readouterr().err.splitlines()
    assert code == 5 and len(lines) == 2
    assert lines[0].startswith("error: it very") and lines[0].endswith("failed badly") and lines[1] == "hint:  type this"


def test_a_name_with_two_spaces_or_a_line_end(capsys: pytest.CaptureFixture[str]):
    """A hint is to be pasted: its words stay as they are."""
    console.Output("info", as_json=True).fail(FourdfyError("a\nb is gone", typed("ls", "-l", "a  b")))
    said = capsys.readouterr()
    assert said.err.splitlines() == ["error: a b is gone", "hint:  ls -l 'a  b'"]
    assert json.loads(said.out)["error"] == {"code": 1, "message": "a b is gone", "hint": "ls -l 'a  b'"}


def test_envelopes(capsys: pytest.CaptureFixture[str]):
    output = console.Output("nano score", as_json=True)
    output.finish({"path": Path("x"), "iou": math.inf, "n": 3})
    output.fail(FourdfyError("no", "yes", 6))
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good["ok"] is True and good["error"] is None and good["data"] == {"path": "x", "iou": None, "n": 3}
    assert bad["ok"] is False and bad["error"] == {"code": 6, "message": "no", "hint": "yes"}
    assert set(good) == set(bad) == {"ok", "command", "version", "data", "error"} and good["command"] == "nano score"


def test_events_choose_by_where_they_go(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    with console.Output("x", as_json=True).events() as events:
        assert isinstance(events, console.JsonLines)
    with console.Output("x").events() as events:
        assert isinstance(events, console.Lines)
    output = console.Output("x")
    output.people = terminal()
    with output.events() as events:
        assert isinstance(events, console.Live)


def test_no_color(monkeypatch: pytest.MonkeyPatch):
    target = Console(file=io.StringIO(), force_terminal=True, _environ={"NO_COLOR": "1", "TERM": "xterm"})
    output = console.Output("x")
    output.people = target
    output.fail(FourdfyError("no", "yes", 2))
    assert "\x1b[31m" not in text(target) and "31m" not in text(target) and "36m" not in text(target)


def test_show_tables_and_scalars():
    target = plain(80)
    console.show(
        target,
        {"iou": 0.81234567, "ok": True, "video": None, "runs": [{"run": "a", "score": 31.5, "all": [1]}, {"run": "b", "score": 2.0}]},
    )
    seen = text(target)
    assert "iou    0.8123" in seen and "ok     yes" in seen and "video  -" in seen
    assert [line.split() for line in seen.splitlines()[-3:]] == [["run", "score"], ["a", "31.5"], ["b", "2"]]


@pytest.mark.parametrize(
    "seconds, shown", [(0.0, "0s"), (59.4, "59s"), (59.6, "1:00"), (3600.0, "1:00:00"), (math.inf, "?"), (None, "?"), (-3.0, "0s")]
)
def test_duration(seconds: float | None, shown: str):
    assert console.duration(seconds) == shown
