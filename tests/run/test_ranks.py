"""One scene on two processes: the same step, or two at once, and one end for all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks_worker import PROMPT, SEED, SIZE, start
from samples import Watch, lines, tiny_recipe

from fourdfy_cli import hybrid
from fourdfy_cli.errors import FAILURE, TERMINATED, USAGE, FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import launch, train
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import run_folder
from fourdfy_cli.store.lock import holder

pytestmark = pytest.mark.long

STAGES = ("stage1.pt", "stage2.pt", "stage3.pt")


def alone(out: Path) -> Path:
    """The run of a single process, without the video."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.render, "orbit", lambda scene, recipe, path: path)
        return train.run(PROMPT, tiny_recipe(), out, SEED, (1, 2, 3), None, Machine(), Watch()).run_dir


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return alone(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """Frames, views and poisoned numbers on two ranks, one after another."""
    out = tmp_path_factory.mktemp("together")
    assert start(out, "frames", "views", "poisoned") == [0, 0]
    return out


def ended(out: Path, name: str = "rank") -> list[dict]:
    return [json.loads((out / f"{name}{rank}.json").read_text()) for rank in range(SIZE)]


def apart(one: Path, other: Path, part: str) -> float:
    """Relative distance of what two checkpoints hold."""
    a, b = (torch.cat([v.double().flatten() for _, v in sorted(checkpoint.load(path)[part].items())]) for path in (one, other))
    return float((a - b).norm() / a.norm())


def same(one: Path, other: Path) -> None:
    """All stages of two runs end alike, to 1e-6 relative."""
    for stage in STAGES:
        assert apart(one / stage, other / stage, "scene") < 1e-6, stage
    assert apart(one / STAGES[2], other / STAGES[2], "lora") < 1e-6


def test_frames_end_as_a_single_process_does(single, together):
    same(single, run_folder(together / "frames", PROMPT, SEED))
    first, second = ended(together / "frames")
    assert first["code"] == second["code"] == 0 and first["digest"] == second["digest"]
    rows, others = lines(single), lines(run_folder(together / "frames", PROMPT, SEED))
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys() and row["branch"] == other["branch"]
        assert all(other[name] == pytest.approx(value, rel=1e-3) for name, value in row.items() if isinstance(value, float))


def test_views_are_two_batches_at_once(together, tmp_path, monkeypatch):
    """The oracle draws both ranks' views in one process; the run was stopped by a signal to the second rank, and went on."""
    step = hybrid.step

    def both(scene, guidances, context, chunks):
        outcomes = [step(scene, guidances, replace(context, rank=rank), chunks) for rank in range(SIZE)]
        parameters = [*scene.parameters(), *(guidances["image"].lora_unet.parameters() if "image" in guidances else ())]
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= SIZE
        return outcomes[0]

    monkeypatch.setattr(hybrid, "step", both)
    same(alone(tmp_path), run_folder(together / "views", PROMPT, SEED))
    assert [how["code"] for how in ended(together / "views", "stopped")] == [TERMINATED] * SIZE
    first, second = ended(together / "views")
    assert first["digest"] == second["digest"]
    monkeypatch.undo()
    with pytest.raises(FourdfyError, match="2 shots a step") as refused:
        alone(together / "views")
    assert refused.value.code == USAGE and "--distributed views --gpus 2" in refused.value.hint


def test_a_step_is_skipped_by_all_or_none(together):
    rows = lines(run_folder(together / "poisoned", PROMPT, SEED))
    assert [(row["stage"], row["step"]) for row in rows] == [(s, k) for s, n in ((1, 2), (2, 4), (3, 5)) for k in range(n)]
    assert [row["step"] for row in rows if "skipped" in row] == [0, 1, 2, 3]  # of stage 2; the fifth sent both back
    assert checkpoint.load(run_folder(together / "poisoned", PROMPT, SEED) / STAGES[2])["retries"] == 1
    first, second = ended(together / "poisoned")
    assert first["code"] == second["code"] == 0 and first["digest"] == second["digest"]


def test_a_killed_rank_ends_the_run_and_one_process_goes_on(single, tmp_path):
    assert start(tmp_path, "killed") == [0, -signal.SIGKILL]
    folder = run_folder(tmp_path / "killed", PROMPT, SEED)
    told = json.loads((tmp_path / "killed" / "rank0.json").read_text())
    assert told["code"] == FAILURE and "gone" in told["message"] and holder(folder) is None
    last = checkpoint.load(folder / "last.pt")
    assert (last["stage"], last["step"]) == (2, 2)
    same(single, alone(tmp_path / "killed"))


def scripts(monkeypatch, *codes: str) -> None:
    """Processes for `launch`: these programs instead of fourdfy's."""

    def start(args, rank, count, port):
        return subprocess.Popen([sys.executable, "-c", f"import os, signal, time\n{codes[rank]}"])

    monkeypatch.setattr(launch, "_start", start)
    monkeypatch.setattr(launch, "PATIENCE", 0.2)
    monkeypatch.setattr(launch, "GRACE", 0.5)


SLEEP, STUBBORN = "time.sleep(60)", "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.mark.parametrize("first", [SLEEP, STUBBORN])
def test_a_process_that_fails_takes_the_others_along(monkeypatch, first):
    scripts(monkeypatch, first, "raise SystemExit(3)", SLEEP)
    with pytest.raises(FourdfyError, match="process 1 of this run failed with exit code 3") as error:
        launch.launch([], 3, "fourdfy again")
    assert error.value.code == FAILURE and error.value.hint == "fourdfy again"


def test_the_first_process_has_the_last_word(monkeypatch):
    scripts(monkeypatch, "time.sleep(0.3); raise SystemExit(5)", "os.kill(os.getpid(), 9)")
    monkeypatch.setattr(launch, "PATIENCE", 30.0)
    assert launch.launch([], 2, "") == 5


def test_a_signal_reaches_every_process(monkeypatch, tmp_path):
    wait = "signal.signal(signal.SIGTERM, lambda *_: os._exit(143)); open({!r}, 'w').close(); time.sleep(60)"
    ready = [tmp_path / "0", tmp_path / "1"]
    scripts(monkeypatch, *(wait.format(str(path)) for path in ready))
    watch = launch._watch

    def signalled(processes):
        while not all(path.exists() for path in ready):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)
        return watch(processes)

    monkeypatch.setattr(launch, "_watch", signalled)
    before = signal.getsignal(signal.SIGTERM)
    assert launch.launch([], 2, "") == TERMINATED and signal.getsignal(signal.SIGTERM) is before
