"""One run, one writer: a file `run.lock` with the process that is at work in a run folder.

A lock counts while its process lives (on this machine) or its file has been touched within STALE seconds (on another one); a dead one's
is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from fourdfy_cli.errors import USAGE, FourdfyError, typed
from fourdfy_cli.store.files import NO_FOLLOW, alive, refused

NAME, STALE = "run.lock", 600.0
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # what file systems say that know no hard links


class RunLock:
    """Context manager that holds a run folder. Raises FourdfyError (exit 2) that names the process at work there."""

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.own = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid()), "token": secrets.token_hex(8)}

    def __enter__(self) -> RunLock:
        try:
            for _ in range(3):
                if self._made():
                    return self
                self._take_over()
        except OSError as error:
            raise refused(self.path, error) from None
        raise self._busy(holder(self.path.parent))

    def _made(self) -> bool:
        """Lay the lock down, whole from its first moment on (a process may die at any), unless there is one."""
        written = self._aside()
        try:
            with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666), "w") as file:
                json.dump(self.own, file)
            os.link(written, self.path)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS or os.path.lexists(self.path):
                raise
            os.rename(written, self.path)  # where a file cannot have two names, two that start in the same moment may both pass
            return True
        finally:
            written.unlink(missing_ok=True)

    def _aside(self) -> Path:
        return self.path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{NAME}")

    def __exit__(self, *_: object) -> None:
        if _read(self.path) == self.own:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def beat(self) -> None:
        """Tell other machines that this process lives; raises FourdfyError (exit 1) if the lock is gone or somebody else's."""
        if _read(self.path) != self.own:
            message = f"{self.path.parent} is gone, or another process works there: everything since the last save is lost"
            raise FourdfyError(message, typed("ls", self.path.parent.parent))
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def _take_over(self) -> None:
        """Move a dead process's lock out of the way; raises FourdfyError if its process lives."""
        if _odd(self.path):
            raise FourdfyError(f"{self.path} is no file, hence no lock", typed("ls", "-ld", self.path), USAGE)
        found = _read(self.path)
        if found is not None and holds(self.path, found):
            raise self._busy(found)
        aside = self._aside()
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if _read(aside) != found:  # somebody was faster, and this is theirs
                os.rename(aside, self.path)
                raise self._busy(_read(self.path))
            aside.unlink()

    def _busy(self, found: dict[str, Any] | None) -> FourdfyError:
        who = f"process {found['pid']} on {found['host']}" if found and {"pid", "host"} <= set(found) else "another process"
        return FourdfyError(f"{who} is at work in {self.path.parent}", "wait for it, or another folder: --out outputs-2", USAGE)


def holder(folder: Path) -> dict[str, Any] | None:
    """The process at work in a run folder: {pid, host, ...}; None if there is none."""
    found = _read(folder / NAME)
    return found if found is not None and holds(folder / NAME, found) else None


def holds(path: Path, found: dict[str, Any]) -> bool:
    """Whether the process that a lock names still holds it."""
    pid = found.get("pid")
    if found.get("host") == socket.gethostname() and type(pid) is int:
        return 0 < pid < 2**31 and alive(pid) and found.get("started") in (None, _started(pid))
    try:
        return time.time() - path.stat().st_mtime < STALE
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any] | None:
    """A lock's content; an empty object for one that cannot be read, None where there is none."""
    if _odd(path):
        return {}
    try:
        with open(path, "rb") as file:
            values = json.loads(file.read(4096))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _odd(path: Path) -> bool:
    """Whether something else than a file is there: a folder, a link, or a pipe that would be waited for."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def _started(pid: int) -> str | None:
    """When a process began, so that a number given out again is not taken for it; None where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, IndexError):
        return None
