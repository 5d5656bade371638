"""The ablation on the tiny recipe: what each row sets, what rows share, going on, the table and the picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from samples import Watch, fails, isolated, lines, tiny_recipe  # noqa: F401

from fourdfy_cli import presets
from fourdfy_cli.cli import main
from fourdfy_cli.config import Field, Grid, March, Recipe, to_dict
from fourdfy_cli.errors import DIVERGED, FourdfyError
from fourdfy_cli.evaluate import ablate, videos
from fourdfy_cli.evaluate.ablate import Ablation, row_recipe, rows, until
from fourdfy_cli.evaluate.clip import load_clip
from fourdfy_cli.memory import Machine
from fourdfy_cli.output import render
from fourdfy_cli.run.batch import JobResult
from fourdfy_cli.scene.cameras import mav3d
from fourdfy_cli.store import checkpoint, migrate
from fourdfy_cli.store.folder import read_json, run_folder

DOG, BALL = "a red dog jumping", "a blue ball bouncing"
RECIPES = {name: presets.preset(name) for name in ("nano", "paper")}
BOTH = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def short() -> Recipe:
    """One, two and one step, mostly of the cheapest guidance, on a scene that is quickly rendered."""
    tiny = tiny_recipe()
    stages = {
        "stage1": dataclasses.replace(tiny.stage1, steps=1),
        "stage2": dataclasses.replace(tiny.stage2, steps=2, p_3d=0.95),
        "stage3": dataclasses.replace(tiny.stage3, steps=1, p_3d=0.95, dilation=0),
    }
    field = Field(Grid(2, 1, 7, 4, 2.0), Grid(2, 1, 7, 3, 2.0), hidden=4)
    return dataclasses.replace(tiny, **stages, field=field, march=March(samples=12, resolution=8, update_every=1, warmup_steps=2))


@pytest.fixture(scope="module", autouse=True)
def brief(tmp_path_factory: pytest.TempPathFactory):
    """Videos of two small frames, and CLIP scores of three."""
    orbit = render.orbit
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(render, "orbit", lambda scene, recipe, path: orbit(scene, recipe, path, 16, 2))
        patch.setattr(videos, "mav3d", lambda size: mav3d(size)[40:43])
        yield


def drawn(recipe: Recipe, name: str) -> list[dict[str, float]]:
    return [row_recipe(recipe, name).stage(n).chances() for n in (1, 2, 3)]


@BOTH
def test_what_each_row_leaves_out(recipe: Recipe):
    full = drawn(recipe, "full")
    assert row_recipe(recipe, "full") == recipe
    assert drawn(recipe, "no-3d-image") == [{"video": 1}] * 3
    without = drawn(recipe, "no-3d")
    assert not any("multiview" in stage for stage in without) and "video" not in without[0] | without[1]
    assert not any("image" in stage for stage in drawn(recipe, "no-image"))
    assert drawn(recipe, "no-image")[:2] == [{"multiview": 1}] * 2 and set(drawn(recipe, "no-image")[2]) == {"multiview", "video"}
    assert drawn(recipe, "no-hybrid") == [*full[:2], {"video": 1}]
    assert drawn(recipe, "hexplane") == full and row_recipe(recipe, "hexplane").field.kind == "hexplane"


@BOTH
def test_image_guidance_that_comes_first_starts_as_the_3d_guidance_does(recipe: Recipe):
    changed = row_recipe(recipe, "no-3d")
    for progress in (0, 0.3, 0.9):
        ours, theirs = changed.stage1.image, recipe.stage1.multiview
        assert (ours.low.at(progress), ours.high.at(progress)) == (theirs.low.at(progress), theirs.high.at(progress))
    assert changed.stage1.lr.lora == recipe.stage2.lr.lora > 0
    assert (changed.stage2.image, changed.stage3.image) == (recipe.stage2.image, recipe.stage3.image)


@BOTH
def test_deformation_freezes_what_is_static(recipe: Recipe):
    stage = row_recipe(recipe, "deformation").stage3
    assert (stage.lr.static, stage.lr.nets, stage.lr.background, stage.lr.lora) == (0, 0, 0, 0)
    assert stage.lr.dynamic == pytest.approx(recipe.stage3.lr.dynamic / 10) and stage.dynamic_always
    assert stage.blob.at(0) == stage.blob.at(1) == recipe.stage2.blob.at(1)
    assert recipe.name != "paper" or stage.lr.dynamic == pytest.approx(1e-3)  # METHOD of the released code


def test_rows_are_those_of_table_2():
    found = rows(presets.paper())
    assert [found[name].published for name in ablate.TABLE_2] == [35.0, 29.3, 35.1, 34.5, 33.8, 34.5]
    with pytest.raises(FourdfyError) as error:
        row_recipe(presets.nano(), "half")
    assert error.value.code == 2 and "no-hybrid" in error.value.hint


@BOTH
def test_how_far_rows_are_alike(recipe: Recipe):
    def alike(name: str) -> int:
        other = row_recipe(recipe, name)
        return max((n for n in (1, 2, 3) if until(other, n) == until(recipe, n)), default=0)

    far = {"full": 3, "no-3d-image": 0, "no-3d": 0, "no-image": 1, "no-hybrid": 2, "hexplane": 0, "deformation": 0}
    assert {name: alike(name) for name in far} == far


class Judge(Watch):
    """Counts the steps of each run."""

    def __init__(self, stop_after: int | None = None):
        super().__init__(stop_after)
        self.runs: dict[str, list[int]] = {}

    def note(self, text):
        if ": " in text:
            self.runs[text] = self.now = []

    def start(self, stage, stages, steps, done):
        self.now.append(stage)


def task(out: Path, names: list[str], prompts: list[str] | None = None) -> Ablation:
    return Ablation(prompts or [DOG], names, short(), out, 0, "nano")


SOME = ["full", "no-image", "no-hybrid", "hexplane"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    """Rows that share nothing, one stage and two stages with the first, for one prompt."""
    out, events = tmp_path_factory.mktemp("ablation"), Judge()
    return out, ablate.run(task(out, SOME), Machine(), events), events


@pytest.mark.long
def test_rows_share_the_stages_they_have_in_common(done):
    out, _, events = done
    assert [events.runs[f"{name}: {DOG}"] for name in SOME] == [[1, 2, 3], [2, 3], [3], [1, 2, 3]]
    full, other = (run_folder(out / name, DOG, 0) for name in ("full", "no-hybrid"))
    assert not (other / "stage2.pt").exists() and (full / "stage2.pt").exists()
    assert {row["branch"] for row in lines(other)} == {"video"}
    assert checkpoint.load(full / "stage3.pt")["digest"] != checkpoint.load(other / "stage3.pt")["digest"]


@pytest.mark.long
def test_a_shared_start_changes_nothing(done, tmp_path: Path):
    """A row by itself, from its own stages 1 and 2, ends where it ends from another row's."""
    ablate.run(task(tmp_path, ["no-hybrid"]), Machine(), Judge())
    ours, theirs = (checkpoint.load(run_folder(out / "no-hybrid", DOG, 0) / "stage3.pt") for out in (tmp_path, done[0]))
    assert ours["digest"] == theirs["digest"]


