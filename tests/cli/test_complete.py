"""What a shell is offered, asked as the shell asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from samples import isolated as isolated


def offered(words: str) -> list[str]:
    """The completions of the last word."""
    asked = {"_FOURDFY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    code = "from fourdfy_cli.cli.main import app; app(prog_name='fourdfy')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True)
    return done.stdout.split()


@pytest.fixture
def made(isolated: Path) -> Path:
    for name in ("outputs/a-red-dog-s0/stage1.pt", "outputs/a-blue-cat-s1/last.pt", "other/notes.txt", "outputs/.hidden/last.pt"):
        (isolated / name).parent.mkdir(parents=True, exist_ok=True)
        (isolated / name).write_bytes(b"")
    return isolated


def test_nothing_typed_yet_the_runs_come_first(made: Path):
    assert offered("fourdfy info ") == ["outputs/a-blue-cat-s1", "outputs/a-red-dog-s0", "other", "outputs"]


def test_run_folders_and_checkpoints(made: Path):
    assert offered("fourdfy info outputs/a-r") == ["outputs/a-red-dog-s0"]
    assert offered("fourdfy render outputs/a-red-dog-s0/") == ["outputs/a-red-dog-s0/stage1.pt"]
    assert offered("fourdfy stage2 --resume out") == ["outputs"]
    assert offered("fourdfy info other/") == offered("fourdfy info nowhere/") == []
    assert offered("fourdfy runs o") == ["other", "outputs"]
