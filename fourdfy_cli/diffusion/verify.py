"""Are a model's files what they should be: whole, and with the checksum that the Hub or `models convert` gave them.

The Hub's cache names a file by its checksum: sha256 for large files, git's sha1 for small ones. A converted folder lists its own in
`sha256.json`. Other folders have no checksums; there only a safetensors file's length can be checked against its header.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fourdfy_cli.errors import ENVIRONMENT, FourdfyError
from fourdfy_cli.store import gate
from fourdfy_cli.store.cache import cache_folder
from fourdfy_cli.store.files import replacing
from fourdfy_cli.store.folder import read_json, write_json

LOCK = "sha256.json"
KNOWN = "checked.json"  # in the cache folder: what was whole when it was last read through


class Check(NamedTuple):
    """A file's verdict: "ok", "damaged" (another checksum), "truncated", or "unknown" (nothing to compare with)."""

    path: Path
    verdict: str


def verify(folder: Path, names: list[str]) -> Iterator[Check]:
    """The verdict on each file, one after the other as they are read; `names` are paths inside the folder."""
    for name in names:
        yield Check(folder / name, verdict(folder, name))


def verdict(folder: Path, name: str) -> str:
    path = folder / name
    if path.suffix == ".safetensors" and not is_whole(path):
        return "truncated"
    expected = checksum_wanted(folder, name)
    if expected is None:
        return "unknown"
    return "ok" if checksum(path, "sha256" if len(expected) == 64 else "git") == expected else "damaged"


def check(folder: Path, names: Iterable[str], hint: str) -> None:
    """Before weights are used: every file as long as its header says, and with its checksum if it has one, which is computed once per file
    and change. Raises FourdfyError (exit 3) for one that is not."""
    known, found = read_json(cache_folder() / KNOWN) or {}, {}
    for name in names:
        if (folder / name).suffix == ".safetensors" and not is_whole(folder / name):
            raise FourdfyError(f"{folder / name} is truncated", hint, ENVIRONMENT)
        if wanted := checksum_wanted(folder, name):
            key, about = str((folder / name).resolve()), (folder / name).stat()
            found[key] = [about.st_size, about.st_mtime_ns, wanted]
            if known.get(key) != found[key] and verdict(folder, name) != "ok":
                raise FourdfyError(f"{folder / name} is damaged: its checksum is not the published one", hint, ENVIRONMENT)
    if not found.items() <= known.items():
        with contextlib.suppress(FourdfyError, OSError):
            write_json(cache_folder() / KNOWN, known | found)


def checksum_wanted(folder: Path, name: str) -> str | None:
    """What a file's checksum should be: the name of the cached file that the snapshot links to, or the converter's own list.
    Raises FourdfyError (exit 3) for a list that is none."""
    path = folder / name
    if path.is_symlink():
        target = Path(os.readlink(path))  # one step only: the file it names may itself be a link into a store with other names
        return target.name if target.parent.name == "blobs" and len(target.name) in (40, 64) else None
    lock = folder / LOCK
    wanted = gate.read_object(lock).get(name) if lock.is_file() else None
    return None if wanted is None else str(wanted)


def checksum(path: Path, kind: str) -> str:
    """sha256, or the sha1 that git gives a file ("git"), in hexadecimal."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        entries, behind = gate.safetensors(path)
        return max((about["data_offsets"][1] for name, about in entries.items() if name != "__metadata__"), default=0) == behind
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return False


def write_lock(folder: Path) -> None:
    """List the sha256 of every file in a folder in its `sha256.json`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    sums = {path.relative_to(folder).as_posix(): checksum(path, "sha256") for path in paths}
    with replacing(folder / LOCK) as temporary:
        temporary.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
