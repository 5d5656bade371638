"""One step of each branch with networks of the paper's size, random weights and small pictures: `pytest -m slow tests/test_full_size.py`.

Needs about 12 GB of memory and a few minutes on a laptop's processor.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fourdfy_cli import hybrid, presets
from fourdfy_cli.config import Branch, Models, Recipe
from fourdfy_cli.diffusion import sets
from fourdfy_cli.guidance.build import build
from fourdfy_cli.hybrid import StepContext
from fourdfy_cli.scene.scene import Scene

pytestmark = pytest.mark.slow
CHANCES = {"multiview": (1.0, 0.0), "image": (0.0, 1.0), "video": (0.0, 0.0)}
SIZES = {"multiview": 867_572_164, "image": 865_910_724, "video": 1_411_233_860}


def small(branch: Branch) -> Branch:
    """The branch with the smallest pictures that four levels can halve."""
    return replace(branch, model_size=(64, 64))


@pytest.mark.parametrize("branch", CHANCES)
def test_a_step_of_each_branch(tiny: Recipe, branch: str) -> None:
    p_3d, p_image = CHANCES[branch]
    tiny = presets.each_branch(tiny, small)
    recipe = replace(
        tiny,
        models=Models(set="random", size="full"),
        frames=2,
        stage3=replace(tiny.stage3, p_3d=p_3d, p_image=p_image),
    )
    specs = sets.specs(recipe.models, sets.roles([branch], recipe.vsd))
    guidances = build(recipe, "a panda dancing", specs, "cpu", torch.float32, [branch])
    assert sum(parameter.numel() for parameter in guidances[branch].diffusion.unet.parameters()) == SIZES[branch]
    scene = Scene(recipe.field, recipe.background, recipe.march, 0)
    context = StepContext(recipe, 0, 3, 1)
    hybrid.maybe_update_occupancy(scene, replace(context, step=0))
    outcome = hybrid.step(scene, guidances, context)
    assert outcome.branch == branch
    assert outcome.losses["grad_norm"] > 0
    gradients = [parameter.grad for parameter in scene.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    if branch == "image":
        trained = {name: parameter for name, parameter in guidances[branch].lora_unet.named_parameters() if parameter.requires_grad}
        assert sum(parameter.numel() for parameter in trained.values()) == 829_952 + 1_661_440
        assert all(parameter.grad.isfinite().all() for parameter in trained.values())
        assert any(parameter.grad.abs().max() > 0 for name, parameter in trained.items() if "lora_B" in name)
