"""The run folder: names, run.json, metrics.jsonl. `outputs/<slug>-s<seed>/` alone is enough to resume and to look."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fourdfy_cli.errors import USAGE, FourdfyError, typed
from fourdfy_cli.store.files import refused, replacing, sync


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
    """Write as safely as a checkpoint, a checksum last; numbers that JSON has no word for become null. Raises FourdfyError (exit 1) as
    `replacing`."""
    values = finite(values)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values | {"crc": checksum(values)}, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """Nested builtins with None in place of NaN and infinities."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's object without its checksum, or None where there is none, it is not readable JSON, or not what was written."""
    try:
        values = json.loads(path.read_bytes()) if path.is_file() else None  # a pipe would be waited for
        return checked(values) if isinstance(values, dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def checked(values: dict[str, Any]) -> dict[str, Any] | None:
    """What `write_json` was given; None if its checksum says otherwise. Files of 0.1.0, and of others, have none."""
    plain = {name: value for name, value in values.items() if name != "crc"}
    return plain if "crc" not in values or values["crc"] == checksum(plain) else None


def checksum(values: dict[str, Any]) -> str:
    """CRC-32 of an object as JSON, eight hexadecimal digits."""
    return f"{zlib.crc32(json.dumps(values).encode()):08x}"


def read_runs(path: Path, words: Iterable[str], figures: Iterable[str], others: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The list "runs" of a JSON file of results: those whose `words` are texts, whose `figures` are numbers, and whose `others` are
    numbers, null or missing. What is damaged is measured again."""
    number = (int, float)

    def whole(row: Any) -> bool:
        return (
            isinstance(row, dict)
            and all(isinstance(row.get(name), str) for name in words)
            and all(isinstance(row.get(name), number) for name in figures)
            and all(isinstance(row.get(name, 0), (*number, type(None))) for name in others)
        )

    runs = (read_json(path) or {}).get("runs")
    return [row for row in runs if whole(row)] if isinstance(runs, list) else []


class Metrics:
    """metrics.jsonl, one object a step, its checksum last. Opening it at (stage, step) drops what lies beyond, so that a resumed run
    leaves the same lines as one that was never cut, and tells of lines that are missing; `earlier`: how many steps each stage before has.
    Raises FourdfyError (exit 1) where the disk refuses."""

    def __init__(self, path: Path, stage: int, step: int, note: Callable[[str], None] = lambda _: None, earlier: Sequence[int] = ()):
        self.path = path
        kept, unreadable = _before(path, stage, step)
        if unreadable:
            note(f"{path}: {unreadable} of its lines could not be read and are left out")
        first = metrics_row(kept[0]) if kept else None
        due = step + (sum(earlier[first["stage"] - 1 :]) - first["step"] if first else 0)
        if path.exists() and len(kept) < due:
            note(f"{path} has lost lines of what came before step {step} of stage {stage}")
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        self.file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        try:
            row = finite(row)
            self.file.write(json.dumps(row | {"crc": checksum(told(row))}, allow_nan=False) + "\n")
        except OSError as error:
            raise refused(self.path, error) from None

    def sync(self) -> None:
        """Bring the lines to the disk: no checkpoint may be ahead of them."""
        try:
            sync(self.file.fileno())
        except OSError as error:
            raise refused(self.path, error) from None

    def close(self) -> None:
        with contextlib.suppress(FourdfyError, ValueError):  # a full disk, which `write` told of; closed before
            self.sync()
        with contextlib.suppress(OSError):
            self.file.close()


def _before(path: Path, stage: int, step: int) -> tuple[list[bytes], int]:
    """The lines of what came before a step, and how many others but the last cannot be read."""
    if not os.path.lexists(path):
        return [], 0
    lines = metrics_lines(path)
    rows = [metrics_row(line) for line in lines]
    kept = [line for line, row in zip(lines, rows, strict=True) if row is not None and (row["stage"], row["step"]) < (stage, step)]
    return kept, rows[:-1].count(None)


def metrics_lines(path: Path, tail: int | None = None) -> list[bytes]:
    """The lines of a metrics.jsonl, or of its last `tail` bytes, where the first may be cut. Raises FourdfyError: exit 2 for what is no
    file (a pipe would be waited for), exit 1 where the disk refuses."""
    if not path.is_file():
        raise FourdfyError(f"{path} is no file", typed("ls", "-ld", path), USAGE)
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - tail) if tail else 0)
            return file.read().splitlines()
    except OSError as error:
        raise refused(path, error) from None


def metrics_row(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl with the step that it tells of, without its checksum; None for one that is damaged."""
    try:
        row = json.loads(line)
        whole = type(row["stage"]) is type(row["step"]) is int
        name, last = list(row.items())[-1]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if name == "crc":
        del row["crc"]
        whole = whole and last == checksum(told(row))
    elif isinstance(last, str) and re.fullmatch("[0-9a-f]{8}", last):  # its name is damaged; lines of 0.1.0 have none
        return None
    return row if whole else None


def told(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics but for what differs from run to run."""
    return {name: value for name, value in row.items() if name not in ("seconds", "rung")}
