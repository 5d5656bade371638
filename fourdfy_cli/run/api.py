"""`fourdfy_cli.generate`: a run from Python. The command of that name calls it too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourdfy_cli.config import Recipe, from_dict, override, to_dict
from fourdfy_cli.memory import Machine
from fourdfy_cli.presets import preset as named
from fourdfy_cli.run.choice import check_prompt, device_for, fitting_preset
from fourdfy_cli.run.progress import Events, PrintedEvents
from fourdfy_cli.run.result import RunResult
from fourdfy_cli.run.train import run
from fourdfy_cli.store.migrate import renamed

STAGES = (1, 2, 3)


def generate(
    prompt: str,
    preset: str | Recipe | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path = "outputs",
    seed: int = 0,
    device: str | Machine | None = None,
    events: Events | None = None,
) -> RunResult:
    """All three stages for a prompt, then a video; the same call again goes on where an earlier one stopped.

    `preset` is the name of one in presets.py ("paper" or "nano", whichever fits this machine, unless given) or a whole recipe; `settings`
    change it by dotted key, as {"stage3.steps": 500}. The run gets a folder in `out`. `device` is "cpu", "cuda" or "cuda:1", or a Machine
    with its memory and backend. `events` hears of every step; a line is printed every ten seconds unless given.

    Raises FourdfyError: a preset, setting or prompt that is none (code 2), and as `run.train.run`.
    """
    recipe = chosen(preset, settings or {})
    check_prompt(prompt, recipe.models.set)
    machine = device if isinstance(device, Machine) else Machine(device_for(recipe, device))
    return run(prompt, recipe, Path(out).expanduser(), seed, STAGES, None, machine, events or PrintedEvents())


def chosen(preset: str | Recipe | None, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of that name, or a whole one if its numbers are within bounds, with these settings. Raises FourdfyError (code 2)."""
    recipe = from_dict(to_dict(preset)) if isinstance(preset, Recipe) else named(preset or fitting_preset())
    for key, value in settings.items():
        recipe = override(recipe, f"{key}={str(value).lower() if value is None or isinstance(value, bool) else value}", renamed)
    return recipe
