"""Recipes: overrides change exactly one leaf or are refused in one line; dictionaries and JSON round-trip."""

from __future__ import annotations

import functools
import json
import math
import typing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdfy_cli import config, presets
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.schedule import Ramp
from fourdfy_cli.store.migrate import renamed

NANO = presets.nano()
LEAVES = config.leaves(config.to_dict(NANO))
NUMBERS = sorted(key for key, value in LEAVES.items() if type(value) in (int, float))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_round_trip_through_json():
    values = config.to_dict(NANO)
    assert config.from_dict(values) == NANO
    assert config.from_dict(json.loads(json.dumps(values))) == NANO


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(NUMBERS), st.floats(0, 1e6))
def test_override_changes_one_leaf(key: str, value: float):
    kind = type(LEAVES[key])
    try:
        changed = config.override(NANO, f"{key}={kind(value)!r}")
    except FourdfyError as error:  # beyond a number's bounds
        assert "wants a number from" in error.message and config.override(NANO, error.hint.removeprefix("--set "))
        return
    after = config.leaves(config.to_dict(changed))
    assert after[key] == kind(value) and type(after[key]) is kind
    assert {k: v for k, v in after.items() if k != key} == {k: v for k, v in LEAVES.items() if k != key}


@pytest.mark.parametrize(
    "setting, wanted",
    [
        ("stage3.multiview.coarse=32,48", (32, 48)),
        ("stage1.multiview.coarse=none", None),
        ("stage3.video.size=16,24", (16, 24)),
        ("stage3.video.view_words=30,45.5", (30.0, 45.5)),
        ("stage3.video.view_words=none", None),
        ("stage3.multiview.view_words=sectors", "sectors"),
        ("stage3.alpha_thre=1e-3", 1e-3),
        ("stage3.alpha_thre=none", None),
        ("cameras.elevation=-10,45", (-10.0, 45.0)),
        ("stage3.video.negative=a, b", "a, b"),
        ("stage3.video.negative=none", "none"),
    ],
)
def test_pairs_and_words_and_none_take_each_others_place(setting, wanted):
    changed = config.override(NANO, setting)
    key = setting.partition("=")[0]
    assert functools.reduce(getattr, key.split("."), changed) == wanted
    assert config.from_dict(config.to_dict(changed)) == changed


@pytest.mark.parametrize(
    "setting",
    [
        "stage3.multiview.coarse=32", "stage3.multiview.coarse=32,32,32", "stage3.multiview.coarse=32,0", "stage3.multiview.coarse=32,-1",
        "stage3.multiview.coarse=sectors", "stage3.multiview.coarse=", "stage3.multiview.coarse=32,1e999", "stage3.multiview.coarse=1.5,2",
        "stage3.video.view_words=sector", "stage3.video.view_words=nan,1", "stage3.video.size=none", "stage3.alpha_thre=-1",
        "cameras.elevation=-10,91", "cameras.fovy=40,180", "cameras.distance=0,1", "stage3.p_3d=1.1",
        "stage3.alpha_thre=1,2", "stage3.alpha_thre=true", "stage3.video=1,2", "stage3.video.size.2=1", "stage3.video.size.a=1",
    ],
)  # fmt: skip
def test_other_pairs_are_refused_in_one_line(setting):
    with pytest.raises(FourdfyError) as caught:
        config.override(NANO, setting)
    assert caught.value.code == USAGE and "\n" not in caught.value.message and setting.rpartition(".")[0][:7] in caught.value.message


@pytest.mark.parametrize("key", sorted(LEAVES))
def test_every_leaf_may_be_set_to_what_it_is(key: str):
    assert config.override(NANO, f"{key}={LEAVES[key]}") == NANO


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_an_override_or_one_line(text: str):
    try:
        assert isinstance(config.override(NANO, text), config.Recipe)
    except FourdfyError as error:
        assert error.code == USAGE and error.hint


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(LEAVES)), st.text(max_size=10) | st.sampled_from(["nan", "inf", "-1", "1e400", "true", "none", "1_0", "٣"]))
def test_any_value_is_taken_or_refused(key: str, text: str):
    try:
        assert isinstance(config.override(NANO, f"{key}={text}"), config.Recipe)
    except FourdfyError as error:
        assert error.code == USAGE and error.hint


@pytest.mark.parametrize(
    "wrong, near", [("stage3.stps=4", "stage3.steps"), ("camera.distance.0=1", "cameras.distance.0"), ("step=4", "stage")]
)
def test_unknown_key_names_the_nearest(wrong: str, near: str):
    with pytest.raises(FourdfyError) as caught:
        config.override(NANO, wrong)
    assert near in caught.value.hint and caught.value.code == USAGE


