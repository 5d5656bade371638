"""`fourdfy runs`: what it says of runs that live, died, are damaged or lie."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from samples import fails
from samples import isolated as isolated

from fourdfy_cli.cli import main
from fourdfy_cli.run.runs import find, listed
from fourdfy_cli.store.lock import RunLock


def run(folder: Path, age: float = 0.0, **about: object) -> Path:
    folder.mkdir(parents=True)
    values = {
        "prompt": "a red dog",
        "status": "done",
        "stage": 3,
        "step": 5,
        "seed": 1,
        "models": "nano",
        "recipe": {"stage3": {"steps": 9}},
    }
    (folder / "run.json").write_text(json.dumps(values | about))
    os.utime(folder / "run.json", (time.time() - age,) * 2)
    return folder


def test_a_row_tells_what_the_files_say(tmp_path: Path):
    folder = run(tmp_path / "a", age=100)
    (folder / "clip.json").write_text(json.dumps({"clip": "ViT-B-32", "videos": [{"score": 31.5}]}))
    (folder / "nano.json").write_text(json.dumps({"iou": 0.8}))
    (row,) = listed(tmp_path)
    assert 99 < row.pop("age") < 160
    expected = {"prompt": "a red dog", "status": "done", "stage": 3, "step": 5, "steps": 9, "seed": 1, "models": "nano", "clip": 31.5}
    assert row == expected | {"run": str(folder), "iou": 0.8}


def test_the_newest_comes_first_from_any_depth_and_a_run_is_not_searched(tmp_path: Path):
    run(tmp_path / "old", age=500)
    run(tmp_path / "table" / "full" / "middle", age=50)
    inner = run(tmp_path / "new") / "copy"
    run(inner)
    run(tmp_path / ".trash" / "gone")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [Path(row["run"]).name for row in listed(tmp_path)] == ["new", "middle", "old"]
    assert list(find(inner)) == [inner]


def test_running_means_that_somebody_runs(tmp_path: Path):
    folder = run(tmp_path / "a", status="running")
    assert listed(tmp_path)[0]["status"] == "died"
    with RunLock(folder):
        assert listed(tmp_path)[0]["status"] == "running"
    (folder / "run.lock").write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename}))
    assert listed(tmp_path)[0]["status"] == "died"


@pytest.mark.parametrize("content", ["", "[]", '{"stage": "x", "step": [], "prompt": 5, "recipe": 7, "status": null}', "[" * 5000])
def test_a_run_json_that_says_nothing(tmp_path: Path, content: str):
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "clip.json").write_text('{"videos": {}}')
    (row,) = listed(tmp_path)
    assert row["status"] == "unknown" and row["stage"] is row["step"] is row["steps"] is row["prompt"] is row["clip"] is None


def test_the_command(isolated: Path, capsys: pytest.CaptureFixture[str]):
    fails(capsys, ["runs"], 2, "outputs does not exist", "fourdfy generate")
    run(isolated / "outputs" / "a-red-dog-s1", age=61)
    assert main.run(["runs"]) == 0
    head, line = capsys.readouterr().out.splitlines()[1:]
    assert line.split()[:4] == ["a-red-dog-s1", "done", "3", "5/9"] and line.rstrip().endswith(("1:01", "1:02", "1:03", "1:04"))
    assert main.run(["runs", "outputs/a-red-dog-s1", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["data"]["runs"]
    assert told["run"] == "outputs/a-red-dog-s1" and told["status"] == "done"
    (isolated / "empty").mkdir()
    assert main.run(["runs", "empty"]) == 0
    assert "there is no run under empty" in capsys.readouterr().err


def test_control_characters_of_a_prompt_do_not_reach_the_terminal(isolated: Path, capsys: pytest.CaptureFixture[str]):
    run(isolated / "outputs" / "a", status="\x1b[31mdone")
    assert main.run(["runs"]) == 0
    assert "\x1b" not in capsys.readouterr().out
