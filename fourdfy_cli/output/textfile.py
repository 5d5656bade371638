"""Text that people hand in: prompts, tables, camera paths, answer sheets. Read as UTF-8 with or without a byte order mark, within bounds;
everything else is refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fourdfy_cli.errors import USAGE, FourdfyError, typed

LARGEST = 2**23  # bytes of a text file
MARK = "\ufeff"


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The text of a file, pipes included. Raises FourdfyError (exit 2): cannot be read, more than `largest` bytes, or not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise FourdfyError(f"cannot read {path}: {error.strerror}", typed("ls", "-ld", path), USAGE) from None
    if len(data) > largest:
        raise FourdfyError(f"{path} is larger than the {largest / 2**20:.0f} MiB that a text file may have", typed("ls", "-l", path), USAGE)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _foreign(path, data, f"byte {error.start} is none") from None
    if "\0" in text:
        raise _foreign(path, data, "it holds null bytes")
    return text


def _foreign(path: Path, data: bytes, why: str) -> FourdfyError:
    """Another encoding (exit 2); the hint turns it into ours."""
    start, zeros = data[:4], data[:1000].count(0)
    wide = "UTF-32" if start in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") else "UTF-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    if not wide and zeros:
        wide = "UTF-16LE" if data[1:1000:2].count(0) >= data[0:1000:2].count(0) else "UTF-16BE"
    again = f"{typed('iconv', '-f', wide or 'WINDOWS-1252', '-t', 'UTF-8', path)} > {typed(path.with_name(path.name + '.utf8'))}"
    return FourdfyError(f"{path} is not UTF-8 text{f' but {wide}' if wide else ''}: {why}", again, USAGE)


def read_lines(path: Path, largest: int = LARGEST) -> list[str]:
    """Stripped lines of a text file, the line ends of every system; what else Python takes for one stays. Raises as `read_text`."""
    return [line.strip().strip(MARK).strip() for line in re.split(r"\r\n|\r|\n", read_text(path, largest))]


def read_object(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The object of a JSON file. Raises FourdfyError (exit 2) for what is none, and as `read_text`."""
    look = typed("python", "-m", "json.tool", path)
    try:
        values = json.loads(read_text(path, largest))
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise FourdfyError(f"{path} is not JSON: {why}", look, USAGE) from None
    if not isinstance(values, dict):
        raise FourdfyError(f"{path} holds no JSON object", look, USAGE)
    return values
