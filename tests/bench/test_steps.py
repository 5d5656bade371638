"""The bench: it steps every branch of every stage on real networks, leaves the scene alone, and counts what it says it counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fourdfy_cli import hybrid, presets
from fourdfy_cli.bench import steps as bench
from fourdfy_cli.bench.kernels import machine
from fourdfy_cli.cli import main
from fourdfy_cli.config import Branch, Models, Recipe
from fourdfy_cli.diffusion.lora import trainable
from fourdfy_cli.errors import ENVIRONMENT, MEMORY, OK, USAGE, FourdfyError
from fourdfy_cli.memory import DIRECT, LADDER
from fourdfy_cli.run import plan

CPU = torch.device("cpu")
PROMPT = "a panda dancing"


def small() -> Recipe:
    """The paper's preset in the least that its tiny models step through."""
    recipe = replace(presets.tiny(presets.paper()), models=Models("random", size="tiny"), frames=2)

    def least(branch: Branch) -> Branch:
        return replace(branch, model_size=(64, 64), size=(8, 8), coarse=branch.coarse and (4, 4))

    return presets.each_branch(replace(recipe, march=replace(recipe.march, samples=24, resolution=8)), least)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Operations this small only wait for each other on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def third() -> bench.StageSetup:
    return bench.set_up(small(), 3, PROMPT, CPU)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOURDFY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_looks_of_the_paper():
    paper = presets.paper()
    assert list(bench.picture_sizes(paper, 1, "multiview")) == [("8 of 64 x 64", 0.5, 0), ("4 of 256 x 256", 0.5, 500_000)]
    assert list(bench.picture_sizes(paper, 3, "video")) == [("16 of 160 x 288", 1.0, 0)]
    assert list(bench.picture_sizes(paper, 2, "image")) == [("1 of 256 x 256", 1.0, 0)]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_moments_draw_what_the_bench_says(name: str):
    """Whatever the preset, the coins fall as wanted, and the pictures are those named, at the start of a look and some steps later."""
    recipe = presets.preset(name)
    for stage in (1, 2, 3):
        here = bench.StageSetup(recipe, stage, None, {}, None, CPU)
        for branch in recipe.stage(stage).chances():
            assert sum(part for _, part, _ in bench.picture_sizes(recipe, stage, branch)) == pytest.approx(1)
            for pictures, _, first in bench.picture_sizes(recipe, stage, branch):
                for step in (first, first + 1, first + 40):
                    context = here.context(branch, step)
                    shot = hybrid.draw_shot(branch, context)
                    assert hybrid.draw_branch(context.settings, context.generator("branch"), context.progress) == branch
                    assert f"{len(shot)} of {shot.size[0]} x {shot.size[1]}" == pictures
                    assert context.settings.blob.at(context.progress) == recipe.stage(stage).blob.at(0)


def test_the_closest_camera():
    here = bench.StageSetup(presets.paper(), 3, None, {}, None, CPU)
    shot = hybrid.draw_shot("image", here.context("image", 7, close=True))
    assert torch.rad2deg(shot.fovy).item() == pytest.approx(15) and shot.c2w[0, :3, 3].norm().item() == pytest.approx(2.5)


def test_every_branch_of_every_stage_is_measured():
    recipe = small()
    rows = list(bench.measure(recipe, PROMPT, CPU, 1, None))
    assert [(row.stage, row.branch, row.pictures) for row in rows] == [
        (1, "multiview", "8 of 4 x 4"), (1, "multiview", "4 of 8 x 8"), (2, "multiview", "4 of 8 x 8"), (2, "image", "1 of 8 x 8"),
        (3, "multiview", "4 of 8 x 8"), (3, "image", "1 of 8 x 8"), (3, "video", "2 of 8 x 8"),
    ]  # fmt: skip
    assert all(row.seconds > 0 and row.bytes > row.step_bytes > 0 and row.rung == 0 for row in rows)
    stages = bench.summary(recipe, rows)
    assert [row["steps"] for row in stages] == [10_000, 10_000, 100_000]
    last = {row.branch: row.seconds for row in rows if row.stage == 3}
    mean = 0.5 * last["multiview"] + 0.25 * last["image"] + 0.25 * last["video"]
    assert stages[2]["seconds_a_step"] == pytest.approx(mean) and stages[2]["seconds"] == pytest.approx(100_000 * mean)
    assert stages[2]["bytes"] == max(row.bytes for row in rows if row.stage == 3)


def test_steps_work_but_change_nothing(third: bench.StageSetup):
    twin = third.guidances["image"].lora_unet
    before = {name: value.clone() for name, value in third.scene.state_dict().items() if not name.startswith("occupancy")}
    learnt = {name: value.clone() for name, value in trainable(twin)}
    for branch in ("multiview", "image", "video"):
        assert third.step(third.context(branch, 1), DIRECT) > 0
    assert all(torch.equal(third.scene.state_dict()[name], value) for name, value in before.items())
    assert all(torch.equal(value, learnt[name]) for name, value in trainable(twin))
    moved = {id(p) for p, state in third.optimizer.state.items() if state["exp_avg"].any()}
    assert {id(p) for p in third.scene.field.parameters()} <= moved and any(id(p) in moved for _, p in trainable(twin))
    assert all(parameter.grad is None for parameter in third.scene.parameters())


