"""`fourdfy models list|pull|verify|embed|convert`: the published weights that the set "paper" is made of."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourdfy_cli.cli import options
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError, typed

if TYPE_CHECKING:
    from fourdfy_cli.config import Models

app = typer.Typer(help="The published weights: what they are, where they are, and getting them.", rich_markup_mode="rich")

Roles = Annotated[
    list[str] | None, typer.Argument(metavar="[ROLE]...", help="multiview, image, lora, video, clip, tiny.", show_default="all")
]
Pickle = Annotated[Path, typer.Argument(metavar="FILE", help="A .pt, .ckpt or .bin file, or a folder with some.", show_default=False)]
Trust = Annotated[bool, typer.Option("--trust", help="Yes, read this pickle: its source is known to me.")]
Folder = Annotated[Path | None, typer.Option("--out", help="Folder for the safetensors files.", show_default="FILE-safetensors")]
Embeddings = Annotated[Path, typer.Option("--out", help="Folder for the embeddings.", show_default=False)]
Preset = Annotated[str, typer.Option("--preset", help="Whose texts: view words, negative prompt.")]
Preview = Annotated[bool, typer.Option("--dry-run", help="Say what would be downloaded, and stop; asks no network.")]


@dataclass(frozen=True)
class Choice(options.Common):
    """Which models are meant."""

    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="models.ROLE=MODEL", help="A folder or Hub id[@rev] instead of the table's.", show_default=False),
    ] = field(default_factory=list)
    commercial: Annotated[bool, typer.Option("--commercial", help="Only weights that may be used for profit.")] = False


@app.command("list")
@options.grouped
def list_(choice: Choice) -> None:
    """The model table: role, id, licence, size, and whether the files are here."""
    from fourdfy_cli.diffusion import hub
    from fourdfy_cli.diffusion.table import ROLES, TABLE, row

    models = _models(choice)
    rows = []
    for role in ROLES:
        own = getattr(models, role)
        ids = [known.id for known in TABLE if known.role == role]
        for wanted in (*ids, *([own] if own and own not in ids else [])):
            known = hub.described(role, wanted)
            if choice.commercial and known and not known.commercial:
                continue
            size = round(known.bytes / 1e9, 2) if known else None
            licence = known.licence if known else "unknown"
            rows.append(
                {
                    "role": role,
                    "id": wanted,
                    "licence": licence,
                    "GB": size,
                    "cached": hub.cached(role, wanted, hub.skipped(role, models)) is not None,
                }
            )
            if choice.json:
                rows[-1] |= {"used": wanted == (own or row(role).id), "commercial": known.commercial if known else None}
    if not choice.commercial:
        choice.output.note("cc-by-nc forbids commercial use; --commercial leaves such models out")
    choice.output.finish({"models": rows})


@app.command()
@options.grouped
def pull(choice: Choice, roles: Roles = None, dry_run: Preview = False) -> None:
    """Download what is missing into the Hub's cache. The same command again goes on after the last whole file."""
    from fourdfy_cli.diffusion import hub

    models = _models(choice)
    wanted = {role: getattr(models, role) for role in _roles(roles)}
    skip = {role: hub.skipped(role, models) for role in wanted}
    if choice.commercial:
        hub.refuse_non_commercial(replace(models, set="paper"), wanted)
    rows = [_plan(role, model, skip[role]) for role, model in wanted.items()]
    total = sum(row["bytes"] for row in rows)
    if dry_run:
        return choice.output.finish({"models": rows, "bytes": total})
    choice.output.note(f"{total / 1e9:.2f} GB to download" if total else "every file is here already")
    _check_space(total)
    if choice.json or not choice.output.people.is_terminal:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    for row in rows:
        choice.output.note(f"{row['role']}: {row['id']}")
        row["folder"] = str(hub.locate(row["role"], wanted[row["role"]], skip[row["role"]]))
    choice.output.finish({"models": rows, "bytes": total})


