"""`fourdfy info --verify`: every file of a run that a resume relies on, read to its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from fourdfy_cli.config import from_dict
from fourdfy_cli.errors import DAMAGED, USAGE, FourdfyError
from fourdfy_cli.output import render
from fourdfy_cli.output.textfile import typed
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import metrics_lines, metrics_row, read_json


def examine(source: Path) -> dict[str, str]:
    """What is wrong with each file of a run folder, or with one checkpoint; "" where nothing is. Nothing is changed.

    Raises FourdfyError (exit 2) where there is no checkpoint.
    """
    paths = [path for name in checkpoint.NAMES if os.path.lexists(path := source / name)] if source.is_dir() else [source]
    if not paths or not os.path.lexists(paths[0]):
        raise FourdfyError(f"there is no checkpoint in {source}", typed("ls", source), USAGE)
    found, owners, steps = {}, {}, {}
    for path in paths:
        try:
            state = checkpoint.load(path)
            render.build_scene(state, path)
            found[path.name] = _not_finite(state)
            owners[path.name] = state["prompt"], state["seed"]
            steps = {number: from_dict(state["recipe"]).stage(number).steps for number in (1, 2, 3)}
        except FourdfyError as error:
            found[path.name] = error.message
    if source.is_dir():
        found |= _others(source, next(iter(owners.values()), None), steps)
        for name, owner in owners.items():
            if owner != next(iter(owners.values())):
                found[name] = f"it is of {owner[0]!r} with seed {owner[1]}, the others are not"
    return found


def damaged(source: Path, found: dict[str, str]) -> FourdfyError | None:
    """The error (exit 6) for what `examine` found, None if all is whole."""
    wrong = {name: what for name, what in found.items() if what}
    if not wrong:
        return None
    message = f"{len(wrong)} of {len(found)} files of {source} are damaged: " + "; ".join(f"{name}: {what}" for name, what in wrong.items())
    hint = f"type the run's own command again, it takes the last whole one: {typed('ls', '-l', source)}"
    return FourdfyError(message, hint, DAMAGED)


def _not_finite(state: dict[str, Any]) -> str:
    for name, value in state["scene"].items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"scene.{name} holds a number that is not finite"
    return ""


def _others(folder: Path, owner: tuple[str, int] | None, steps: dict[int, int]) -> dict[str, str]:
    """run.json and metrics.jsonl, where they are."""
    found = {}
    if os.path.lexists(folder / "run.json"):
        about = read_json(folder / "run.json")
        if about is None:
            found["run.json"] = "it cannot be read (it is made again when the run goes on)"
        else:
            stranger = owner is not None and (about.get("prompt"), about.get("seed")) != owner
            found["run.json"] = f"it tells of {about.get('prompt')!r} with seed {about.get('seed')}" if stranger else ""
    if os.path.lexists(folder / "metrics.jsonl"):
        found["metrics.jsonl"] = _metrics(folder / "metrics.jsonl", steps)
    return found


def _metrics(path: Path, steps: dict[int, int]) -> str:
    """Its steps must follow each other, from the first one on, without a gap or a double; a kill may have cut the last line."""
    place = None
    try:
        lines = metrics_lines(path)
    except FourdfyError as error:
        return error.message
    for number, line in enumerate(lines, 1):
        if (row := metrics_row(line)) is None:
            if number == len(lines):
                break
            return f"line {number} cannot be read"
        following = row["stage"], row["step"]
        ended = place and place[1] + 1 >= steps.get(place[0], 0) and following[0] > place[0]
        if place and following != ((following[0], 0) if ended else (place[0], place[1] + 1)):
            return f"line {number}: step {following[1]} of stage {following[0]} after step {place[1]} of stage {place[0]}"
        place = following
    return ""
