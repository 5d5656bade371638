"""Judges that know the toy world, and stage 3 repeated with them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import Watch, fails, isolated, tiny_recipe  # noqa: F401

from fourdfy_cli.cli import main
from fourdfy_cli.config import Branch
from fourdfy_cli.diffusion import priors
from fourdfy_cli.diffusion.models import NANO, Diffusion, encode
from fourdfy_cli.diffusion.noise import PREDICTIONS
from fourdfy_cli.diffusion.text import Texts, sector
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate import limits
from fourdfy_cli.evaluate.truth import camera_shot
from fourdfy_cli.guidance.multiview import MultiviewGuidance
from fourdfy_cli.guidance.variational import VariationalGuidance
from fourdfy_cli.guidance.video import VideoGuidance
from fourdfy_cli.memory import Machine
from fourdfy_cli.nano import exact
from fourdfy_cli.nano.prompts import Subject
from fourdfy_cli.nano.show import truth
from fourdfy_cli.run import train
from fourdfy_cli.scene.cameras import Shot
from fourdfy_cli.schedule import constant
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import read_json

PROMPT, DOG = "a red dog jumping", Subject("dog", "red", "jumping")
BRANCH = Branch((64, 64), 3.0, 1.0, constant(0.5), constant(0.5), form="reconstruction", model_size=(64, 64))


@pytest.fixture(scope="module")
def model() -> Diffusion:
    return priors.load(NANO["video"], "cpu", torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with all its stages."""
    return train.run(PROMPT, tiny_recipe(), tmp_path_factory.mktemp("run"), 3, (1, 2, 3), None, Machine(), Watch()).run_dir


def clip_shot(azimuth: float = 1.0, frames: int = 8) -> Shot:
    return camera_shot(torch.full((frames,), azimuth), (torch.arange(frames) + 0.3) / frames)


def texts() -> Texts:
    return Texts(PROMPT, {PROMPT: torch.zeros(12, 64), "": torch.zeros(12, 64)})


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_is_told_is_the_estimate(model: Diffusion, prediction: str):
    z, clean = torch.randn(2, 1, 12, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = dataclasses.replace(model.schedule, prediction=prediction)
    told = exact.told(dataclasses.replace(model, schedule=schedule), lambda z_t, t: clean)
    for t in (20, 500, 900):  # nothing of a clip is left at the last level
        z_t = schedule.add(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(t)), t)
        cond, uncond = told.predict(z_t, t, torch.zeros(1, 12, 64), torch.zeros(1, 12, 64))
        assert torch.equal(cond, uncond) and torch.allclose(schedule.x0(cond, z_t, t), clean, atol=2e-2 if t == 900 else 1e-4)


@pytest.mark.parametrize("kind", [MultiviewGuidance, VideoGuidance])
def test_exact_judges_want_nothing_but_the_truth(model: Diffusion, kind: type):
    shot = clip_shot() if kind is VideoGuidance else camera_shot(torch.arange(4) * torch.pi / 2, torch.full((4,), 0.4))
    picture = torch.from_numpy(truth(DOG, shot).over(0.6))
    guidance = exact.ExactGuidance(kind(model, texts()), DOG)

    def pull(rgb: torch.Tensor) -> torch.Tensor:
        return guidance(rgb, shot, BRANCH, 0.5, torch.Generator().manual_seed(0)).grad

    right = pull(picture)
    assert right.abs().max() < 1e-4
    still = torch.from_numpy(truth(DOG, dataclasses.replace(shot, time=0 * shot.time)).over(0.6))
    grad = pull(still)
    assert (grad * (still - picture)).sum() > 100 * right.norm() * (still - picture).norm()  # descent goes towards the truth


def test_an_exact_image_judge_pulls_towards_the_truth(model: Diffusion, monkeypatch: pytest.MonkeyPatch):
    """Away from what the LoRA network thinks, which here knows the rendering: there is no pull where that is the truth."""
    shot = camera_shot(torch.tensor([1.0]), torch.full((1,), 0.4))
    picture, still = (torch.from_numpy(truth(DOG, dataclasses.replace(shot, time=t * shot.time)).over(0.6)) for t in (1, 0))
    monkeypatch.setattr(VariationalGuidance, "learn", lambda *_: 0.0)

    def pull(rgb: torch.Tensor) -> torch.Tensor:
        here = encode(model.vae, rgb.permute(0, 3, 1, 2))[0]
        knows = exact.told(model, lambda z_t, t: here)
        monkeypatch.setattr(exact.Told, "output", lambda self, z_t, t, text, camera: self.predict(z_t, t, text, text)[0])
        guidance = exact.ExactGuidance(VariationalGuidance(model, knows, texts(), 0.1), DOG)
        return guidance(rgb, shot, BRANCH, 0.5, torch.Generator().manual_seed(0)).grad

    right, grad = pull(picture), pull(still)
    assert right.abs().max() < 1e-4 and (grad * (still - picture)).sum() > 100 * right.norm() * (still - picture).norm()


