"""Watchers that can neither stop nor slow a run: what they are told goes through a queue to a thread of their own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fourdfy_cli.run.progress import Events, Onlooker, StepInfo
from fourdfy_cli.run.state import Run

WAITING = 10_000  # messages to a slow watcher; what comes while as many wait is lost to it
GOODBYE = 5.0  # seconds that a run waits for a watcher at its end


class Aside:
    """Hands events on to a watcher in another thread. The first mistake that it makes ends its watching: a note, and the run goes on."""

    def __init__(self, watcher: Events, note: Callable[[str], None]):
        self.watcher, self.tell = watcher, note
        self.queue: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(WAITING)
        self.failed: BaseException | None = None
        self.told = False
        self.thread = threading.Thread(target=self._work, name="watcher", daemon=True)
        self.thread.start()

    def start(self, stage: int, stages: tuple[int, ...], steps: int, done: int) -> None:
        self._put("start", stage, stages, steps, done)

    def step(self, info: StepInfo) -> None:
        self._put("step", info)

    def preview(self, path: Path) -> None:
        self._put("preview", path)

    def saved(self, path: Path) -> None:
        self._put("saved", path)

    def note(self, text: str) -> None:
        self._put("note", text)

    def close(self) -> None:
        """Let the watcher finish what it was told, if it does not take too long."""
        with contextlib.suppress(queue.Full):
            self.queue.put(None, timeout=GOODBYE)
        self.thread.join(GOODBYE)
        self._own_up()

    def _put(self, what: str, *about: Any) -> None:
        self._own_up()
        if self.failed is None:
            with contextlib.suppress(queue.Full):
                self.queue.put_nowait((what, about))

    def _own_up(self) -> None:
        if self.failed is not None and not self.told:
            self.told = True
            self.tell(f"{type(self.watcher).__name__.lower()} stopped, the run goes on: {type(self.failed).__name__}: {self.failed}")

    def _work(self) -> None:
        try:
            while (message := self.queue.get()) is not None:
                getattr(self.watcher, message[0])(*message[1])
        except BaseException as error:
            self.failed = error
            raise SystemExit from error  # which ends a thread silently


class Several:
    """Events to several watchers, the first one first."""

    def __init__(self, watchers: Sequence[Events]):
        self.watchers = watchers

    def start(self, stage: int, stages: tuple[int, ...], steps: int, done: int) -> None:
        for watcher in self.watchers:
            watcher.start(stage, stages, steps, done)

    def step(self, info: StepInfo) -> None:
        for watcher in self.watchers:
            watcher.step(info)

    def preview(self, path: Path) -> None:
        for watcher in self.watchers:
            watcher.preview(path)

    def saved(self, path: Path) -> None:
        for watcher in self.watchers:
            watcher.saved(path)

    def note(self, text: str) -> None:
        for watcher in self.watchers:
            watcher.note(text)

    def between(self, current: Run, waiting: Callable[[], bool]) -> None:
        for watcher in self.watchers:
            if isinstance(watcher, Onlooker):
                watcher.between(current, waiting)