@app.command()
@options.grouped
def verify(choice: Choice, roles: Roles = None) -> None:
    """Compare the files that are here with their checksums (sha256, or git's for small files)."""
    from fourdfy_cli.diffusion import hub
    from fourdfy_cli.diffusion.verify import verify as check

    models = _models(choice)
    rows, bad = [], []
    for role in _roles(roles):
        folder = hub.cached(role, getattr(models, role), hub.skipped(role, models))
        if folder is None:
            if roles:
                raise FourdfyError(f"the {role} model is not here", f"fourdfy models pull {role}", ENVIRONMENT)
            continue
        names = hub.files(role, folder, hub.skipped(role, models))
        for path, verdict in choice.output.counted(check(folder, names), len(names), role):
            rows.append({"role": role, "file": str(path.relative_to(folder)), "verdict": verdict})
            if verdict in ("damaged", "truncated"):
                bad.append((path, verdict))
    if bad:
        again = f"{typed('rm', *(path.resolve() for path, _ in bad))} && fourdfy models pull"
        raise FourdfyError(", ".join(f"{path} is {verdict}" for path, verdict in bad), again, ENVIRONMENT)
    if not rows:
        choice.output.note("none of the models is here")
    choice.output.finish({"files": rows})


@app.command()
@options.grouped
def embed(prompt: options.Prompt, choice: Choice, out: Embeddings, preset: Preset = "wan") -> None:
    """Encode the texts that a run would show the video model: a folder for --set models.embeddings=FOLDER, with which a run needs no text
    encoder."""
    from fourdfy_cli.diffusion import sets, text, textcache
    from fourdfy_cli.guidance.build import wanted_texts

    recipe = options.recipe(options.Run(choice.context, preset=preset, settings=choice.settings))
    options.check_writable(out)
    spec = sets.located("video", recipe.models.video, ("unet", "transformer", "vae", "scheduler"))
    texts = wanted_texts(prompt, recipe, "video")
    paths = textcache.keep_ready(out, dict(zip(texts, text.encode(spec, texts, "cpu"), strict=True)))
    choice.output.finish({"folder": out, "texts": texts, "files": paths})


@app.command()
@options.grouped
def convert(file: Pickle, common: options.Common, trust: Trust = False, out: Folder = None) -> None:
    """Turn pickled weights into a folder of safetensors files. A pickle may hold code: it is read in a process of its own, tensors only."""
    from fourdfy_cli.diffusion import hub
    from fourdfy_cli.diffusion.convert import convert as to_safetensors

    out = out or file.with_name(f"{file.stem}-safetensors")
    if trust:
        options.check_writable(out.parent)
    folder = to_safetensors(file, out, trust, hub.cached("image"))
    lacking = [part for part in ("vae", "text_encoder", "tokenizer") if (folder / "unet").is_dir() and not (folder / part).is_dir()]
    if lacking:
        common.output.note(f"{folder} has no {', '.join(lacking)}: fourdfy models pull image, then convert again")
    common.output.finish({"folder": folder, "lacking": lacking})


def _models(choice: Choice) -> Models:
    """The models that fourdfy.toml, FOURDFY_SET and --set name; other settings are not looked at."""
    for setting in choice.settings:
        if not setting.startswith("models."):
            raise FourdfyError(f"--set here chooses models, not {setting!r}", "--set models.video=FOLDER_OR_ID", USAGE)
    return options.recipe(options.Run(choice.context, models="paper", settings=choice.settings, commercial=choice.commercial)).models


def _roles(roles: list[str] | None) -> list[str]:
    from fourdfy_cli.diffusion.table import ROLES

    for role in roles or []:
        if role not in ROLES:
            raise FourdfyError(f"there is no role {role!r}", f"one of {', '.join(ROLES)}: fourdfy models pull video", USAGE)
    return list(dict.fromkeys(roles or ROLES))


def _plan(role: str, wanted: str, skip: tuple[str, ...]) -> dict[str, Any]:
    """What pulling a model means: id, licence, files and bytes to download. Raises FourdfyError as `hub.locate` for a folder."""
    from fourdfy_cli.diffusion import hub
    from fourdfy_cli.diffusion.table import row

    if hub.is_folder(wanted):
        hub.locate(role, wanted, skip)
    known = hub.described(role, wanted)
    return {
        "role": role,
        "id": wanted or row(role).id,
        "licence": known.licence if known else "unknown",
        "bytes": hub.missing_bytes(role, wanted, skip),
        "files": [name for name in (known or row(role)).files if not name.startswith(skip)],
    }


def _check_space(needed: int) -> None:
    """Raises FourdfyError (exit 3) if the Hub's cache has no room for so many bytes."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    place = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        message = f"{needed / 1e9:.1f} GB are needed in {cache}, {free / 1e9:.1f} GB are free"
        raise FourdfyError(message, "HF_HOME=ANOTHER_FOLDER fourdfy models pull", ENVIRONMENT)
