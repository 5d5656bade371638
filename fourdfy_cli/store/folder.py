"""The run folder: names, run.json, metrics.jsonl. `outputs/<slug>-s<seed>/` alone is enough to resume and to look."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.store.files import replacing


def slug(prompt: str) -> str:
    """At most 48 characters of [a-z0-9-], never empty; where the prompt is cut or loses letters, the last 8 are of its hash."""
    plain = unicodedata.normalize("NFKD", prompt).lower()
    name = _dashed(plain)
    if name and len(name) <= 48 and all(c.isascii() for c in plain if c.isalnum()):
        return name
    return f"{name[:39].strip('-') or 'scene'}-{hashlib.sha256(prompt.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _dashed(plain: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", plain.encode("ascii", "ignore").decode()).strip("-")


def run_folder(out: Path, prompt: str, seed: int) -> Path:
    """The folder of a prompt and seed; where 0.1.0 left this prompt's run under its cut name, that one."""
    cut = _dashed(unicodedata.normalize("NFKD", prompt).lower())[:48].strip("-") or "scene"
    old = out / f"{cut}-s{seed}"
    if cut != slug(prompt) and (read_json(old / "run.json") or {}).get("prompt") == prompt:
        return old
    return out / f"{slug(prompt)}-s{seed}"


def make_writable(folder: Path) -> None:
    """Create the folder; raises FourdfyError (exit 2) where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise FourdfyError(f"cannot write to {folder}: {error.strerror or error}", "another folder: --out outputs-2", USAGE) from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write as safely as a checkpoint; numbers that JSON has no word for become null. Raises FourdfyError (exit 1) as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(finite(values), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """Nested builtins with None in place of NaN and infinities."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's object, or None where there is none or it is not readable JSON."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


class Metrics:
    """metrics.jsonl, one object a step. Opening it at (stage, step) drops what lies beyond, so that a resumed run
    leaves the same lines as one that was never cut."""

    def __init__(self, path: Path, stage: int, step: int):
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _before(line, stage, step)]
        with replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        self.file = path.open("a", buffering=1)

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(finite(row), allow_nan=False) + "\n")

    def close(self) -> None:
        self.file.close()


def _before(line: str, stage: int, step: int) -> bool:
    try:
        row = json.loads(line)
        return (row["stage"], row["step"]) < (stage, step)
    except (ValueError, KeyError, TypeError):
        return False
