"""Damage of every file of a run, before every command that takes it: told in one line with a documented exit code, or without effect.

The sample of CI and the sweep (-m slow) differ in how many truncations and bit flips each pair of a file and a command gets.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import NAME, PROMPT, Silent, called, cheap, damages, go, recipe, rows
from reference_study import PROMPTS, key_file, sheet, write
from samples import film, isolated  # noqa: F401

from fourdfy_cli import presets
from fourdfy_cli.errors import OK, FourdfyError
from fourdfy_cli.evaluate import ablate, benchmark, truth
from fourdfy_cli.evaluate import score as clip_score
from fourdfy_cli.nano import renders
from fourdfy_cli.output import render
from fourdfy_cli.store import checkpoint, migrate
from fourdfy_cli.store.folder import read_json, write_json

pytestmark = pytest.mark.long

PART = float(os.environ.get("FOURDFY_SWEEP", 1))
CHECKPOINTS = ("last.pt", "last.prev.pt", "stage1.pt", "stage2.pt", "stage3.pt")
FIGURES = dict.fromkeys((*ablate.MEASURES, *benchmark.MEASURES, "clip", "flicker"), 0.5)


class Loaded(FourdfyError):
    """Raised where a command has all that it wants of its file: what comes then is not asked here. Its message is what was read."""


def loaded(scene: Any, *_: Any, **__: Any) -> Any:
    raise Loaded(f"read {checkpoint.digest({'scene': scene.state_dict()})}", "ls")


@pytest.fixture(autouse=True)
def after_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end where their file is read: no pictures, no CLIP, no models."""
    cheap(monkeypatch.setattr)
    monkeypatch.setitem(presets.PRESETS, "nano", recipe)
    monkeypatch.setattr(render, "views", loaded)
    monkeypatch.setattr(truth, "load_clip", lambda *_: None)
    monkeypatch.setattr(truth, "render_views", loaded)
    monkeypatch.setattr(
        clip_score, "_seen", lambda clip, found, *_: found[0].checkpoint and loaded(render.load_scene(found[0].checkpoint)[0])
    )
    monkeypatch.setattr(renders, "one", loaded)
    monkeypatch.setattr("fourdfy_cli.diffusion.models.load", lambda *_: type("Model", (), {"vae": None}))
    monkeypatch.setattr("fourdfy_cli.evaluate.limits.stage3", lambda begin, *_: loaded(render.build_scene(begin.state, Path())))
    monkeypatch.setattr(ablate, "judged", lambda *_: FIGURES)
    monkeypatch.setattr(ablate, "picture", lambda *_: None)
    monkeypatch.setattr(benchmark, "score", lambda *_: FIGURES)
    monkeypatch.setattr(benchmark, "picture", lambda *_: render.np.zeros((4, 4, 3), "uint8"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The folders of a finished run, of one cut in stage 2 and of another prompt's; beside each what else a user hands in."""
    with pytest.MonkeyPatch.context() as patch:
        cheap(patch.setattr)
        made = {name: tmp_path_factory.mktemp(name) for name in ("finished", "cut", "other")}
        go(made["finished"])
        with pytest.raises(FourdfyError, match="interrupted"):
            go(made["cut"], events=Stopping(5))
        shutil.copytree(made["finished"], made["other"], dirs_exist_ok=True)
        for path in made["other"].rglob("*.pt"):
            checkpoint.save(path, checkpoint.load(path) | {"prompt": "a blue cat"})
        yield made


class Stopping(Silent):
    """Ends a run after so many steps, as Ctrl-C does."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def step(self, info: Any) -> None:
        self.steps -= 1
        if not self.steps:
            os.kill(os.getpid(), signal.SIGINT)


@dataclass(frozen=True)
class Command:
    """A command line that reads `file` of a run (`state`: finished or cut); `after` tells what it left where that matters."""

    name: str
    args: list[str]
    state: str
    files: tuple[str, ...]
    ends: bool = False  # whether it goes on to the end of the run, which must then be the clean one's


GENERATE = ["generate", PROMPT, "--models", "nano", "--out", ".", "--backend", "torch"]
BESIDE = ("run.json", "metrics.jsonl")
OWN = (*CHECKPOINTS, *BESIDE, "run.lock")
WHOLE = ("another prompt's", "another stage's")  # shown as what it is, or gone on from: to the same end, but for lines of metrics
ROWS, ROWS_FILE = "ablation/full", "ablation/ablate.json"
SUMMED = (*OWN, ROWS_FILE, "bench.json", "key.json")  # what tells of a change by itself
COMMANDS = [
    Command("generate", GENERATE, "cut", ("last.pt", "last.prev.pt", "stage1.pt", *BESIDE, "run.lock"), True),
    Command("stage2", ["stage2", "--resume", f"{NAME}/last.pt", "--backend", "torch"], "cut", ("last.pt", "last.prev.pt", *BESIDE)),
    Command("stage2", ["stage2", "--resume", NAME, "--backend", "torch"], "cut", ("last.pt",)),
    Command("stage3", ["stage3", "--resume", f"{NAME}/stage2.pt", "--out", "new", "--backend", "torch"], "finished", ("stage2.pt",)),
    Command("render", ["render", NAME], "finished", CHECKPOINTS[:1]),
    Command("render", ["render", f"{NAME}/stage3.pt"], "finished", ("stage3.pt",)),
    Command("info", ["info", NAME], "finished", CHECKPOINTS[:2]),
    Command("info", ["info", f"{NAME}/stage1.pt"], "finished", ("stage1.pt",)),
    Command("verify", ["info", NAME, "--verify"], "finished", (*CHECKPOINTS, *BESIDE)),
    Command("verify", ["info", f"{NAME}/stage2.pt", "--verify"], "finished", ("stage2.pt",)),
    Command("clip-score", ["clip-score", NAME, "--clip", "nano"], "finished", ("last.pt", "run.json")),
    Command("nano score", ["nano", "score", NAME], "finished", ("last.pt",)),
    Command("nano score", ["nano", "score", f"{NAME}/stage3.pt"], "finished", ("stage3.pt",)),
    Command("nano limits", ["nano", "limits", NAME], "finished", ("stage2.pt",)),
    Command("nano renders", ["nano", "renders", NAME], "finished", ("stage3.pt", "stage2.pt")),
    Command("nano bench", ["nano", "bench", "prompts.txt", "--out", "."], "finished", ("last.pt", *BESIDE, "bench.json", "prompts.txt")),
    Command("ablate", ["ablate", "prompts.txt", "--models", "nano", "--rows", "full"], "finished", ("last.pt", "run.json", ROWS_FILE)),
    Command("path", ["render", NAME, "--path", "path.json", "--out", "p.mp4"], "finished", ("path.json",)),
    Command("settings", ["generate", PROMPT, "--dry-run"], "finished", ("fourdfy.toml",)),
    Command("study", ["study", "analyze", "key.json", "answers.json"], "finished", ("key.json", "answers.json")),
]  # fmt: skip


def laid(runs: dict[str, Path], command: Command) -> Path:
    """A fresh working folder for a command, the current one; returns that of its run."""
    here = Path.cwd()
    for path in here.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    run = here / (ROWS if command.name == "ablate" else ".") / NAME
    shutil.copytree(runs[command.state] / NAME, run)
    Path("prompts.txt").write_text(PROMPT + "\n")
    looks = {"azimuth": 0, "elevation": 15, "distance": 3, "fovy": 40, "time": 0}
    Path("path.json").write_text(json.dumps({"fps": 15, "size": 16, "frames": [looks]}))
    if command.name == "settings":
        Path("fourdfy.toml").write_text("seed = 3\n[set]\nframes = 8\nstage2.steps = 12\n")
    if command.name == "study":
        write(Path("answers.json"), sheet(key_file(Path("key.json"), {"x": list(PROMPTS), "y": list(PROMPTS)}), "anna", lambda *_: "ours"))
    digest = checkpoint.load(runs["finished"] / NAME / "stage3.pt")["digest"]
    for name, row in {"ablation/ablate.json": {"row": "full", "clip_model": "nano"}, "bench.json": {}}.items():
        if Path(name).parent.is_dir():
            write_json(Path(name), {"runs": [{"prompt": PROMPT, "digest": digest} | row | FIGURES]})
    return run


def spoiled(path: Path, runs: dict[str, Path], rng: random.Random, cuts: int, flips: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is done to a file: each damage by its name."""
    data = path.read_bytes() if path.exists() else b'{"pid": 1, "host": "elsewhere"}'
    for name, content in damages(data, rng, cuts, flips):
        yield name, lambda content=content: path.write_bytes(content)
    yield "a folder", lambda: (path.unlink(missing_ok=True), path.mkdir())
    yield "a link to itself", lambda: (path.unlink(missing_ok=True), path.symlink_to(path.name))
    yield "a link to nothing", lambda: (path.unlink(missing_ok=True), path.symlink_to("nothing"))
    if path.name in OWN:  # what is handed in may be a pipe
        yield "a pipe", lambda: (path.unlink(missing_ok=True), os.mkfifo(path))
    if path.name in CHECKPOINTS:
        yield "another prompt's", lambda: shutil.copy(runs["other"] / NAME / "stage3.pt", path)
        yield (
            "another stage's",
            lambda: shutil.copy(runs["finished"] / NAME / ("stage1.pt" if path.name == "stage2.pt" else "stage2.pt"), path),
        )
        yield "of the future", lambda: torch.save(checkpoint.load(path) | {"version": migrate.FORMAT + 1}, path)
    if path.name == "run.json":
        yield "another prompt's", lambda: write_json(path, (read_json(path) or {}) | {"prompt": "a blue cat"})
        for key, value in {"format": 3, "seed": "x", "stage": "x", "recipe": {"a": 1}, "prompt": ["x"], "step": 1e99}.items():
            yield f"{key} {value}", lambda key=key, value=value: write_json(path, (read_json(path) or {}) | {key: value})


def outcome(command: Command, run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any, bool]:
    """Exit code, what was read or made, and whether damage was told of."""
    code, envelope = called(command.args, capsys)
    aloud = any(words in envelope["said"] for words in ("is used instead", "could not be read", "has lost lines"))
    if command.ends and code == OK:
        return code, end(run, aloud), aloud
    if code == OK and "seconds" in envelope["data"]:
        return code, checkpoint.load(Path(envelope["data"]["checkpoint"]))["digest"], aloud
    said = {**envelope["data"], "bytes": None} if code == OK else envelope["error"]["message"]  # its size may be that of what was damaged
    return code, json.dumps(said, sort_keys=True) if code == OK or said.startswith("read ") else None, aloud


def end(run: Path, aloud: bool) -> tuple[str, Any]:
    """What a run that went on must have come to; the metrics that it was told are lost do not count."""
    return checkpoint.load(run / "stage3.pt")["digest"], None if aloud else rows(run)


def sweep(runs: dict[str, Path], command: Command, cuts: int, flips: int, most: int, capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    """Every damage of every file (or at most so many) before one command; counts what became of it."""
    counts: Counter[str] = Counter()
    good = outcome(command, laid(runs, command), capsys)
    wanted = end(runs["finished"] / NAME, False) if command.ends else good[1]
    assert good[0] == OK or str(good[1]).startswith('"read '), good
    for file in command.files:
        path = laid(runs, command) / file if file in OWN else Path(file).absolute()
        rng = random.Random(f"{command.args}{file}")
        every = list(spoiled(path, runs, rng, cuts, flips))
        for name, spoil in rng.sample(every, min(most, len(every))):
            run = laid(runs, command)
            spoil()
            found = outcome(command, run, capsys)
            become = "harmless" if found[1] == wanted else "told" if found[0] != OK or found[2] else "other"
            assert not command.ends or found[0] != OK or found[1][0] == wanted[0], (command.name, file, name)
            assert become != "other" or file not in SUMMED or name in WHOLE, (command.name, file, name, found)
            counts[become] += 1
    return counts


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.name}-{command.files[0]}")
def test_a_sample(command: Command, runs: dict[str, Path], capsys: pytest.CaptureFixture[str], isolated: Path):  # noqa: F811
    assert sweep(runs, command, 2, 4, 2, capsys).total() == 2 * len(command.files)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.name}-{command.files[0]}")
def test_every_file(command: Command, runs: dict[str, Path], capsys: pytest.CaptureFixture[str], isolated: Path):  # noqa: F811
    """100 truncations and 500 flips for each pair; FOURDFY_SWEEP is a part of them. What became of them is printed."""
    counts = sweep(runs, command, max(1, round(100 * PART)), max(1, round(500 * PART)), 10**6, capsys)
    with capsys.disabled():
        print(f"\n{command.name}, {', '.join(command.files)}: {counts.total()} damages, {dict(counts)}", end="", flush=True)
