"""The probe of the video model: what its two figures are for estimates that are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from samples import isolated  # noqa: F401

from fourdfy_cli.cli import main
from fourdfy_cli.diffusion import models, text
from fourdfy_cli.diffusion.models import NANO, Diffusion
from fourdfy_cli.nano import probe
from fourdfy_cli.nano.prompts import MOTIONS
from fourdfy_cli.nano.spots import spots
from fourdfy_cli.scene.cameras import unit_camera


@pytest.fixture(scope="module")
def model() -> Diffusion:
    return models.load(NANO["video"], "cpu", torch.float32)


@pytest.fixture(scope="module")
def among(model: Diffusion) -> list[probe.Case]:
    return probe.cases(model, "jumping", 3, (45.0, 45.0), 3)


def spots_of(case: probe.Case) -> np.ndarray:
    true = case.picture.over(case.grey)
    return spots(true, true, case.picture.rgba[..., 3] > 0.5)


def test_cosine_and_length():
    clip = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    still = clip.mean(2, keepdim=True)
    other = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    assert probe.alike(clip, clip) == pytest.approx((1, 1)) and probe.alike(still.expand_as(clip), clip) == pytest.approx((0, 0), abs=1e-5)
    assert probe.alike(still + 0.3 * (clip - still), clip) == pytest.approx((1, 0.3))
    assert probe.alike(2 * still - clip + 7, clip) == pytest.approx((-1, 1))
    assert abs(probe.alike(other, clip)[0]) < 0.3


def test_even_and_odd_parts():
    k = (torch.arange(8.0) + 0.5) / 8 * 2 * torch.pi
    even, odd = (wave.reshape(1, 1, 8, 1, 1).expand(2, 3, 8, 2, 2) for wave in (k.cos(), k.sin()))
    clip = even + odd + 5
    for estimate, shares in ((clip, (1, 1)), (clip.flip(2), (1, -1)), (0.5 * even, (0.5, 0)), (even - 0.2 * odd, (1, -0.2))):
        assert [probe.held(estimate, clip, sign) for sign in (1, -1)] == pytest.approx(shares, abs=1e-5)


def test_cases_are_the_world_before_it_moves_and_while_it_does(among: list[probe.Case]):
    assert len({c.subject.object for c in among}) == 3 and all(c.clip.shape == c.frozen.shape == (1, 12, 8, 8, 8) for c in among)
    for c in among:
        assert probe.motion_of(c.frozen).abs().max() < 1e-4 and probe.motion_of(c.clip).norm() > 5
        assert (c.clip - c.frozen)[:, :, 4].abs().mean() > (c.clip - c.frozen)[:, :, 0].abs().mean()  # a jump is highest in the middle
        words = c.caption.removeprefix(c.subject.text())
        assert words in (", front view", ", side view", ", back view")


def test_the_truth_scores_one_and_a_still_estimate_nothing(model: Diffusion, among: list[probe.Case]):
    clip, frozen = torch.cat([c.clip for c in among]), torch.cat([c.frozen for c in among])
    for estimate, value, eyes in ((clip, 1.0, (0.3, 0.8)), (frozen, 0.0, (-0.1, 0.2))):
        for row in probe.rows(model, among, lambda z_t, t, estimate=estimate: estimate, 0):
            assert [x for e in row["levels"] for x in (e["cosine"], e["length"])] == pytest.approx([value] * 10, abs=1e-4)
            assert [x for e in row["levels"] for x in (e["even"], e["odd"])] == pytest.approx([value] * 10, abs=1e-4)
            assert eyes[0] < row["spots"] < eyes[1]  # what the autoencoder leaves; of a still one, what happens to be where eyes should
    asked = []
    probe.rows(model, among, lambda z_t, t: asked.append((t, z_t)) or clip, 0)
    assert [t for t, _ in asked] == 3 * [200, 400, 600, 800, 950]
    half, dull = ((asked[k][1] - asked[0][1]) / model.schedule.alphas_cumprod[200].sqrt() for k in (5, 10))  # under the same noise
    assert torch.allclose(half.float(), 0.5 * (clip - frozen), atol=1e-4)
    assert torch.allclose(dull.float(), torch.cat([c.smudged for c in among]) - frozen, atol=1e-4)


def test_smudged_clips_move_but_have_no_eyes(model: Diffusion, among: list[probe.Case]):
    clip, dull = torch.cat([c.clip for c in among]), torch.cat([c.smudged for c in among])
    assert probe.alike(dull, clip)[0] > 0.7 and probe.seen(model, dull, among) < 0.5 * probe.seen(model, clip, among)
    back = next(c for c in probe.cases(model, "jumping", 12, None, 0) if np.isnan(spots_of(c)).all())
    assert probe.seen(model, back.clip, [back]) is None


def test_sectors_in_the_captions(model: Diffusion):
    said = {probe.cases(model, "walking", 4, "sectors", seed)[k].caption.partition(", ")[2] for seed in range(3) for k in range(4)}
    assert len(said) > 4 and said & {"left view", "front left view", "back right view", "right view", "back left view", "front right view"}


def test_the_posterior_mean_sees_through_little_noise(model: Diffusion, among: list[probe.Case]):
    estimate = probe.posteriors(model, among[:1], (45.0, 45.0), 0)["posterior"]
    clip = among[0].clip
    z_t = model.schedule.add(clip, torch.randn(clip.shape, generator=torch.Generator().manual_seed(0)), 200)
    assert probe.alike(estimate(z_t, 200), clip)[0] > 0.9


def test_the_multiview_model_is_asked_about_four_sides_at_each_moment(monkeypatch):
    """Each side and moment is told its own camera and time, and comes back where it was."""
    model = models.load(NANO["multiview"], "cpu", torch.float32)
    among = probe.cases(model, "walking", 2, None, 0, sides=4)
    assert len({c.caption for c in among}) == 2 and all(a.subject == b.subject for a, b in zip(among[::4], among[3::4], strict=True))
    asked = []

    def predict(self, z_t, t, cond, uncond, camera):
        asked.append((z_t, cond, camera))
        return z_t, 0 * z_t

    monkeypatch.setattr(Diffusion, "predict", predict)
    monkeypatch.setattr(type(model.schedule), "x0", lambda self, output, z_t, t: output)
    states = {c.caption: torch.full((1, 1), float(k < 4)) for k, c in enumerate(among)} | {"": torch.zeros(1, 1)}
    clip = torch.cat([c.clip for c in among])
    assert torch.equal(probe.learned_views(model, among, states, 1.0)(clip, 500), clip)
    ((z, cond, camera),) = asked
    for at, (thing, frame, side) in ((0, (0, 0, 0)), (6, (0, 1, 2)), (32 + 4 * 7 + 3, (1, 7, 3))):
        case = among[4 * thing + side]
        assert torch.equal(z[at], case.clip[0, :, frame]) and cond[at].item() == (thing == 0)
        angle = 2 * torch.pi * (frame + 0.5) / 8
        assert camera[at, 16:].tolist() == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-5)
        assert torch.equal(camera[at, :16], unit_camera(case.shot.c2w[:1])[0])


def test_the_multiview_model_moves_what_stands_still():
    """Told the moment, it says where limbs should be."""
    model = models.load(NANO["multiview"], "cpu", torch.float32)
    among = probe.cases(model, "jumping", 2, None, 0, sides=4)
    captions = sorted({c.caption for c in among} | {""})
    states = dict(zip(captions, text.encode(model.spec, captions, "cpu"), strict=True))
    row = probe.rows(model, among, probe.learned_views(model, among, states, 1.0), 0)[0]
    assert row["levels"][2]["cosine"] > 0.8 and 0.6 < row["levels"][2]["length"] < 1.3


@pytest.mark.parametrize("wrong", [["--kind", "image"], ["--kind", "multiview", "--posterior"], ["--kind", "multiview", "--video", "x"]])
def test_what_cannot_be_probed(wrong, capfd):
    assert main.run(["nano", "probe", *wrong]) == 2
    assert "hint" in capfd.readouterr().err


def test_the_command_shows_a_row_for_every_motion_and_input(capfd):
    assert main.run(["nano", "probe", "--clips", "1", "--json"]) == 0
    table = json.loads(capfd.readouterr().out.splitlines()[-1])["data"]["table"]
    assert [(r["motion"], r["input"]) for r in table] == [(m, i) for m in MOTIONS for i in ("still", "half", "smudged")]
    assert all(-1 <= e["cosine"] <= 1 and e["length"] > 0 for r in table for e in r["levels"])
