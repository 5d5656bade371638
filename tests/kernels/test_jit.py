"""Compiled code on disk: found by the next process, made again where it cannot be read, done without where it cannot be written."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from numba import config

from fourdfy_cli import doctor
from fourdfy_cli.kernels import jit

SOURCE = "from fourdfy_cli.kernels.jit import cached_njit\n\n@cached_njit(nogil=True)\ndef twice(x):\n    return 2 * x\n"


def twice(path: Path) -> Any:
    """The compiled function of a file, as a process that has never seen it gets it."""
    spec = importlib.util.spec_from_file_location("source", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.twice


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source.py").write_text(SOURCE)
    return tmp_path / "source.py"


def hits(function: Any) -> int:
    return sum(function.stats.cache_hits.values())


def test_the_next_process_compiles_nothing(source: Path):
    first = twice(source)
    assert first(2) == 4 and hits(first) == 0
    second = twice(source)
    assert second(2) == 4 and hits(second) == 1
    assert jit.lasting(second) == source.parent / "__pycache__"


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other": lambda path: path.write_bytes(b"\x80\x04N."),  # a pickled None
    "text": lambda path: path.write_text("hello"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_damaged_cache_is_made_again(source: Path, suffix: str, damage: str):
    assert twice(source)(2) == 4
    for path in (source.parent / "__pycache__").glob(f"*{suffix}"):
        DAMAGES[damage](path)
    assert twice(source)(2) == 4
    again = twice(source)
    assert again(2) == 4 and hits(again) == (damage != "folder")  # nothing can be kept under a folder's name


def test_nowhere_to_write(source: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither beside the source nor in a home: a folder of this process; and without one, nothing is kept."""
    monkeypatch.setattr(config, "CACHE_DIR", "")
    refuse = iter([RuntimeError("cannot cache function: no locator available"), None])
    kept = jit.Kept

    def first_refused(function: Any) -> Any:
        if error := next(refuse, None):
            raise error
        return kept(function)

    monkeypatch.setattr(jit, "Kept", first_refused)
    function = twice(source)
    assert function(2) == 4 and jit.lasting(function) is None
    assert list(Path(jit.temporary().name).rglob("*.nbi"))

    def refused(function: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jit, "Kept", refused)
    function = twice(source)
    assert function(2) == 4 and jit.lasting(function) is None


def test_a_full_disk_costs_no_result(source: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert twice(source)(2) == 4


def test_the_doctor_tells(monkeypatch: pytest.MonkeyPatch):
    check = doctor.kernels()
    assert check.state == "ok" and "__pycache__" in check.detail
    monkeypatch.setattr(jit, "lasting", lambda _: None)
    check = doctor.kernels()
    assert (check.state, check.mend) == ("note", "export NUMBA_CACHE_DIR=FOLDER")
