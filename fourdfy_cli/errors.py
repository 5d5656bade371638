"""The one exception that library code raises on purpose, and commands for its hints."""

from __future__ import annotations

import shlex
from pathlib import Path

OK, FAILURE, USAGE, ENVIRONMENT, MEMORY, DIVERGED, DAMAGED = 0, 1, 2, 3, 4, 5, 6
REQUEUE, HUNG_UP, INTERRUPTED, TERMINATED = 75, 129, 130, 143  # stopped by a signal, saved and resumable
STOPPED = (REQUEUE, HUNG_UP, INTERRUPTED, TERMINATED)


class FourdfyError(Exception):
    """A failure a user can mend: one line of message, a hint that is a command to type, and an exit code."""

    def __init__(self, message: str, hint: str = "", code: int = FAILURE):
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


def typed(*words: object) -> str:
    """A command line that can be pasted, whatever its paths and prompts are called."""
    return shlex.join(f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
