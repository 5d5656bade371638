"""`generate --view`: a run in the browser while it optimises.

The run holds its scene but between two steps, when it lends it out for one picture if somebody asked. So no picture is of a half-made
step, nothing is drawn beside a step, and a run that nobody looks at does no more than ask whether somebody does.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourdfy_cli.config import Recipe
from fourdfy_cli.diffusion import sets
from fourdfy_cli.output.curves import palette
from fourdfy_cli.output.loaded import LoadedScene
from fourdfy_cli.output.viewer import Viewer, distance_of
from fourdfy_cli.run.progress import StepInfo
from fourdfy_cli.run.state import Run
from fourdfy_cli.store.folder import slug

PATIENCE = 10.0  # seconds after which a run asks for its scene back, should the browser that wanted it have gone
POINTS = 500  # of a curve
REFRESH = 1.0  # seconds between two looks at the curves
LOGARITHMIC = 3  # uPlot's number for such an axis


class Live:
    """What a run tells a viewer: a Source for the browsers, Events and an Onlooker for the run. `paused` is set in a browser."""

    live = True

    def __init__(self, prompt: str, recipe: Recipe):
        self.name, self.distance, self.recipe = slug(prompt), distance_of(recipe), recipe
        self.version = 0
        self.turn, self.asked, self.back = threading.Lock(), threading.Event(), threading.Event()
        self.paused = threading.Event()
        self.scene: LoadedScene | None = None
        self.info: StepInfo | None = None
        self.losses: deque[tuple[int, str, float]] = deque(maxlen=100_000)
        self.turn.acquire()

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[LoadedScene]:
        """The scene as it is between two steps; comes when the run has finished the one that it is at."""
        self.asked.set()
        with self.turn:
            try:
                assert self.scene is not None
                yield self.scene
            finally:
                self.back.set()

    def between(self, current: Run, waiting: Callable[[], bool]) -> None:
        self.version += 1
        if self.asked.is_set():
            self._lend(current)
        while self.paused.is_set() and waiting():
            if self.asked.wait(0.1):
                self._lend(current)

    def _lend(self, current: Run) -> None:
        where = current.recipe, current.prompt, current.seed, current.stage, current.step
        self.scene = LoadedScene(current.folder, current.scene, *where)
        self.asked.clear()
        self.back.clear()
        self.turn.release()
        self.back.wait(PATIENCE)
        self.turn.acquire()

    def over(self) -> None:
        """The run needs its scene no more: whoever still waits for it may have it."""
        self.paused.clear()
        if self.turn.locked():
            self.turn.release()

    def start(self, stage: int, stages: tuple[int, ...], steps: int, done: int) -> None:
        """Told by its steps."""

    def step(self, info: StepInfo) -> None:
        self.info = info
        before = sum(self.recipe.stage(number).steps for number in range(1, info.stage))
        if info.branch in info.losses:
            self.losses.append((before + info.step, info.branch, info.losses[info.branch]))

    def preview(self, path: Path) -> None:
        """The browser has better ones."""

    def saved(self, path: Path) -> None:
        """Of no concern to a browser."""

    def note(self, text: str) -> None:
        """Of no concern to a browser."""


class Panel:
    """What all browsers see beside the pictures: where the run is, its curves, and a switch that makes it wait."""

    def __init__(self, viewer: Viewer, live: Live):
        self.viewer, self.live = viewer, live
        gui = viewer.server.gui
        with gui.add_folder("Run"):
            self.told = gui.add_text("at", "starting", disabled=True)
            self.pause = gui.add_checkbox("pause", False)
            self.names = sorted(sets.drawn(live.recipe))
            scales: Any = {"x": {"time": False}, "y": {"distr": LOGARITHMIC}}
            self.chart = gui.add_uplot(self._data(), self._series(), scales=scales, title="loss", aspect=1.4)
        self.pause.on_update(lambda _: self._pause())
        self.closed = threading.Event()
        threading.Thread(target=self._work, name="panel", daemon=True).start()

    def _pause(self) -> None:
        (self.live.paused.set if self.pause.value else self.live.paused.clear)()

    def _series(self) -> Any:
        return ({"label": "step"}, *({"label": name, "stroke": colour, "width": 1.5} for name, colour in palette(self.names).items()))

    def _data(self) -> tuple[np.ndarray, ...]:
        return curves(list(self.live.losses), self.names)

    def _work(self) -> None:
        """Look at the run every second, if somebody looks at the panel; a mistake ends the panel, no more."""
        try:
            while not self.closed.wait(REFRESH):
                info = self.live.info
                if self.viewer.visitors and info is not None:
                    self.told.value = (
                        f"stage {info.stage}/3 step {info.step}/{info.steps}, {info.rate:.1f} it/s, {info.eta_total:.0f} s left"
                    )
                    self.chart.data = self._data()
        except BaseException as error:
            raise SystemExit from error  # which ends a thread silently

    def close(self) -> None:
        self.closed.set()
        self.live.over()
        self.viewer.stop()


def curves(losses: Sequence[tuple[int, str, float]], names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Steps [N] and one line [N] for each branch, for a logarithmic axis, at most about POINTS points. A line keeps its value over the
    steps of other branches; before the first of its own it has that one's, and a branch that was never drawn is all nan."""
    kept = losses[:: max(1, -(-len(losses) // POINTS))] or [(0, "", np.nan)]
    lines = [np.array([value if branch == name and value > 0 else np.nan for _, branch, value in kept]) for name in names]
    return (np.array([step for step, _, _ in kept], np.float64), *(held(line) for line in lines))


def held(line: np.ndarray) -> np.ndarray:
    """A line with the value before in the place of each nan, or the first one after where there is none before."""
    known = np.flatnonzero(~np.isnan(line))
    if not len(known):
        return line
    return line[known[np.maximum(np.searchsorted(known, np.arange(len(line)), side="right") - 1, 0)]]
