"""Pickles to safetensors: the tensors come through bit by bit, code in a pickle never runs, and nothing is left half-written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fourdfy_cli.diffusion import convert as module
from fourdfy_cli.diffusion import hub
from fourdfy_cli.diffusion.convert import convert
from fourdfy_cli.diffusion.verify import verify
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError


def unet() -> dict[str, torch.Tensor]:
    """A little of MVDream's state dict, in its own (LDM) names."""
    keys = ("input_blocks.0.0.weight", "time_embed.0.weight", "camera_embed.0.weight", "camera_embed.2.bias", "out.2.weight")
    return {key: torch.randn(3, 4, generator=torch.Generator().manual_seed(n)) for n, key in enumerate(keys)}


def fails(source: Path, out: Path, code: int, *words: str, trust: bool = True) -> None:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(FourdfyError) as caught:
        convert(source, out, trust)
    text = f"{caught.value.message} | {caught.value.hint}"
    assert caught.value.code == code and "\n" not in text and caught.value.hint and all(word in text for word in words), text
    assert sorted(out.parent.rglob("*")) == before


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert in this process: a child takes seconds to import torch."""
    monkeypatch.setattr(module, "_in_child", module.main)


def same(file: Path, state: dict[str, torch.Tensor]) -> bool:
    found = load_file(file)
    return found.keys() == state.keys() and all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "unet.", ""])
def test_mvdream(tmp_path: Path, prefix: str, here: None):
    others = {"first_stage_model.x": torch.ones(2), "cond_stage_model.y": torch.ones(2)} if prefix else {}
    state = {prefix + key: value for key, value in unet().items()} | others
    torch.save({"state_dict": state, "global_step": 7} if prefix == "unet." else state, tmp_path / "sd-v2.1-base-4view.pt")
    out = convert(tmp_path / "sd-v2.1-base-4view.pt", tmp_path / "out", True)
    assert same(out / "unet/diffusion_pytorch_model.safetensors", unet())
    config = json.loads((out / "unet/config.json").read_text())
    assert (config["model_channels"], config["context_dim"], config["camera_dim"], config["channel_mult"]) == (320, 1024, 16, [1, 2, 4, 4])
    assert json.loads((out / "scheduler/scheduler_config.json").read_text())["prediction_type"] == "epsilon"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sd-v2.1-base-4view.pt"]
    names = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert [check.verdict for check in verify(out, names)] == ["ok", "ok"]
    (out / names[0]).write_text("{}")
    assert [check.verdict for check in verify(out, names)] == ["damaged", "ok"]


def test_a_lone_unet_gets_the_rest_from_its_base(tmp_path: Path):
    base = tmp_path / "base"
    for name in ("vae/config.json", "text_encoder/config.json", "tokenizer/vocab.json", "unet/config.json"):
        (base / name).parent.mkdir(parents=True)
        (base / name).write_text('"of the base"')
    torch.save({f"model.diffusion_model.{key}": value for key, value in unet().items()}, tmp_path / "mv.ckpt")
    out = convert(tmp_path / "mv.ckpt", tmp_path / "out", True, base)
    assert all((out / part).is_dir() for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"))
    assert "camera_dim" in (out / "unet/config.json").read_text()


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_a_folder_with_bin_files(tmp_path: Path, variant: str, here: None):
    """Zeroscope's main branch: .bin beside the configurations."""
    source, state = tmp_path / "zeroscope", {"conv_in.weight": torch.arange(6.0).half().view(2, 3)}
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (source / part).mkdir(parents=True)
        (source / part / "config.json").write_text(f'"{part}"')
    for name in ("tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"):
        (source / name).write_text("{}")
    torch.save(state, source / f"unet/diffusion_pytorch_model{variant}.bin")
    torch.save(state, source / f"text_encoder/pytorch_model{variant}.bin", _use_new_zipfile_serialization=False)
    torch.save(state, source / f"vae/diffusion_pytorch_model{variant}.bin")
    (source / "unet" / "mine.py").write_text("raise SystemExit")
    out = convert(source, tmp_path / "out", True)
    assert same(out / f"unet/diffusion_pytorch_model{variant}.safetensors", state)
    assert same(out / f"text_encoder/model{variant}.safetensors", state)
    assert hub.locate("video", str(out)) == out
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json", ".txt", ".safetensors"}


