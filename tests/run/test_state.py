"""What a run is, where it may go on from, what its folder says of it, and signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from faults import NAME, PROMPT, Silent, cheap, go, recipe

from fourdfy_cli import __version__, config
from fourdfy_cli.errors import DAMAGED, INTERRUPTED, STOPPED, USAGE, FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import state as module
from fourdfy_cli.run.signals import CODES, StopSignals
from fourdfy_cli.run.state import Run, continued, from_checkpoint, new_scene, opened, read_about, write_about
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import read_json, write_json

MACHINE = Machine(backend="torch")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to the end of stage 2."""
    with pytest.MonkeyPatch.context() as patch:
        cheap(patch.setattr)
        return go(tmp_path_factory.mktemp("made"), stages=(1, 2)).run_dir


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / NAME))


def run_at(folder: Path, stage: int = 1, step: int = 0) -> Run:
    return Run(PROMPT, recipe(), folder, 0, MACHINE, new_scene(recipe(), 0, MACHINE), stage, step)


def opening(folder: Path, prompt: str = PROMPT, seed: int = 0, wanted: config.Recipe | None = None) -> tuple[Run, list[str]]:
    notes: list[str] = []
    return opened(prompt, wanted or recipe(), folder.parent, seed, MACHINE, notes.append), notes


def refuses(code: int, *words: str):
    return pytest.raises(FourdfyError, match=".*".join(words)), code


def test_a_state_and_the_run_it_was_taken_from(tmp_path: Path):
    run = run_at(tmp_path, 2, 3)
    assert not set(run.state()) & set(checkpoint.COUNTS)
    run.lora, run.optimizer_state, run.retries, run.skipped, run.skipped_in_a_row = {"a": torch.ones(2)}, {"state": {}}, 1, 7, 2
    state = run.state()
    assert (state["prompt"], state["seed"], state["stage"], state["step"], state["models"]) == (PROMPT, 0, 2, 3, "nano")
    assert config.from_dict(state["recipe"]) == recipe() and (state["retries"], state["skipped"], state["skipped_in_a_row"]) == (1, 7, 2)
    checkpoint.save(tmp_path / "a.pt", state)
    again = from_checkpoint(checkpoint.load(tmp_path / "a.pt"), tmp_path, MACHINE)
    assert checkpoint.digest(again.state()) == checkpoint.digest(state) and again.folder == tmp_path and again.machine is MACHINE
    assert again.context() == module.StepContext(recipe(), 0, 2, 3, 1)
    assert (run.last, run.finished(2)) == (tmp_path / "last.pt", tmp_path / "stage2.pt")


def test_the_prompt_as_the_models_read_it(tmp_path: Path):
    run = run_at(tmp_path)
    run.prompt = "the red dog is jumping"
    assert run.text == "a red dog"  # nothing moves in stage 2
    run.stage = 3
    assert run.text == "a red dog jumping"
    run.recipe = config.override(recipe(), "models.set=paper")
    assert run.text == run.prompt


def test_a_new_folder_gives_a_new_run(tmp_path: Path):
    run, notes = opening(tmp_path / NAME)
    assert (run.stage, run.step, run.lora, run.optimizer_state, notes) == (1, 0, {}, None, [])
    fresh = new_scene(recipe(), 0, MACHINE).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in run.scene.state_dict().items())


def test_what_is_there_goes_on(folder: Path):
    run, notes = opening(folder)
    assert (run.stage, run.step, notes) == (2, 4, []) and run.folder == folder


@pytest.mark.parametrize("change", [{"prompt": "a blue cat"}, {"seed": 5}, {"format": 99}, {"recipe": {}}, {"stage": "x"}])
def test_a_checkpoint_is_believed_before_run_json(folder: Path, change: dict):
    write_json(folder / "run.json", (read_json(folder / "run.json") or {}) | change)
    assert opening(folder)[0].stage == 2


