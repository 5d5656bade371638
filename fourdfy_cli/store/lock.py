"""One run, one writer: a file `run.lock` with the process that is at work in a run folder.

A lock counts while its process lives (on this machine) or its file has been touched within STALE seconds (on another one); a dead one's
is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from fourdfy_cli.errors import USAGE, FourdfyError, typed
from fourdfy_cli.store.files import NO_FOLLOW, alive

NAME, STALE = "run.lock", 600.0


class RunLock:
    """Context manager that holds a run folder. Raises FourdfyError (exit 2) that names the process at work there."""

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.own = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid()), "token": secrets.token_hex(8)}

    def __enter__(self) -> RunLock:
        for _ in range(3):
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
            except FileExistsError:
                self._take_over()
                continue
            with os.fdopen(descriptor, "w") as file:
                json.dump(self.own, file)
            return self
        raise self._busy(holder(self.path.parent))

    def __exit__(self, *_: object) -> None:
        if _read(self.path) == self.own:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def beat(self) -> None:
        """Tell other machines that this process lives; raises FourdfyError (exit 1) if the lock is gone or somebody else's."""
        if _read(self.path) != self.own:
            raise FourdfyError(
                f"{self.path.parent} is gone, or another process works there: everything since the last save is lost",
                typed("ls", self.path.parent.parent),
            )
        os.utime(self.path)

    def _take_over(self) -> None:
        """Move a dead process's lock out of the way; raises FourdfyError if its process lives."""
        found = _read(self.path)
        if found is not None and holds(self.path, found):
            raise self._busy(found)
        aside = self.path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{NAME}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if _read(aside) != found:  # somebody was faster, and this is theirs
                os.rename(aside, self.path)
                raise self._busy(_read(self.path))
            aside.unlink()

    def _busy(self, found: dict[str, Any] | None) -> FourdfyError:
        who = f"process {found.get('pid')} on {found.get('host')}" if found else "another process"
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
    """A lock's content; an empty object for one that cannot be read (its maker died while writing), None where there is none."""
    try:
        with open(path, "rb") as file:
            values = json.loads(file.read(4096))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _started(pid: int) -> str | None:
    """When a process began, so that a number given out again is not taken for it; None where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