@pytest.mark.parametrize("text", ["stage1.steps", "stage1.steps=many", "stage1.steps=1.5", "stage1.moving=maybe", "stage1=5", "=", ""])
def test_malformed(text: str):
    with pytest.raises(FourdfyError) as caught:
        config.override(NANO, text)
    assert caught.value.code == USAGE


@settings(max_examples=50, deadline=None)
@given(ANYTHING, st.sampled_from(sorted(config.to_dict(NANO))))
def test_any_dictionary_is_a_recipe_or_one_line(value: object, key: str):
    for values in (value if isinstance(value, dict) else {}, config.to_dict(NANO) | {key: value}):
        try:
            assert isinstance(config.from_dict(values), config.Recipe)
        except FourdfyError as error:
            assert error.code == USAGE


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_but_an_elevation_is_negative_and_none_is_endless(key: str):
    values = config.to_dict(NANO)
    *path, last = (int(word) if word.isdigit() else word for word in key.split("."))
    at: Any = functools.reduce(lambda inside, name: inside[name], path, typing.cast(Any, values))
    for at[last] in (-91, -1e-9, 2 * 10**9, 1e300, math.inf, math.nan)[2 * key.startswith("cameras.elevation") :]:
        with pytest.raises(FourdfyError, match=r"^recipe.* wants [^\n]*$") as refused:
            config.from_dict(values)
        assert refused.value.code == USAGE


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_keys_must_match(change: str):
    values = config.to_dict(NANO)
    if change == "missing":
        del values["stage1"]["p_3d"]
    else:
        values["stage1"]["p_4d"] = 0.5
    with pytest.raises(FourdfyError, match="stage1.*p_[34]d"):
        config.from_dict(values)


def test_view_words_are_thresholds_or_sectors():
    values = json.loads(json.dumps(config.to_dict(NANO)))
    for said in ("sectors", [30.0, 60.0], None):
        values["stage1"]["image"]["view_words"] = said
        made = config.from_dict(values)
        assert made.stage1.image.view_words == (tuple(said) if isinstance(said, list) else said)
        assert config.from_dict(config.to_dict(made)) == made
    values["stage1"]["image"]["view_words"] = "sides"
    with pytest.raises(FourdfyError, match="view_words wants one of sectors, not 'sides'"):
        config.from_dict(values)


def test_a_recipe_from_before_a_setting_was_there():
    values = config.to_dict(NANO)
    del values["field"]["kind"], values["field"]["deformation"], values["vsd"]
    field = replace(NANO.field, deformation=config.Field().deformation)
    assert config.from_dict(values) == replace(NANO, field=field, vsd=config.Vsd())


@settings(max_examples=50, deadline=None)
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_ramp(start: float, end: float, a: float, b: float, progress: float):
    begin, until = min(a, b), max(a, b)
    value = Ramp(start, end, begin, until).at(progress)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9
    if progress >= until:
        assert value == end
    elif progress <= begin:
        assert value == start
    else:
        assert math.isclose(value, start + (end - start) * (progress - begin) / (until - begin), abs_tol=1e-9)


def test_unknown_preset():
    with pytest.raises(FourdfyError) as caught:
        presets.preset("papre")
    assert caught.value.code == USAGE and "nano" in caught.value.hint


@pytest.mark.parametrize(
    "old, now",
    [
        ("video.scores" + ".2.scale", "stage3.video.scale"),
        ("multiview.scores" + ".0.low.start", "stage1.multiview.low.start"),
        ("image.shots" + ".1.size.0", "stage2.image.size.0"),
        ("image.scores" + ".1.size.1", "stage2.image.model_size.1"),
        ("stage2.rates.lora", "stage2.lr.lora"),
        ("march.cells", "march.resolution"),
    ],
)
def test_a_setting_of_0_1_0_is_told_by_its_name_of_today(old: str, now: str):
    with pytest.raises(FourdfyError) as caught:
        config.override(NANO, f"{old}=1", renamed)
    assert caught.value.code == USAGE and f"--set {now}={LEAVES[now]}" == caught.value.hint


def test_a_form_of_guidance_that_does_not_exist():
    with pytest.raises(FourdfyError, match="one of sds, reconstruction") as caught:
        config.override(NANO, "stage1.multiview.form=sjc")
    assert caught.value.code == USAGE


@pytest.mark.parametrize("setting", ["models.set=0", "models.set=", "models.size=x"])
def test_model_sets_and_sizes_that_are_none(setting: str):
    with pytest.raises(FourdfyError, match="wants one of") as caught:
        config.override(presets.preset("nano"), setting)
    assert caught.value.code == USAGE and caught.value.hint.startswith(f"--set {setting.partition('=')[0]}=")
