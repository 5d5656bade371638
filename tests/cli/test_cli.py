"""The command line: what is passed on, what is refused, where words go, and how fast help is."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from samples import TINY, decode, fails, isolated, save  # noqa: F401

from fourdfy_cli import __version__, config, presets
from fourdfy_cli.cli import main
from fourdfy_cli.errors import DAMAGED, ENVIRONMENT, FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import api
from fourdfy_cli.run import train as library
from fourdfy_cli.store.folder import run_folder

DOG = "a red dog jumping"


class Train:
    """Stands in for the run itself, and remembers what it was asked to do."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.error: BaseException | None = None

    def __call__(self, prompt, recipe, out, seed, stages, resume, machine, events):
        self.calls.append(
            {"prompt": prompt, "recipe": recipe, "out": out, "seed": seed, "stages": stages, "resume": resume, "machine": machine}
        )
        if self.error:
            raise self.error
        events.start(stages[0], stages, 10, 0)
        folder = run_folder(out, prompt, seed)
        return types.SimpleNamespace(
            run_dir=folder, checkpoint=folder / "stage3.pt", video=folder / "orbit.mp4", seconds=1.5, files=[folder / "[b]run.json"]
        )


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    stub = Train()
    for module in (library, api):
        monkeypatch.setattr(module, "run", stub)
    return stub


@pytest.mark.parametrize(
    "args, words",
    [
        (["generate", ""], ["empty"]),
        (["generate", "   "], ["empty"]),
        (["generate", "a red dgo"], ["'dgo'", "dog", "cat"]),
        (["generate", DOG, "--set", "stage3.stps=5"], ["stage3.stps", "stage3.steps"]),
        (["generate", DOG, "--set", "stage3.steps=five"], ["five"]),
        (["generate", DOG, "--preset", "papre"], ["papre", "nano"]),
        (["generate", DOG, "--models", "[red]big"], ["[red]big", "nano"]),
        (["generate", DOG, "--device", "tpu"], ["tpu", "cpu"]),
        (["generate", DOG, "--seed", "-1"], ["--seed", "generate --help"]),
        (["generate", DOG, "--sede", "1"], ["--sede"]),
        (["generate"], ["PROMPT", "generate --help"]),
        (["generate", DOG, "too", "many"], ["too"]),
        (["bogus"], ["bogus", "fourdfy --help"]),
        (["nano"], ["nano --help"]),
        (["stage2"], ["stage2 --resume"]),
        (["stage3", DOG], ["stage3 --resume", "a-red-dog-jumping-s0/stage2.pt"]),
        (["stage2", "--resume", "none.pt"], ["none.pt"]),
        (["stage2", "--resume", "."], ["no checkpoint"]),
        (["render", "none.pt"], ["none.pt"]),
        (["render", "none.pt", "--out", "a.avi"], [".mp4"]),
        (["render", "none.pt", "--size", "3"], ["--size"]),
        (["info", "none.pt"], ["none.pt"]),
        (["clip-score", "none"], ["none"]),
        (["nano", "sample", "a dog", "--image", "--video"], ["--image"]),
        (["nano", "sample", "a unicorn"], ["unicorn"]),
        (["nano", "world", DOG, "--out", "gt.gif"], [".mp4"]),
        (["nano", "sample", "a dog", "--video", "--out", "a.mp4"], [".png"]),
        (["nano", "world", DOG, "--sheet", "gt.jpg"], [".png"]),
        (["nano", "score", "none"], ["none"]),
    ],
)
def test_bad_input(args: list[str], words: list[str], train: Train, capsys: pytest.CaptureFixture[str]):
    fails(capsys, args, 2, *words)
    assert not train.calls


def test_unwritable_output(train: Train, isolated: Path, capsys: pytest.CaptureFixture[str]):
    (isolated / "file").touch()
    fails(capsys, ["generate", DOG, "--out", "file/x"], 2, "file/x", "--out")
    fails(capsys, ["generate", DOG, "--out", "/proc/x"], 2, "/proc/x")
    assert not train.calls


def test_foreign_and_damaged_checkpoints(train: Train, isolated: Path, capsys: pytest.CaptureFixture[str]):
    (isolated / "foreign.pt").write_text("hello")
    for command in (["stage2", "--resume"], ["render"], ["info"]):
        fails(capsys, [*command, "foreign.pt"], DAMAGED, "foreign.pt")
    assert not train.calls


