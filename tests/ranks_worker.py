"""What the processes of tests/run/test_ranks.py do: runs of the tiny recipe, joined as `torchrun` would join them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from samples import Watch, tiny_recipe

from fourdfy_cli import hybrid
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.hybrid import StepContext
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import train
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.store.checkpoint import digest

PROMPT, SEED, SIZE = "a red dog jumping", 3, 2


def start(out: Path, *jobs: str) -> list[int | None]:
    """Do some of the jobs below, one after another, on SIZE ranks; their exit codes."""
    from fourdfy_cli.run.launch import _free_port

    context, ports = multiprocessing.get_context("spawn"), [_free_port() for _ in range(2 * len(jobs))]
    ranks = [context.Process(target=work, args=(rank, ports, out, jobs), daemon=True) for rank in range(SIZE)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(600)
    return [rank.exitcode for rank in ranks]


def work(rank: int, ports: list[int], out: Path, jobs: tuple[str, ...]) -> None:
    """The jobs, each of at most two runs; every run joins at a port of its own."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1"}
    train.render.orbit = lambda scene, recipe, path: path
    for number, job in enumerate(jobs):
        JOBS[job](rank, out / job, ports[2 * number : 2 * number + 2])


def go(rank: int, out: Path, port: int, mode: str, action: Callable[[Scene, StepContext], None] = lambda scene, context: None) -> None:
    """A run, with an action after each step; how it ended, and the digest of what this rank has then, go to a file of its own."""
    step, finish, ended = hybrid.step, train.finish, {"code": 0}

    def acting(scene, guidances, context, chunks):
        outcome = step(scene, guidances, context, chunks)
        action(scene, context)
        return outcome

    def telling(current, stages, events):
        ended["digest"] = digest(current.state())
        return finish(current, stages, events)

    hybrid.step, train.finish = acting, telling
    os.environ["MASTER_PORT"] = str(port)
    try:
        train.run(PROMPT, tiny_recipe(), out, SEED, (1, 2, 3), None, Machine(distributed=mode), Watch())
    except FourdfyError as error:
        ended = {"code": error.code, "message": error.message}
    hybrid.step, train.finish = step, finish
    (out / f"rank{rank}.json").write_text(json.dumps(ended))


def frames(rank: int, out: Path, ports: list[int]) -> None:
    go(rank, out, ports[0], "frames")


def views(rank: int, out: Path, ports: list[int]) -> None:
    """The second rank gets a signal once; then the run goes on."""

    def signalled(scene: Scene, context: StepContext) -> None:
        if rank and (context.stage, context.step) == (2, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    go(rank, out, ports[0], "views", signalled)
    (out / f"rank{rank}.json").rename(out / f"stopped{rank}.json")
    go(rank, out, ports[1], "views", signalled)


def killed(rank: int, out: Path, ports: list[int]) -> None:
    """The second rank dies inside stage 2, in a step before which the occupancy is updated."""

    def dying(scene: Scene, context: StepContext) -> None:
        if rank and (context.stage, context.step) == (2, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    go(rank, out, ports[0], "frames", dying)


def poisoned(rank: int, out: Path, ports: list[int]) -> None:
    """The second rank's numbers are bad from stage 2 on, until the run goes back."""

    def poison(scene: Scene, context: StepContext) -> None:
        if rank and context.stage > 1 and context.retry == 0:
            for parameter in scene.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.nan)

    go(rank, out, ports[0], "views", poison)


JOBS = {job.__name__: job for job in (frames, views, killed, poisoned)}
