"""`fourdfy slurm`: a batch script for a cluster that Slurm runs."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourdfy_cli.cli import options
from fourdfy_cli.errors import USAGE, FourdfyError, typed
from fourdfy_cli.store.stream import Willing

if TYPE_CHECKING:
    from fourdfy_cli.config import Recipe
    from fourdfy_cli.run.sbatch import Resources

Words = Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to make, in words.", show_default=False)]
HERE = {"json", "debug", "dry_run", "full"}  # options of this command line, not of the job


def _word(flag: str, what: str) -> Any:
    return typer.Option(flag, help=what, show_default=False)


@dataclass(frozen=True)
class Slurm(options.Run):
    """Options of `slurm`."""

    batch: Annotated[
        Path | None, typer.Option("--batch", metavar="PROMPTS.txt", help="A job array, one job for each prompt.", show_default=False)
    ] = None
    seeds: Annotated[str | None, typer.Option("--seeds", help="With --batch: 0,1,2.", show_default="the one of --seed")] = None
    partition: Annotated[str | None, _word("--partition", "Slurm's partition.")] = None
    time: Annotated[str | None, _word("--time", "Slurm's time limit, [days-]hours:minutes:seconds.")] = None
    gpus: Annotated[str | None, _word("--gpus", "GPUs of a job.")] = None
    mem: Annotated[str | None, _word("--mem", "Memory of a job, 32G.")] = None
    account: Annotated[str | None, _word("--account", "Slurm's account.")] = None
    script: Annotated[Path, typer.Option("--out-script", help="The script; - for stdout.")] = Path("fourdfy.sbatch")


@options.grouped
def slurm(wanted: Slurm, prompt: Words = None) -> None:
    """Write a Slurm script that makes a scene, or one for each prompt of a file.

    It saves before the time limit and queues itself again. All options of generate stand behind."""
    if (prompt is None) == (wanted.batch is None):
        raise FourdfyError("slurm wants either a prompt or --batch with a file of them", 'fourdfy slurm "a red dog jumping"', USAGE)
    from fourdfy_cli.run import sbatch

    recipe, words = _recipe(wanted), _handed_on(wanted)
    if wanted.batch is None:
        options.check_prompt(str(prompt), recipe.models.set)
        several = ["--gpus", wanted.gpus] if wanted.gpus and wanted.gpus.isdigit() and int(wanted.gpus) > 1 else []
        text = sbatch.script(["fourdfy", "generate", *words, *several, "--", str(prompt)], _wishes(wanted))
    else:
        count = _count(wanted, recipe)
        line = ["fourdfy", "batch", str(wanted.batch.absolute()), *words]
        text = sbatch.script(line, replace(_wishes(wanted), scenes=count))
    _write(text, wanted)


def _recipe(wanted: Slurm) -> Recipe:
    """The recipe as the job will see it, if the options tell: a job with GPUs has the paper's models though this machine may have none."""
    gpu = wanted.models in (None, "auto") and wanted.preset is None and wanted.gpus not in (None, "0")
    return options.recipe(replace(wanted, models="paper") if gpu else wanted)


def _count(wanted: Slurm, recipe: Recipe) -> int:
    from fourdfy_cli.cli import batch
    from fourdfy_cli.run.batch import check

    names = {field.name for field in dataclasses.fields(batch.Batch)} & {field.name for field in dataclasses.fields(wanted)}
    jobs = batch.scenes(Path(str(wanted.batch)), recipe, batch.Batch(**{name: getattr(wanted, name) for name in names}))
    check(jobs)
    return len(jobs)


def _handed_on(wanted: Slurm) -> list[str]:
    """The options of `generate` that were typed (and --seeds), as they are typed again."""
    names = {field.name for field in dataclasses.fields(options.Run)} - HERE - set(Slurm.__annotations__) | {"seeds"}
    found = []
    for parameter in wanted.context.command.params:
        source = wanted.context.get_parameter_source(parameter.name)
        if parameter.name not in names or source is None or source.name != "COMMANDLINE":
            continue
        value, flag = getattr(wanted, parameter.name), parameter.opts[0]
        values = value if isinstance(value, list) else [value]
        found += [flag] * values[0] if isinstance(value, bool) else [word for one in values for word in (flag, str(one))]
    return found


def _wishes(wanted: Slurm) -> Resources:
    from fourdfy_cli.run.sbatch import Resources

    return Resources(wanted.partition, wanted.time, wanted.gpus, wanted.mem, wanted.account)


def _write(text: str, wanted: Slurm) -> None:
    from fourdfy_cli.store.files import replacing

    if str(wanted.script) == "-":
        return wanted.output.finish({"script": text}) if wanted.json else _print(text)
    if not wanted.dry_run:
        options.check_writable(wanted.script.parent)
        with replacing(wanted.script) as temporary:
            temporary.write_text(text, encoding="utf-8")
    wanted.output.finish({"script": wanted.script, "submit it with": typed("sbatch", wanted.script)})


def _print(text: str) -> None:
    out = Willing(sys.stdout)
    out.write(text)
    out.flush()
