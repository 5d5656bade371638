"""Weights that may be cut into several safetensors files: `<stem>.safetensors.index.json` says which file holds which tensor.

Names in an index are names of files beside it, nothing else. The headers of all files are compared with what the network wants, names
and shapes, before any tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fourdfy_cli.errors import ENVIRONMENT, FourdfyError
from fourdfy_cli.store import gate

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
NUMBERED = re.compile(r"(.*)-\d{5}-of-(\d{5})\.safetensors")
MOST_FILES = 200


def index(folder: Path, stem: str) -> Path | None:
    """The index of a network's shards, if its weights are cut."""
    path = folder / f"{stem}.safetensors.index.json"
    return path if path.is_file() else None


def files(path: Path) -> list[Path]:
    """The files that an index names, all in its own folder; raises FourdfyError (exit 3) for another name, or one that is missing."""
    names = gate.read_object(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise _refused(f"{path} has no weight_map")
    found = sorted({str(name) for name in names.values()})
    if len(found) > MOST_FILES:
        raise _refused(f"{path} names {len(found)} files")
    for name in found:
        if not NAME.fullmatch(name):
            raise _refused(f"{path} names {name[:80]!r}, which is not a safetensors file beside it")
        if not (path.parent / name).is_file():
            raise _refused(f"{path} names {name}, which is missing")
    return [path.parent / name for name in found]


def missing(names: set[str]) -> str | None:
    """Of the names of a folder's files, the first shard that is not there though its brothers are."""
    for match in filter(None, map(NUMBERED.fullmatch, sorted(names))):
        count = min(int(match[2]), MOST_FILES)
        for k in range(1, count + 1):
            if (name := f"{match[1]}-{k:05}-of-{match[2]}.safetensors") not in names:
                return name
    return None


def read(paths: list[Path], expected: Mapping[str, tuple[int, ...]], ignored: str = r"(?!)") -> dict[str, Tensor]:
    """The tensors of files, which must be exactly those of `expected`, but for names that match `ignored`. Raises FourdfyError (exit 3)
    before memory is taken."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        here = {name: shape for name, (_, shape) in gate.header(path).items() if not re.fullmatch(ignored, name)}
        if twice := next(iter(shapes.keys() & here.keys()), None):
            raise _refused(f"{path}: {twice[:120]} is in another file too")
        shapes |= here
    gate.compare(paths[0].parent if len(paths) > 1 else paths[0], shapes, expected)
    state = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                state |= {name: file.get_tensor(name) for name in file.keys() if name in shapes}
        except (SafetensorError, OSError) as error:
            raise _refused(f"{path} is damaged: {(str(error).splitlines() or ['?'])[0][:200]}") from error
    return state


def _refused(message: str) -> FourdfyError:
    return FourdfyError(message, "fourdfy models verify", ENVIRONMENT)