@pytest.mark.long
def test_table_and_picture(done):
    out, data, _ = done
    assert read_json(out / "ablate.json") == data
    assert [line["row"] for line in data["table"]] == ["full", "w/o IMG", "w/o hybrid SDS", "HexPlane"]
    assert all(set(line) == {"row", "prompts", "clip", "flicker", *ablate.MEASURES} and line["prompts"] == 1 for line in data["table"])
    text = (out / "ablate.md").read_text().splitlines()
    assert sum(row.startswith("|") for row in text) == 6 and all(row.count("|") == 10 for row in text[4:])
    picture = Image.open(out / "ablate.png")
    assert picture.size == (ablate.MARGIN + 64 * ablate.VIEWS * ablate.TIMES, 64 * 4)
    assert len(picture.crop((0, 0, ablate.MARGIN, 64)).getcolors()) > 1  # the name is written there


@pytest.mark.long
def test_measures_are_those_of_the_judges(done):
    out, data, _ = done
    folder, found = run_folder(out / "hexplane", DOG, 0), data["runs"][3]
    assert {name: found[name] for name in ablate.MEASURES} == {name: read_json(folder / "nano.json")[name] for name in ablate.MEASURES}
    scene, recipe, _ = render.load_scene(folder)
    judge = load_clip("nano")
    frames = torch.stack([torch.from_numpy(rgb) for rgb in render.views(scene, recipe, mav3d(judge.size)[40:43])])
    cosine = torch.nn.functional.cosine_similarity(judge.pictures(frames.permute(0, 3, 1, 2) / 255), judge.texts([DOG]))
    assert found["clip"] == pytest.approx(100 * cosine.mean().item(), abs=1e-3)


