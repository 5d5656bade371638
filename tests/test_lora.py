"""The low-rank twin: what it starts as, what it trains, and how it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from reference_guidance import save_models
from safetensors.torch import load_file, save_file

from fourdfy_cli.diffusion import lora, models
from fourdfy_cli.diffusion.models import ModelSpec
from fourdfy_cli.errors import FourdfyError

RANK = 4


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return save_models(tmp_path_factory.mktemp("models"))["image"]


def made(spec: ModelSpec, seed: int = 0, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    return lora.twin(spec, RANK, "cpu", dtype, torch.Generator().manual_seed(seed))


def inputs(batch: int = 2) -> tuple[torch.Tensor, int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 12, 8, 8, generator=generator), 300, torch.randn(batch, 5, 64, generator=generator)


def train_once(unet: UNet2DConditionModel, rate: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW([p for _, p in lora.trainable(unet)], rate)
    models.predict(unet, *inputs(), torch.randn(2, 16, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def test_starts_as_the_image_model_whatever_the_camera(spec: ModelSpec) -> None:
    image = models.load(spec, "cpu", torch.float32).unet
    unet = made(spec)
    expected = models.predict(image, *inputs())
    for camera in (torch.zeros(2, 16), torch.randn(2, 16)):
        torch.testing.assert_close(models.predict(unet, *inputs(), camera), expected, rtol=1e-5, atol=1e-6)


def test_trains_lora_and_camera_alone(spec: ModelSpec) -> None:
    unet = made(spec)
    names = [name for name, _ in lora.trainable(unet)]
    assert all(".lora_A." in name or ".lora_B." in name or name in lora.CAMERA_KEYS for name in names)
    assert set(lora.CAMERA_KEYS) < set(names)
    layers = {name.split(".lora_")[0] for name in names if ".lora_" in name}
    attentions = [name.removesuffix(".processor") for name in unet.attn_processors]
    assert layers == {f"{attention}.{part}" for attention in attentions for part in ("to_q", "to_k", "to_v", "to_out.0")}


def test_start_is_normal_and_zero(spec: ModelSpec) -> None:
    state = lora.lora_state(made(spec))
    down = torch.cat([value.flatten() for name, value in state.items() if "lora_A" in name])
    assert len(down) > 5000
    assert down.std().item() == pytest.approx(1 / RANK, rel=0.05)
    assert abs(down.mean().item()) < 0.02
    assert all(not value.any() for name, value in state.items() if "lora_B" in name)
    assert not state["class_embedding.linear_2.weight"].any()
    assert 0.2 < state["class_embedding.linear_1.weight"].abs().max() <= 0.25


def test_start_depends_on_the_generator_alone(spec: ModelSpec) -> None:
    torch.manual_seed(1)
    one = lora.lora_state(made(spec, seed=3))
    torch.manual_seed(2)
    other = lora.lora_state(made(spec, seed=3))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], value) for name, value in lora.lora_state(made(spec, seed=4)).items())


def test_update_has_scale_one(spec: ModelSpec) -> None:
    """An output layer with LoRA is W x + B A x, without alpha."""
    unet = made(spec, dtype=torch.float64)
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn1.to_q"))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    x = torch.randn(3, layer.in_features, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ layer.base_layer.weight.T + x @ a.T @ b.T)


def test_one_step_moves_them_and_nothing_else(spec: ModelSpec) -> None:
    unet = made(spec)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    train_once(unet)
    moved = {name for name, value in unet.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= {name for name, _ in lora.trainable(unet)}
    assert {name for name in before if "lora_B" in name} <= moved
    assert "class_embedding.linear_2.weight" in moved
    train_once(unet)
    camera = torch.randn(2, 16)
    with torch.no_grad():
        difference = models.predict(unet, *inputs(), camera) - models.predict(unet, *inputs(), torch.zeros(2, 16))
    assert difference.abs().max() > 1e-4


def test_half_precision_network_trains_in_single(spec: ModelSpec) -> None:
    unet = made(spec, dtype=torch.bfloat16)
    assert {p.dtype for _, p in lora.trainable(unet)} == {torch.float32}
    assert unet.conv_in.weight.dtype == torch.bfloat16
    before = lora.lora_state(unet)
    train_once(unet, rate=1e-5)  # a step bfloat16 could not hold
    after = lora.lora_state(unet)
    assert not torch.equal(after["class_embedding.linear_2.weight"], before["class_embedding.linear_2.weight"])
    assert {value.dtype for value in after.values()} == {torch.float32}


def test_state_round_trip(spec: ModelSpec, tmp_path: Path) -> None:
    unet = made(spec)
    train_once(unet)
    torch.save(lora.lora_state(unet), tmp_path / "lora.pt")
    other = made(spec, seed=9)
    lora.load_lora_state(other, torch.load(tmp_path / "lora.pt", weights_only=True))
    camera = torch.randn(2, 16)
    with torch.no_grad():
        assert torch.equal(models.predict(unet, *inputs(), camera), models.predict(other, *inputs(), camera))


def test_state_is_a_copy(spec: ModelSpec) -> None:
    unet = made(spec)
    state = lora.lora_state(unet)
    before = {name: value.clone() for name, value in state.items()}
    train_once(unet)
    assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_state_that_does_not_fit(spec: ModelSpec, change: str) -> None:
    unet = made(spec)
    state = lora.lora_state(unet)
    if change == "missing":
        del state["class_embedding.linear_1.bias"]
    if change == "extra":
        state["more"] = torch.zeros(1)
    if change == "shape":
        state["class_embedding.linear_1.bias"] = torch.zeros(1)
    with pytest.raises(FourdfyError) as caught:
        lora.load_lora_state(unet, state)
    assert caught.value.code == 6


def test_new_weights_are_the_camera_embedding_exactly(spec: ModelSpec, tmp_path: Path) -> None:
    source = Path(spec.source) / spec.unet
    plain = UNet2DConditionModel.from_pretrained(source)
    camera = UNet2DConditionModel(**plain.config | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16})
    assert set(camera.state_dict()) - set(plain.state_dict()) == set(lora.CAMERA_KEYS)
    plain.save_pretrained(tmp_path / "unet")
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    missing = replace(spec, source=str(tmp_path), unet="unet")
    save_file({k: v for k, v in state.items() if k != "conv_out.bias"}, path)
    with pytest.raises(FourdfyError, match="conv_out.bias"):
        made(missing)
    save_file(state | {lora.CAMERA_KEYS[0]: torch.zeros(256, 16)}, path)
    with pytest.raises(FourdfyError, match="should be new"):
        made(missing)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config | {"class_embed_type": "projection"}))
    with pytest.raises(FourdfyError, match="already has a class embedding"):
        made(missing)


def test_size_at_full_scale() -> None:
    """The counts of the released code on SD-2.1: 829,952 of LoRA, 1,661,440 of camera embedding."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=16,
        )
    lora.add_lora(unet, 4, torch.Generator().manual_seed(0))
    sizes = {name: parameter.numel() for name, parameter in lora.trainable(unet)}
    assert sum(size for name, size in sizes.items() if ".lora_" in name) == 829_952
    assert sum(sizes[name] for name in lora.CAMERA_KEYS) == 1_661_440
