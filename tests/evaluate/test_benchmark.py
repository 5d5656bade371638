"""The benchmark: going on, its table, its sheet, and the prompts that ship; and renders of its runs to train on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from samples import Watch, fails, isolated, tiny_recipe  # noqa: F401

from fourdfy_cli.cli import main
from fourdfy_cli.diffusion import models
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate import benchmark as bench
from fourdfy_cli.evaluate.videos import read_prompts
from fourdfy_cli.memory import Machine
from fourdfy_cli.nano import renders
from fourdfy_cli.nano.latents import decode_subject
from fourdfy_cli.nano.prompts import HELD_OUT, MOTIONS, parse
from fourdfy_cli.output import render
from fourdfy_cli.store.folder import read_json

ROOT = Path(__file__).parents[2]
PROMPTS = ["a red dog jumping", "a red cube"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bench.Task, dict]:
    """Two prompts on the tiny recipe, almost without image steps; videos of two small frames."""
    tiny = tiny_recipe()
    stages = {f"stage{k}": dataclasses.replace(tiny.stage(k), steps=2, p_3d=1.0 if k < 3 else 0.5, p_image=0.0) for k in (1, 2, 3)}
    task = bench.Task(PROMPTS, dataclasses.replace(tiny, **stages), tmp_path_factory.mktemp("bench"), 0)
    orbit = render.orbit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "orbit", lambda scene, recipe, path: orbit(scene, recipe, path, 16, 2))
        return task, bench.run(task, Machine(), Watch())


def test_the_prompts_that_ship():
    texts = read_prompts(ROOT / "prompts" / "nano-bench.txt")
    subjects = [parse(text) for text in texts]
    assert len(set(texts)) == 40 and [s.text() for s in subjects] == texts
    assert Counter(s.motion for s in subjects) == {**dict.fromkeys(MOTIONS, 7), None: 5}
    assert {(s.object, s.colour) for s in subjects if s.held_out} == HELD_OUT and sum(s.held_out for s in subjects) == 12
    assert not {s.object for s in subjects if s.motion == "spinning"} & {"ball", "cone", "donut"}  # those look the same while they spin


def test_what_a_benchmark_leaves(made):
    task, data = made
    assert json.loads(json.dumps(data)) == read_json(task.out / "bench.json") and not data["failed"]
    assert [(r["prompt"], r["motion"], r["held_out"]) for r in data["runs"]] == [(PROMPTS[0], "jumping", False), (PROMPTS[1], None, True)]
    assert [(one["prompts"], one["n"]) for one in data["table"]] == [("jumping", 1), ("none", 1), ("never seen", 1), ("all", 2)]
    total = data["table"][-1]
    assert total["iou"] == pytest.approx(np.mean([r["iou"] for r in data["runs"]]))
    assert [r["spots"] is None for r in data["runs"]] == [False, True] and total["spots"] == data["runs"][0]["spots"]
    assert [row["spots"] == "" for row in bench.shown(data)["table"]] == [False, True, True, False]
    low, high = total["psnr_interval"]
    assert low <= total["psnr"] <= high and data["table"][0]["psnr_interval"] is None
    sheet = np.asarray(Image.open(task.out / "bench.png"))
    assert sheet.shape == (bench.NAME + 128, 4 * 64 * len(bench.LOOKS), 3)
    truth = sheet[bench.NAME + 64 :, : 64 * len(bench.LOOKS)]
    assert (abs(truth.astype(int) - [217, 31, 31]).sum(-1) < 120).mean() > 0.05  # the red dog of the world


def test_again_finds_everything_done(made):
    task, data = made
    watch, before = Watch(), {p: p.stat().st_mtime_ns for p in task.out.rglob("*.pt")}
    assert bench.run(task, Machine(), watch)["runs"] == data["runs"]
    assert watch.steps == 0 and before == {p: p.stat().st_mtime_ns for p in task.out.rglob("*.pt")}


def test_what_diverged_ahead_is_listed(made, tmp_path):
    """By an engine, before the benchmark looked: it is not begun again."""
    task = dataclasses.replace(made[0], out=tmp_path / "bench")
    shutil.copytree(made[0].out, task.out)
    watch = Watch()
    data = bench.run(task, Machine(), watch, {task.out / "a-red-cube-s0": "no numbers any more"})
    assert data["failed"] == [{"prompt": PROMPTS[1], "why": "no numbers any more"}] and watch.steps == 0
    assert [run["prompt"] for run in data["runs"]] == PROMPTS[:1]


def test_lines_of_made_up_runs():
    values = dict.fromkeys((*bench.MEASURES, *(f"still_{name}" for name in bench.MEASURES)), 0.5)
    runs = [values | {"prompt": "", "motion": m, "held_out": False, "iou": x, "front_runs": f} for m, x, f in
            (("spinning", 0.2, 1), ("spinning", 0.4, 2), ("walking", 0.9, None))]  # fmt: skip
    spinning, walking, total = bench.table(runs)
    assert spinning["iou"] == pytest.approx(0.3) and spinning["one_front"] == 0.5 and walking["one_front"] is None
    assert total["n"] == 3 and total["iou_interval"][0] == pytest.approx(0.2) and total["iou_interval"][1] == pytest.approx(0.9)
    text = bench.shown({"recipe": "nano", "seed": 0, "failed": [], "table": [spinning, walking]})["table"]
    assert text[0]["IoU"].startswith("0.30 [0.20") and text[1]["IoU"] == "0.90"


def test_the_command(isolated, tmp_path, capsys):  # noqa: F811
    (tmp_path / "p.txt").write_text("a red dog\na green cat walking\n")
    assert main.run(["nano", "bench", str(tmp_path / "p.txt"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["runs"] == 2
    (tmp_path / "q.txt").write_text("a red panda\n")
    fails(capsys, ["nano", "bench", str(tmp_path / "q.txt")], 2, "panda")
    fails(capsys, ["nano", "bench", str(tmp_path / "p.txt"), "--models", "paper"], 2, "nano")


def test_renders_beside_the_truth(made, tmp_path):
    task, _ = made
    vae = models.load(models.NANO["image"], "cpu", torch.float32).vae
    runs = [task.out / name for name in ("a-red-dog-jumping-s0", "a-red-cube-s0")]
    assert renders.collect(runs, tmp_path / "r.safetensors", vae, 4, 0, lambda text: None) == {"clips": 4}
    file = load_file(tmp_path / "r.safetensors")
    assert file["shown"].shape == file["latents"].shape == (4, 8, 12, 8, 8) and file["azimuth"].shape == (4, 8)
    assert {decode_subject(row).text() for row in file["subjects"]} == {PROMPTS[0]}
    still, true = (file[name].float() - file[name].float().mean(1, keepdim=True) for name in ("shown", "latents"))
    assert still.norm() < 0.5 * true.norm()  # two steps of stage 3 have hardly moved anything
    with pytest.raises(FourdfyError, match="no finished run"):
        renders.collect(runs[1:], tmp_path / "none.safetensors", vae, 4)
