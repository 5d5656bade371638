"""Ctrl-C and SIGTERM set a flag; the run finishes its step, saves and leaves. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

from fourdfy_cli.errors import INTERRUPTED, TERMINATED, FourdfyError


class StopSignals:
    """Context manager: `raised` is None or the exit code to leave with. Handlers are restored on the way out."""

    CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}

    def __init__(self) -> None:
        self.raised: int | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self._handle) for s in self.CODES}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.raised is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised = self.CODES[signal.Signals(number)]

    def stop(self, hint: str) -> FourdfyError:
        """The error that ends an interrupted, saved run."""
        return FourdfyError("interrupted; everything so far is saved", hint, self.raised or INTERRUPTED)
