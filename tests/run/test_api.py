"""`fourdfy_cli.generate` from Python, and that it is the command's own run."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from samples import isolated as isolated
from samples import lines, tiny_recipe

import fourdfy_cli as fourdfy
from fourdfy_cli.config import to_dict
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import api, train
from fourdfy_cli.run.progress import PrintedEvents
from fourdfy_cli.run.result import RunResult
from fourdfy_cli.store import checkpoint

BELOW = replace(tiny_recipe(), cameras=replace(tiny_recipe().cameras, elevation=(-91.0, 30.0)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return fourdfy.generate("a red dog", preset=tiny_recipe(), out=tmp_path_factory.mktemp("api"), seed=3, device="cpu")


def test_the_same_run_as_the_loops_own(made: RunResult, tmp_path: Path):
    plain = train.run("a red dog", tiny_recipe(), tmp_path, 3, (1, 2, 3), None, Machine(), PrintedEvents())
    assert lines(made.run_dir) == lines(plain.run_dir)
    assert checkpoint.load(made.checkpoint)["digest"] == checkpoint.load(plain.checkpoint)["digest"]


def test_called_again_it_goes_on_where_it_is(made: RunResult, capsys: pytest.CaptureFixture[str]):
    before = checkpoint.load(made.checkpoint)["digest"]
    again = fourdfy.generate("a red dog", preset=tiny_recipe(), out=made.run_dir.parent, seed=3)
    assert again.run_dir == made.run_dir and checkpoint.load(again.checkpoint)["digest"] == before
    assert "step" not in capsys.readouterr().out


def test_settings_change_the_recipe_by_key():
    recipe = api.chosen("nano", {"stage3.steps": 7, "cameras.flat_area": True, "stage1.image.coarse": None, "field.init": 1e-3})
    assert (recipe.stage3.steps, recipe.cameras.flat_area, recipe.stage1.image.coarse, recipe.field.init) == (7, True, None, 1e-3)
    assert to_dict(api.chosen(recipe, {})) == to_dict(recipe)
    with pytest.raises(fourdfy.FourdfyError, match="there is no setting 'stage3.stps'") as caught:
        api.chosen("nano", {"stage3.stps": 7})
    assert caught.value.code == 2 and "stage3.steps" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "code"),
    [({"prompt": " "}, 2), ({"prompt": "a zeppelin"}, 2), ({"preset": "nanoo"}, 2), ({"device": "gpu"}, 2), ({"preset": BELOW}, 2)],
)
def test_what_cannot_be_leaves_nothing_behind(given: dict, code: int, isolated: Path):
    with pytest.raises(fourdfy.FourdfyError) as caught:
        fourdfy.generate(**{"prompt": "a red dog", "preset": "nano"} | given)
    assert caught.value.code == 2 and list(isolated.iterdir()) == []


def test_a_notebook_shows_the_video_and_no_markup_of_the_prompt(made: RunResult, tmp_path: Path):
    html = made._repr_html_()
    assert base64.b64encode(made.video.read_bytes()).decode() in html and "a red dog" in html
    wicked = RunResult(tmp_path, tmp_path / "stage3.pt", made.video, 1.0, [], "<script>alert(1)</script>\"'")
    assert "<script" not in wicked._repr_html_() and "&lt;script&gt;" in wicked._repr_html_()
    assert "<video" not in RunResult(Path("<b>"), tmp_path, None, 1.0, [])._repr_html_()
    assert "<b>" not in RunResult(Path("<b>"), tmp_path, None, 1.0, [])._repr_html_()


def test_progress_is_told_in_plain_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    fourdfy.generate("a red dog", preset=tiny_recipe(), out=tmp_path)
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("stage 2/3: 4 steps")] and any("step 5/5" in line for line in told)


def test_importing_it_loads_nothing_else():
    code = (
        "import sys, json; before = set(sys.modules); import fourdfy_cli as fourdfy; own = set(sys.modules) - before\n"
        "names = dir(fourdfy); missing = [n for n in fourdfy.__all__ if n not in names]\n"
        "print(json.dumps([sorted(n for n in own if n.startswith('fourdfy_cli')), 'torch' in sys.modules, 'rich' in sys.modules, missing]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [["fourdfy_cli"], False, False, []]
    for name in fourdfy.__all__:
        assert getattr(fourdfy, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        fourdfy.generat  # noqa: B018