def test_a_single_bin_file(tmp_path: Path, here: None):
    shared = torch.randn(4, 4)
    torch.save({"a": shared, "b": shared.T, "n": 3}, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"x": 1}')
    out = convert(tmp_path / "diffusion_pytorch_model.bin", tmp_path / "deep" / "out", True)
    assert same(out / "diffusion_pytorch_model.safetensors", {"a": shared, "b": shared.T})
    assert (out / "config.json").read_text() == '{"x": 1}'


class Touch:
    """A pickle that runs a command when it is loaded the careless way."""

    def __init__(self, reduce: tuple):
        self.reduce = reduce

    def __reduce__(self) -> tuple:
        return self.reduce


def evil(tmp_path: Path, function, inside: bool) -> Path:
    """A checkpoint that makes the file `canary` if its code runs."""
    write = f"open({str(tmp_path / 'canary')!r}, 'w')"
    (tmp_path / "evil_module.py").write_text(write)
    argument = {"system": f"touch {tmp_path}/canary", "getoutput": f"touch {tmp_path}/canary", "__import__": "evil_module"}
    thing = Touch((function, (argument.get(function.__name__, write),)))
    torch.save({"a": torch.ones(1), "b": thing} if inside else thing, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def test_a_hostile_pickle_is_refused_in_one_line(tmp_path: Path):
    source = evil(tmp_path, os.system, True)
    fails(source, tmp_path / "out", ENVIRONMENT, "model.ckpt was not converted", "tensors")
    assert not (tmp_path / "canary").exists()
    torch.load(source, weights_only=False)
    assert (tmp_path / "canary").exists()  # so the pickle would do what it should not


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("function", [os.system, subprocess.getoutput, eval, exec, __import__], ids=lambda f: f.__name__)
def test_code_in_a_pickle_does_not_run(tmp_path: Path, function, inside: bool):
    with pytest.raises(SystemExit, match="tensors"):
        module.main(evil(tmp_path, function, inside), tmp_path)
    assert not (tmp_path / "canary").exists()


def test_a_truncated_checkpoint(tmp_path: Path):
    torch.save(unet(), tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-300])
    fails(tmp_path / "x.pt", tmp_path / "out", ENVIRONMENT, "x.pt was not converted")


@pytest.mark.parametrize(
    "data",
    [b"", b"not a pickle", pickle.dumps([1, 2], 2), pickle.dumps({"a": 1}, 2), b"PK\3\4 torn"],
    ids=["empty", "text", "list", "no tensors", "torn"],
)
def test_what_is_no_checkpoint(tmp_path: Path, data: bytes):
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(SystemExit, match=r"^.{5,200}$"):
        module.main(tmp_path / "x.pt", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_checkpoint_without_cameras(tmp_path: Path):
    state = {f"model.diffusion_model.{key}": value for key, value in unet().items() if "camera" not in key}
    torch.save(state, tmp_path / "sd.ckpt")
    with pytest.raises(SystemExit, match="camera embedding"):
        module.main(tmp_path / "sd.ckpt", tmp_path)


def test_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "x.pt"
    torch.save(unet(), source)
    monkeypatch.setattr(module, "_in_child", lambda *_: pytest.fail("it was read"))
    fails(source, tmp_path / "out", USAGE, "may hold code", f"convert {source} --trust", trust=False)
    fails(tmp_path / "none.pt", tmp_path / "out", USAGE, "does not exist")
    (tmp_path / "x.safetensors").touch()
    fails(tmp_path / "x.safetensors", tmp_path / "out", USAGE, ".ckpt")
    (tmp_path / "full").mkdir()
    fails(tmp_path / "full", tmp_path / "out", USAGE, "model folder")
    (tmp_path / "full" / "mine.txt").touch()
    fails(source, tmp_path / "full", USAGE, "exists already")
    fails(source, source, USAGE, "exists already")


def test_the_child_knows_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = {}

    def run(command: list[str], **options) -> subprocess.CompletedProcess:
        seen.update(options["env"], command=command, cwd=options["cwd"])
        return subprocess.CompletedProcess(command, 1, "", "stop")

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(subprocess, "run", run)
    torch.save(unet(), tmp_path / "x.pt")
    fails(tmp_path / "x.pt", tmp_path / "out", ENVIRONMENT, "stop")
    assert "hf_secret" not in str(seen) and seen["command"][0] == sys.executable
    assert Path(seen["cwd"]).parent.parent == tmp_path  # an empty folder: no module of the user's is in the way
