"""Runs that version 0.1.0 left behind: read, and gone on with. tests/data/v1 is one, stopped at the end of stage 2."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from samples import Watch, lines, tiny_recipe

from fourdfy_cli import config, presets
from fourdfy_cli.config import Field, Grid, Recipe
from fourdfy_cli.errors import DAMAGED, FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.output import render
from fourdfy_cli.run import train
from fourdfy_cli.run.verify import examine
from fourdfy_cli.schedule import Ramp, constant
from fourdfy_cli.store import checkpoint, migrate
from fourdfy_cli.store.folder import read_json

RUN = Path(__file__).parents[1] / "data" / "v1" / "a-red-dog-jumping-s0"


def recipe() -> Recipe:
    """What that run was made with, in today's words."""
    tiny = tiny_recipe()
    field = Field(Grid(2, 1, 7, 4, 2.0), Grid(2, 1, 7, 3, 2.0), hidden=4)
    stages = {}
    for name in ("stage1", "stage2", "stage3"):  # the preset's branches at that time
        stage = getattr(tiny, name)
        image = dataclasses.replace(stage.image, view_words=(45.0, 45.0))
        video = dataclasses.replace(stage.video, view_words=(45.0, 45.0), weight=0.1, amplification=30.0)
        stages[name] = dataclasses.replace(stage, image=image, video=video)
    rates = dataclasses.replace(tiny.stage3.lr, static=1e-3, dynamic=3e-2, nets=5e-4, lora=1e-3)
    before = dataclasses.replace(tiny.stage2.multiview, high=constant(0.3))
    stages["stage2"] = dataclasses.replace(
        stages["stage2"], p_3d=0.5, lr=dataclasses.replace(tiny.stage2.lr, static=1e-2, nets=2e-3, lora=1e-3), multiview=before
    )
    falling, opaque = Ramp(1.0, 0.1, 0.6, 1.0), constant(1.0)
    multiview = dataclasses.replace(tiny.stage3.multiview, scale=3.0, low=constant(0.02), high=constant(0.3))
    stages["stage3"] = dataclasses.replace(
        stages["stage3"], lr=rates, lr_decay=falling, opaque=opaque, multiview=multiview, odds_3d=constant(1.0), sobol=False, l1_time=0.0
    )
    return dataclasses.replace(tiny, field=field, vsd=dataclasses.replace(tiny.vsd, rank=1), **stages)


@pytest.mark.parametrize("name", ["stage1.pt", "stage2.pt", "last.pt"])
def test_a_checkpoint_of_0_1_0_is_read(name: str):
    state = checkpoint.load(RUN / name)
    assert config.from_dict(state["recipe"]) == recipe()
    assert state["scene"]["field.static.table"].shape[1] == 1 and (state["lora"] == {}) == (name == "stage1.pt")


def test_a_run_of_0_1_0_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(RUN, tmp_path / RUN.name)
    monkeypatch.setattr(train.render, "orbit", lambda scene, recipe, path: path)
    before = lines(RUN)
    watch = Watch()
    result = train.run("a red dog jumping", recipe(), tmp_path, 0, (1, 2, 3), None, Machine(), watch)
    assert watch.steps == recipe().stage3.steps and lines(result.run_dir)[: len(before)] == before
    assert checkpoint.load(result.checkpoint)["stage"] == 3
    about = read_json(result.run_dir / "run.json")
    assert about and about["format"] == migrate.FORMAT and config.from_dict(about["recipe"]) == recipe()


NOW = Path(__file__).parents[1] / "data" / "v2" / "a-red-dog-jumping-s0"


def recipe_now() -> Recipe:
    """What the run in tests/data/v2 was made with: no image branch, whose LoRA would be most of it. It stands inside stage 3."""
    made = recipe()
    without = {f"stage{k}": dataclasses.replace(made.stage(k), p_3d=1.0 if k < 3 else 0.5, p_image=0.0) for k in (1, 2, 3)}
    return dataclasses.replace(made, **without)


@pytest.mark.parametrize("name, stage, step", [("last.pt", 3, 3), ("last.prev.pt", 2, 4), ("stage2.pt", 2, 4), ("stage1.pt", 1, 2)])
def test_a_checkpoint_of_this_format_is_read(name: str, stage: int, step: int):
    """Every later version must read it so."""
    state = checkpoint.load(NOW / name)
    assert (state["version"], state["prompt"], state["seed"], state["stage"], state["step"]) == (2, "a red dog jumping", 0, stage, step)
    assert config.from_dict(state["recipe"]) == recipe_now() and (state["optimizer"] is None) == (name != "last.pt")


def test_a_run_of_this_format_goes_on_and_can_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(NOW, tmp_path / NOW.name)
    monkeypatch.setattr(train.render, "orbit", lambda scene, recipe, path: path)
    watch = Watch()
    result = train.run("a red dog jumping", recipe_now(), tmp_path, 0, (1, 2, 3), None, Machine(), watch)
    assert watch.seen == [(3, 3)] and watch.steps == 2 and lines(result.run_dir)[:9] == lines(NOW)
    scene, _, about = render.load_scene(NOW / "last.pt")
    pictures = render.views(scene, recipe_now(), render.orbit_of(recipe_now(), 16).shot())
    assert about["step"] == 3 and next(pictures).shape == (16, 16, 3)
    assert not any(examine(NOW).values())


def test_nothing_is_migrated_that_is_new():
    state = {"recipe": config.to_dict(presets.nano()), "prompt": "a red dog"}
    assert migrate.migrated(state, migrate.FORMAT) is state


def test_nested_is_the_inverse_of_leaves():
    values = config.to_dict(presets.official())
    assert migrate.nested(config.leaves(values)) == values


@pytest.mark.parametrize("broken", [{"a": 1, "a.b": 2}, {"stage1": 3, "stage1.steps": 4}])
def test_a_recipe_that_contradicts_itself(broken: dict[str, int]):
    with pytest.raises(FourdfyError) as caught:
        migrate.migrated({"recipe": json.loads(json.dumps(broken))}, 1)
    assert caught.value.code == DAMAGED
