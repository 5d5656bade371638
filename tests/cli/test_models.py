"""`fourdfy models`: what it prints, what it refuses, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hub_server import model, put_in_cache, serve
from huggingface_hub import constants

from fourdfy_cli.cli import main
from fourdfy_cli.diffusion.table import COGVIDEOX, ROLES, TABLE, WAN, WAN_5B, find, row
from fourdfy_cli.errors import ENVIRONMENT, OK, USAGE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("FOURDFY_SET", "FOURDFY_PRESET", "FOURDFY_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**12}))
    return tmp_path / "cache"


def data(capsys: pytest.CaptureFixture[str], *args: str, code: int = OK) -> dict:
    """The envelope of a command line with --json: its data, or its error."""
    capsys.readouterr()
    assert main.run(["models", *args, "--json"]) == code
    envelope = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert envelope["command"] == f"models {args[0]}"
    return envelope["data"] if code == OK else envelope["error"]


def test_list(capsys: pytest.CaptureFixture[str], cache: Path):
    put_in_cache(cache, row("image").id, row("image").revision, model())
    rows = data(capsys, "list")["models"]
    assert [r["id"] for r in rows] == [known.id for known in TABLE]
    assert [r["id"] for r in rows if r["used"]] == [row(role).id for role in ROLES]
    assert [r["role"] for r in rows if r["cached"]] == ["image"]
    assert {r["id"] for r in rows if not r["commercial"]} == {"cerspense/zeroscope_v2_576w", "ali-vilab/text-to-video-ms-1.7b"}
    free = [r for r in data(capsys, "list", "--commercial")["models"] if r["role"] == "video"]
    assert [r["id"] for r in free] == [WAN, COGVIDEOX, WAN_5B] and [r["used"] for r in free] == [True, False, False]
    assert main.run(["models", "list"]) == OK
    text = capsys.readouterr().out
    assert all(known.id in text and known.licence in text for known in TABLE)


def test_list_shows_what_settings_choose(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    Path("fourdfy.toml").write_text('[set]\nmodels.image = "me/mine"\n')
    monkeypatch.setenv("FOURDFY_SET", "models.lora=my/twin")
    rows = data(capsys, "list", "--set", "models.video=ali-vilab/text-to-video-ms-1.7b")["models"]
    used = {r["role"]: r["id"] for r in rows if r["used"]}
    assert (used["image"], used["lora"], used["video"]) == ("me/mine", "my/twin", "ali-vilab/text-to-video-ms-1.7b")
    assert next(r for r in rows if r["id"] == "me/mine")["licence"] == "unknown"


def test_dry_run_adds_up_and_leaves_no_trace(capsys: pytest.CaptureFixture[str], cache: Path):
    answer = data(capsys, "pull", "--dry-run")
    assert answer["bytes"] == sum(row(role).bytes for role in ROLES) == sum(r["bytes"] for r in answer["models"])
    assert answer["models"][1]["files"] == list(row("image").files)
    assert not cache.exists()
    put_in_cache(cache, row("video").id, row("video").revision, model())
    assert data(capsys, "pull", "video", "lora", "--dry-run")["bytes"] == row("lora").bytes


def test_pull(capsys: pytest.CaptureFixture[str], cache: Path, monkeypatch: pytest.MonkeyPatch):
    with serve() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        server.add(row("image").id, row("image").revision, model(".fp16"))
        assert main.run(["models", "pull", "image"]) == OK
        captured = capsys.readouterr()
        assert captured.err.index("2.58 GB to download") < captured.err.index(row("image").id)
        answer = data(capsys, "pull", "image")
    assert answer["bytes"] == 0 and Path(answer["models"][0]["folder"]).is_relative_to(cache)
    assert {r["verdict"] for r in data(capsys, "verify")["files"]} == {"ok"}


def test_no_room(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    error = data(capsys, "pull", "video", code=ENVIRONMENT)
    assert "3.7 GB are needed" in error["message"] and "HF_HOME=" in error["hint"]


def test_verify_names_what_is_damaged(capsys: pytest.CaptureFixture[str], cache: Path):
    snapshot = put_in_cache(cache, row("image").id, row("image").revision, model())
    assert len(data(capsys, "verify", "image")["files"]) == len(row("image").files)
    weights = snapshot / "unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\1")
    error = data(capsys, "verify", code=ENVIRONMENT)
    assert f"{weights} is damaged" in error["message"] and str(weights.resolve()) in error["hint"] and "models pull" in error["hint"]
    weights.write_bytes(whole[:-1])
    assert f"{weights} is truncated" in data(capsys, "verify", "image", code=ENVIRONMENT)["message"]


def test_convert(capsys: pytest.CaptureFixture[str]):
    keys = ("input_blocks.0.0.weight", "camera_embed.0.weight")
    torch.save({f"model.diffusion_model.{key}": torch.ones(2) for key in keys}, "mv.pt")
    answer = data(capsys, "convert", "mv.pt", "--trust")
    assert answer["folder"] == "mv-safetensors" and answer["lacking"] == ["vae", "text_encoder", "tokenizer"]
    assert Path("mv-safetensors/unet/diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["pull", "vdeo"], USAGE, ["'vdeo'", "video"]),
        (["pull", "--commercial", "--set", f"models.video={row('video').id}"], USAGE, ["zeroscope", "cc-by-nc-4.0", "models.video="]),
        (["pull", "image"], ENVIRONMENT, ["HF_HUB_OFFLINE=0 fourdfy models pull image"]),
        (["pull", "image", "--set", "models.image=sd"], USAGE, ["neither", "models.image=sd2-community"]),
        (["pull", "image", "--set", "models.image=./none"], ENVIRONMENT, ["no folder ./none"]),
        (["pull", "--set", "models.vdeo=a/b"], USAGE, ["models.vdeo", "models.video"]),
        (["list", "--set", "stage1.steps=5"], USAGE, ["stage1.steps"]),
        (["verify", "image"], ENVIRONMENT, ["not here", "fourdfy models pull image"]),
        (["convert", "none.pt", "--trust"], USAGE, ["none.pt"]),
        (["convert", "x.pt"], USAGE, ["may hold code", "convert x.pt --trust"]),
    ],
)
def test_bad_input(args: list[str], code: int, words: list[str], capsys: pytest.CaptureFixture[str], cache: Path):
    Path("x.pt").touch()
    error = data(capsys, *args, code=code)
    assert error["hint"] and all(word in error["message"] + error["hint"] for word in words), error
    assert sorted(Path.cwd().iterdir()) == [Path.cwd() / "x.pt"]


def test_commercial_looks_at_the_roles_asked_for(capsys: pytest.CaptureFixture[str]):
    assert data(capsys, "pull", "image", "lora", "--commercial", "--dry-run")["bytes"] == row("image").bytes + row("lora").bytes
    named = f"models.video={row('video').id}"
    assert "zeroscope" in data(capsys, "pull", "video", "--commercial", "--dry-run", "--set", named, code=USAGE)["message"]
    assert data(capsys, "pull", "video", "--commercial", "--dry-run")["models"][0]["id"] == WAN


def test_ready_embeddings_leave_the_text_encoder_out(capsys: pytest.CaptureFixture[str]):
    (known,) = data(capsys, "pull", "video", "--commercial", "--dry-run", "--set", "models.embeddings=texts")["models"]
    assert known["bytes"] == find(WAN).bytes - find(WAN).text_bytes
    assert {path.split("/")[0] for path in known["files"]} == {"model_index.json", "transformer", "vae", "scheduler"}
