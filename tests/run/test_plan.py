"""The dry run: where numbers come from, what would be downloaded, how much memory and time; and that nothing happens."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from fourdfy_cli import config, presets
from fourdfy_cli.cli import main
from fourdfy_cli.config import Models
from fourdfy_cli.diffusion import hub, table
from fourdfy_cli.errors import MEMORY, OK, USAGE
from fourdfy_cli.run import plan

PAPER = presets.paper()
SPEED = {(1, "multiview"): 0.1, (2, "multiview"): 0.2, (2, "image"): 0.3, (3, "multiview"): 0.2, (3, "image"): 0.3, (3, "video"): 0.5}
ROWS = [{"stage": stage, "branch": branch, "part": 1.0, "seconds": seconds} for (stage, branch), seconds in SPEED.items()]


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, no settings, no network and no GPU to touch."""
    for name in ("FOURDFY_SET", "FOURDFY_MODELS", "FOURDFY_PRESET", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FOURDFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a dry run touches neither network nor GPU")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(torch.cuda, "init", forbidden)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def dry(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    assert main.run(["generate", "a panda dancing", "--dry-run", "--json", *args]) == OK
    return json.loads(capsys.readouterr().out)["data"]


def test_dry_run_of_the_paper(isolated: Path, capsys: pytest.CaptureFixture[str]):
    data = dry(capsys, "--preset", "paper")
    assert config.from_dict(data["recipe"]) == PAPER
    assert set(data["sources"]) == set(config.leaves(config.to_dict(PAPER))) and "unknown" not in data["sources"].values()
    rows = {row["role"]: row for row in data["models"]}
    assert set(rows) == {"multiview", "image", "lora", "video"} and not any(row["here"] for row in rows.values())
    assert all(row["bytes"] == table.row(role).bytes and row["files"] == list(table.row(role).files) for role, row in rows.items())
    assert [row["steps"] for row in data["stages"]] == [10_000, 10_000, 100_000]
    assert all(row["seconds"] is None and "fourdfy bench" in row["measured"] for row in data["stages"])
    assert all(row["bytes"] > row["least_bytes"] > 1e9 for row in data["stages"])
    assert sorted(path.name for path in isolated.iterdir()) == ["work"] and not list((isolated / "work").iterdir())


def test_dry_run_for_people(capsys: pytest.CaptureFixture[str]):
    assert main.run(["generate", "a panda dancing", "--dry-run", "--preset", "paper", "--set", "stage3.steps=77"]) == OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) <= 24 and [line for line in lines if " # " in line] == ["stage3.steps = 77 # command line"]
    assert "to download 10.57 GB" in lines
    (video,) = (line for line in lines if line.startswith("video cerspense"))
    assert "cc-by-nc-4.0" in video and "GB to download" in video
    (stage3,) = (line for line in lines if line.startswith("stage 3 "))
    assert "77 steps (multiview 50% image 25% video 25%)" in stage3 and "GB at least" in stage3 and "fourdfy bench" in stage3
    assert main.run(["generate", "a panda dancing", "--dry-run", "--full", "--preset", "paper"]) == OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "stage1.alpha_thre = none # [C] as march.alpha_thre" in lines and "stage3.video.weight = 0.1 # " in "\n".join(lines)
    assert len([line for line in lines if " # " in line]) == len(config.leaves(config.to_dict(PAPER)))


