"""The presets at absolute steps, against the published numbers written out once more, and a source for every one of them."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase

import pytest

from fourdfy_cli import config, presets
from fourdfy_cli.config import Recipe
from fourdfy_cli.hybrid import StepContext, draw_branch, draw_shot
from fourdfy_cli.scene.scene import Scene

PAPER, OFFICIAL, FAST = presets.paper(), presets.official(), presets.fast()
PUBLISHED = pytest.mark.parametrize("recipe", [PAPER, OFFICIAL], ids=["paper", "official"])


def leaves(recipe: Recipe) -> dict:
    return config.leaves(config.to_dict(recipe))


def noise(recipe: Recipe, branch: str, stage: int, step: int) -> tuple[int, int]:
    """Lowest and highest noise level of 1000 at a step."""
    settings, progress = getattr(recipe.stage(stage), branch), step / recipe.stage(stage).steps
    return int(1000 * settings.low.at(progress) + 1e-9), int(1000 * settings.high.at(progress) + 1e-9)


def look(recipe: Recipe, branch: str, stage: int, step: int) -> tuple[int, int, int]:
    """Views, height and width of a shot."""
    shot = draw_shot(branch, StepContext(recipe, 0, stage, step))
    return len(shot), *shot.size


def test_steps():
    assert [PAPER.stage(n).steps for n in (1, 2, 3)] == [10_000, 10_000, 100_000]
    assert [OFFICIAL.stage(n).steps for n in (1, 2, 3)] == [10_000, 25_000, 100_000]
    assert all(10 * FAST.stage(n).steps <= PAPER.stage(n).steps for n in (1, 2, 3))


@pytest.mark.parametrize(
    "stage, shares", [(1, {"multiview": 1.0}), (2, {"multiview": 0.5, "image": 0.5}), (3, {"multiview": 0.5, "image": 0.25, "video": 0.25})]
)
@PUBLISHED
def test_shares_of_the_branches(recipe: Recipe, stage: int, shares: dict[str, float]):
    contexts = [StepContext(recipe, 0, stage, step) for step in range(2000)]
    drawn = Counter(draw_branch(context.settings, context.generator("branch"), context.progress) for context in contexts)
    assert set(drawn) == set(shares)
    assert all(abs(drawn[branch] / 2000 - share) < 0.04 for branch, share in shares.items())


@PUBLISHED
def test_noise_levels(recipe: Recipe):
    assert noise(recipe, "multiview", 1, 0) == (980, 980)
    assert noise(recipe, "multiview", 1, 4_000) == (500, 740)
    assert noise(recipe, "multiview", 1, 8_000) == noise(recipe, "multiview", 1, 9_999) == (20, 500)
    for step in (0, 6_000):
        assert noise(recipe, "multiview", 2, step) == noise(recipe, "multiview", 3, step) == (20, 500)
        assert noise(recipe, "image", 2, step) == noise(recipe, "image", 3, step) == (20, 500)
        assert noise(recipe, "video", 3, step) == (20, 980)


@PUBLISHED
def test_guidance(recipe: Recipe):
    multiview, image, video = (getattr(recipe.stage3, branch) for branch in ("multiview", "image", "video"))
    assert (multiview.scale, multiview.weight, multiview.model_size, multiview.view_words) == (50, 1, (256, 256), None)
    assert (multiview.form, multiview.rescale) == ("reconstruction", 0.5)
    assert len(multiview.negative.split(", ")) == 19 and multiview.negative.startswith("ugly, ")
    assert (image.scale, image.weight, image.model_size, image.view_words, image.negative) == (7.5, 1, (512, 512), (30, 30), "")
    assert (video.scale, video.weight, video.model_size, video.view_words, video.negative) == (101, 0.1, (320, 576), (45, 45), "")
    assert (video.form, video.amplification, recipe.frames) == ("sds", 1, 16)
    assert (recipe.vsd.rank, recipe.vsd.drop_camera, recipe.vsd.share_base) == (4, 0.1, False)


def test_pictures():
    assert look(PAPER, "multiview", 1, 4_999) == (8, 64, 64) and look(PAPER, "multiview", 1, 5_000) == (4, 256, 256)
    assert look(PAPER, "multiview", 2, 0) == look(PAPER, "multiview", 3, 0) == (4, 256, 256)
    assert look(PAPER, "image", 2, 0) == look(PAPER, "image", 3, 0) == (1, 256, 256)
    assert look(PAPER, "video", 3, 0) == (16, 160, 288)
    assert look(OFFICIAL, "multiview", 1, 4_999) == (8, 64, 64) and look(OFFICIAL, "multiview", 1, 5_000) == (4, 256, 256)
    assert look(OFFICIAL, "multiview", 2, 4_999) == (4, 64, 64) and look(OFFICIAL, "multiview", 2, 5_000) == (4, 256, 256)


def opaque(recipe: Recipe, stage: int, step: int) -> float:
    return recipe.stage(stage).opaque.at(step / recipe.stage(stage).steps)


@PUBLISHED
def test_regularisers_and_blob(recipe: Recipe):
    for number in (1, 2, 3):
        stage = recipe.stage(number)
        assert [stage.sparsity.at(p) for p in (0, 0.5, 1)] == [10, 10, 10] and [stage.lr_decay.at(p) for p in (0, 0.5, 1)] == [1, 1, 1]
    assert (opaque(recipe, 1, 9_999), opaque(recipe, 3, 10_000), opaque(recipe, 3, 10_001)) == (0, 0, 1000)
    assert [opaque(recipe, 2, step) for step in (0, 9_999)] == [0, 0]
    blob = recipe.stage3.blob
    assert [round(blob.at(step / 100_000), 9) for step in (0, 10_000, 50_000, 99_999)] == [0.5, 1.4, 5, 5]
    assert {recipe.stage(n).blob.at(p) for n in (1, 2) for p in (0, 0.3, 1)} == {0.5}


def test_opacity_is_pressed_late_in_the_official_stage_2():
    assert [opaque(OFFICIAL, 2, step) for step in (10_000, 10_001, 24_999)] == [0, 1000, 1000]


@PUBLISHED
def test_learning(recipe: Recipe):
    rates = {n: recipe.stage(n).lr for n in (1, 2, 3)}
    assert [rates[n].static for n in (1, 2, 3)] == [1e-2, 1e-2, 1e-4] and [rates[n].dynamic for n in (1, 2, 3)] == [0, 0, 1e-2]
    assert {rates[n].nets for n in (1, 2, 3)} == {rates[n].background for n in (1, 2, 3)} == {1e-3}
    assert [rates[n].lora for n in (1, 2, 3)] == [0, 1e-4, 1e-4] and recipe.weight_decay == 0.01
    assert [recipe.stage(n).moving for n in (1, 2, 3)] == [False, False, True]
    assert not any(recipe.stage(n).dynamic_always for n in (1, 2, 3))


def test_size_of_the_field():
    scene = Scene(PAPER.field, PAPER.background, PAPER.march, 0)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in scene.field.named_children()}
    assert counts == {"static": 12_599_920, "dynamic": 15_474_688, "density_net": 2_112, "colour_net": 2_240}
    assert scene.step_length == pytest.approx(0.006765625, rel=1e-4)
    assert PAPER.march == config.March(512, resolution=32, alpha_thre=0.01, early_stop_eps=1e-4, update_every=16, warmup_steps=256)
    assert PAPER.cameras == config.Cameras((2.5, 3.0), (15.0, 60.0), (0.0, 30.0))
    assert (PAPER.background.random, PAPER.background.low, PAPER.background.high, PAPER.background.grey) == (0.5, 0, 1, False)


def test_fast_looks_at_motion_half_of_the_time():
    stage = FAST.stage3
    assert (1 - stage.p_3d) * (1 - stage.p_image) * stage.steps == pytest.approx(4_900)
    assert noise(FAST, "video", 3, 0) == (20, 980) and noise(FAST, "video", 3, 9_999)[1] < 501


@pytest.mark.parametrize("name", presets.PRESETS)
def test_tiny_is_the_same_run_in_small(name: str):
    recipe = presets.preset(name)
    tiny = presets.tiny(recipe)
    for branch in ("multiview", "image", "video"):
        for stage in (1, 2, 3):
            large, small = (look(r, branch, stage, 0) for r in (recipe, tiny))
            assert small == (large[0], large[1] // 4, large[2] // 4)
            assert min(getattr(tiny.stage(stage), branch).model_size) >= 64
    assert [tiny.stage(n).steps for n in (1, 2, 3)] == [recipe.stage(n).steps for n in (1, 2, 3)]
    assert all(tiny.stage(n).image.high == recipe.stage(n).image.high for n in (1, 2, 3))
    assert sum(p.numel() for p in Scene(tiny.field, tiny.background, tiny.march, 0).parameters()) < 100_000


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_number_has_a_source(name: str):
    recipe = presets.preset(name)
    assert recipe.name == name and not [key for key in leaves(recipe) if presets.source(name, key) == "unknown"]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_schedule_has_one_source(name: str):
    ramps = {key.rpartition(".")[0] for key in leaves(presets.preset(name)) if key.endswith(".until")}
    for ramp in ramps:
        assert len({presets.source(name, f"{ramp}.{part}") for part in ("start", "end", "begin", "until")}) == 1, ramp
    assert len(ramps) > 20


@pytest.mark.parametrize("name, own", [("official", presets.OFFICIAL), ("fast", presets.FAST)])
def test_what_differs_from_the_paper_says_so(name: str, own: dict[str, str]):
    """A preset's own sources cover all that it changes, and each of them something that it changes."""
    values, paper = leaves(presets.preset(name)), leaves(PAPER)
    changed = {key for key in values if key not in paper or values[key] != paper[key]} - {"name"}
    assert {key for key in changed if presets.source(name, key) not in own.values()} == set()
    for text in own.values():
        assert any(presets.source(name, key) == text for key in changed), text


def test_no_source_is_out_of_reach():
    """Every pattern decides some key, so none is a leftover."""
    used = [next(p for p in presets.PAPER if fnmatchcase(key, p)) for key in leaves(PAPER)]
    assert set(used) == set(presets.PAPER)


def test_sources_of_a_recipe_that_is_no_preset():
    assert presets.source("mine", "frames") == "unknown"