def test_another_runs_folder(folder: Path):
    for path in folder.glob("*.pt"):
        checkpoint.save(path, checkpoint.load(path) | {"seed": 4})
    with pytest.raises(FourdfyError, match="with seed 4, not 'a red dog jumping' with seed 0") as caught:
        opening(folder)
    assert caught.value.code == USAGE


def test_other_settings(folder: Path):
    for remove in ((), ("last.pt", "last.prev.pt", "stage1.pt", "stage2.pt")):
        for name in remove:
            (folder / name).unlink(missing_ok=True)
        with pytest.raises(FourdfyError, match=r"other settings: stage1.lr.static is .*, not 0.5") as caught:
            opening(folder, wanted=config.override(config.override(recipe(), "stage3.steps=9"), "stage1.lr.static=0.5"))
        assert caught.value.code == USAGE
        assert str(caught.value.hint).endswith(f"--set stage1.lr.static={recipe().stage1.lr.static} --set stage3.steps=3")
    write_json(folder / "run.json", (read_json(folder / "run.json") or {}) | {"prompt": "a blue cat"})
    with pytest.raises(FourdfyError, match="belongs to another prompt: 'a blue cat' with seed 0") as caught:
        opening(folder)
    assert caught.value.code == USAGE


@pytest.mark.parametrize("stage, step, noted", [(2, 4, True), (1, 1, True), (2, 0, True), (1, 0, False)])
def test_checkpoints_that_are_gone_are_missed(folder: Path, stage: int, step: int, noted: bool):
    for path in folder.glob("*.pt"):
        path.unlink()
    write_json(folder / "run.json", (read_json(folder / "run.json") or {}) | {"stage": stage, "step": step})
    run, notes = opening(folder)
    assert (run.stage, run.step) == (1, 0) and any("from step 0 again" in note for note in notes) == noted


ABOUT = {"format": 2, "prompt": PROMPT, "seed": 0, "recipe": None, "stage": 1, "step": 0}


@pytest.mark.parametrize(
    "change, known",
    [
        ({}, True),
        ({"format": 0}, False),
        ({"format": -1}, False),
        ({"format": "2"}, False),
        ({"format": True}, False),
        ({"prompt": None}, False),
        ({"seed": 0.5}, False),
        ({"stage": "1"}, False),
        ({"step": [1]}, False),
        ({"recipe": {"a": 1}}, False),
        ({"format": 1, "recipe": {"a": 1, "a.b": 2}}, False),
    ],
)
def test_what_run_json_tells(tmp_path: Path, change: dict, known: bool):
    about = ABOUT | {"recipe": config.to_dict(recipe())} | change
    write_json(tmp_path / "run.json", about)
    assert read_about(tmp_path / "run.json") == (about if known else None)
    assert read_about(tmp_path / "none.json") is None
    (tmp_path / "run.json").write_text(json.dumps(ABOUT | {"format": 1}).replace("null", '{"a":' * 600 + "1" + "}" * 600))
    assert read_about(tmp_path / "run.json") is None


def test_a_run_json_of_a_newer_version(tmp_path: Path):
    write_json(tmp_path / "run.json", ABOUT | {"recipe": {}, "format": 3})
    with pytest.raises(FourdfyError, match=r"newer fourdfy \(format 3\)") as caught:
        read_about(tmp_path / "run.json")
    assert caught.value.code == DAMAGED and "upgrade" in caught.value.hint


