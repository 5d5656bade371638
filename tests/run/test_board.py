"""TensorBoard's own reader against metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import fails, tiny_recipe
from samples import isolated as isolated

from fourdfy_cli.cli import main
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import train
from fourdfy_cli.run.aside import Several
from fourdfy_cli.run.board import TensorBoard
from fourdfy_cli.run.progress import PrintedEvents

pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[tensorboard]'")
PROMPT = "a red dog"


def run(out: Path, stages: tuple[int, ...], resume: Path | None = None) -> Path:
    recipe = tiny_recipe()
    board = TensorBoard(out / "a-red-dog-s3", PROMPT, recipe)
    folder = train.run(PROMPT, recipe, out, 3, stages, resume, Machine(), Several([PrintedEvents(), board])).run_dir
    board.writer.close()
    return folder


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def test_every_number_of_the_run(tmp_path: Path):
    folder = run(tmp_path, (1, 2, 3))
    told, offsets = read(folder), {1: 1, 2: 3, 3: 7}  # after 0, 2 and 6 steps; a step counts once it is done
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("stage", "step", "branch", "rung", "seconds", "crc"):
                expected.setdefault(f"{name}/{row['branch']}", []).append((offsets[row["stage"]] + row["step"], value))
    tags = {tag for tag in told.Tags()["scalars"] if not tag.startswith("run/")}
    assert tags == set(expected) and len(tags) > 5
    for tag, points in expected.items():
        found = [(event.step, event.value) for event in told.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in points]
        assert np.allclose([value for _, value in found], [value for _, value in points], rtol=1e-5)
    assert [event.step for event in told.Images("preview")] == [2, 6, 11]
    assert len(told.Scalars("run/steps a second")) == len(rows)


def test_previews_and_words(tmp_path: Path):
    import io

    folder = run(tmp_path, (1,))
    told = read(folder)
    (event,) = told.Images("preview")
    shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert np.array_equal(shown, np.asarray(Image.open(next((folder / "previews").iterdir()))))
    (words,) = told.Tensors("prompt/text_summary")
    assert words.tensor_proto.string_val == [b"    a red dog\n"]


def test_a_run_that_goes_on_continues_its_curves(tmp_path: Path):
    folder = run(tmp_path, (1,))
    run(tmp_path, (2,), folder / "stage1.pt")
    steps = [event.step for event in read(folder).Scalars("run/memory MB")]
    assert steps == [1, 2, 3, 4, 5, 6] and len([*(folder / "tensorboard").iterdir()]) == 2


def test_the_command(isolated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    args = ["generate", PROMPT, "--log"]
    fails(capsys, [*args, "wandb"], 2, "no log 'wandb'", "--log tensorboard")
    small = [item for k in (1, 2, 3) for item in ("--set", f"stage{k}.steps=1")]
    assert main.run(["stage1", PROMPT, "--models", "nano", *small, "--log", "tensorboard", "--json"]) == 0
    assert len(read(isolated / "outputs" / "a-red-dog-s0").Scalars("run/memory MB")) == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    capsys.readouterr()
    assert main.run([*args, "tensorboard", "--models", "nano", "--out", "new", "--json"]) == 3
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert "tensorboard" in error["message"] and error["hint"] == "pip install 'fourdfy[tensorboard]'" and not (isolated / "new").exists()
