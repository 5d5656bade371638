"""Whole runs on tiny random Wan and CogVideoX folders, through the real loader and the command line; resumed bitwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from samples import isolated  # noqa: F401

from fourdfy_cli import memory, presets
from fourdfy_cli.cli import main
from fourdfy_cli.config import Models, override
from fourdfy_cli.diffusion import sets
from fourdfy_cli.diffusion.table import COGVIDEOX, WAN, WAN_5B

pytestmark = pytest.mark.long

SMALL = [
    f"--set=stage{n}.{branch}.{key}.{side}=16"
    for n in (1, 2, 3)
    for branch in ("multiview", "image", "video")
    for key in ("size",)
    for side in (0, 1)
]
SMALL += [f"--set=stage3.video.model_size.{side}=32" for side in (0, 1)] + ["--set=frames=5", "--set=march.samples=16"]


def folder(id: str, tmp_path: Path) -> Path:
    """A copy, as a user would have it."""
    made = sets.specs(Models(set="random", size="tiny", video=id), ["video"])["video"].source
    return Path(shutil.copytree(made, tmp_path / id.rpartition("/")[2]))


def generate(*extra: str) -> int:
    return main.run(["generate", "a panda", "--preset=wan", "--models=random", "--size=tiny", "--smoke", "--threads=1", *SMALL, *extra])


def tensors(path: Path) -> dict:
    return {k: v for k, v in torch.load(path, weights_only=True)["scene"].items()}


@pytest.mark.long
@pytest.mark.parametrize(
    "id, more", [(WAN, ["--set=stage3.video.encoder=tiny"]), (COGVIDEOX, ["--vram=3"]), (WAN_5B, ["--set=stage3.video.clean_first=true"])]
)
def test_a_smoke_run_and_its_resumption(id: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--set=models.video={folder(id, tmp_path)}", *more]
    assert generate(*given, "--out=whole") == 0, capsys.readouterr().err
    run = tmp_path / "whole" / "a-panda-s0"
    assert (run / "orbit.mp4").is_file()
    shutil.copytree(run, tmp_path / "again" / run.name)
    for name in ("stage3.pt", "orbit.mp4", "last.pt", "last.prev.pt"):
        (tmp_path / "again" / run.name / name).unlink(missing_ok=True)
    assert generate(*given, "--out=again") == 0, capsys.readouterr().err
    one, other = tensors(run / "stage3.pt"), tensors(tmp_path / "again" / run.name / "stage3.pt")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_does_not_fit_is_told_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [
        "generate",
        "a panda",
        "--preset=wan",
        "--models=random",
        "--size=tiny",
        "--threads=1",
        f"--set=models.video={folder(WAN, tmp_path)}",
    ]
    for setting, code, words in (
        ("frames=16", 2, "takes 4k+1 frames"),
        ("stage3.video.clean_first=true", 2, "from text alone"),
        ("stage3.video.model_size.0=90", 2, "multiples of 16"),
        ("models.tiny_video=missing.safetensors", 3, "no small encoder"),
    ):
        more = ["--set=stage3.video.encoder=tiny"] if "tiny_video" in setting else []
        assert main.run([*base, f"--set={setting}", *more, f"--out=to-{setting.partition('=')[0]}"]) == code
        told = capsys.readouterr().err.strip().splitlines()
        assert words in told[-2] and told[-1].startswith("hint:"), told


def test_frames_that_know_their_place_are_no_more_than_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    """The nano set's UNetMotionModel has 8 positions."""
    assert main.run(["generate", "a red dog jumping", "--set=frames=9"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert "takes at most 8 frames, not 9" in told[-2] and told[-1] == "hint:  --set frames=8", told


def test_dry_run_knows_the_new_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["generate", "a panda", "--preset=paper", "--commercial", "--dry-run", "--json"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]
    rows = {row["role"]: row for row in data["models"]}
    assert rows["video"]["model"] == WAN and rows["video"]["licence"] == "apache-2.0" and rows["video"]["bytes"] > 25e9
    assert data["recipe"]["frames"] == 17 and data["sources"]["frames"] == "--commercial"
    assert main.run(["generate", "a panda", "--preset=wan", "--set=models.embeddings=texts", "--dry-run", "--json"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]
    row = next(row for row in data["models"] if row["role"] == "video")
    assert row["bytes"] < 7e9 and not any(name.startswith(("text_encoder", "tokenizer")) for name in row["files"])
    assert main.run(["generate", "a panda", "--preset=hour", "--dry-run", "--json"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]
    assert {row["role"] for row in data["models"]} == {"multiview", "image", "video", "lora", "tiny"}


def test_commercial_leaves_a_named_model_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["generate", "a panda", "--preset=paper", "--commercial", "--set=models.video=cerspense/zeroscope_v2_576w"]) != 0
    capsys.readouterr()
    assert main.run(["models", "pull", "--commercial", "--dry-run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["models"]
    assert next(row for row in rows if row["role"] == "video")["id"] == WAN


def test_memory_of_causal_encoders() -> None:
    """Pieces take less than the whole, the small encoder less than either, ready estimates of paper as before."""
    wan = presets.preset("wan")
    whole, _, piece, *_ = (memory.estimate(wan, 3, rung) for rung in memory.LADDER)
    tiny = memory.estimate(override(wan, "stage3.video.encoder=tiny"), 3, memory.LADDER[2])
    assert tiny < piece < whole
    both = memory.estimate(override(override(wan, "stage3.video.encoder=tiny"), "stage3.video.own_from=0.8"), 3, memory.LADDER[2])
    assert both == piece
    paper = presets.preset("paper")
    assert [round(memory.estimate(paper, n, memory.LADDER[k]) / 1e9, 1) for n in (1, 2, 3) for k in (0, 2)] == [
        28.2,
        6.0,
        31.9,
        9.6,
        93.7,
        12.6,
    ]
    cog = override(wan, f"models.video={COGVIDEOX}")
    assert memory.estimate(cog, 3, memory.LADDER[2]) > piece  # 13 frames at a time, not 4
