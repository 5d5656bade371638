"""Folding views for self-attention, against attention written out by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from reference_guidance import joint_attention

from fourdfy_cli.diffusion.multiview import JointViews, fold_views


def tiny(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=2,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=16,
    ).eval()


def inputs(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(batch, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 3, 6, generator=generator),
        "class_labels": torch.randn(batch, 16, generator=generator),
        "timestep": torch.tensor(300),
    }


@torch.no_grad()
def run(unet: UNet2DConditionModel, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return unet(**given).sample


@pytest.mark.parametrize("views", [1, 2, 4])
def test_equals_attention_by_hand(views: int) -> None:
    torch.manual_seed(0)
    attn = Attention(query_dim=6, heads=2, dim_head=3, processor=JointViews(views)).double()
    hidden = torch.randn(8, 5, 6, dtype=torch.float64, requires_grad=True)
    ours, theirs = attn(hidden), joint_attention(attn, hidden, views)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = torch.randn(8, 5, 6, dtype=torch.float64)
    (one,) = torch.autograd.grad((ours * weight).sum(), hidden)
    (other,) = torch.autograd.grad((theirs * weight).sum(), hidden)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    attn = Attention(query_dim=4, heads=2, dim_head=2, processor=JointViews(2)).double()
    assert torch.autograd.gradcheck(attn, (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True),))


def test_self_attention_alone_is_folded() -> None:
    unet = tiny()
    fold_views(unet)
    kinds = {name.split(".")[-2]: type(processor) for name, processor in unet.attn_processors.items()}
    assert kinds["attn1"] is JointViews
    assert kinds["attn2"] is not JointViews


def test_views_of_an_object_see_each_other_and_no_others() -> None:
    unet, given = tiny(), inputs(8)
    changed = given | {"sample": given["sample"].clone()}
    changed["sample"][1] += 1
    alone = (run(unet, changed) - run(unet, given)).abs().amax((1, 2, 3))
    assert alone[1] > 1e-2
    assert alone[[0, 2, 3, 4, 5, 6, 7]].max() < 1e-5
    fold_views(unet)
    joint = (run(unet, changed) - run(unet, given)).abs().amax((1, 2, 3))
    assert joint[:4].min() > 1e-4
    assert joint[4:].max() < 1e-5


def test_equal_views_give_what_single_pictures_give() -> None:
    """Four times the same keys and values attend as one: a folded model of four equal views is the single-picture model."""
    unet, given = tiny(), inputs(1)
    alone = run(unet, given)
    fold_views(unet)
    given = {k: v if k == "timestep" else v.expand(4, *v.shape[1:]).contiguous() for k, v in given.items()}
    torch.testing.assert_close(run(unet, given), alone.expand(4, -1, -1, -1), rtol=1e-4, atol=1e-5)


def test_one_view_is_the_stock_network() -> None:
    unet, given = tiny(), inputs(3)
    before = run(unet, given)
    fold_views(unet, 1)
    torch.testing.assert_close(run(unet, given), before, rtol=1e-5, atol=1e-6)


def test_batch_that_is_not_a_multiple_of_the_views() -> None:
    unet = tiny()
    fold_views(unet)
    with pytest.raises(RuntimeError):
        run(unet, inputs(6))
