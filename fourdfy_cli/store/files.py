"""Files that are whole or not there: a temporary file in the same folder, synced, renamed, the folder synced. Design: commit by rename,
as Orbax does."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from fourdfy_cli.errors import FAILURE, FourdfyError, typed

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none


@contextlib.contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """A new, empty temporary file beside `path` (same suffix) that takes its place, synced to disk, when the block ends well and
    disappears when it does not; the file that was there is renamed to `previous` if given. Raises FourdfyError (exit 1) where the disk
    refuses."""
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666))  # never a link that somebody laid there
        yield temporary
        with open(temporary, "rb") as file:
            sync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise refused(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def filled(folder: Path | None) -> Iterator[Path | None]:
    """A temporary folder beside `folder` whose files come to stand in it when the block ends well, and disappear when it does not; what
    processes that died left there goes. Raises FourdfyError (exit 1) where the disk refuses."""
    if folder is None:
        yield None
        return
    place = folder.absolute()
    temporary = place.with_name(f".part-{os.getpid()}-{place.name}")
    try:
        for old in place.parent.glob(f".part-*-{glob.escape(place.name)}"):
            pid = old.name.split("-")[1]
            if pid.isdigit() and not alive(int(pid)):
                shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if place.exists():
            for file in sorted(temporary.iterdir()):
                shutil.move(file, place / file.name)
        else:
            temporary.rename(place)
    except OSError as error:
        raise FourdfyError(f"cannot write {folder}: {error.strerror or error}", typed("df", "-h", place.parent), FAILURE) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refused(path: Path, error: OSError) -> FourdfyError:
    """What the disk said when a file was to be written."""
    return FourdfyError(f"cannot write {path}: {error.strerror or error}", typed("df", "-h", path.parent), FAILURE)


def sweep(folder: Path, name: str = "") -> None:
    """Delete the temporary files (of one name, if told) that processes no longer alive left in a folder."""
    for path in folder.glob(f".tmp-*-*{glob.escape(name)}"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not alive(int(pid)):
            with contextlib.suppress(OSError):
                path.unlink()


def alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    if os.name == "nt":  # where os.kill(pid, 0) is Ctrl-C
        return _opens(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _opens(pid: int) -> bool:
    """Whether Windows hands out a process to be asked about (PROCESS_QUERY_LIMITED_INFORMATION)."""
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle = kernel.OpenProcess(0x1000, False, pid)
    return bool(handle and kernel.CloseHandle(handle))


def sync(descriptor: int) -> None:
    """fsync, where the file system knows it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
