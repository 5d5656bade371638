"""`fourdfy batch`: a scene for every prompt of a file and every seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourdfy_cli.cli import options
from fourdfy_cli.errors import FAILURE, USAGE, FourdfyError, typed

if TYPE_CHECKING:
    from fourdfy_cli.config import Recipe
    from fourdfy_cli.run.batch import Engine, Job

ENGINES = ("local", "ray")

Prompts = Annotated[Path, typer.Argument(metavar="PROMPTS.txt", help="One prompt a line; # starts a comment.", show_default=False)]
EngineName = Annotated[str, typer.Option("--engine", help="local: here, one after another or one per GPU; ray: a task per scene.")]
Address = Annotated[
    str | None, typer.Option("--address", help="Of a Ray cluster: HOST:PORT or auto.", show_default="a cluster of this machine alone")
]


@dataclass(frozen=True)
class Batch(options.Run):
    """Options of `batch`."""

    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Each prompt with each of these: 0,1,2.", show_default="the one of --seed")
    ] = None
    engine: EngineName = "local"
    address: Address = None
    only: Annotated[
        int | None, typer.Option("--only", min=0, help="This scene of the list alone, counted from 0: for job arrays.", show_default="all")
    ] = None


@options.grouped
def batch(prompts: Prompts, wanted: Batch) -> None:
    """Make a scene for every prompt of a file: here, or on a Ray cluster.

    The same command again skips what is finished and goes on with the rest."""
    recipe = options.recipe(wanted)
    jobs = scenes(prompts, recipe, wanted)
    check_engine(wanted.engine, wanted.address)
    from fourdfy_cli.run import batch as library

    library.check(jobs)
    if wanted.dry_run:
        return wanted.output.finish(_plan(jobs, recipe, wanted))
    device = options.device(wanted, recipe)
    options.check_writable(wanted.out)
    if wanted.commercial:
        from fourdfy_cli.diffusion import hub, sets

        hub.refuse_non_commercial(recipe.models, sets.roles(sets.drawn(recipe), recipe.vsd))
    from fourdfy_cli.cli.scenes import watching

    with watching(wanted.output) as watcher:
        data = library.summary(jobs, library.run(jobs, engine(wanted, wanted.engine, wanted.address, recipe, device), watcher))
    _finish(data, prompts, wanted)


def scenes(prompts: Path, recipe: Recipe, wanted: Batch) -> list[Job]:
    """A job for each prompt and seed, or the one that --only asks for. Raises FourdfyError (exit 2)."""
    from fourdfy_cli.run.batch import Job

    texts, seeds = listed(prompts, recipe.models.set, wanted), _seeds(wanted)
    jobs = [Job(text, seed, recipe, wanted.out.expanduser()) for text in texts for seed in seeds]
    if wanted.only is not None and wanted.only >= len(jobs):
        raise FourdfyError(f"there is no scene {wanted.only}: {prompts} makes {len(jobs)}, from 0", f"--only {len(jobs) - 1}", USAGE)
    return jobs if wanted.only is None else [jobs[wanted.only]]


def listed(path: Path, models: str, common: options.Common) -> list[str]:
    """The prompts of a file, each once, with a remark for each double. Raises FourdfyError (exit 2) that names the first line which the
    models do not understand."""
    from fourdfy_cli.output.films import numbered_prompts

    first: dict[str, int] = {}
    wrong: list[tuple[int, FourdfyError]] = []
    for number, text in numbered_prompts(path):
        try:
            options.check_prompt(text, models)
        except FourdfyError as error:
            wrong.append((number, error))
        if first.setdefault(text, number) != number:
            common.output.note(f"{path}: line {number} is line {first[text]} again, and is made once")
    if wrong:
        number, error = wrong[0]
        more = f" (and {len(wrong) - 1} more lines are wrong)" if wrong[1:] else ""
        raise FourdfyError(f"{path}, line {number}: {error.message}{more}", typed("sed", "-n", f"{number}p", path), USAGE)
    return list(first)


def _seeds(wanted: Batch) -> list[int]:
    if wanted.seeds is None:
        return [wanted.seed or 0]
    words = wanted.seeds.replace(",", " ").split()
    if wanted.given("seed"):
        raise FourdfyError("both --seed and --seeds are given", typed("--seeds", wanted.seeds), USAGE)
    if not words or not all(word.isascii() and word.isdigit() and int(word) < 2**63 for word in words):
        raise FourdfyError(f"--seeds wants whole numbers with commas between, not {wanted.seeds!r}", "--seeds 0,1,2", USAGE)
    return list(dict.fromkeys(map(int, words)))


def check_engine(name: str, address: str | None) -> None:
    """Raises FourdfyError: exit 2 for an engine that does not exist or has no address, exit 3 for one that is not installed."""
    if name not in ENGINES:
        raise FourdfyError(f"there is no engine {name!r}", f"one of {', '.join(ENGINES)}: --engine local", USAGE)
    if address is not None and name != "ray":
        raise FourdfyError("only Ray's engine has an address", typed("--engine", "ray", "--address", address), USAGE)
    if name == "ray":
        from importlib.util import find_spec

        from fourdfy_cli.run.cluster import no_ray

        if find_spec("ray") is None:
            raise no_ray()


def engine(run: options.Run, name: str, address: str | None, recipe: Recipe, device: str) -> Engine:
    """The engine that the options name, with what `--dry-run` says that a scene needs; "cuda" without a number is every GPU of this
    machine."""
    from fourdfy_cli.run import cluster, engines, plan

    machine = run.machine(device)
    if name == "ray":
        need = max(row["bytes"] for row in plan.stages(recipe, (1, 2, 3), run.vram))
        return cluster.Ray(machine, address, run.threads or 1, need)
    cards = cards_of(device)
    if len(cards) == 1:
        return engines.InProcess(machine)
    return engines.Processes(tuple(replace(machine, device=card, threads=None) for card in cards))


def ahead(wanted: Any, device: str, recipe: Recipe, make: Callable[[Engine, Any], dict[Path, str]]) -> dict[Path, str]:
    """Let a command's scenes be made by the engine of its options, before it looks at them one by one; where that is this process alone,
    the command does it itself. Returns what `make` does: folders of scenes that diverged, and why."""
    if wanted.engine == "local" and len(cards_of(device)) == 1:
        return {}
    from fourdfy_cli.cli.scenes import watching

    with watching(wanted.output) as watcher:
        return make(engine(wanted, wanted.engine, wanted.address, recipe, device), watcher)


def embedded_ahead(judge: Any, paths: list[Path], choice: Any) -> None:
    """What `embeddings.ahead` does with the videos of `clip-score`; nothing where the engine is this process."""
    check_engine(judge.engine, judge.address)
    cards = cards_of(judge.device)
    if judge.engine == "local" and len(cards) == 1:
        return
    from fourdfy_cli.evaluate import embeddings
    from fourdfy_cli.memory import Machine
    from fourdfy_cli.run import cluster, engines

    ray = judge.engine == "ray"
    several = (
        cluster.Ray(Machine(judge.device), judge.address, judge.threads or 1) if ray else engines.Processes(tuple(map(Machine, cards)))
    )
    embeddings.ahead(paths, choice, several, judge.output.note)


def cards_of(device: str) -> list[str]:
    """The devices that a device's name stands for."""
    import torch

    count = torch.cuda.device_count() if device == "cuda" else 1
    return [f"cuda:{k}" for k in range(count)] if count > 1 else [device]


