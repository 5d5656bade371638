"""`fourdfy runs`: every run under a folder, from the small files that runs leave; no checkpoint is opened."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output.films import is_run
from fourdfy_cli.store.folder import read_json
from fourdfy_cli.store.lock import holder

SIGNS = ("run.json", "metrics.jsonl", "last.pt", "stage3.pt", "stage2.pt", "stage1.pt")  # files that a living run touches


def listed(folder: Path) -> list[dict[str, Any]]:
    """One row for each run under a folder, itself included, the last one touched first. Raises FourdfyError (exit 2) if there is no such
    folder."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise FourdfyError(f"{folder} {what}", 'fourdfy generate "a red dog jumping"', USAGE)
    return sorted((row(run) for run in find(folder)), key=lambda one: one["age"])


def find(folder: Path) -> Iterator[Path]:
    """The run folders in a folder and below; links and hidden folders are not followed."""
    for place, inside, _ in os.walk(folder):
        if is_run(Path(place)):
            inside.clear()
            yield Path(place)
        inside[:] = sorted(name for name in inside if not name.startswith("."))


def row(run: Path) -> dict[str, Any]:
    """What a run folder tells of itself: prompt, status, stage and step, scores (None where nobody measured), seconds since it was last
    touched."""
    about = read_json(run / "run.json") or {}
    stage = _number(about.get("stage"))
    return {
        "run": str(run),
        "prompt": _text(about.get("prompt")),
        "status": status(run, about),
        "stage": stage,
        "step": _number(about.get("step")),
        "steps": _number(_at(about, "recipe", f"stage{stage}", "steps")),
        "seed": _number(about.get("seed")),
        "models": _text(about.get("models")),
        "clip": _number(_at(read_json(run / "clip.json"), "videos", 0, "score")),
        "iou": _number(_at(read_json(run / "nano.json"), "iou")),
        "age": max(0.0, time.time() - touched(run)),
    }


def status(run: Path, about: dict[str, Any]) -> str:
    """What run.json says; "running" only while its process lives, "died" if that ended without a word, "unknown" without run.json."""
    said = _text(about.get("status")) or "unknown"
    if holder(run):
        return "running"
    return "died" if said == "running" else said


def touched(run: Path) -> float:
    """When a run last wrote, in seconds since 1970."""
    found = [0.0]
    for name in SIGNS:
        with contextlib.suppress(OSError):
            found.append((run / name).stat().st_mtime)
    return max(found)


def _at(values: Any, *path: str | int) -> Any:
    """What lies there in nested builtins from somebody's file, None where nothing does."""
    for key in path:
        try:
            values = values[key]
        except (TypeError, KeyError, IndexError):
            return None
    return values


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
