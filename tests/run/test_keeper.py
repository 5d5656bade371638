"""Checkpoints from strangers, and what a run does when something goes wrong: nothing is used unchecked, nothing is lost unsaid."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from samples import Watch, tiny_recipe

from fourdfy_cli import hybrid
from fourdfy_cli.errors import DAMAGED, FAILURE, STOPPED, USAGE, FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.output import render
from fourdfy_cli.run import train
from fourdfy_cli.run.signals import CODES, StopSignals
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import read_json, run_folder

PROMPT = "a red dog jumping"


class Notes(Watch):
    """Events that remember the notes."""

    def __init__(self, *args):
        super().__init__(*args)
        self.notes: list[str] = []

    def note(self, text):
        self.notes.append(text)


def go(out: Path, events: Watch | None = None, prompt: str = PROMPT, seed: int = 0, stages=(1,), recipe=None):
    return train.run(prompt, recipe or tiny_recipe(), out, seed, stages, None, Machine(), events or Watch())


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped")
    with pytest.raises(FourdfyError):
        go(out, Watch(4), stages=(1, 2))
    return run_folder(out, PROMPT, 0)


@pytest.fixture
def stopped(once: Path, tmp_path: Path) -> Path:
    """A run's folder, stopped inside stage 2: last.pt holds an optimizer's moments."""
    return Path(shutil.copytree(once, tmp_path / once.name))


def change(path: Path, edit) -> None:
    state = checkpoint.load(path)
    edit(state)
    checkpoint.save(path, state)  # with a digest that is right


def moments(state: dict, name: str, value) -> None:
    next(iter(state["optimizer"]["state"].values()))[name] = value


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: moments(s, "exp_avg", torch.zeros(3)),
        lambda s: moments(s, "exp_avg_sq", torch.zeros(1, dtype=torch.float64)),
        lambda s: moments(s, "step", torch.zeros(7)),
        lambda s: moments(s, "exp_avg", 5),
        lambda s: s["optimizer"]["state"].update({99: {}}),
        lambda s: s["optimizer"].update({"state": [1]}),
        lambda s: s["scene"].update({"blob_std": torch.zeros(4)}),
        lambda s: s["scene"].update({"occupancy.binary": s["scene"]["occupancy.value"]}),
        lambda s: s["scene"].update({"more": torch.zeros(1)}),
        lambda s: s["scene"].pop("field.static.table"),
        lambda s: s["recipe"]["field"]["static"].update({"levels": 3}),
    ],
)
def test_tensors_that_do_not_fit_the_recipe(stopped: Path, edit):
    for name in ("last.prev.pt", "stage1.pt"):
        (stopped / name).unlink(missing_ok=True)
    change(stopped / "last.pt", edit)
    (stopped / "run.json").unlink()
    with pytest.raises(FourdfyError) as caught:
        go(stopped.parent, stages=(1, 2))
    assert caught.value.code in (DAMAGED, USAGE) and "\n" not in caught.value.message


def test_an_expanded_tensor_is_refused(tmp_path: Path, stopped: Path):
    state = checkpoint.load(stopped / "stage1.pt")
    torch.save(state | {"scene": {"field.static.table": torch.zeros(1).expand(2**32)}}, tmp_path / "a.pt")
    with pytest.raises(FourdfyError, match="larger than what is stored") as caught:
        checkpoint.load(tmp_path / "a.pt")
    assert caught.value.code == DAMAGED


def test_the_furthest_whole_checkpoint_is_used(stopped: Path):
    for path in stopped.glob("last*.pt"):
        path.unlink()
    (stopped / "run.json").write_text("")
    watch = Watch()
    go(stopped.parent, watch, stages=(1, 2))
    assert watch.seen == [(2, 0)]  # from stage1.pt on


def test_a_damaged_one_is_set_aside_and_told_of(stopped: Path):
    data = bytearray((stopped / "last.pt").read_bytes())
    data[len(data) // 2] ^= 4
    (stopped / "last.pt").write_bytes(data)
    good = (stopped / "last.prev.pt").read_bytes() if (stopped / "last.prev.pt").exists() else None
    notes = Notes(1)
    with pytest.raises(FourdfyError):
        go(stopped.parent, notes, stages=(1, 2))
    assert any("set aside as last.damaged-1" in note for note in notes.notes) and (stopped / "last.damaged-1").read_bytes() == data
    assert good is None or good in [path.read_bytes() for path in stopped.glob("last*.pt")]


def test_a_strangers_checkpoint_names_both(tmp_path: Path, stopped: Path):
    go(tmp_path, prompt="a green cat walking")
    cat = run_folder(tmp_path, "a green cat walking", 0)
    (stopped / "last.pt").write_bytes((cat / "stage1.pt").read_bytes())
    for name in ("last.prev.pt", "stage1.pt", "run.json"):
        (stopped / name).unlink(missing_ok=True)
    with pytest.raises(FourdfyError, match="'a green cat walking' with seed 0, not 'a red dog jumping'") as caught:
        go(tmp_path)
    assert caught.value.code == USAGE


@pytest.fixture
def listening():
    """No signal is ignored, as SIGHUP is under nohup."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", list(CODES))
