"""Output streams that may be closed at any time."""

from __future__ import annotations

from typing import Any


class Willing:
    """A text stream that is given up when it cannot be written to (a closed pipe or terminal): work is never lost to its display. What
    its encoding lacks is written out."""

    def __init__(self, stream: Any):
        self.stream, self.gone = stream, stream is None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, action: str, *text: str) -> None:
        try:
            if not self.gone:
                getattr(self.stream, action)(*text)
        except (OSError, ValueError):  # ValueError: the stream was closed
            self.gone = True