def _plan(jobs: list[Job], recipe: Recipe, wanted: Batch) -> dict[str, Any]:
    """What a batch would do."""
    from fourdfy_cli.run import plan
    from fourdfy_cli.run.batch import finished

    rows = plan.stages(recipe, (1, 2, 3), wanted.vram)
    seconds = None if any(row["seconds"] is None for row in rows) else sum(row["seconds"] for row in rows)
    return {
        "scenes": len(jobs),
        "finished": sum(map(finished, jobs)),
        "out": wanted.out,
        "engine": wanted.engine,
        "bytes": max(row["bytes"] for row in rows),
        "seconds of a scene": seconds,
        "bytes to download": sum(row["bytes"] for row in plan.downloads(recipe, (1, 2, 3))),
    }


def _finish(data: dict[str, Any], prompts: Path, wanted: Batch) -> None:
    """Show the summary; raises FourdfyError if a scene failed, with its code where all have the same."""
    if not data["failed"]:
        return wanted.output.finish(data)
    first, codes = data["failures"][0], {one["code"] for one in data["failures"]}
    message = f"{data['failed']} of {data['scenes']} scenes failed, the first, {first['prompt']!r}: {first['message']}"
    error = FourdfyError(message, first["hint"], codes.pop() if len(codes) == 1 else FAILURE)
    raise wanted.output.failed_in_part("batch", data, error)
