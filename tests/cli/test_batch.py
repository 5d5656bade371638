"""`fourdfy batch` as a command: files of prompts, seeds, engines, what it shows."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from samples import fails, isolated, tiny_recipe  # noqa: F401

from fourdfy_cli.cli import batch as command
from fourdfy_cli.cli import main, scenes
from fourdfy_cli.config import to_dict
from fourdfy_cli.console import Output
from fourdfy_cli.errors import DIVERGED, FAILURE, USAGE
from fourdfy_cli.run.batch import Job, JobResult, SceneStatus
from fourdfy_cli.store.folder import write_json

NANO = ["--models", "nano"]


def plan(capsys, *args: str) -> tuple[dict, list[str]]:
    """The result of --dry-run, and the notes before it."""
    capsys.readouterr()
    assert main.run(["batch", *args, *NANO, "--dry-run", "--json"]) == 0
    *events, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return last["data"], [event["text"] for event in events]


def test_files_of_prompts(capsys):
    path = Path("p.txt")
    path.write_text("# mine\n\n  a red dog \na blue cat\n\na red dog\n\ufeff")
    data, notes = plan(capsys, "p.txt", "--seeds", "0, 7,7")
    assert data["scenes"] == 4 and notes == ["p.txt: line 6 is line 3 again, and is made once"]
    assert plan(capsys, "p.txt", "--seeds", "0,7", "--only", "3")[0]["scenes"] == 1
    words = [f"a {c} {o} {m}" for c in ("red", "blue") for o in ("dog", "cat", "car", "cube") for m in ("jumping", "walking")]
    path.write_text("\n".join((words * 63)[:1000]))
    data, notes = plan(capsys, "p.txt")
    assert data["scenes"] == 16 and len(notes) == 984
    assert [one.name for one in Path.cwd().iterdir()] == ["p.txt"]


def test_a_thousand_lines_on_the_paper_s_models(capsys):
    Path("p.txt").write_text("".join(f"a dog that jumps over {k} ducks\n" for k in range(1000)))
    assert main.run(["batch", "p.txt", "--models", "paper", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["scenes"] == 1000


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["there is no prompt in p.txt"]),
        (b"# nothing\n\n", ["there is no prompt in p.txt"]),
        (b"a red dog\n\na blue dgo\na zebra\n", ["p.txt, line 3", "dgo", "did you mean dog", "1 more line", "sed -n 3p p.txt"]),
        ("a blåue dog".encode("latin-1"), ["not UTF-8"]),
        ("a blue dog".encode("utf-16"), ["UTF-16"]),
        (b"a red dog\nA red dog\n", ["have one folder"]),
        (b"a red dog " * 2000, ["line 1 has"]),
        (None, ["cannot read p.txt"]),
    ],
)
def test_files_that_are_none(content: bytes | None, words: list[str], capsys):
    if content is not None:
        Path("p.txt").write_bytes(content)
    fails(capsys, ["batch", "p.txt", *NANO], USAGE, *words)


@pytest.mark.parametrize(
    "args, words",
    [
        (["--engine", "slurm"], ["there is no engine 'slurm'"]),
        (["--address", "auto"], ["only Ray's engine", "--engine ray"]),
        (["--seeds", "a"], ["--seeds wants whole numbers"]),
        (["--seeds", ""], ["--seeds wants whole numbers"]),
        (["--seeds", "-1"], ["--seeds wants whole numbers"]),
        (["--seeds", str(2**63)], ["--seeds wants whole numbers"]),
        (["--seeds", "1", "--seed", "2"], ["both --seed and --seeds"]),
        (["--only", "2"], ["there is no scene 2"]),
    ],
)
def test_options_that_are_none(args: list[str], words: list[str], capsys):
    Path("p.txt").write_text("a red dog\na blue cat\n")
    fails(capsys, ["batch", "p.txt", *NANO, *args], USAGE, *words)


def test_another_run_in_the_way(capsys):
    Path("p.txt").write_text("a red dog\n")
    folder = Path("outputs/a-red-dog-s0")
    folder.mkdir(parents=True)
    about = {"format": 2, "prompt": "a red dog", "seed": 0, "stage": 1, "step": 0, "recipe": to_dict(tiny_recipe())}
    write_json(folder / "run.json", about)
    fails(capsys, ["batch", "p.txt", *NANO], USAGE, "holds a run with other settings", "--out")


def ends(monkeypatch, *codes: int) -> None:
    """Scenes end with these codes at once."""

    class Engine:
        def run(self, jobs, tick, signals):
            for number, code in zip(jobs, codes, strict=True):
                tick()
                yield JobResult(number, code, "it went wrong" if code else "", "a command" if code else "")

    monkeypatch.setattr(command, "engine", lambda *_: Engine())


@pytest.mark.parametrize("codes, exit_code", [((0, 0, 0), 0), ((0, DIVERGED, DIVERGED), DIVERGED), ((0, DIVERGED, 6), FAILURE)])
def test_the_end_of_a_batch(codes, exit_code, monkeypatch, capsys):
    Path("p.txt").write_text("a red dog\na blue cat\na cube\n")
    ends(monkeypatch, *codes)
    assert main.run(["batch", "p.txt", *NANO, "--json"]) == exit_code
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ended = [event for event in events if event.get("event") == "scene"]
    assert [event["state"] for event in ended] == ["failed" if code else "done" for code in codes]
    data = events[-1]["data"] if exit_code == 0 else events[-2]
    assert (data["scenes"], data["done"], len(data["failures"])) == (3, codes.count(0), 3 - codes.count(0))
    assert all(one["hint"] == "a command" and one["message"] == "it went wrong" for one in data["failures"])
    ends(monkeypatch, *codes)
    assert main.run(["batch", "p.txt", *NANO]) == exit_code
    told = capsys.readouterr()
    assert "a-red-dog-s0: done" in told.err and (exit_code == 0 or ("it went wrong" in told.out and "a command" in told.err))


def test_the_live_table(tmp_path):
    stands = [SceneStatus("done", 3, 5, 5), SceneStatus("running", 2, 40, 100, 61.0), SceneStatus("failed", 1, 3, 9), *[SceneStatus()] * 20]
    rows = [(Job(f"a thing {k}", 0, tiny_recipe(), tmp_path), row) for k, row in enumerate(stands)]

    def seen(height: int) -> list[str]:
        console = Console(file=io.StringIO(), width=100)
        console.print(scenes.picture(rows, height))
        return console.file.getvalue().splitlines()

    small, large = seen(9), seen(60)
    assert "a-thing-1-s0" in small[1] and small[1].split()[1:] == ["running", "2/3", "40/100", "1:01"]
    assert "failed" in small[2] and "waiting" in small[3]
    assert "1 running, 1 failed, 20 waiting, 1 done; 18 not shown" in small[-1] and len(small) <= 9
    assert sum("a-thing-" in line for line in large) == 23 and "not shown" not in large[-1]


def test_on_a_terminal_the_table_is_shown(monkeypatch, tmp_path):
    output = Output("batch")
    output.people = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    with scenes.watching(output) as watcher:
        watcher.scenes([(Job("a red dog", 0, tiny_recipe(), tmp_path), SceneStatus("running", 1, 1, 2, None))])
        watcher.note("a remark")
    assert "a-red-dog-s0" in output.people.file.getvalue() and "a remark" in output.people.file.getvalue()


@pytest.mark.parametrize("args", [["--help"], ["generate", "a dgo"], ["batch", "--help"], ["slurm", "--help"]])
def test_ray_is_not_imported(args: list[str]):
    code = f"import sys\nfrom fourdfy_cli.cli import main\nmain.run({args!r})\nassert not {{'ray', 'torch'}} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env=dict(os.environ, PYTHONPATH=str(Path(main.__file__).parents[2]))
    )
