"""A run that dies at any moment: what lies there is whole, nothing is lost, the next start goes on, and the end is the same."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import cheap, damaged, ended, folder_of, forked, go, place, result

from fourdfy_cli.run import keeper
from fourdfy_cli.store import checkpoint, folder
from fourdfy_cli.store.folder import read_json

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def cheap_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap(monkeypatch.setattr)


@pytest.fixture
def clean(tmp_path: Path) -> tuple[tuple, float]:
    """What an uncut run leaves, and how long a process takes for it."""
    go(tmp_path / "first")  # loads what is loaded when it is needed, for all the processes that follow
    began = time.monotonic()
    assert ended(forked(lambda: go(tmp_path / "clean"))) == 0
    return result(folder_of(tmp_path / "clean")), time.monotonic() - began


def whole(run: Path) -> bool:
    """Whether all that lies in a run folder can be read; no checkpoint yet is fine."""
    return not damaged(run) and read_json(run / "run.json") is not None


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_9_at_random_times(tmp_path: Path, clean: tuple[tuple, float], kills: int, capsys: pytest.CaptureFixture[str]):
    rng, wanted, seconds, killed, finished, attempt = random.Random(kills), *clean, 0, 0, 0
    while killed < kills:
        out, before = tmp_path / f"run{finished}", (1, 0)
        while True:
            attempt += 1
            child = forked(lambda out=out: go(out))
            time.sleep(rng.uniform(0, 0.6 * seconds))
            os.kill(child, signal.SIGKILL)
            code = ended(child)
            assert code in (0, -signal.SIGKILL), f"resume {attempt} ended with {code}"
            run = folder_of(out)
            if run.exists() and (run / "run.json").exists():
                assert whole(run) and place(run) >= before, f"after kill {killed}"
                before = place(run)
            if code == 0:
                break
            killed += 1
        assert result(folder_of(out)) == wanted and not [path for path in folder_of(out).rglob(".*")]
        finished += 1
    with capsys.disabled():
        print(f"\n{killed} kills, 0 unreadable, 0 lost, {attempt} starts, {finished} runs ended with the clean run's digests")


class Deadly:
    """Counts the calls that write, sync, name and remove files, and ends the process at the one of a number, before or after it."""

    def __init__(self, at: int = 0, late: bool = False):
        self.at, self.late, self.count = at, late, 0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            mine = self.count == self.at
            if mine and not self.late:
                os._exit(9)
            try:
                return function(*args, **kwargs)
            finally:
                if mine:
                    os._exit(9)

        return called

    def install(self) -> None:
        for name in ("fsync", "replace", "rename", "link", "unlink", "open", "mkdir"):
            setattr(os, name, self(getattr(os, name)))
        torch.save = self(torch.save)
        checkpoint._Sink.write = half(self, checkpoint._Sink.write)
        Path.write_text, Path.write_bytes = half(self, Path.write_text), half(self, Path.write_bytes)
        json.dump = self(json.dump)
        folder.Metrics.write = self(folder.Metrics.write)


def half(deadly: Deadly, write: Callable[..., Any]) -> Callable[..., Any]:
    """A write that, where it is the last, brings only half of its bytes to the disk."""

    def written(target: Any, data: Any, **kwargs: Any) -> Any:
        deadly.count += 1
        if deadly.count != deadly.at:
            return write(target, data, **kwargs)
        write(target, data[: len(data) // 2], **kwargs)
        getattr(target, "flush", lambda: None)()
        os._exit(9)

    return written


def calls(out: Path) -> int:
    """How many calls a run makes that a process may die at."""
    deadly = Deadly()

    def work() -> None:
        deadly.install()
        go(out)
        (out / "count").write_text(str(deadly.count))

    assert ended(forked(work)) == 0
    return int((out / "count").read_text())


@pytest.mark.parametrize("tries", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_death_at_every_write_sync_and_rename(
    tmp_path: Path, clean: tuple[tuple, float], tries: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Of checkpoints, run.json, metrics.jsonl and the lock: the old state or the new one, and the next start ends as if nothing was."""
    monkeypatch.setattr(keeper, "HEARTBEAT", 0.0)  # at every step: however slow a run is, its calls are as many
    total, rng = calls(tmp_path / "count"), random.Random(tries)
    chosen = sorted(rng.sample(range(1, total + 1), min(tries, total)))

    def dies(out: Path, at: int) -> None:
        Deadly(at, late=at % 2 == 0).install()
        go(out)

    for at in chosen:
        out = tmp_path / str(at)
        assert ended(forked(lambda out=out, at=at: dies(out, at))) == 9, at
        run, before = folder_of(out), (1, 0)
        if run.exists():
            assert not (run / "run.json").exists() or whole(run), at
            before = place(run)
            assert json.loads((run / "run.lock").read_text()) if (run / "run.lock").exists() else True
        assert ended(forked(lambda out=out: go(out))) == 0, at
        assert result(run) == clean[0] and before <= place(run) and not list(run.rglob(".*")), at
    with capsys.disabled():
        print(f"\ndied at {len(chosen)} of {total} calls: old state or new, every resume ended with the clean run's digests")
