"""What a run would do and need, before it does anything: numbers with their sources, files to download, memory and time.

Touches neither GPU nor network. Bytes are bytes, times seconds. Times come from the table that `fourdfy bench` leaves behind.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fourdfy_cli import presets
from fourdfy_cli.config import Models, Recipe, leaves, to_dict
from fourdfy_cli.diffusion import hub
from fourdfy_cli.store.folder import read_json, write_json

BENCH = "not measured yet: fourdfy bench"
# Settings that the time of a step depends on.
SPEED = r"^(frames|field\.|march\.|vsd\.)|\.(size|model_size|groups|coarse|coarse_groups|fine_from|encoder|own_from)(\.|$)"
MEASURED = {"stage", "branch", "part", "seconds"}  # of a bench's rows: `part` is the share of the stage that looks like this


def sources(recipe: Recipe, given: Mapping[str, str]) -> dict[str, str]:
    """Where every setting comes from, by dotted key: the place that `given` names ("command line", "fourdfy.toml"), else the preset's own
    sources, else (where the recipe is not the preset's) the checkpoint that it was read from."""
    keys = list(leaves(to_dict(recipe)))
    other = set(differences(presets.preset(recipe.name), recipe) if recipe.name in presets.PRESETS else keys)
    return {key: given.get(key) or ("the checkpoint" if key in other else presets.source(recipe.name, key)) for key in keys}


def differences(before: Recipe, after: Recipe) -> list[str]:
    """The dotted keys of `after` that `before` lacks or has another value under."""
    old = leaves(to_dict(before))
    return [key for key, value in leaves(to_dict(after)).items() if key not in old or old[key] != value]


def downloads(recipe: Recipe, stages: Iterable[int]) -> list[dict[str, Any]]:
    """The model of each role: where it comes from, its licence, whether it is here, and the bytes and files to download if not.

    Raises FourdfyError (exit 2) for a model that is neither a folder nor an id.
    """
    from fourdfy_cli.diffusion import sets

    branches = sets.drawn(recipe, stages)
    return [_download(recipe.models, role) for role in (*sets.roles(branches, recipe.vsd), *sets.small(recipe, branches))]


def _download(models: Models, role: str) -> dict[str, Any]:
    wanted, skip = getattr(models, role), hub.skipped(role, models)
    if role == "tiny_video":
        return {"role": role, "model": wanted or "TAEHV, not named", "licence": "mit", "here": bool(wanted), "bytes": 0, "files": []}
    if not wanted and models.set != "paper":
        what = {"nano": "nano, ships with this package", "random": f"random weights, {models.size} size"}[models.set]
        return {"role": role, "model": what, "licence": "-", "here": True, "bytes": 0, "files": []}
    row, here = hub.described(role, wanted), hub.cached(role, wanted, skip) is not None
    files = [name for name in (row or hub.row(role)).files if not name.startswith(skip)]
    missing = [] if here or hub.is_folder(wanted) else files
    return {
        "role": role,
        "model": wanted or "@".join(hub.sources(role)[0]),
        "licence": row.licence if row else "unknown",
        "here": here,
        "bytes": hub.missing_bytes(role, wanted, skip),
        "files": missing,
    }  # fmt: skip


def stages(recipe: Recipe, wanted: Iterable[int], vram: float | None) -> list[dict[str, Any]]:
    """Steps, share of each branch, peak memory and time of each stage; None where a time was never measured.

    With `vram` (GB) the way of computing is the fastest that fits, else the fastest of all. Raises FourdfyError (exit 4) if none fits.
    """
    from fourdfy_cli import memory

    bench = measured(recipe)
    rows = []
    for number in wanted:
        rung = 0 if vram is None else memory.choose(recipe, number, vram)
        seconds = projected(recipe, bench["rows"]).get(number) if bench else None
        rows.append(
            {
                "stage": number,
                "steps": recipe.stage(number).steps,
                "draws": " ".join(f"{branch} {chance:.0%}" for branch, chance in recipe.stage(number).chances().items()),
                "with": str(memory.LADDER[rung]),
                "bytes": memory.estimate(recipe, number, memory.LADDER[rung]),
                "least_bytes": memory.estimate(recipe, number, memory.LADDER[-1]),
                "seconds": seconds,
                "measured": f"{bench['device']}, {bench['date']}" if bench and seconds is not None else BENCH,
            }
        )
    return rows


def projected(recipe: Recipe, rows: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Seconds of each stage, from `fourdfy bench`'s rows; a stage of which some branch was not measured is left out."""
    each: dict[tuple[int, str], float] = {}
    for row in rows:
        key = (row["stage"], row["branch"])
        each[key] = each.get(key, 0.0) + row["part"] * row["seconds"]
    found = {}
    for number in (1, 2, 3):
        drawn = recipe.stage(number).chances()
        if all((number, branch) in each for branch in drawn):
            found[number] = recipe.stage(number).steps * sum(chance * each[number, branch] for branch, chance in drawn.items())
    return found


def bench_file() -> Path:
    """Where `remember` keeps what was measured."""
    from fourdfy_cli.store.cache import cache_folder

    return cache_folder() / "bench.json"


def bench_key(recipe: Recipe) -> str:
    """What two recipes share if one's speed tells the other's: networks (random full-size ones stand for the paper's), pictures, field."""
    networks = {"paper": "full", "random": recipe.models.size}.get(recipe.models.set, recipe.models.set)
    same = {key: value for key, value in leaves(to_dict(recipe)).items() if re.search(SPEED, key)}
    return f"{networks}-{hashlib.sha256(json.dumps(same).encode()).hexdigest()[:16]}"


def measured(recipe: Recipe) -> dict[str, Any] | None:
    """What `fourdfy bench` last measured for such a recipe: its device, date and rows."""
    entry = (read_json(bench_file()) or {}).get(bench_key(recipe))
    if not isinstance(entry, dict) or not {"device", "date", "rows"} <= set(entry) or not isinstance(entry["rows"], list):
        return None
    return entry if all(isinstance(row, dict) and set(row) >= MEASURED for row in entry["rows"]) else None


def remember(recipe: Recipe, entry: dict[str, Any]) -> Path | None:
    """Keep a bench's device, date and rows for `measured`; the file, or None where nothing can be written."""
    path = bench_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, (read_json(path) or {}) | {bench_key(recipe): entry})
    except OSError:
        return None
    return path
