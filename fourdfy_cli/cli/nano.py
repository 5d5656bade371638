"""`fourdfy nano`: the toy world, the small models that ship with the package, their training, and what measures them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from fourdfy_cli.cli import batch, options
from fourdfy_cli.cli.batch import Address, EngineName
from fourdfy_cli.errors import USAGE, FourdfyError, typed

app = typer.Typer(help="The toy world, and the small models that ship with this package.", rich_markup_mode="rich")

KINDS = ("multiview", "image", "video")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a checkpoint.", show_default=False)]
Prompts = Annotated[Path, typer.Argument(metavar="PROMPTS.txt", help="One prompt a line; # starts a comment.", show_default=False)]
Video = Annotated[Path | None, typer.Option("--out", help="Ground-truth video, .mp4.", show_default="gt.mp4")]
Sheet = Annotated[Path | None, typer.Option("--sheet", help="Sheet of views and times, .png.", show_default=False)]
Part = Annotated[str | None, typer.Option("--part", help="One model only.", show_default="all, in order")]
Folder = Annotated[Path, typer.Option("--out", help="Folder that gets the models, logs and samples.")]
Again = Annotated[bool, typer.Option("--resume", help="Go on where an earlier training stopped.")]


@app.command()
@options.grouped
def world(prompt: options.Prompt, common: options.Common, out: Video = None, sheet: Sheet = None) -> None:
    """Show what a prompt means in the toy world: the ground truth that scores compare with."""
    options.check_prompt(prompt, "nano")
    video = out or (None if sheet else Path("gt.mp4"))
    for path, suffix in ((video, ".mp4"), (sheet, ".png")):
        if path:
            _check_file(path, suffix)
    from fourdfy_cli.nano import show

    if video:
        show.video(prompt, video)
    if sheet:
        show.sheet(prompt, sheet)
    common.output.finish({"video": video, "sheet": sheet})


@app.command()
@options.grouped
def train(
    common: options.Common,
    part: Part = None,
    out: Folder = Path("nano"),
    resume: Again = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
) -> None:
    """Train the small models from a seed, all or one part."""
    options.check_device(device)
    options.check_writable(out)
    from fourdfy_cli.nano.train import train as fit

    fit(part, out, resume, seed, device, common.output.note)
    common.output.finish({"folder": out})


@dataclass(frozen=True)
class Draw(options.Common):
    """Options of `nano sample`."""

    multiview: Annotated[bool, typer.Option("--multiview", help="Four views of one thing (the default).")] = False
    image: Annotated[bool, typer.Option("--image", help="Front, side and back view, each by itself.")] = False
    video: Annotated[bool, typer.Option("--video", help="The frames of a clip.")] = False
    out: Annotated[Path, typer.Option("--out", help="The sheet of samples, .png.")] = Path("sample.png")
    seed: options.Seed = 0
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="DDIM steps.")] = 25
    scale: Annotated[float, typer.Option("--scale", help="Classifier-free guidance scale.")] = 3.0


@app.command()
@options.grouped
def sample(prompt: options.Prompt, draw: Draw) -> None:
    """Sample one of the diffusion models, to see what it knows."""
    options.check_prompt(prompt, "nano")
    kinds = [kind for kind in KINDS if getattr(draw, kind)] or ["multiview"]
    if len(kinds) > 1:
        raise FourdfyError(f"choose one of --{' and --'.join(kinds)}", typed("fourdfy", "nano", "sample", prompt, f"--{kinds[0]}"), USAGE)
    _check_file(draw.out, ".png")
    from fourdfy_cli.nano.sample import sample as ddim

    path = ddim(prompt, kinds[0], draw.out, draw.seed, draw.steps, draw.scale)
    draw.output.finish({"sample": path, "kind": kinds[0]})


@app.command()
@options.grouped
def score(run: Run, common: options.Common) -> None:
    """Compare a run with the toy world's ground truth, at views and times it never saw."""
    _check_run(run)
    from fourdfy_cli.evaluate.truth import score as compare

    common.output.finish(compare(run))


@dataclass(frozen=True)
class Limits(options.Common):
    """Options of `nano limits`."""

    judges: Annotated[
        str | None,
        typer.Option(
            "--judges",
            help="With commas between: a multi-view judge (learned, exact), a slash, a video judge (those, posterior, damped), and if "
            "need be a slash and an image judge (learned, exact).",
            show_default="all four of learned and exact",
        ),
    ] = None
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of stage 3; may be repeated.", show_default=False)
    ] = field(default_factory=list)
    out: Annotated[Path, typer.Option("--out", help="Folder that gets limits.json and a sheet for each of them.")] = Path("limits")


@app.command()
@options.grouped
def limits(run: Run, wanted: Limits) -> None:
    """Repeat stage 3 of a run with judges that know the truth, to see what each learned one loses."""
    _check_run(run)
    options.check_writable(wanted.out)
    from fourdfy_cli.evaluate import limits as library

    names: list[str] = wanted.judges.replace(",", " ").split() if wanted.judges else list(library.JUDGES)
    wanted.output.finish(library.limits(run, wanted.out, names, wanted.settings, wanted.output.note))


