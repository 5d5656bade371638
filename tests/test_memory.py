"""Steps in pieces: the same gradient as in one graph, in less memory."""

import copy
import dataclasses

import pytest
import torch

from fourdfy_cli import hybrid, kernels, presets
from fourdfy_cli.diffusion import lora
from fourdfy_cli.diffusion.models import NANO
from fourdfy_cli.guidance.build import build
from fourdfy_cli.hybrid import StepContext
from fourdfy_cli.memory import LADDER, Chunks, PeakMemory
from fourdfy_cli.scene.scene import Scene
from fourdfy_cli.schedule import constant

COINS = {"multiview": (1.0, 0.0), "image": (0.0, 1.0), "video": (0.0, 0.0)}


def ready(tiny, branch: str, dtype: torch.dtype, backend: kernels.Backend = kernels.TORCH):
    """A scene with matter, one branch's guidance, and a context of stage 3 that draws it with both regularisers on."""
    p_3d, p_image = COINS[branch]
    stage = dataclasses.replace(tiny.stage3, p_3d=p_3d, p_image=p_image, sparsity=constant(0.7), opaque=constant(0.4))
    recipe = dataclasses.replace(tiny, stage3=stage, background=dataclasses.replace(tiny.background, random=0.0))
    scene = Scene(recipe.field, recipe.background, recipe.march, 0, backend)
    scene.to(dtype)
    guidances = build(recipe, "a red dog jumping", NANO, "cpu", dtype, [branch])
    context = StepContext(recipe, 0, 3, 0)
    hybrid.maybe_update_occupancy(scene, context)
    return scene, guidances, context


def gradients(scene, guidances, context, chunks) -> tuple[hybrid.Outcome, dict[str, torch.Tensor]]:
    """What a step leaves in a copy of the scene, and in the LoRA."""
    scene = copy.deepcopy(scene)
    outcome = hybrid.step(scene, guidances, context, chunks)
    found = {name: p.grad for name, p in scene.named_parameters() if p.grad is not None}
    for guidance in guidances.values():
        if hasattr(guidance, "lora_unet"):
            for name, p in lora.trainable(guidance.lora_unet):
                found[name], p.grad = p.grad, None
    return outcome, found


@pytest.mark.parametrize("branch", COINS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_a_step_in_pieces_has_the_gradient_of_a_step_in_one(tiny, branch, dtype, tolerance):
    setting = ready(tiny, branch, dtype)
    whole, expected = gradients(*setting, Chunks())
    for chunks in (Chunks(37, 3), Chunks(100, 1), Chunks(None, 2), Chunks(8, None)):
        outcome, found = gradients(*setting, chunks)
        assert outcome.branch == branch and found.keys() == expected.keys()
        assert any("background" in name for name in found)
        for name, value in outcome.losses.items():
            assert value == pytest.approx(whole.losses[name], rel=10 * tolerance), name
        ours, theirs = (torch.cat([grads[name].flatten() for name in expected]) for grads in (found, expected))
        assert theirs.norm() > 0 and (ours - theirs).norm() <= tolerance * theirs.norm(), chunks


def test_every_rung_needs_no_more_than_the_one_before():
    for one, next_one in zip(LADDER, LADDER[1:], strict=False):
        assert (next_one.rays or 1e9) <= (one.rays or 1e9) and (next_one.frames or 1e9) <= (one.frames or 1e9) and next_one.park >= one.park
        assert next_one != one
    assert "at a time" in str(LADDER[1])


def test_parking_moves_the_idle_networks_away(tiny):
    """On a machine without a GPU "meta" stands for the device that a network is not on."""
    guidances = build(tiny, "a red dog jumping", NANO, "cpu", torch.float32, ["multiview", "video"])
    hybrid.make_room(guidances, "video", torch.device("meta"))
    assert next(guidances["video"].diffusion.unet.parameters()).is_meta
    assert not next(guidances["multiview"].diffusion.unet.parameters()).is_meta


def test_peak_memory_follows_what_lives():
    x = torch.randn(1000, requires_grad=True)
    with PeakMemory() as peak:
        y = (x * 2).exp()  # 2 tensors at once, 1 left and saved
        y.view(10, 100)
        assert peak.bytes == 8000
        del y
        (x[:500] + 1).sum()
    assert peak.bytes == 8000
    with PeakMemory() as peak:
        kept = [x * k for k in range(5)]
    assert peak.bytes == 20000 and len(kept) == 5


@pytest.mark.long
def test_a_video_step_in_pieces_needs_a_sixth_of_the_memory(tiny):
    """8 frames, half of the paper's pixels a side; measured by every storage that lives during the step."""
    recipe = presets.each_branch(tiny, lambda branch: dataclasses.replace(branch, size=(80, 136)))
    recipe = dataclasses.replace(recipe, frames=8, march=dataclasses.replace(tiny.march, samples=96))
    setting = ready(recipe, "video", torch.float32, kernels.choose("numba", "cpu"))
    peaks = []
    for chunks in (Chunks(), Chunks(3240, 1)):
        with PeakMemory() as peak:
            gradients(*setting, chunks)
        peaks.append(peak.bytes)
    assert peaks[1] <= peaks[0] / 6, peaks
