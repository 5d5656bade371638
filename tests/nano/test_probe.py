"""The probe of the video model: what its two figures are for estimates that are known."""

from __future__ import annotations

import json

import pytest
import torch
from samples import isolated  # noqa: F401

from fourdfy_cli.cli import main
from fourdfy_cli.diffusion import models
from fourdfy_cli.diffusion.models import NANO, Diffusion
from fourdfy_cli.nano import probe
from fourdfy_cli.nano.prompts import MOTIONS


@pytest.fixture(scope="module")
def model() -> Diffusion:
    return models.load(NANO["video"], "cpu", torch.float32)


@pytest.fixture(scope="module")
def among(model: Diffusion) -> list[probe.Case]:
    return probe.cases(model, "jumping", 3, (45.0, 45.0), 0)


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
    for estimate, value in ((clip, 1.0), (frozen, 0.0)):
        for row in probe.rows(model, among, lambda z_t, t, estimate=estimate: estimate, 0):
            assert [x for e in row["levels"] for x in (e["cosine"], e["length"])] == pytest.approx([value] * 10, abs=1e-4)
            assert [x for e in row["levels"] for x in (e["even"], e["odd"])] == pytest.approx([value] * 10, abs=1e-4)
    asked = []
    probe.rows(model, among, lambda z_t, t: asked.append((t, z_t)) or clip, 0)
    assert [t for t, _ in asked] == 2 * [200, 400, 600, 800, 950]
    apart = (asked[5][1] - asked[0][1]) / model.schedule.alphas_cumprod[200].sqrt()  # the same noise, half of the motion
    assert torch.allclose(apart.float(), 0.5 * (clip - frozen), atol=1e-4)


def test_sectors_in_the_captions(model: Diffusion):
    said = {probe.cases(model, "walking", 4, "sectors", seed)[k].caption.partition(", ")[2] for seed in range(3) for k in range(4)}
    assert len(said) > 4 and said & {"left view", "front left view", "back right view", "right view", "back left view", "front right view"}


def test_the_posterior_mean_sees_through_little_noise(model: Diffusion, among: list[probe.Case]):
    estimate = probe.posteriors(model, among[:1], (45.0, 45.0), 0)["posterior"]
    clip = among[0].clip
    z_t = model.schedule.add(clip, torch.randn(clip.shape, generator=torch.Generator().manual_seed(0)), 200)
    assert probe.alike(estimate(z_t, 200), clip)[0] > 0.9


def test_the_command_shows_a_row_for_every_motion_and_input(capfd):
    assert main.run(["nano", "probe", "--clips", "1", "--json"]) == 0
    table = json.loads(capfd.readouterr().out.splitlines()[-1])["data"]["table"]
    assert [(r["motion"], r["input"]) for r in table] == [(m, i) for m in MOTIONS for i in ("still", "half")]
    assert all(-1 <= e["cosine"] <= 1 and e["length"] > 0 for r in table for e in r["levels"])
