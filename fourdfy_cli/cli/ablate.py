"""`fourdfy ablate`: the paper's ablation for a file of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fourdfy_cli.cli import batch, options
from fourdfy_cli.cli.batch import Address, EngineName
from fourdfy_cli.errors import DIVERGED, FourdfyError
from fourdfy_cli.output.textfile import typed

Prompts = Annotated[Path, typer.Argument(metavar="PROMPTS.txt", help="One prompt a line; # starts a comment.", show_default=False)]


@dataclass(frozen=True)
class Ablate(options.Run):
    """Options of `ablate`."""

    out: Annotated[Path, typer.Option("--out", help="Folder that gets the runs, the table and the picture.")] = Path("ablation")
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            help="Some of full, no-3d-image, no-3d, no-image, no-hybrid, hexplane and deformation, with commas between.",
            show_default="the paper's, all but deformation",
        ),
    ] = None
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip", help="nano, an open_clip name such as ViT-B-32, or local-dir:FOLDER.", show_default="nano for nano, else ViT-B-32"
        ),
    ] = None
    engine: EngineName = "local"
    address: Address = None


@options.grouped
def ablate(prompts: Prompts, wanted: Ablate) -> None:
    """Train and compare the rows of the paper's ablation (Table 2).

    The same command again goes on where an earlier one stopped."""
    recipe, seed = options.recipe(wanted), wanted.seed or 0
    batch.check_engine(wanted.engine, wanted.address)
    from fourdfy_cli.evaluate import ablate as library
    from fourdfy_cli.evaluate.videos import read_prompts

    texts = list(dict.fromkeys(read_prompts(prompts)))
    for text in texts:
        options.check_prompt(text, recipe.models.set)
    names = library.named(wanted.rows)
    recipes = {name: library.row_recipe(recipe, name) for name in names}
    if wanted.dry_run:
        settings = {name: " ".join(library.rows(recipe)[name].settings) or "-" for name in names}
        return wanted.output.finish({"runs": len(texts) * len(names), "out": wanted.out, "seed": seed, "rows": settings})
    device = options.device(wanted, recipe)
    options.check_writable(wanted.out)
    if wanted.commercial:
        from fourdfy_cli.diffusion import hub, sets

        drawn = dict.fromkeys(branch for each in recipes.values() for branch in sets.drawn(each))
        hub.refuse_non_commercial(recipe.models, sets.roles(drawn, recipe.vsd))

    clip = wanted.clip or ("nano" if recipe.models.set == "nano" else "ViT-B-32")
    task = library.Ablation(texts, names, recipe, wanted.out, seed, clip)
    lost = batch.ahead(wanted, device, recipe, lambda engine, watcher: library.ahead(task, engine, watcher))
    with wanted.output.events() as events:
        data = library.run(task, wanted.machine(device), events, lost)
    shown = data if wanted.json else {key: value for key, value in data.items() if key != "runs"}
    shown |= {"files": [wanted.out / f"ablate.{suffix}" for suffix in ("json", "md", "png")]}
    if not data["failed"]:
        return wanted.output.finish(shown)
    first = data["failed"][0]
    settings = [word for setting in wanted.settings for word in ("--set", setting)]
    out = wanted.out.with_name(f"{wanted.out.name}-{seed + 1}")
    hint = typed("fourdfy", "ablate", prompts, "--models", recipe.models.set, *settings, "--out", out, "--seed", seed + 1)
    error = FourdfyError(f"diverged: {len(data['failed'])} of the runs, the first {first['row']}: {first['prompt']}", hint, DIVERGED)
    raise wanted.output.failed_in_part("ablation", shown, error)
