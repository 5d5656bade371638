"""What the tests of reliability start from: runs whose steps cost next to nothing, processes to kill, and every kind of damage."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourdfy_cli import config, hybrid, presets
from fourdfy_cli.cli import main
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.output import render
from fourdfy_cli.run import keeper, train
from fourdfy_cli.run.verify import examine
from fourdfy_cli.store import checkpoint, files
from fourdfy_cli.store.folder import run_folder

PROMPT, NAME = "a red dog jumping", "a-red-dog-jumping-s0"
SIZES = ("levels=2", "features=2", "log2_table=6", "base=4", "growth=2")
GRIDS = [f"field.{grid}.{key}" for grid in ("static", "dynamic") for key in SIZES]
SETTINGS = [
    *GRIDS, "field.hidden=8", "march.samples=24", "march.resolution=8", "march.update_every=2", "march.warmup_steps=4",
    "stage1.steps=3", "stage2.steps=4", "stage3.steps=3", "save_minutes=0",
]  # fmt: skip
TYPED = [word for setting in SETTINGS for word in ("--set", setting)]
CODES = {0, 1, 2, 3, 4, 5, 6, 75, 129, 130, 143}  # what errors.py documents


@functools.cache
def recipe(*more: str) -> config.Recipe:
    """The nano recipe in a tiny scene that is saved after every step."""
    return functools.reduce(config.override, (*SETTINGS, *more), presets.nano())


def cheap(patch: Callable[[Any, str, Any], None]) -> None:
    """Have steps draw their gradients instead of asking models, and pictures hold nothing: all else of a run stays as it is."""
    patch(train, "prepare", lambda *_: None)
    patch(train, "load_guidances", lambda *_: {})
    patch(keeper, "preview", lambda current: render.write_png(current.folder / "previews" / "p.png", np.zeros((4, 4, 3), np.uint8)))
    patch(hybrid, "step", drawn_step)
    patch(render, "orbit", empty_film)


def drawn_step(scene: Any, guidances: Any, context: hybrid.StepContext, chunks: Any = None) -> hybrid.Outcome:
    """Gradients that are a function of the scene and (seed, stage, step, retry), as those of a real step."""
    generator = context.generator("drawn")
    for parameter in scene.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator) + parameter.detach()
    return hybrid.Outcome("multiview", {"drawn": float(scene.field.static.table.detach().sum())})


def empty_film(scene: Any, recipe: Any, path: Path, *_: Any) -> Path:
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"a film")
    return path


class Silent:
    """Events that nobody watches; `at` says where a run stands."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, *_: Any) -> None: ...
    def step(self, info: Any) -> None: ...
    def preview(self, path: Path) -> None: ...
    def saved(self, path: Path) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def go(out: Path, wanted: config.Recipe | None = None, events: Any = None, stages: tuple[int, ...] = (1, 2, 3)) -> train.RunResult:
    return train.run(PROMPT, wanted or recipe(), out, 0, stages, None, Machine(backend="torch"), events or Silent())


def forked(work: Callable[[], Any]) -> int:
    """The number of a process that does some work; it ends with 0, with a FourdfyError's code, or with 99 for what should not happen."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        torch.set_num_threads(1)
        work()
        code = 0
    except FourdfyError as error:
        code = error.code
    except KeyboardInterrupt:
        code = 130
    finally:
        if code == 99:
            sys.excepthook(*sys.exc_info())
        os._exit(code)


def ended(child: int) -> int:
    """Its exit code; of one that a signal ended, minus the signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def after(seconds: float, child: int, number: int) -> int:
    """Wait, send a signal, wait for the end; returns the exit code."""
    time.sleep(seconds)
    os.kill(child, number)  # a child that has ended is still there until it is waited for
    return ended(child)


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs from run to run."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "rung")} for row in found]


def result(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """What must be the same however a run was cut: its checkpoints' digests and its metrics."""
    return [checkpoint.load(folder / f"stage{stage}.pt")["digest"] for stage in (1, 2, 3)], rows(folder)


def place(folder: Path) -> tuple[int, int]:
    """How far a run's checkpoints are; every one that is there must be whole."""
    states = [checkpoint.load(folder / name) for name in checkpoint.NAMES if os.path.lexists(folder / name)]
    return max(((state["stage"], state["step"]) for state in states), default=(1, 0))


def damaged(folder: Path) -> dict[str, str]:
    """What `info --verify` finds wrong; nothing where there is no checkpoint yet."""
    here = any(os.path.lexists(folder / name) for name in checkpoint.NAMES)
    return {name: what for name, what in examine(folder).items() if what} if here else {}


def damages(data: bytes, rng: random.Random, cuts: int, flips: int) -> Iterator[tuple[str, bytes]]:
    """A file cut short at random lengths, with a random bit flipped, empty, foreign, with something behind it."""
    for length in [rng.randrange(len(data)) for _ in range(cuts)]:
        yield f"cut at {length}", data[:length]
    for bit in [rng.randrange(8 * len(data)) for _ in range(flips)]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(flipped)
    yield from FOREIGN.items()
    yield "zeros", bytes(len(data))
    yield "noise", rng.randbytes(len(data))
    yield "more", data + b"more"


FOREIGN = {
    "empty": b"", "text": b"hello\n", "null": b"null", "list": b"[]", "number": b"1e999", "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000, "utf-16": "{}".encode("utf-16"), "not utf-8": b'{"prompt": "\xff\xfe"}\n',
    "png": b"\x89PNG\r\n\x1a\n" + bytes(64), "pickle": b"\x80\x04}q\x00.", "zip": b"PK\x05\x06" + bytes(18),
    "long number": b'{"format": ' + b"9" * 5000 + b"}",
}  # fmt: skip


def called(args: list[str], capsys: Any) -> tuple[int, dict[str, Any]]:
    """One command line with --json: its exit code and envelope. What nobody foresaw is raised, and there may be no traceback."""
    capsys.readouterr()
    words = 2 if args[0] in ("nano", "study", "models") else 1
    code = main.run([*args[:words], "--json", *args[words:]])
    said = capsys.readouterr()
    assert code in CODES and "Traceback" not in said.err + said.out and "a mistake in fourdfy" not in said.err + said.out
    envelope = json.loads(said.out.splitlines()[-1])
    assert envelope["ok"] is (code == 0)
    if code:
        assert envelope["error"]["code"] == code and envelope["error"]["hint"] and "\n" not in envelope["error"]["message"], envelope
    return code, envelope | {"said": said.err + said.out}


def process(args: list[str], out: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A real command of its own."""
    told = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1]), **(environment or {})}
    return subprocess.Popen([sys.executable, "-m", "fourdfy_cli", *args], cwd=out, env=told, text=True, stdout=-1, stderr=-1)


def folder_of(out: Path) -> Path:
    return run_folder(out, PROMPT, 0)