def test_where_a_stage_goes_on(folder: Path, tmp_path: Path):
    new = run_at(tmp_path / "new")
    third = continued(folder / "stage2.pt", new, 3)
    assert (third.stage, third.step, third.folder) == (2, 4, tmp_path / "new") and third.recipe is new.recipe
    second = continued(folder / "stage1.pt", new, 2)
    assert (second.stage, second.step) == (1, 3)
    inside = run_at(tmp_path / "new", 2, 1)
    assert continued(folder / "stage1.pt", inside, 2) is inside  # the folder's own is further on
    state = checkpoint.load(folder / "stage2.pt")
    checkpoint.save(tmp_path / "mid.pt", state | {"step": 1})
    assert continued(tmp_path / "mid.pt", inside, 2) is not inside and continued(tmp_path / "mid.pt", run_at(tmp_path, 2, 2), 2).step == 2
    assert continued(folder / "stage1.pt", run_at(tmp_path / "new", 2, 0), 2).stage == 1


def test_where_it_may_not(folder: Path, tmp_path: Path):
    new = run_at(tmp_path / "new")
    state = checkpoint.load(folder / "stage2.pt")
    checkpoint.save(tmp_path / "mid.pt", state | {"step": 1})
    checkpoint.save(tmp_path / "done.pt", state | {"stage": 3, "step": 3})
    for path, stage, words, hint in (
        (folder / "stage1.pt", 1, "from the end of stage 1, not what stage 1", "stage2"),
        (folder / "stage1.pt", 3, "from the end of stage 1, not what stage 3", "stage2"),
        (tmp_path / "mid.pt", 3, r"inside stage 2 \(step 1\)", "stage2"),
        (tmp_path / "done.pt", 3, "is a finished run", "render"),
    ):
        with pytest.raises(FourdfyError, match=words) as caught:
            continued(path, new, stage)
        assert caught.value.code == USAGE and f"fourdfy {hint}" in caught.value.hint
    there = run_at(folder)
    with pytest.raises(FourdfyError, match="stage2.pt exists already") as caught:
        continued(folder / "stage1.pt", there, 2)
    assert caught.value.code == USAGE


def test_what_run_json_says(tmp_path: Path):
    run = run_at(tmp_path, 2, 3)
    run.skipped = 4
    write_about(run, "failed", "a reason")
    about = read_json(tmp_path / "run.json") or {}
    assert about.pop("heartbeat") > 1.7e9 and about == {
        "format": 2, "prompt": PROMPT, "seed": 0, "status": "failed", "why": "a reason", "stage": 2, "step": 3, "skipped_steps": 4,
        "models": "nano", "versions": {"fourdfy": __version__, "torch": torch.__version__}, "recipe": config.to_dict(recipe()),
    }  # fmt: skip
    write_about(run, "done")
    assert "why" not in (read_json(tmp_path / "run.json") or {})


@pytest.fixture
def listening():
    before = {number: signal.signal(number, signal.default_int_handler) for number in CODES}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", list(CODES))
def test_a_signal_sets_a_flag(number: int, listening: dict):
    with StopSignals() as signals:
        assert signals.raised is None and not signals.leaving
        os.kill(os.getpid(), number)
        assert signals.raised == CODES[number] in STOPPED
        if number != signal.SIGINT:
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is signal.default_int_handler
    assert signals.stop("again").code == CODES[number] and signals.stop("again").hint == "again" and "saved" in signals.stop("x").message
    assert StopSignals().stop("x").code == INTERRUPTED


def test_a_second_ctrl_c_leaves_at_once_unless_it_is_leaving(listening: dict):
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        signals.leaving = True
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.raised == INTERRUPTED
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.raised == INTERRUPTED
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ignored_signals_and_other_threads(listening: dict, monkeypatch: pytest.MonkeyPatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and signal.SIGHUP not in signals.before and len(signals.before) == 4
    seen = []

    def elsewhere() -> None:
        with StopSignals() as signals:
            seen.append(signals.before)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [{}] and signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    real = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGUSR1 else real(number))  # set by a C library
    with StopSignals() as signals:
        assert signal.SIGUSR1 not in signals.before


def test_a_run_opened_twice_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cheap(monkeypatch.setattr)
    events = Silent()
    go(tmp_path, events=events, stages=(1,))
    go(tmp_path, events=events, stages=(1,))
    assert events.notes == []
