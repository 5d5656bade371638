"""Processors that a process may use: affinity, quota, others; and the option that says how many."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from samples import Watch, tiny_recipe

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import processors, train
from fourdfy_cli.store import checkpoint


def groups(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    "files, wanted",
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"pod/cpu.max": "400000 100000\n", "pod/one/cpu.max": "max 100000\n"}, 4),
        ({"pod/cpu.max": "400000 100000\n", "pod/one/cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu/pod/one/cpu.cfs_quota_us": "300000\n", "cpu/pod/one/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu.max": "lots of it"}, math.inf),
        ({"cpu.max": "100000 0"}, math.inf),
        ({"cpu.max": ""}, math.inf),
    ],
)
def test_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], wanted: float):
    monkeypatch.setattr(processors, "CGROUPS", groups(tmp_path, files))
    inside = [tmp_path, tmp_path / "pod/one", tmp_path / "pod", tmp_path / "cpu", tmp_path / "cpu/pod/one"]
    monkeypatch.setattr(processors, "_groups", lambda: inside)
    assert processors.quota() == wanted
    assert processors.allowed() == max(1, min(len(os.sched_getaffinity(0)), math.floor(min(wanted, 1e9))))


def test_the_groups_of_a_process_and_those_around_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processors, "CGROUPS", tmp_path)
    monkeypatch.setattr(processors, "_text", lambda path: "0::/pod/one\n4:memory:/else\n3:cpu,cpuacct:/two\nnonsense\n")
    found = processors._groups()
    assert {tmp_path / "pod/one", tmp_path / "pod", tmp_path / "cpu/two", tmp_path} <= set(found)
    assert not any("else" in str(path) for path in found) and tmp_path.parent not in found


def test_affinity_counts():
    told = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from fourdfy_cli.run import processors; print(processors.allowed())"
    )
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.strip() == "1"


def counters(monkeypatch: pytest.MonkeyPatch, *now: tuple[float, float, float]) -> processors.Crowd:
    times = iter(now)
    monkeypatch.setattr(processors.Crowd, "_now", staticmethod(lambda: next(times)))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(processors, "allowed", lambda: 4)
    return processors.Crowd()


def test_others_are_what_is_busy_without_us(monkeypatch: pytest.MonkeyPatch):
    crowd = counters(monkeypatch, (0, 100, 10), (10, 130, 20), (20, 140, 30), (30, 200, 30))
    assert [crowd.spare() for _ in range(3)] == [2, 4, 1]  # two busy beside us, nobody, six


def test_without_counters_the_load_average_tells(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (2.6, 0, 0))
    assert counters(monkeypatch, (0, math.nan, 0), (1, math.nan, 1)).spare() == 1


def test_the_counters_of_this_machine_go_up():
    first = processors.Crowd._now()
    sum(range(3_000_000))
    assert all(b >= a or math.isnan(b) for a, b in zip(first, processors.Crowd._now(), strict=True))


def test_each_stage_asks_how_many(tmp_path: Path):
    before, asked = torch.get_num_threads(), []

    def threads() -> int:
        asked.append(1)
        return 1

    try:
        train.run("a red dog", tiny_recipe(), tmp_path, 0, (1, 2), None, Machine(threads=threads), Watch())
        assert asked == [1, 1] and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


class Notes(Watch):
    """What a run computes with at each step of a stage, and what it notes."""

    def __init__(self, stop_after: int | None = None):
        super().__init__(stop_after)
        self.counts: list[tuple[int, int]] = []
        self.notes: list[str] = []

    def step(self, info):
        self.counts.append((info.stage, torch.get_num_threads()))
        super().step(info)

    def note(self, text):
        self.notes.append(text)


def test_a_stage_that_was_cut_goes_on_with_its_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Cut in stages 1 and 2, each time with another number of threads to spare; in tiny recipes they have 2 and 4 steps."""
    monkeypatch.setattr(train, "allowed", lambda: 2)
    before, parts = torch.get_num_threads(), []
    try:
        for spare, cut in ((2, 1), (1, 2), (2, None)):
            parts.append(Notes(cut))
            with contextlib.suppress(FourdfyError):
                machine = Machine(threads=lambda spare=spare: spare)
                train.run("a red dog", tiny_recipe(), tmp_path, 0, (1, 2), None, machine, parts[-1])
            last = checkpoint.load(next(tmp_path.glob("*/last.pt")))
            assert last.get("threads") == (parts[-1].counts[-1][1] if cut else None)
    finally:
        torch.set_num_threads(before)
    assert [part.counts for part in parts] == [[(1, 2)], [(1, 2), (2, 1)], [(2, 1)] * 3]
    told = [[note for note in part.notes if "--threads" in note] for part in parts]
    assert [len(notes) for notes in told] == [0, 1, 1]
    assert "stage 1 goes on with 2 " in told[1][0] and "stage 2 goes on with 1 " in told[2][0]


@pytest.mark.parametrize(
    "told, told_by_environment", [(["--threads", "1"], {}), ([], {"FOURDFY_THREADS": "1"}), ([], {"OMP_NUM_THREADS": "1"})]
)
def test_the_number_is_heard_before_torch_is_loaded(told: list[str], told_by_environment: dict[str, str]):
    code = (
        "import sys, os; from fourdfy_cli.cli import main\n"
        "main.run(['info', 'nowhere.pt', *sys.argv[1:]]); import torch\n"
        "print('threads', torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    )
    clean = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    ended = subprocess.run([sys.executable, "-c", code, *told], capture_output=True, text=True, check=True, env=clean | told_by_environment)
    assert ended.stdout.splitlines()[-1] == "threads 1 1"


@pytest.mark.parametrize("told", ["0", "-1", "many", "1e3", "99999"])
def test_bad_counts(told: str):
    ended = subprocess.run([sys.executable, "-m", "fourdfy_cli", "info", "x.pt", "--threads", told], capture_output=True, text=True)
    assert ended.returncode == 2 and "--threads" in ended.stderr and "Traceback" not in ended.stderr


def test_a_quota_is_no_number_that_was_told(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert processors.limit(None) and os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(processors, "allowed", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    try:
        assert not processors.limit(None) and os.environ["OMP_NUM_THREADS"] == "1" and torch.get_num_threads() == 1
        assert processors.limit(2) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
