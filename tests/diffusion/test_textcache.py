"""Embeddings on disk: found again, never mixed up, and never a reason to fail."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference_guidance import save_models

from fourdfy_cli.diffusion import textcache
from fourdfy_cli.diffusion.models import ModelSpec
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.store import cache

WORDS = ["a red dog", ""]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setenv("FOURDFY_CACHE", str(tmp_path / "cache"))
    return replace(save_models(tmp_path / "models")["image"], revision="one")


def lose_encoder(spec: ModelSpec) -> None:
    (spec.folder("text_encoder") / "model.safetensors").unlink()


def kept() -> list[Path]:
    return sorted((cache.cache_folder() / "text").glob("*"))


def test_second_time_needs_no_encoder(spec: ModelSpec) -> None:
    first = textcache.embed(spec, WORDS, "cpu")
    assert list(first) == WORDS
    assert [path.suffix for path in kept()] == [".safetensors"] * 2
    lose_encoder(spec)
    again = textcache.embed(spec, WORDS[::-1], "cpu")
    assert list(again) == WORDS[::-1]
    assert all(torch.equal(again[words], first[words]) for words in WORDS)
    with pytest.raises(FourdfyError):
        textcache.embed(spec, [*WORDS, "a cube"], "cpu")


def test_another_model_or_revision_is_another_entry(spec: ModelSpec) -> None:
    textcache.embed(spec, WORDS, "cpu")
    lose_encoder(spec)
    for other in (replace(spec, revision="two"), replace(spec, text_encoder="text_encoder/../text_encoder"), replace(spec, revision="")):
        with pytest.raises(FourdfyError):
            textcache.embed(other, WORDS, "cpu")


def test_models_without_a_revision_are_not_kept(spec: ModelSpec) -> None:
    textcache.embed(replace(spec, revision=""), WORDS, "cpu")
    assert not (cache.cache_folder() / "text").exists()


@pytest.mark.parametrize(
    "damage", [b"", b"nonsense", None, textcache.save({"other": torch.zeros(2)}), textcache.save({"embedding": torch.ones(3)})]
)
def test_damaged_file_is_made_again(spec: ModelSpec, damage: bytes | None) -> None:
    first = textcache.embed(spec, WORDS, "cpu")
    for path in kept():
        path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    again = textcache.embed(spec, WORDS, "cpu")
    assert all(torch.equal(again[words], first[words]) for words in WORDS)
    lose_encoder(spec)
    assert torch.equal(textcache.embed(spec, WORDS, "cpu")[""], first[""])


def test_folder_that_cannot_be_written(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert textcache.embed(spec, WORDS, "cpu")[""].dim() == 2
    assert (tmp_path / "cache").read_text().startswith("a file")


def test_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOURDFY_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("FOURDFY_CACHE")
    assert cache.cache_folder() == tmp_path / "b" / "fourdfy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == tmp_path / "c" / ".cache" / "fourdfy"


def test_a_user_without_a_home_has_a_folder_of_his_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: ModelSpec) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FOURDFY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = cache.cache_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    textcache.embed(spec, WORDS, "cpu")
    assert len(kept()) == 2
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")  # somebody else was first
    assert cache.cache_folder() != folder
    assert list(textcache.embed(spec, WORDS, "cpu")) == WORDS


def test_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FOURDFY_CACHE", "~/c")
    assert cache.cache_folder() == tmp_path / "c"


def test_what_is_written_follows_no_link(spec: ModelSpec, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    path = textcache.file(spec, "a red dog")
    path.parent.mkdir(parents=True)
    path.with_suffix(f".{os.getpid()}.part").symlink_to(target)
    textcache.embed(spec, ["a red dog"], "cpu")
    assert target.read_text() == "mine"
