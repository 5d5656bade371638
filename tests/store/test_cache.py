"""Where what may be computed again is kept: as told, at home, or in a folder that is this user's alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from fourdfy_cli.store.cache import cache_folder

posix = pytest.mark.skipif(os.name == "nt", reason="users of POSIX")


def test_the_first_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("FOURDFY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "fourdfy"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "shared" / "fourdfy"
    monkeypatch.setenv("FOURDFY_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "home" / "mine"


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a user without a home gets."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FOURDFY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"fourdfy-{os.getuid()}"


@posix
def test_a_user_without_a_home(homeless: Path):
    assert cache_folder() == homeless and homeless.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == homeless


@posix
@pytest.mark.parametrize("kind", ["open to others", "a link", "another user's"])
def test_a_place_that_somebody_else_has_is_not_used(homeless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    if kind == "a link":
        (tmp_path / "there").mkdir(mode=0o700)
        homeless.symlink_to(tmp_path / "there")
    else:
        homeless.mkdir(mode=0o700)
        if kind == "open to others":
            homeless.chmod(0o777)
        else:
            other = os.getuid() + 1
            homeless.rename(homeless.with_name(f"fourdfy-{other}"))
            monkeypatch.setattr(os, "getuid", lambda: other)
    assert cache_folder() == Path(os.devnull) / "fourdfy"