@pytest.mark.long
def test_again_does_nothing(done, monkeypatch: pytest.MonkeyPatch):
    out, data, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("stage?.pt")}
    with monkeypatch.context() as patch:
        patch.setattr(ablate, "judged", lambda *_: pytest.fail("judged again"))
        events = Judge()
        assert ablate.run(task(out, SOME), Machine(), events) == data
    assert events.steps == 0 and {path: path.stat().st_mtime_ns for path in out.rglob("stage?.pt")} == before


@pytest.mark.long
def test_interrupted_it_goes_on(tmp_path: Path):
    whole = task(tmp_path, ["full", "no-hybrid"])
    with pytest.raises(FourdfyError) as stopped:
        ablate.run(whole, Machine(), Judge(2))  # in the middle of the first row's stage 2
    assert stopped.value.code == 130 and not (tmp_path / "ablate.json").exists()
    events = Judge()
    data = ablate.run(whole, Machine(), events)
    assert events.steps == 3 and events.runs[f"no-hybrid: {DOG}"] == [3] and len(data["runs"]) == 2


@pytest.mark.long
def test_a_run_that_diverges_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train = ablate.trained

    def fragile(wanted, name, prompt, *rest):
        if name == "no-hybrid" and prompt == DOG:
            raise FourdfyError("diverged: 5 steps without a finite gradient", "again", DIVERGED)
        return train(wanted, name, prompt, *rest)

    monkeypatch.setattr(ablate, "trained", fragile)
    data = ablate.run(task(tmp_path, ["full", "no-hybrid"], [DOG, BALL]), Machine(), Judge())
    assert [(one["row"], one["prompt"]) for one in data["failed"]] == [("no-hybrid", DOG)]
    assert [line["prompts"] for line in data["table"]] == [2, 1]
    assert "no-hybrid, a red dog jumping: diverged" in (tmp_path / "ablate.md").read_text()
    assert Image.open(tmp_path / "ablate.png").height == 3 * 64


def test_an_ablation_stops_for_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_):
        raise FourdfyError("out of memory", "--vram 4", 4)

    monkeypatch.setattr(ablate, "trained", full)
    with pytest.raises(FourdfyError) as error:
        ablate.run(task(tmp_path, ["full"]), Machine(), Judge())
    assert error.value.code == 4


@pytest.mark.long
def test_another_recipe_shares_nothing(done):
    out, _, _ = done
    folder = run_folder(out / "full", DOG, 0)
    assert ablate.shared(out, short(), folder.name).name == "stage2.pt"
    assert ablate.shared(out, dataclasses.replace(short(), weight_decay=0.5), folder.name) is None
    assert ablate.shared(out, short(), "another-s0") is None


