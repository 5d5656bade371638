"""Files of earlier formats, brought to today's: a numbered function for each step, which says what it assumes."""

from __future__ import annotations

import re
from typing import Any

from fourdfy_cli.config import leaves
from fourdfy_cli.errors import DAMAGED, FourdfyError

FORMAT = 2  # of checkpoints and of run.json
# What settings of 0.1.0 are called now; those of a branch stood under shots.N and scores.N, N = 0, 1, 2 for stage 1, 2, 3.
RENAMED = {
    "scores.size": "model_size", "scores.pixels": "pixel_weight", "scores.motion": "amplification", "march.cells": "resolution",
    "march.alpha": "alpha_thre", "march.transmittance": "early_stop_eps", "march.refresh": "update_every", "march.warmup": "warmup_steps",
    "stage.rates": "lr", "stage.cooldown": "lr_decay", "stage.reach": "dilation", "stage.alpha": "alpha_thre",
}  # fmt: skip


def renamed(key: str) -> str:
    """The dotted key that a setting of 0.1.0 has now; any other key as it is."""
    if not (found := re.fullmatch(r"(\w+)\.(?:(shots|scores)\.([0-2])\.)?(\w+)(.*)", key)):
        return key
    part, kind, number, name, rest = found.groups()
    name = RENAMED.get(f"{kind or part.rstrip('123')}.{name}", name)
    return f"stage{int(number) + 1}.{part}.{name}{rest}" if kind else f"{part}.{name}{rest}"


def migrated(state: dict[str, Any], version: int) -> dict[str, Any]:
    """A checkpoint's state, or what run.json holds, as if today's version had written it."""
    for step in (m001_stages_own_their_branches,)[version - 1 :]:
        state = step(state)
    return state


def m001_stages_own_their_branches(state: dict[str, Any]) -> dict[str, Any]:
    """Format 1 to 2, the recipe alone: what stood under a branch's shots and scores by position stands under each stage by name.
    Assumes that every setting that is a pair (sizes, ranges) is still one."""
    return state | {"recipe": nested({renamed(key): value for key, value in leaves(state["recipe"]).items()})}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `config.leaves`: what lies under keys that are numbers becomes a list. Raises FourdfyError (exit 6) for a key that is
    a value and a group at once."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        at = tree
        for name in path:
            at = at.setdefault(name, {})
            if not isinstance(at, dict):
                raise FourdfyError(f"the recipe has both {name!r} and {key!r}", "fourdfy info CHECKPOINT", DAMAGED)
        at[last] = value
    return _listed(tree)


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    items = {name: _listed(item) for name, item in value.items()}
    return list(items.values()) if items and all(name.isdigit() for name in items) else items
