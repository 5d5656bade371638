"""However a run is cut, it ends as if it had not been: digests and metrics, without a gap or a double. And it costs no more as it lasts."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import NAME, PROMPT, TYPED, Silent, cheap, ended, folder_of, forked, go, process, recipe, result
from samples import tiny_recipe
from scipy.stats import theilslopes

from fourdfy_cli import config, presets
from fourdfy_cli.errors import STOPPED, FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.output import render
from fourdfy_cli.run import keeper, train
from fourdfy_cli.run.signals import CODES
from fourdfy_cli.run.state import new_scene
from fourdfy_cli.store import checkpoint

pytestmark = pytest.mark.long

STEPS = {1: 3, 2: 4, 3: 3}
BORDER = {1: 0, 2: 3, 3: 7}  # steps before each stage
CUTS = sorted({BORDER[s] + k for s, n in STEPS.items() for k in (1, n // 2, n - 1, n)})


class Cut(Silent):
    """A signal after so many steps."""

    def __init__(self, steps: int, number: int):
        super().__init__()
        self.left, self.number = steps, number

    def step(self, info: Any) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch):
    """Cheap steps, and no signal ignored (as SIGHUP is under nohup)."""
    cheap(monkeypatch.setattr)
    before = {number: signal.signal(number, signal.default_int_handler) for number in CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_cut_at_the_first_the_middle_the_last_but_one_and_the_last_step_of_each_stage(tmp_path: Path, listening: None):
    go(tmp_path / "clean")
    right = result(folder_of(tmp_path / "clean"))
    for saving in ("save_minutes=0", "save_minutes=5"):  # saved at every step, or when it is stopped alone
        for cut in CUTS:
            out, number = tmp_path / f"{saving}{cut}", list(CODES)[cut % len(CODES)]
            with pytest.raises(FourdfyError) as caught:
                go(out, recipe(saving), Cut(cut, number))
            assert caught.value.code == CODES[number]
            go(out, recipe(saving))
            assert result_but_recipe(folder_of(out)) == result_but_recipe(folder_of(tmp_path / "clean")), (saving, cut)
    assert result(folder_of(tmp_path / f"save_minutes=0{CUTS[0]}")) == right


def result_but_recipe(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    states = [checkpoint.load(folder / f"stage{stage}.pt") for stage in (1, 2, 3)]
    return [checkpoint.digest(state | {"recipe": {}}) for state in states], result(folder)[1]


def test_five_random_signals_from_outside(tmp_path: Path, listening: None):
    """Processes that are told to stop at any moment; one that does not listen yet has done nothing."""
    slow = recipe("stage1.steps=10", "stage2.steps=12", "stage3.steps=10")
    go(tmp_path / "clean", slow)
    rng, codes = random.Random(5), []
    while len(codes) < 5:
        child = forked(lambda: go(tmp_path / "cut", slow))
        time.sleep(rng.uniform(0.05, 0.4))
        number = rng.choice(list(CODES))
        os.kill(child, number)
        code = ended(child)
        assert code in (0, CODES[number], -number, 130)
        codes.append(code)
    go(tmp_path / "cut", slow)
    assert result(folder_of(tmp_path / "cut")) == result(folder_of(tmp_path / "clean"))


@pytest.mark.slow
def test_five_random_signals_of_the_real_command(tmp_path: Path):
    line = ["generate", PROMPT, "--models", "nano", *TYPED, "--set", "stage3.steps=6"]
    clean = process([*line, "--out", "clean"], tmp_path)
    assert clean.communicate()[0] is not None and clean.returncode == 0
    rng, codes = random.Random(1), []
    while len(codes) < 5:
        child = process([*line, "--out", "cut", "--json"], tmp_path)
        assert child.stdout
        for _ in range(rng.randrange(2, 6)):
            child.stdout.readline()
        number = rng.choice(list(CODES))
        child.send_signal(number)
        child.communicate()
        assert child.returncode in (0, CODES[number])
        codes.append(child.returncode)
    assert process([*line, "--out", "cut"], tmp_path).wait() == 0 and set(codes) & set(STOPPED)
    assert result(tmp_path / "cut" / NAME) == result(tmp_path / "clean" / NAME)


class Growth(Silent):
    """Memory (MB), open files and threads at every tenth step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, int, int]] = []

    def step(self, info: Any) -> None:
        if info.step % 10:
            return
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        self.seen.append((resident, len(os.listdir("/proc/self/fd")), threading.active_count()))


def grown(events: Growth) -> tuple[float, int, int]:
    """MB per 100 steps after the first third, and how many more files and threads there are. The slope is the median over pairs (Theil and
    Sen's), which what is freed again does not move."""
    later = events.seen[len(events.seen) // 3 :]
    slope = theilslopes([memory for memory, *_ in later])[0]
    return 10 * slope, later[-1][1] - later[0][1], later[-1][2] - later[0][2]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["drawn steps", "real steps"])
def test_300_steps_take_no_more_and_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: bool, capsys: pytest.CaptureFixture[str]):
    """300 steps, 5 previews, 3 saves."""
    if not real:
        preview = keeper.preview
        cheap(monkeypatch.setattr)
        monkeypatch.setattr(keeper, "preview", preview)
    more = ("stage1.steps=300", "preview_every=75", "save_minutes=5")
    tiny = tiny_recipe() if real else recipe()
    for setting in more:
        tiny = config.override(tiny, setting)
    events, saves = Growth(), []

    def maybe(keeper: Any, stop: bool) -> None:
        if keeper.current.step in (90, 180, 270):
            keeper.save()
            saves.append(keeper.current.step)

    monkeypatch.setattr("fourdfy_cli.run.keeper.Keeper.maybe", maybe)
    train.run(PROMPT, tiny, tmp_path, 0, (1,), None, Machine(backend="torch"), events)
    slope, files, threads = grown(events)
    with capsys.disabled():
        print(
            f"\n300 {'real' if real else 'drawn'} steps, {len(saves)} saves: {slope:.2f} MB per 100 steps, {files} files, {threads} threads"
        )
    assert slope < 1 and files == 0 and threads == 0 and len(saves) == 3


@pytest.mark.slow
def test_what_saving_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A scene of the paper's size with its optimizer's moments, saved every 5 minutes: at most 1 % of the time."""
    paper = presets.paper()
    scene = new_scene(paper, 0, Machine(backend="torch"))
    values = {name: value.detach() for name, value in scene.state_dict().items()}
    moments = {k: {"step": torch.tensor(1.0), "exp_avg": v, "exp_avg_sq": v} for k, v in enumerate(scene.parameters())}
    moments = {k: {name: v.detach() for name, v in one.items()} for k, one in moments.items()}
    state = {"prompt": "x", "seed": 0, "recipe": json.loads("{}"), "stage": 3, "step": 1, "scene": values, "lora": {}, "optimizer": moments}
    began = time.process_time()
    checkpoint.save_last(tmp_path, state)
    seconds, size = time.process_time() - began, (tmp_path / "last.pt").stat().st_size / 1e6
    share = seconds / (60 * paper.save_minutes)
    with capsys.disabled():
        print(f"\n{size:.0f} MB in {seconds:.1f} s of a processor: {100 * share:.2f} % at every {paper.save_minutes:g} minutes")
    assert share <= 0.01 and render.locate(tmp_path).name == "last.pt"