def test_means_leave_out_what_has_no_value():
    row = rows(presets.nano())["full"]
    results = [{"clip": 20.0, "iou": 0.5, "fronts": 2}, {"clip": 30.0, "iou": 0.7, "fronts": None}]
    assert ablate.line(row, results) == {
        "row": "full",
        "prompts": 2,
        "clip": 25.0,
        "iou": pytest.approx(0.6),
        "fronts": 2.0,
        "published": 35.0,
    }
    assert ablate.line(row, []) == {"row": "full", "prompts": 0, "clip": None, "published": 35.0}
    text = ablate.markdown([{"row": "full", "clip": 1.234}, {"row": "w/o 3D", "clip": None}])
    assert text == "| row | clip |\n| --- | --- |\n| full | 1.23 |\n| w/o 3D | - |\n"


@pytest.mark.long
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    seen, failed, machines = [], [], []

    def stub(wanted, machine, events, lost):
        assert not lost
        seen.append(wanted)
        machines.append(machine)
        return {"table": [{"row": "full", "clip": 1.0}], "runs": [{"row": "full", "digest": "abc"}], "failed": failed}

    monkeypatch.setattr(ablate, "run", stub)
    Path("p.txt").write_text(f"# two\n{DOG}\n\n{BALL}\n{DOG}\n")
    assert (
        main.run(
            [
                "ablate",
                "p.txt",
                "--rows",
                "full,hexplane",
                "--seed",
                "3",
                "--models",
                "nano",
                "--set",
                "stage1.steps=7",
                "--backend",
                "torch",
            ]
        )
        == 0
    )
    assert seen[0].prompts == [DOG, BALL] and seen[0].rows == ["full", "hexplane"] and (seen[0].seed, seen[0].clip) == (3, "nano")
    assert machines[0].backend == "torch"
    assert seen[0].recipe.stage1.steps == 7 and seen[0].out == Path("ablation")
    out = capsys.readouterr().out
    assert "clip" in out and "abc" not in out and "ablate.png" in out
    assert main.run(["ablate", "p.txt", "--models", "nano", "--dry-run"]) == 0
    assert len(seen) == 1 and "field.kind=hexplane" in capsys.readouterr().out and not Path("ablation").exists()
    failed.append({"row": "no-3d", "prompt": DOG, "why": "diverged"})
    capsys.readouterr()
    assert main.run(["ablate", "p.txt", "--models", "nano", "--set", "stage1.steps=7"]) == DIVERGED
    said = capsys.readouterr()
    assert "clip" in said.out and "no-3d: a red dog jumping" in said.err
    assert "--set stage1.steps=7 --out ablation-1 --seed 1" in said.err.replace("\n", " ")
    assert main.run(["ablate", "p.txt", "--models", "nano", "--json"]) == DIVERGED
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert rows[0]["failed"] == failed and rows[0]["runs"] and rows[-1]["error"]["code"] == DIVERGED
    fails(capsys, ["ablate", "none.txt"], 2, "none.txt")
    fails(capsys, ["ablate", "p.txt", "--models", "nano", "--rows", "full,half"], 2, "'half'", "no-3d")
    fails(capsys, ["ablate", "p.txt", "--models", "nano", "--set", "field.kind=cube"], 2, "'cube'", "hashgrid, hexplane, deformation")
    Path("q.txt").write_text("a red dgo\n")
    fails(capsys, ["ablate", "q.txt", "--models", "nano"], 2, "'dgo'")


@pytest.mark.long
def test_the_field_in_info(done, capsys: pytest.CaptureFixture[str]):
    parts = {}
    for name in ("full", "hexplane"):
        assert main.run(["info", str(run_folder(done[0] / name, DOG, 0)), "--json"]) == 0
        parts[name] = json.loads(capsys.readouterr().out)["data"]["field"]
        field = checkpoint.load(run_folder(done[0] / name, DOG, 0) / "stage3.pt")["scene"]
        for part in ("static", "dynamic", "density_net", "colour_net"):
            owned = [values for key, values in field.items() if key.startswith(f"field.{part}.")]
            assert parts[name][part] == sum(map(torch.Tensor.numel, owned)) > 0
    assert (parts["full"]["kind"], parts["hexplane"]["kind"]) == ("hashgrid", "hexplane")


