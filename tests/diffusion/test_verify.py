"""Weights are compared with their checksums before the first step, once per file and change."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from samples import Watch, tiny_recipe

from fourdfy_cli.config import Models
from fourdfy_cli.diffusion import sets, verify
from fourdfy_cli.diffusion.models import NANO, WEIGHTS
from fourdfy_cli.diffusion.verify import check, write_lock
from fourdfy_cli.errors import ENVIRONMENT, FourdfyError
from fourdfy_cli.evaluate import clip
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import train
from fourdfy_cli.store.cache import cache_folder

SHIPPED = sorted(path.relative_to(WEIGHTS).as_posix() for path in Path(WEIGHTS).rglob("*") if path.is_file() and path.name != verify.LOCK)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURDFY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what ships, in its place."""
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(sets, "WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(sets, "NANO", {role: dataclasses.replace(spec, source=str(tmp_path / "weights")) for role, spec in NANO.items()})
    monkeypatch.setattr(clip, "NANO_CLIP", tmp_path / "weights" / "clip")
    return tmp_path / "weights"


def flip(path: Path) -> None:
    """Another bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def load(name: str) -> object:
    return clip.load_clip("nano") if name.startswith("clip/") else sets.specs(Models(set="nano"), ("multiview", "image", "lora", "video"))


def test_the_list_has_every_file_that_ships():
    assert set(verify.read_json(Path(WEIGHTS) / verify.LOCK) or {}) == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_flipped_bit_in_what_ships(weights: Path, name: str):
    load(name)
    flip(weights / name)
    with pytest.raises(FourdfyError) as caught:
        load(name)
    assert caught.value.code == ENVIRONMENT and name in caught.value.message
    assert caught.value.hint == "pip install --force-reinstall fourdfy"


def test_before_the_first_step(weights: Path, tmp_path: Path):
    flip(weights / "video_unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(FourdfyError, match="video_unet"):
        train.run("a red dog", tiny_recipe(), tmp_path / "out", 3, (1, 2, 3), None, Machine(), Watch())
    assert not list((tmp_path / "out").rglob("*.pt"))


def test_a_folder_of_the_users_own(tmp_path: Path):
    """With a list of checksums a flipped bit is seen, without one a length that does not fit."""
    folder = shutil.copytree(sets.random_set("tiny")["image"].source, tmp_path / "model")
    write_lock(folder)
    sets.located("image", str(folder))
    weights = next((folder / "unet").glob("*.safetensors"))
    flip(weights)
    with pytest.raises(FourdfyError, match="damaged") as caught:
        sets.located("image", str(folder))
    assert caught.value.hint == f"fourdfy models verify image --set models.image={folder}"
    (folder / verify.LOCK).unlink()
    sets.located("image", str(folder))
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(FourdfyError, match="truncated"):
        sets.located("image", str(folder))


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b'{"a": 1}', b'{"a": {"data_offsets": [0]}}', b"[" * 100_000, b"\xff"])
def test_headers_that_are_none(tmp_path: Path, header: bytes):
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert not verify.is_whole(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(header[:7])
    assert not verify.is_whole(tmp_path / "a.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    write_lock(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("text", ["", "[1]", "{", "nonsense", '{"config.json": 7}', '{"config.json": ["a"]}', "[" * 100_000])
def test_a_list_of_checksums_that_is_none(folder: Path, text: str):
    (folder / verify.LOCK).write_text(text)
    with pytest.raises(FourdfyError) as caught:
        check(folder, ["config.json"], "fourdfy models verify")
    assert caught.value.code == ENVIRONMENT and "\n" not in caught.value.message and caught.value.hint == "fourdfy models verify"


def test_once_per_file_and_change(folder: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[Path] = []
    checksum = verify.checksum
    monkeypatch.setattr(verify, "checksum", lambda path, kind: read.append(path) or checksum(path, kind))
    check(folder, ["config.json"], "")
    check(folder, ["config.json"], "")
    assert len(read) == 1
    os.utime(folder / "config.json", (1, 1))
    check(folder, ["config.json"], "")
    assert len(read) == 2
    (cache_folder() / verify.KNOWN).write_text('{"a": [1')
    check(folder, ["config.json"], "")
    assert len(read) == 3


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    check(folder, ["config.json"], "")
    (folder / "config.json").write_text("[]")
    with pytest.raises(FourdfyError):
        check(folder, ["config.json"], "")
