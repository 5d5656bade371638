"""The run folder: names, run.json, metrics.jsonl. `outputs/<slug>-s<seed>/` alone is enough to resume and to look."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from fourdfy_cli.errors import USAGE, FourdfyError


def slug(prompt: str) -> str:
    """At most 48 characters of [a-z0-9-]; never empty."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:48].strip("-") or "scene"


def run_folder(out: Path, prompt: str, seed: int) -> Path:
    return out / f"{slug(prompt)}-s{seed}"


def make_writable(folder: Path) -> None:
    """Create the folder; raises FourdfyError (exit 2) where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FourdfyError(f"cannot write to {folder}: {error.strerror or error}", "choose another folder with --out DIR", USAGE) from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write atomically: a temporary file in the same folder, then a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's object, or None where there is none or it is not readable JSON."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


class Metrics:
    """metrics.jsonl, one object a step. Opening it at (stage, step) drops what lies beyond, so that a resumed run
    leaves the same lines as one that was never cut."""

    def __init__(self, path: Path, stage: int, step: int):
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _before(line, stage, step)]
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)
        self.file = path.open("a", buffering=1)

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self.file.close()


def _before(line: str, stage: int, step: int) -> bool:
    try:
        row = json.loads(line)
        return (row["stage"], row["step"]) < (stage, step)
    except (ValueError, KeyError, TypeError):
        return False