def test_every_signal_saves_and_tells_its_code(tmp_path: Path, number: int, listening: None):
    with pytest.raises(FourdfyError) as caught:
        go(tmp_path, Watch(1, number))
    assert caught.value.code == CODES[number] and caught.value.code in STOPPED
    folder = run_folder(tmp_path, PROMPT, 0)
    assert checkpoint.load(folder / "last.pt")["step"] == 1 and read_json(folder / "run.json")["status"] == "interrupted"
    assert not (folder / "run.lock").exists()


def test_a_second_ctrl_c_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.raised == 130
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_can_be_saved_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, calls = hybrid.step, []

    def fails(*args):
        calls.append(1)
        if len(calls) == 2:
            raise FourdfyError("something broke", "ls", FAILURE)
        return real(*args)

    monkeypatch.setattr(hybrid, "step", fails)
    with pytest.raises(FourdfyError, match="something broke"):
        go(tmp_path)
    folder = run_folder(tmp_path, PROMPT, 0)
    about = read_json(folder / "run.json")
    assert checkpoint.load(folder / "last.pt")["step"] == 1 and (about["status"], about["why"]) == ("failed", "something broke")


def test_a_folder_that_vanishes_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = run_folder(tmp_path, PROMPT, 0)

    class Vanish(Watch):
        def step(self, info):
            super().step(info)
            if self.steps == 1:
                folder.rename(tmp_path / "elsewhere")

    with pytest.raises(FourdfyError, match="is gone") as caught:
        go(tmp_path, Vanish())
    assert caught.value.code == FAILURE and not folder.exists()


def test_four_bad_steps_on_each_side_of_a_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Five in a row, though no stage has more than four; the run goes back, and ends well."""
    real, seen = hybrid.step, []

    def poisoned(scene, guidances, context, chunks):
        seen.append((context.stage, context.step, context.retry))
        outcome = real(scene, guidances, context, chunks)
        if context.retry == 0 and (context.stage, context.step) >= (1, 2) and (context.stage, context.step) < (2, 3):
            outcome.losses["bad"] = float("nan")
        return outcome

    tiny = tiny_recipe()
    recipe = dataclasses.replace(tiny, stage1=dataclasses.replace(tiny.stage1, steps=5), stage2=dataclasses.replace(tiny.stage2, steps=4))
    monkeypatch.setattr(hybrid, "step", poisoned)
    notes = Notes()
    result = go(tmp_path, notes, stages=(1, 2), recipe=recipe)
    assert max(retry for *_, retry in seen) == 1 and any("back to step 0 of stage 2" in note for note in notes.notes)
    about = read_json(result.run_dir / "run.json")
    assert about["skipped_steps"] == 5 and checkpoint.load(result.checkpoint)["retries"] == 1
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in rows] == [(1, k) for k in range(5)] + [(2, k) for k in range(4)]
    assert [r["step"] for r in rows if r.get("skipped")] == [2, 3, 4]


def test_a_scene_from_a_stranger_is_compared_before_memory_is_taken(tmp_path: Path, stopped: Path):
    change(
        stopped / "stage1.pt",
        lambda s: s["recipe"]["field"]["static"].update({"log2_table": 24, "levels": 32, "features": 32, "growth": 8.0}),
    )
    with pytest.raises(FourdfyError) as caught:
        render.load_scene(stopped / "stage1.pt")
    assert caught.value.code in (DAMAGED, USAGE)