def test_the_backdrop_is_read_off_the_edges():
    assert np.allclose(exact.backdrop(torch.from_numpy(truth(DOG, clip_shot()).over(0.47))), 0.47)


def test_the_posterior_mean_is_one_clip_in_sight_and_many_in_noise(model: Diffusion):
    shot = clip_shot()
    clip = exact.latents(model.vae, DOG, shot, 0.6).transpose(0, 1)[None]
    known = exact.candidates(model, DOG, shot, "sectors", np.random.default_rng(0), 0.6)
    assert known.clips.shape[1:] == clip.shape[1:] and 32 <= len(known.clips) == len(known.weight) <= exact.CANDIDATES
    error = {}
    for t in (100, 999):
        z_t = model.schedule.add(clip, torch.randn(clip.shape, generator=torch.Generator().manual_seed(1)), t)
        error[t] = (known.mean(model, z_t, t) - clip).square().mean()
    best = (known.clips - clip).square().flatten(1).mean(1).min()
    assert error[100] < 1.5 * best and error[999] > 2 * error[100]
    frozen = exact.latents(model.vae, DOG, dataclasses.replace(shot, time=0 * shot.time), 0.6).transpose(0, 1)[None]
    z_t = model.schedule.add(frozen, torch.randn(clip.shape, generator=torch.Generator().manual_seed(1)), 300)
    plain, damped = (known.mean(model, z_t, 300, moved) for moved in ((1.0,), exact.MOVED))
    assert (damped - clip).square().mean() < 0.7 * (plain - clip).square().mean()  # stillness is no evidence about the camera


def test_same_words():
    assert exact.same_words(1, 359, "sectors") and not exact.same_words(20, 25, "sectors") and sector(20) != sector(25)
    assert exact.same_words(90, 270, (45.0, 45.0)) and not exact.same_words(90, 270, "sectors") and exact.same_words(0, 180, None)


def test_learned_judges_repeat_the_run(run: Path, tmp_path: Path):
    begin = limits.start(run, [])
    scene = limits.stage3(begin, limits.judges("learned/learned"), lambda text: None)
    there = checkpoint.load(run / "stage3.pt")["scene"]
    assert all(torch.equal(value, there[key]) for key, value in scene.state_dict().items())


def test_a_table_of_judges(run: Path, tmp_path: Path, capfd):
    """A finer dynamic grid, three steps: each judge pulls somewhere else, and the JSON says what was done."""
    settings = ["field.dynamic.base=5", "stage3.steps=3", "stage3.p_3d=0", "stage3.p_image=0"]
    line = [str(run), "--judges", "learned/learned, learned/exact learned/damped", "--out", str(tmp_path / "l"), "--json"]
    assert main.run(["nano", "limits", *line, *(x for s in settings for x in ("--set", s))]) == 0
    said = json.loads(capfd.readouterr().out.splitlines()[-1])["data"]
    assert said == read_json(tmp_path / "l" / "limits.json") and said["settings"] == settings
    table = said["table"]
    assert [row["video"] for row in table] == ["learned", "exact", "damped"]
    assert len({row["psnr"] for row in table}) == 3 and all(0 <= row["iou"] <= 1 and row["motion"] > 0 for row in table)
    assert (tmp_path / "l" / "learned-exact.png").is_file()


@pytest.mark.parametrize(
    "line, said",
    [
        (["--judges", "exact/wrong"], "no judges 'exact/wrong'"),
        (["--judges", "exact"], "no judges 'exact'"),
        (["--judges", "exact/exact/posterior"], "image learned or exact"),
        (["--judges", "exact/exact/exact/exact"], "no judges"),
        (["--set", "stage1.steps=5"], "before stage 3"),
        (["--set", "stage3.stepz=5"], "stage3.stepz"),
    ],
)
def test_mistakes_are_one_line(run: Path, line: list[str], said: str, isolated, capsys):  # noqa: F811
    fails(capsys, ["nano", "limits", str(run), "--out", "here", *line], 2, said)


def test_only_the_end_of_stage_2_will_do(run: Path, tmp_path: Path):
    with pytest.raises(FourdfyError, match="not the end of stage 2"):
        limits.start(run / "stage1.pt", [])
    with pytest.raises(FourdfyError, match="no stage2.pt"):
        limits.start(tmp_path, [])