def test_generate_passes_everything_on(train: Train, capsys: pytest.CaptureFixture[str]):
    assert main.run(["generate", DOG]) == 0
    call = train.calls[-1].copy()
    assert dataclasses.replace(call.pop("machine"), threads=None) == Machine()
    assert call == {
        "prompt": DOG, "recipe": presets.nano(), "out": Path("outputs"), "seed": 0, "stages": (1, 2, 3), "resume": None,
    }  # fmt: skip
    captured = capsys.readouterr()
    assert "outputs/a-red-dog-jumping-s0/orbit.mp4" in captured.out and "models: nano" in captured.err
    assert "[b]run.json" in captured.err and "\x1b" not in captured.out + captured.err
    assert main.run(["generate", DOG, "--set", "stage1.steps=7", "--set", "stage1.p_3d=0.5", "--seed", "4", "--out", "x"]) == 0
    call = train.calls[-1]
    assert (call["recipe"].stage1.steps, call["recipe"].stage1.p_3d, call["seed"], call["out"]) == (7, 0.5, 4, Path("x"))


def test_generate_json(train: Train, capsys: pytest.CaptureFixture[str]):
    assert main.run(["generate", DOG, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    folder = "outputs/a-red-dog-jumping-s0"
    assert lines[-1] == {
        "ok": True, "command": "generate", "version": __version__, "error": None,
        "data": {"run_dir": folder, "checkpoint": f"{folder}/stage3.pt", "video": f"{folder}/orbit.mp4", "seconds": 1.5},
    }  # fmt: skip
    assert {"event": "start", "stage": 1, "stages": [1, 2, 3], "steps": 10, "done": 0} in lines


def test_precedence(train: Train, isolated: Path, monkeypatch: pytest.MonkeyPatch):
    def asked(*args: str) -> tuple[int, str, int]:
        assert main.run(["generate", DOG, *args]) == 0
        call = train.calls[-1]
        return call["seed"], str(call["out"]), call["recipe"].stage1.steps

    assert asked() == (0, "outputs", presets.nano().stage1.steps)
    (isolated / "fourdfy.toml").write_text('seed = 1\nout = "file"\n[set.stage1]\nsteps = 11\n')
    assert asked() == (1, "file", 11)
    monkeypatch.setenv("FOURDFY_SEED", "2")
    monkeypatch.setenv("FOURDFY_OUT", "environment")
    monkeypatch.setenv("FOURDFY_SET", "stage1.steps=12 stage2.steps=3")
    assert asked() == (2, "environment", 12)
    assert asked("--seed", "3", "--out", "line", "--set", "stage1.steps=13") == (3, "line", 13)


@pytest.mark.parametrize(
    "content", ["seed = 'x'", "sede = 1", "seed = ", "[set]\nstage1.stps = 3", "[set]\nstage1 = {steps = 'x'}", b"\xff"]
)
def test_bad_settings_file(content: str | bytes, train: Train, isolated: Path, capsys: pytest.CaptureFixture[str]):
    (isolated / "fourdfy.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    fails(capsys, ["generate", DOG], 2)


def test_dry_run_prints_the_recipe_and_writes_nothing(train: Train, isolated: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(["generate", DOG, "--dry-run", "--set", "stage3.steps=77", "--set", "cameras.elevation=-10,45"]) == 0
    told = re.findall(r"^\S+\.(\S+) += (\S+) # command line$", capsys.readouterr().out, re.M)
    assert told == [("steps", "77"), ("0", "-10.0"), ("1", "45.0")]
    assert main.run(["generate", DOG, "--dry-run", "--json", "--set", "stage3.steps=77"]) == 0
    recipe = config.from_dict(json.loads(capsys.readouterr().out)["data"]["recipe"])
    assert recipe == config.override(presets.nano(), "stage3.steps=77")
    assert not train.calls and not list(isolated.iterdir())


def test_stage_goes_on_from_a_checkpoint(train: Train, isolated: Path, capsys: pytest.CaptureFixture[str]):
    recipe = config.override(TINY, "stage2.steps=9")
    folder = isolated / "runs" / "a-red-dog-s3"
    folder.mkdir(parents=True)
    path = save(folder / "stage1.pt", seed=3, recipe=recipe)
    assert main.run(["stage2", "--resume", str(path)]) == 0
    call = train.calls[-1]
    assert (call["prompt"], call["recipe"], call["seed"], call["stages"], call["resume"]) == ("a red dog", recipe, 3, (2,), path)
    assert call["out"] == isolated / "runs"
    assert main.run(["stage2", "--resume", str(folder), "--set", "stage2.steps=8", "--out", "x"]) == 0
    assert train.calls[-1]["recipe"].stage2.steps == 8 and train.calls[-1]["out"] == Path("x")
    fails(capsys, ["stage2", "a blue cat", "--resume", str(path)], 2, "a red dog")
    fails(capsys, ["stage2", "--seed", "4", "--resume", str(path)], 2, "seed 3")


def test_stage1_takes_a_prompt(train: Train):
    assert main.run(["stage1", DOG]) == 0
    assert train.calls[-1]["stages"] == (1,) and train.calls[-1]["resume"] is None


@pytest.mark.parametrize(
    "error, code, words",
    [
        (FourdfyError("diverged", "do", 5), 5, ["diverged"]),
        (KeyboardInterrupt(), 130, ["stopped", f"fourdfy generate '{DOG}'"]),
        (MemoryError(), 4, ["out of memory", "free -m"]),
        (torch.OutOfMemoryError("CUDA out of memory"), 4, ["out of memory"]),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 4, ["out of memory"]),
        (PermissionError(13, "Permission denied", "x"), 1, ["x: Permission denied"]),
    ],
)
def test_failures_of_a_run(error: BaseException, code: int, words: list[str], train: Train, capsys: pytest.CaptureFixture[str]):
    train.error = error
    assert main.run(["generate", DOG]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("models:")]
    assert len(lines) == 2 and all(word in " ".join(lines) for word in words)
    assert main.run(["generate", DOG, "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_no_gpu(train: Train, capsys: pytest.CaptureFixture[str]):
    fails(capsys, ["generate", DOG, "--device", "cuda:99"], ENVIRONMENT, "cuda:99", "--device cpu")


def test_render_writes_video_and_frames(isolated: Path, capsys: pytest.CaptureFixture[str]):
    save(isolated / "stage1.pt")
    assert main.run(["render", "stage1.pt", "--orbit", "--size", "16", "--depth", "--frames", "png", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data == {"video": "stage1-orbit-depth.mp4", "frames": "png", "count": 64, "size": 16, "fps": 16, "there_and_back": True}
    assert decode(isolated / "stage1-orbit-depth.mp4").shape == (64, 16, 32, 3)
    assert sorted(os.listdir(isolated / "png")) == ["depth", "images", "transforms.json"]
    assert sorted(os.listdir(isolated / "png" / "images")) == [f"{k:04}.png" for k in range(64)]


def test_info(isolated: Path, capsys: pytest.CaptureFixture[str]):
    save(isolated / "stage1.pt", stage=2)
    assert main.run(["info", ".", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert (data["prompt"], data["stage"], data["step"], data["models"]) == ("a red dog", 2, 5, "nano")
    assert data["next"] == "fourdfy stage2 --resume stage1.pt" and data["bytes"] == (isolated / "stage1.pt").stat().st_size


def test_clip_score_and_nano_pass_on(monkeypatch: pytest.MonkeyPatch, isolated: Path, capsys: pytest.CaptureFixture[str]):
    calls = []

    def stub(module: str, **functions: object) -> None:
        monkeypatch.setitem(sys.modules, f"fourdfy_cli.{module}", types.SimpleNamespace(**functions))

    show = types.SimpleNamespace(video=lambda *a: calls.append(("video", *a)), sheet=lambda *a: calls.append(("sheet", *a)))
    monkeypatch.setattr("fourdfy_cli.nano.show", show, raising=False)
    monkeypatch.setitem(sys.modules, "fourdfy_cli.nano.show", show)
    stub("evaluate", clip=None)
    stub("evaluate.score", Choice=lambda *a: a, score=lambda a, b, _: calls.append(("clip", a, *b)) or ({"sets": [], "videos": []}, []))
    stub("evaluate.truth", score=lambda *a: calls.append(("score", *a)) or {"iou": 0.8})
    stub("nano.sample", sample=lambda *a: calls.append(("sample", *a)) or a[2])
    stub("nano.train", train=lambda *a: calls.append(("train", *a[:4])))
    for line in (
        "clip-score . --clip ViT-B-32", "nano score .", "nano sample dog --video --seed 2", "nano train --part vae --resume --out models",
        "nano world dog", "nano world dog --sheet a.png",
    ):  # fmt: skip
        assert main.run(line.split()) == 0
    assert calls == [
        ("clip", [Path(".")], "ViT-B-32", None, None, Path("."), "cpu"),
        ("score", Path(".")), ("sample", "dog", "video", Path("sample.png"), 2, 25, 3.0),
        ("train", "vae", Path("models"), True, 0), ("video", "dog", Path("gt.mp4")), ("sheet", "dog", Path("a.png")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line, word",
    [
        ("", "Turn a sentence"),
        ("-h", "clip-score"),
        ("--help", "--version"),
        ("generate -h", "--preset"),
        ("render --help", "--orbit"),
        ("nano -h", "sample"),
        ("nano sample -h", "--video"),
    ],
)
def test_help(line: str, word: str, capsys: pytest.CaptureFixture[str]):
    assert main.run(line.split()) == 0
    shown = capsys.readouterr().out
    assert word in shown and "fourdfy" in shown


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"fourdfy {__version__}\n"
