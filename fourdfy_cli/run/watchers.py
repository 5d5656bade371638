"""Who else watches a run: a browser (`--view`), TensorBoard (`--log tensorboard`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fourdfy_cli.config import Recipe
from fourdfy_cli.run.aside import Aside, Several
from fourdfy_cli.run.progress import Events


@contextlib.contextmanager
def watched(events: Events, folder: Path, prompt: str, recipe: Recipe, view: bool, log: str | None) -> Iterator[Events]:
    """Events that the others hear too, for as long as the block lasts. Raises FourdfyError: exit 3 where the extra is not installed, exit 2
    where no port is free."""
    others: list[Events] = []
    with contextlib.ExitStack() as stack:
        if log == "tensorboard":
            from fourdfy_cli.run.board import TensorBoard

            board = Aside(TensorBoard(folder, prompt, recipe), events.note)
            stack.callback(board.close)
            others.append(board)
        if view:
            others.append(stack.enter_context(_viewer(events, prompt, recipe)))
        yield Several([events, *others]) if others else events


@contextlib.contextmanager
def _viewer(events: Events, prompt: str, recipe: Recipe) -> Iterator[Events]:
    """A browser's view of the run."""
    from fourdfy_cli.output.viewer import serve
    from fourdfy_cli.run.live import Live, Panel

    live = Live(prompt, recipe)
    viewer = serve(live, recipe)
    panel = Panel(viewer, live)
    events.note(f"watch it at {viewer.url}")
    try:
        yield live
    finally:
        panel.close()
