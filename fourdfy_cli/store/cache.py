"""Where this package keeps what it may compute again: `$FOURDFY_CACHE`, else `$XDG_CACHE_HOME/fourdfy`, else `~/.cache/fourdfy`, else, for
a user without a home, among the temporary files."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    own, shared = os.environ.get("FOURDFY_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else (Path(shared).expanduser() if shared else Path.home() / ".cache") / "fourdfy"
    except RuntimeError:  # a user without a home
        return _temporary()


def _temporary() -> Path:
    """A folder of this user alone among the temporary ones; where somebody else has it, one that nothing can be kept in."""
    folder = Path(tempfile.gettempdir()) / f"fourdfy-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
        if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o022:
            return folder
    return Path(os.devnull) / "fourdfy"
