"""Whoever watches a run beside it can neither stop nor slow it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from samples import Watch, lines, tiny_recipe

from fourdfy_cli.memory import Machine
from fourdfy_cli.run import aside, train
from fourdfy_cli.run.progress import StepInfo

INFO = StepInfo(1, 1, 2, "image", {}, 1.0, 0.0, 0.0, 1.0, {})
quiet = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Python says nothing of a SystemExit


class Heard(Watch):
    """Keeps what it is told, and by which thread."""

    def __init__(self, breaks: bool = False):
        super().__init__()
        self.heard, self.breaks, self.thread = [], breaks, ""

    def step(self, info: StepInfo) -> None:
        self.thread = threading.current_thread().name
        if self.breaks:
            raise OSError("the disk is gone")
        self.heard.append(info)


def test_everything_arrives_in_order_in_another_thread():
    watcher, notes = Heard(), []
    beside = aside.Aside(watcher, notes.append)
    infos = [StepInfo(1, k, 9, "image", {}, 1.0, 0.0, 0.0, 1.0, {}) for k in range(500)]
    beside.start(1, (1, 2), 9, 0)
    for info in infos:
        beside.step(info)
    beside.close()
    assert watcher.heard == infos and watcher.seen == [(1, 0)] and watcher.thread == "watcher" and notes == []


@quiet
def test_a_mistake_is_told_once_and_the_run_is_the_same(tmp_path: Path):
    notes: list[str] = []
    broken = aside.Aside(Heard(breaks=True), notes.append)
    events = aside.Several([Watch(), broken])
    made = train.run("a red dog", tiny_recipe(), tmp_path / "a", 3, (1,), None, Machine(), events)
    broken.close()
    plain = train.run("a red dog", tiny_recipe(), tmp_path / "b", 3, (1,), None, Machine(), Watch())
    assert lines(made.run_dir) == lines(plain.run_dir)
    assert notes == ["heard stopped, the run goes on: OSError: the disk is gone"]


def test_a_watcher_that_hangs_costs_no_step_and_little_at_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(aside, "WAITING", 3)
    monkeypatch.setattr(aside, "GOODBYE", 0.05)
    go = threading.Event()

    class Hanging(Watch):
        def step(self, info: StepInfo) -> None:
            go.wait(60)
            self.steps += 1

    watcher = Hanging()
    beside = aside.Aside(watcher, lambda _: None)
    for _ in range(1000):
        beside.step(INFO)
    beside.close()
    assert beside.thread.is_alive() and beside.thread.daemon
    go.set()
    beside.thread.join(10)
    assert watcher.steps <= 4


def test_several_hear_the_same(tmp_path: Path):
    first, second = Watch(), Watch()
    both = aside.Several([first, second])
    train.run("a red dog", tiny_recipe(), tmp_path, 3, (1,), None, Machine(), both)
    assert first.steps == second.steps == 2 and first.seen == second.seen == [(1, 0)]