@dataclass(frozen=True)
class Probe(options.Common):
    """Options of `nano probe`."""

    kind: Annotated[str, typer.Option("--kind", help="multiview or video.")] = "video"
    video: Annotated[Path | None, typer.Option("--video", help="Folder of another video model.", show_default="the one that ships")] = None
    clips: Annotated[int, typer.Option("--clips", min=1, help="Things for each motion.")] = 12
    scale: Annotated[float, typer.Option("--scale", help="Classifier-free guidance scale.")] = 1.0
    posterior: Annotated[bool, typer.Option("--posterior", help="Also the mean over all clips that fit the caption (minutes).")] = False
    seed: options.Seed = 0


@app.command()
@options.grouped
def probe(wanted: Probe) -> None:
    """Measure how much of the right motion the video model sees in clips that stand still or move half as far; or the multi-view model."""
    if wanted.kind not in ("multiview", "video"):
        raise FourdfyError(f"no motion can be asked of {wanted.kind!r}", "--kind multiview or video", USAGE)
    if wanted.kind == "multiview" and (wanted.video or wanted.posterior):
        raise FourdfyError("--video and --posterior are about the video model", "fourdfy nano probe --kind multiview", USAGE)
    from dataclasses import replace

    import torch

    from fourdfy_cli import presets
    from fourdfy_cli.diffusion import models, sets
    from fourdfy_cli.nano.probe import probe as measure

    recipe = presets.preset("nano")
    named = replace(recipe.models, video=str(wanted.video or ""))
    model = models.load(sets.specs(named, (wanted.kind,))[wanted.kind], "cpu", torch.float32)
    rule = recipe.stage3.video.view_words if wanted.kind == "video" else None
    rows = measure(model, rule, wanted.clips, wanted.scale, wanted.seed, wanted.posterior, wanted.output.note)
    wanted.output.finish({"clips": wanted.clips, "scale": wanted.scale, "table": rows})


@app.command()
@options.grouped
def snapshot(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `nano train` got as --out.", show_default=False)],
    common: options.Common,
    part: Annotated[str, typer.Option("--part", help="multiview or video.")] = "video",
    out: Annotated[Path, typer.Option("--out", help="Folder that gets the model.")] = Path("snapshot"),
) -> None:
    """Write the averaged weights of a training that still runs, to probe them or to generate with them."""
    options.check_writable(out)
    from fourdfy_cli.nano.snapshot import snapshot as write

    common.output.finish({"step": write(folder, part, out), "folder": out})


@app.command()
@options.grouped
def renders(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", show_default=False)],
    common: options.Common,
    out: Annotated[Path, typer.Option("--out", help="The file; `nano train` looks for video/renders.safetensors in its folder.")] = Path(
        "renders.safetensors"
    ),
    clips: Annotated[int, typer.Option("--clips", min=2, help="Clips of each run.")] = 16,
    seed: options.Seed = 0,
) -> None:
    """Save clips of distilled scenes beside the truth, for the video model to learn what it is asked about."""
    _check_file(out, ".safetensors")
    for run in runs:
        _check_run(run)
    import torch

    from fourdfy_cli.config import Models
    from fourdfy_cli.diffusion import models, sets
    from fourdfy_cli.nano.renders import collect

    vae = models.load(sets.specs(Models(set="nano"), ("image",))["image"], "cpu", torch.float32).vae
    common.output.finish({"file": out} | collect(runs, out, vae, clips, seed, common.output.note))


@dataclass(frozen=True)
class Bench(options.Run):
    """Options of `nano bench`."""

    out: Annotated[Path, typer.Option("--out", help="Folder that gets the runs, bench.json and bench.png.")] = Path("nano-bench")
    engine: EngineName = "local"
    address: Address = None


@app.command()
@options.grouped
def bench(prompts: Prompts, wanted: Bench) -> None:
    """Generate every prompt of a file on the nano models and compare it with the truth. The same command again goes on."""
    from dataclasses import replace

    recipe, seed = options.recipe(replace(wanted, models=wanted.models or "nano")), wanted.seed or 0
    if recipe.models.set != "nano":
        raise FourdfyError(
            "only the nano models have a truth to compare with", "fourdfy nano bench prompts/nano-bench.txt --models nano", USAGE
        )
    batch.check_engine(wanted.engine, wanted.address)
    from fourdfy_cli.evaluate.videos import read_prompts

    texts = list(dict.fromkeys(read_prompts(prompts)))
    for text in texts:
        options.check_prompt(text, "nano")
    if wanted.dry_run:
        return wanted.output.finish({"runs": len(texts), "out": wanted.out, "seed": seed})
    device = options.device(wanted, recipe)
    options.check_writable(wanted.out)
    from fourdfy_cli.evaluate import benchmark as library

    task = library.Task(texts, recipe, wanted.out, seed)
    lost = batch.ahead(wanted, device, recipe, lambda engine, watcher: library.ahead(task, engine, watcher))
    with wanted.output.events() as events:
        data = library.run(task, wanted.machine(device), events, lost)
    files = {"files": [wanted.out / "bench.json", wanted.out / "bench.png"]}
    wanted.output.finish((data if wanted.json else library.shown(data)) | files)


def _check_run(run: Path) -> None:
    if not run.exists():
        raise FourdfyError(f"{run} does not exist", 'fourdfy generate "a red dog jumping"', USAGE)


def _check_file(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise FourdfyError(f"{path} should end in {suffix}", typed("--out", path.with_suffix(suffix)), USAGE)
    options.check_writable(path.parent)
