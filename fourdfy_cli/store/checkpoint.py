"""One file format for trained state, written so that a crash at any moment leaves the old file or the new one.

A state is a dictionary of nested builtins and tensors: prompt, seed, recipe (config.to_dict), stage, step, scene, and
where there are any lora, optimizer, models. On disk it gains `format`, `version` and `digest`. Equal states give equal
bytes, whatever order their dictionaries were filled in.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import Tensor

from fourdfy_cli.errors import DAMAGED, DIVERGED, FAILURE, USAGE, FourdfyError, typed
from fourdfy_cli.store import migrate
from fourdfy_cli.store.files import replacing, sweep

FORMAT = "fourdfy"
HEADER = ("format", "version", "digest")
REQUIRED = {"prompt": str, "seed": int, "recipe": dict, "stage": int, "step": int, "scene": dict}
COUNTS = ("retries", "skipped", "skipped_in_a_row", "threads", "views")  # where they are not 0
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
LAST, PREVIOUS = "last.pt", "last.prev.pt"
NAMES = (LAST, PREVIOUS, "stage3.pt", "stage2.pt", "stage1.pt")  # of a run folder, the newest first
SPARE = 16e6  # bytes that stay free on the disk
# What zipfile and torch.load raise on a damaged or foreign file.
UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError,
    MemoryError, UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


class NewerFormat(FourdfyError):
    """A checkpoint of a newer version: whole, but not for this one to read or to move."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state atomically: temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises FourdfyError: exit 5 if a tensor holds a number that is not finite, exit 1 if the disk refuses; the file that
    was there before is then untouched.
    """
    _commit(path, state, None)


def save_last(folder: Path, state: dict[str, Any]) -> Path:
    """Save as the folder's last.pt and keep the one before as last.prev.pt; returns the path of the new one."""
    _commit(folder / LAST, state, folder / PREVIOUS)
    return folder / LAST


def _commit(path: Path, state: dict[str, Any], previous: Path | None) -> None:
    plain = _complete(state)
    need = 1.2 * sum(leaf.nbytes for _, leaf in _leaves(plain) if isinstance(leaf, Tensor)) + SPARE
    with contextlib.suppress(OSError):
        if (free := shutil.disk_usage(path.parent).free) < need:
            message = f"cannot write {path}: it wants {need / 1e6:.0f} MB, and {free / 1e6:.0f} are free"
            raise FourdfyError(message, typed("df", "-h", path.parent), FAILURE)
    with replacing(path, previous) as temporary, open(temporary, "wb") as file:
        sink: Any = _Sink(file)
        try:
            torch.save(plain, sink)  # to an open file: given a path, torch would store that name in the archive
        except RuntimeError:
            if sink.error is None:
                raise
            raise sink.error from None  # what the disk said, not what torch makes of it