def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate, "trained", lambda *_: pytest.fail("trained"))


def test_two_prompts_for_one_folder_are_refused_before_the_first_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    untrained(monkeypatch)
    monkeypatch.setattr(ablate, "run_folder", lambda out, prompt, seed: out / prompt[:5])
    with pytest.raises(FourdfyError, match="have one folder") as error:
        ablate.run(task(tmp_path / "new", ["full"], [BALL, DOG, "a red cat"]), Machine(), Judge())
    assert error.value.code == 2 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("about", [{"prompt": "a blue cat"}, {"recipe": "another"}])
def test_a_folder_that_holds_another_run_is_found_before_the_first_is_trained(about: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the last of four folders."""
    untrained(monkeypatch)
    folder = run_folder(tmp_path / "hexplane", BALL, 0)
    folder.mkdir(parents=True)
    recipe = presets.nano() if "recipe" in about else row_recipe(short(), "hexplane")
    prompt = about.get("prompt", BALL)
    told = {"format": migrate.FORMAT, "prompt": prompt, "seed": 0, "stage": 1, "step": 0, "recipe": to_dict(recipe)}
    (folder / "run.json").write_text(json.dumps(told))
    with pytest.raises(FourdfyError, match="another prompt|other settings") as error:
        ablate.run(task(tmp_path, ["full", "hexplane"], [DOG, BALL]), Machine(), Judge())
    assert error.value.code == 2 and str(folder) in error.value.message and "--out" in error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["hexplane"]


def test_prompts_that_clip_cannot_tell_apart_are_found_before_the_first_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    untrained(monkeypatch)
    monkeypatch.setattr(ablate, "run_folder", lambda out, prompt, seed: out / prompt[-7:])
    long = "this is the red dog which is a dog of the red dog that is a dog of the red dog that is"
    with pytest.raises(FourdfyError, match="cannot tell") as error:
        ablate.run(task(tmp_path / "new", ["full"], [f"{long} jumping", f"{long} walking"]), Machine(), Judge())
    assert error.value.code == 2 and not (tmp_path / "new").exists()


def test_a_prompt_file_with_a_byte_order_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Path("p.txt").write_bytes(f"\ufeff{DOG}\r\n".encode())
    assert main.run(["ablate", "p.txt", "--models", "nano", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["runs"] == len(ablate.TABLE_2)
    Path("q.txt").write_bytes(DOG.encode("utf-16"))
    fails(capsys, ["ablate", "q.txt", "--models", "nano"], 2, "UTF-16", "iconv")
    with open("r.txt", "wb") as file:
        file.truncate(2**30)
    fails(capsys, ["ablate", "r.txt", "--models", "nano"], 2, "larger")


class Diverging:
    """An engine whose scenes all diverge, and a watcher."""

    def __init__(self):
        self.begun = []

    def run(self, jobs, tick, signals):
        for number, job in jobs.items():
            self.begun.append((job.out.name, job.prompt))
            yield JobResult(number, DIVERGED, f"diverged at {number}")

    def scenes(self, rows):
        pass

    def note(self, text):
        pass


def test_what_an_engine_made_ahead_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Row after row, all prompts of one at once."""
    untrained(monkeypatch)
    wanted, engine = task(tmp_path, ["full", "no-hybrid"], [DOG, BALL]), Diverging()
    lost = ablate.ahead(wanted, engine, engine)
    assert engine.begun == [(row, prompt) for row in ("full", "no-hybrid") for prompt in (DOG, BALL)]
    failed = ablate.run(wanted, Machine(), Judge(), lost)["failed"]
    assert sorted((one["row"], one["prompt"], one["why"]) for one in failed) == sorted(
        (row, prompt, f"diverged at {k}") for row in ("full", "no-hybrid") for k, prompt in enumerate((DOG, BALL))
    )