def test_resident_memory_counts_every_tensor_once():
    apart = bench.set_up(small(), 2, PROMPT, CPU)
    shared = bench.set_up(replace(small(), vsd=replace(small().vsd, share_base=True)), 2, PROMPT, CPU)
    base = sum(p.numel() for name, p in shared.guidances["image"].diffusion.unet.named_parameters())
    assert apart.resident() - shared.resident() == 4 * base
    guidances = apart.guidances
    networks = [guidances["multiview"].diffusion.unet, guidances["multiview"].diffusion.vae, guidances["image"].diffusion.unet]
    networks += [guidances["image"].diffusion.vae, guidances["image"].lora.unet, apart.scene]
    expected = sum(t.numel() * t.element_size() for m in networks for t in (*m.parameters(), *m.buffers()))
    assert apart.resident() == expected


def test_smaller_pieces_take_less(monkeypatch: pytest.MonkeyPatch):
    ladder = (DIRECT, replace(DIRECT, rays=256, frames=1))
    monkeypatch.setattr(bench, "LADDER", ladder)
    recipe = small()
    recipe = presets.each_branch(replace(recipe, frames=8), lambda branch: replace(branch, size=(24, 24)))
    direct, pieces = bench.ladder(recipe, PROMPT, CPU)
    assert direct["of_direct"] is None and pieces["of_direct"] == pytest.approx(pieces["bytes"] / direct["bytes"])
    assert pieces["step_bytes"] < direct["step_bytes"] / 2 and direct["seconds"] > 0


def test_out_of_memory_goes_down_the_ladder(third: bench.StageSetup, monkeypatch: pytest.MonkeyPatch):
    real, tried = hybrid.step, []

    def scarce(scene, guidances, context, chunks):
        tried.append(chunks)
        if chunks.rays is None or chunks.rays > limit:
            raise torch.OutOfMemoryError("no")
        return real(scene, guidances, context, chunks)

    monkeypatch.setattr(hybrid, "step", scarce)
    limit = 2**15
    rung, peak, own = bench.fitting(third, "image", 1, 0)
    assert tried == list(LADDER[: rung + 1]) and LADDER[rung].rays == limit and peak > own > 0
    limit = 0
    with pytest.raises(FourdfyError) as caught:
        bench.fitting(third, "image", 1, rung)
    assert caught.value.code == MEMORY and caught.value.hint
    assert bench.peak_bytes(third, "image", 1, DIRECT) is None


def test_command(monkeypatch: pytest.MonkeyPatch, isolated: Path, capsys: pytest.CaptureFixture[str]):
    recipe = small()
    monkeypatch.setattr(presets, "tiny", lambda _: recipe)
    assert main.run(["bench", "--size", "tiny", "--device", "cpu", "--steps", "1", "--json"]) == OK
    *notes, envelope = map(json.loads, capsys.readouterr().out.splitlines())
    data = envelope["data"]
    assert len(notes) == len(data["rows"]) == 7 and "s a step" in notes[0]["text"] and data["device"] == machine("cpu")
    assert data["seconds"] == pytest.approx(sum(row["seconds"] for row in data["stages"]))
    kept = plan.measured(recipe)
    assert kept is not None and kept["rows"] == data["rows"] and Path(data["kept"]) == isolated / "cache" / "bench.json"
    assert sum(plan.projected(recipe, kept["rows"]).values()) == pytest.approx(data["seconds"])


def test_command_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    recipe = small()
    row = bench.Row(1, "multiview", "4 of 8 x 8", 1.0, 0.25, 3_000_000_000, 1_000_000_000, 0)
    monkeypatch.setattr(bench, "measure", lambda *_: iter([row]))
    monkeypatch.setattr(presets, "tiny", lambda _: recipe)
    assert main.run(["bench", "--size", "tiny", "--device", "cpu"]) == OK
    shown = capsys.readouterr()
    assert "stage 1 multiview, 4 of 8 x 8: 0.250 s a step, 3.00 GB (1.00 for the step)" in shown.err
    assert "41:40" in shown.out and "0.25" in shown.out


def test_memory_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    rungs = [{"with": "all", "seconds": None, "bytes": None, "step_bytes": None, "of_direct": None}]
    monkeypatch.setattr(bench, "ladder", lambda *_: iter(rungs))
    assert main.run(["bench", "--size", "tiny", "--device", "cpu", "--memory", "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["data"]["memory"] == rungs
    assert main.run(["bench", "--size", "tiny", "--device", "cpu", "--memory"]) == OK
    assert "of direct" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, code, word",
    [
        (["--models", "big"], USAGE, "big"), (["--size", "big"], USAGE, "big"), (["--preset", "papre"], USAGE, "papre"),
        (["--steps", "0"], USAGE, "--steps"), (["--set", "frame=3"], USAGE, "frames"), (["--device", "cuda:99"], ENVIRONMENT, "cuda:99"),
        (["--device", "tpu"], USAGE, "tpu"),
    ],
)  # fmt: skip
def test_bad_input(args: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]):
    assert main.run(["bench", *args]) == code
    error, hint = capsys.readouterr().err.splitlines()
    assert word in error + hint and len(hint) > 8 and not list(Path.cwd().iterdir())
