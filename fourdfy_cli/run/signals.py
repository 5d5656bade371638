"""Signals set a flag; the run finishes its step, saves and leaves. A second Ctrl-C stops at once, with the checkpoints as they are."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

from fourdfy_cli.errors import HUNG_UP, INTERRUPTED, REQUEUE, TERMINATED, FourdfyError

EXITS = {"SIGINT": INTERRUPTED, "SIGTERM": TERMINATED, "SIGHUP": HUNG_UP, "SIGUSR1": REQUEUE, "SIGUSR2": REQUEUE}
CODES = {getattr(signal, name): code for name, code in EXITS.items() if hasattr(signal, name)}  # not all of them exist everywhere


class StopSignals:
    """Context manager: `raised` is None or the exit code to leave with. Handlers are restored on the way out; where this is not the main
    thread (a notebook's worker) there are none. Once `leaving` is set, no signal stops what is still to be written."""

    def __init__(self) -> None:
        self.raised: int | None = None
        self.leaving = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            # A signal that is ignored already (nohup), or not Python's own, stays so.
            self.before = {s: signal.signal(s, self._handle) for s in CODES if signal.getsignal(s) not in (signal.SIG_IGN, None)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.raised is not None and number == signal.SIGINT and not self.leaving:
            raise KeyboardInterrupt
        self.raised = CODES[number]

    def stop(self, hint: str) -> FourdfyError:
        """The error that ends an interrupted, saved run."""
        return FourdfyError("interrupted; everything so far is saved", hint, self.raised or INTERRUPTED)