def test_where_a_setting_was_set(isolated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    Path("fourdfy.toml").write_text("[set]\nframes = 8\nweight_decay = 0.1\n[set.stage2]\nsteps = 12\n")
    monkeypatch.setenv("FOURDFY_SET", "weight_decay=0.2 stage1.steps=3")
    sources = dry(capsys, "--preset", "paper", "--set", "stage1.steps=10000")["sources"]
    assert (sources["frames"], sources["stage2.steps"], sources["weight_decay"]) == ("fourdfy.toml", "fourdfy.toml", "environment")
    assert sources["stage1.steps"] == "command line" and sources["stage3.steps"] == "[P] [C]"


def test_tiny_and_smoke_say_so(capsys: pytest.CaptureFixture[str]):
    data = dry(capsys, "--models", "random", "--size", "tiny", "--smoke", "--set", "frames=4")
    sources, values = data["sources"], config.leaves(data["recipe"])
    assert (sources["models.set"], sources["models.size"], sources["march.samples"]) == ("command line", "--size tiny", "--size tiny")
    assert (sources["stage3.steps"], sources["frames"], values["stage3.steps"], values["frames"]) == ("--smoke", "command line", 2, 4)
    assert not any(source in ("the checkpoint", "unknown") for source in sources.values())
    assert [row["bytes"] for row in data["models"]] == [0] * 4 and all("random" in row["model"] for row in data["models"])


def test_a_recipe_from_a_checkpoint():
    changed = replace(PAPER, frames=8)
    sources = plan.sources(changed, {})
    assert sources["frames"] == "the checkpoint" and sources["stage3.steps"] == "[P] [C]"
    assert set(plan.sources(replace(PAPER, name="mine"), {}).values()) == {"the checkpoint"}


def test_models_in_a_folder_in_the_cache_or_shared(isolated: Path):
    def row(models: Models, role: str) -> dict:
        return {row["role"]: row for row in plan.downloads(replace(PAPER, models=models), (1, 2, 3))}[role]

    video = row(Models("paper", video="ali-vilab/text-to-video-ms-1.7b"), "video")
    assert video["model"] == "ali-vilab/text-to-video-ms-1.7b" and video["licence"] == "cc-by-nc-4.0" and video["bytes"] > 1e9
    unknown = row(Models("nano", video="someone/else"), "video")
    assert (unknown["licence"], unknown["here"]) == ("unknown", False) and unknown["bytes"] > 0
    assert row(Models("nano", video="someone/else"), "image")["bytes"] == 0
    folder = isolated / "model"
    for name in table.row("lora").files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert row(Models("paper", lora=str(folder)), "lora")["here"] and row(Models("paper", lora=str(folder)), "lora")["bytes"] == 0
    absent = row(Models("paper", video=str(isolated / "none")), "video")
    assert not absent["here"] and absent["files"] == [] and absent["bytes"] == 0
    assert hub.cached("lora", str(folder)) == folder
    shared = plan.downloads(config.override(PAPER, "vsd.share_base=true"), (2,))
    assert [row["role"] for row in shared] == ["multiview", "image"]
    assert [row["role"] for row in plan.downloads(PAPER, (1,))] == ["multiview"]


def test_memory_that_does_not_suffice(capsys: pytest.CaptureFixture[str]):
    roomy = plan.stages(PAPER, (3,), 1000.0)[0]
    small = plan.stages(PAPER, (3,), 10.0)[0]
    assert roomy["bytes"] > 11e9 > 10e9 >= small["bytes"] and small["with"] != roomy["with"]
    assert main.run(["generate", "a panda", "--preset", "paper", "--dry-run", "--vram", "1"]) == MEMORY
    error, hint = capsys.readouterr().err.splitlines()
    assert "GB" in error and len(hint) > 8


def test_time_comes_from_the_bench(capsys: pytest.CaptureFixture[str]):
    random = replace(PAPER, models=Models("random"))
    assert plan.measured(PAPER) is None
    assert plan.remember(random, {"device": "Card 9000", "date": "2026-01-02", "rows": ROWS})
    rows = plan.stages(PAPER, (1, 2, 3), None)
    assert [row["seconds"] for row in rows] == pytest.approx([1_000, 2_500, 30_000])
    assert rows[0]["measured"] == "Card 9000, 2026-01-02"
    fast = plan.stages(presets.fast(), (3,), None)[0]  # same pictures, so same speed; other chances
    assert fast["seconds"] == pytest.approx(10_000 * (0.3 * 0.2 + 0.21 * 0.3 + 0.49 * 0.5))
    for other in (presets.official(), config.override(PAPER, "stage3.video.size.0=80"), replace(PAPER, models=Models("nano"))):
        assert plan.measured(other) is None
    assert dry(capsys, "--preset", "paper")["stages"][2]["seconds"] == pytest.approx(30_000)


def test_projection_weighs_pictures_and_branches():
    rows = [row for row in ROWS if row["stage"] != 1]
    rows += [{"stage": 1, "branch": "multiview", "part": part, "seconds": seconds} for part, seconds in ((0.25, 0.4), (0.75, 0.8))]
    assert plan.projected(PAPER, rows)[1] == pytest.approx(10_000 * 0.7)
    assert set(plan.projected(PAPER, [row for row in rows if row["branch"] != "video"])) == {1, 2}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"KEY": 3}', '{"KEY": {"device": "a", "date": "b", "rows": [{"stage": 1}]}}'])
def test_a_damaged_table_is_no_table(content: str, isolated: Path):
    (isolated / "cache").mkdir()
    (isolated / "cache" / "bench.json").write_text(content.replace("KEY", plan.bench_key(PAPER)))
    assert plan.measured(PAPER) is None
    assert plan.remember(PAPER, {"device": "a", "date": "b", "rows": ROWS}) and plan.measured(PAPER)


def test_a_cache_that_cannot_be_written(isolated: Path, monkeypatch: pytest.MonkeyPatch):
    (isolated / "file").touch()
    monkeypatch.setenv("FOURDFY_CACHE", str(isolated / "file" / "x"))
    assert plan.remember(PAPER, {}) is None
    monkeypatch.delenv("FOURDFY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(isolated))
    assert plan.bench_file() == isolated / "fourdfy" / "bench.json"


def test_what_is_no_model(capsys: pytest.CaptureFixture[str]):
    assert main.run(["generate", "a panda", "--preset", "paper", "--dry-run", "--set", "models.video=no such model"]) == USAGE
    assert len(capsys.readouterr().err.splitlines()) == 2