class _Sink:
    """A file for torch.save that remembers the error that torch hides."""

    def __init__(self, file: IO[bytes]):
        self.file, self.flush = file, file.flush
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def load(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint; tensors come on the CPU.

    Raises FourdfyError: exit 2 if the file is missing, exit 6 if it is damaged, foreign or from a newer version.
    """
    if not path.is_file():
        what = "does not exist" if not path.exists() else "is a folder, not a checkpoint" if path.is_dir() else "is no file"
        raise FourdfyError(f"{path} {what}", 'fourdfy generate "a red dog jumping"', USAGE)
    try:
        with zipfile.ZipFile(path) as archive:
            broken = not _stored(archive, path.stat().st_size) or archive.testzip()  # torch itself does not look at the checksums
        state: Any = None if broken else torch.load(path, map_location="cpu", weights_only=True)
        _bounded(path, state)
        _verify(path, state)
        return migrate.migrated(state, state["version"])
    except PermissionError as error:
        raise FourdfyError(f"{path} cannot be read: {error.strerror}", typed("ls", "-l", path), USAGE) from None
    except UNREADABLE:
        raise _refused(path, "is damaged, or not a fourdfy checkpoint") from None


def _stored(archive: zipfile.ZipFile, size: int) -> bool:
    """Whether nothing in an archive unpacks to more than its file has: torch never compresses, and no two entries share bytes."""
    entries = archive.infolist()
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries) and sum(entry.file_size for entry in entries) <= size


def _bounded(path: Path, state: Any) -> None:
    """Raises FourdfyError (exit 6) where a file holds something that is more than the file has bytes: a tensor that is spread out over its
    storage, or one thing that stands in many places."""
    size = path.stat().st_size
    count = total = 0
    for _, leaf in _leaves(state):
        if isinstance(leaf, Tensor) and not _own(leaf):
            raise _refused(path, "is damaged: a tensor in it is larger than what is stored of it")
        count, total = count + 1, total + (leaf.nbytes if isinstance(leaf, Tensor) else 0)
        if max(count, total) > size:
            raise _refused(path, "is damaged: it holds more than it has bytes")


def check_tensors(path: Path, part: str, found: Any, expected: Mapping[str, Tensor]) -> None:
    """Raises FourdfyError (exit 6) unless `found` has exactly the names, shapes and dtypes of `expected`, whose tensors need no storage."""
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise _refused(path, f"is damaged: its {part} holds something else than tensors")
    if wrong := sorted(map(str, set(found) ^ set(expected))):
        raise _refused(path, f"does not fit its recipe: {part}.{wrong[0][:80]} is {'missing' if wrong[0] in expected else 'unknown'}")
    for name, value in expected.items():
        if (found[name].shape, found[name].dtype) != (value.shape, value.dtype):
            theirs = f"{found[name].dtype} {list(found[name].shape)}"
            raise _refused(path, f"does not fit its recipe: {part}.{name} is {theirs}, not {value.dtype} {list(value.shape)}")


def recover(folder: Path, note: Callable[[str], None] = lambda _: None) -> dict[str, Any] | None:
    """The furthest whole checkpoint of a run folder (last.pt, last.prev.pt, stage3.pt, stage2.pt, stage1.pt), None where there is none.

    A damaged one is set aside under another name, and `note` hears of it: the next save must not put it in a good one's place. Also
    clears away temporary files of processes that died. Raises FourdfyError (exit 6) if every one is damaged, or one is of a newer version.
    """
    for place in (folder, folder / "previews"):
        sweep(place)
    whole: list[dict[str, Any]] = []
    failures: list[FourdfyError] = []
    for path in (folder / name for name in NAMES):
        if not os.path.lexists(path):
            continue
        try:
            whole.append(load(path))
        except NewerFormat:
            raise
        except FourdfyError as error:
            failures.append(error)
            note(f"{error.message}; set aside as {set_aside(path).name}")
    if failures and not whole:
        raise failures[0]
    return max(whole, key=lambda state: (state["stage"], state["step"]), default=None)


def set_aside(path: Path) -> Path:
    """Give a damaged file a name that nothing reads, beside it; returns that name."""
    number = next(k for k in itertools.count(1) if not os.path.lexists(path.with_name(f"{path.stem}.damaged-{k}")))
    aside = path.with_name(f"{path.stem}.damaged-{number}")
    with contextlib.suppress(OSError):
        os.replace(path, aside)
    return aside


def digest(state: dict[str, Any]) -> str:
    """sha256, in hex, over every leaf by its sorted dotted key: a tensor's dtype, shape and bytes, a builtin's repr. The
    header (format, version, digest) does not count."""
    total = hashlib.sha256()
    body = {key: value for key, value in state.items() if key not in HEADER}
    for key, leaf in sorted(_leaves(body), key=lambda pair: pair[0]):
        if isinstance(leaf, Tensor):
            total.update(f"{key}\0{leaf.dtype}{tuple(leaf.shape)}\0".encode())
            total.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            total.update(f"{key}\0{leaf!r}\0".encode(errors="surrogatepass"))
    return total.hexdigest()


def _complete(state: dict[str, Any]) -> dict[str, Any]:
    """A canonical copy of a state, with header."""
    missing = [key for key, kind in REQUIRED.items() if not isinstance(state.get(key), kind)]
    if missing:
        raise TypeError(f"a checkpoint needs {', '.join(missing)}")
    plain = _plain({key: value for key, value in state.items() if key not in HEADER}, "state")
    return {"format": FORMAT, "version": migrate.FORMAT, **plain, "digest": digest(plain)}


def _plain(value: Any, key: str) -> Any:
    """Builtins and CPU tensors only, dictionaries sorted, strings interned, no storage shared: what makes bytes equal."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FourdfyError(f"{key} holds a number that is not finite; nothing was saved", "fourdfy info last.pt", DIVERGED)
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: (type(name).__name__, name))
        return {_plain(name, key): _plain(value[name], f"{key}.{name}") for name in names}
    if isinstance(value, (list, tuple)):
        return type(value)([_plain(item, f"{key}.{i}") for i, item in enumerate(value)])
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, float) and not math.isfinite(value):
        raise FourdfyError(f"{key} is not finite; nothing was saved", "fourdfy info last.pt", DIVERGED)
    if value is None or type(value) in (bool, int, float):
        return value
    raise TypeError(f"{key} is a {type(value).__name__}; a checkpoint holds tensors and builtins only")


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf by its dotted key; empty containers are leaves too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    if not isinstance(value, (dict, list, tuple)) or not value:
        yield prefix, value
    for name, item in items:
        yield from _leaves(item, f"{prefix}.{name}")


def _own(tensor: Tensor) -> bool:
    """Whether a tensor lies in memory of its own as `save` writes it: not spread out over, nor cut from, something of another size."""
    plain = type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.dtype in DTYPES
    return plain and tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


def _verify(path: Path, state: Any) -> None:
    """Raises FourdfyError (exit 6) unless this is a whole checkpoint of a version this program reads."""
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise _refused(path, "is damaged" if state is None else "is not a fourdfy checkpoint")
    version = state.get("version")
    if isinstance(version, int) and version > migrate.FORMAT:
        raise NewerFormat(f"{path} was written by a newer fourdfy (format {version})", "pip install --upgrade fourdfy", DAMAGED)
    whole = type(version) is int and version >= 1 and all(type(state.get(key)) is kind for key, kind in REQUIRED.items())
    whole = whole and state["stage"] in (1, 2, 3) and 0 <= state["step"] < 2**40 and 0 <= state["seed"] < 2**64
    whole = whole and all(type(state.get(key, 0)) is int and 0 <= state.get(key, 0) < 2**40 for key in COUNTS)
    whole = whole and all(_named(state.get(key) or {}) for key in ("scene", "lora"))
    if not whole or state.get("digest") != digest(state):
        raise _refused(path, "is damaged: its contents do not match its digest")


def _named(tensors: Any) -> bool:
    """Whether this is a dictionary of tensors by name."""
    return isinstance(tensors, dict) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items())


def _refused(path: Path, what: str) -> FourdfyError:
    spare = path.with_name(PREVIOUS)
    hint = typed("fourdfy", "info", spare) if path.name == LAST and spare.exists() else typed("ls", path.parent)
    return FourdfyError(f"{path} {what}", hint, DAMAGED)
