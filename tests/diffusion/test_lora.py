"""The low-rank twin: what it starts as, what it trains, and how it is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from reference_guidance import pictures, save_models, shot

from fourdfy_cli.config import Branch
from fourdfy_cli.diffusion import lora, models, network, sizes
from fourdfy_cli.diffusion.models import ModelSpec
from fourdfy_cli.diffusion.noise import Schedule
from fourdfy_cli.diffusion.text import Texts
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.guidance.variational import VariationalGuidance
from fourdfy_cli.schedule import constant

RANK = 4


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return save_models(tmp_path_factory.mktemp("models"))["image"]


def made(spec: ModelSpec, seed: int = 0, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    return lora.lora_unet(spec, RANK, "cpu", dtype, torch.Generator().manual_seed(seed))


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


def test_camera_embedding_is_what_a_stock_network_calls_it(spec: ModelSpec, tmp_path: Path) -> None:
    source = spec.folder("unet")
    plain = UNet2DConditionModel.from_pretrained(source)
    camera = UNet2DConditionModel(**plain.config | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16})
    assert set(camera.state_dict()) - set(plain.state_dict()) == set(lora.CAMERA_KEYS)
    assert {key: value.shape for key, value in camera.state_dict().items() if key in lora.CAMERA_KEYS} == {
        key: value.shape for key, value in lora.lora_state(made(spec)).items() if key in lora.CAMERA_KEYS
    }
    camera.save_pretrained(tmp_path / "unet")
    with pytest.raises(FourdfyError, match="already has a class embedding") as caught:
        made(replace(spec, source=str(tmp_path), unet="unet"))
    assert caught.value.code == 3


def storages(*networks: torch.nn.Module) -> dict[int, int]:
    """Bytes of every distinct storage of some networks' parameters."""
    held = [parameter.untyped_storage() for unet in networks for parameter in unet.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in held}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twin_on_the_prior_itself(spec: ModelSpec, dtype: torch.dtype) -> None:
    """The prior's outputs stay bitwise its own, before and after the twin has learnt; the frozen weights exist once."""
    prior = models.load_unet(spec, "cpu", dtype)
    alone, unet = sum(storages(prior).values()), lora.shared_lora_unet(prior, RANK, torch.Generator().manual_seed(0))
    trained = sum(parameter.numel() * 4 for _, parameter in lora.trainable(unet))
    assert sum(storages(prior, unet).values()) == alone + trained
    assert trained < alone / 4
    with torch.no_grad():
        before = models.predict(models.load_unet(spec, "cpu", dtype), *inputs())
        assert torch.equal(models.predict(prior, *inputs()), before)
        camera = torch.randn(2, 16)
        torch.testing.assert_close(models.predict(unet, *inputs(), camera), before, rtol=1e-5, atol=1e-6)
    train_once(unet)
    train_once(unet)
    with torch.no_grad():
        assert torch.equal(models.predict(prior, *inputs()), before)
        assert (models.predict(unet, *inputs(), camera) - before).abs().max() > 1e-3
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    assert prior.class_embedding is None


def test_twin_on_the_prior_is_the_twin_of_its_file(spec: ModelSpec) -> None:
    one, other = made(spec), lora.shared_lora_unet(models.load_unet(spec, "cpu", torch.float32), RANK, torch.Generator().manual_seed(0))
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


class AsVelocity(torch.nn.Module):
    """A network that predicts eps, seen through v = (eps - sigma z_t) / alpha: the same opinion in other words."""

    def __init__(self, inner: torch.nn.Module, schedule: Schedule):
        super().__init__()
        self.inner, self.schedule = inner, schedule
        self.dtype, self.class_embedding = inner.dtype, inner.class_embedding

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, **given: torch.Tensor) -> SimpleNamespace:
        alpha, sigma = self.schedule.scales(int(t), z_t)
        return SimpleNamespace(sample=(self.inner(z_t, t, **given).sample - sigma * z_t) / alpha)


def test_equation_4_vanishes_across_prediction_types(spec: ModelSpec) -> None:
    """A prior that predicts eps and a twin that predicts v, both standing for the same eps, pull nothing; once the twin learns, they do."""
    prior = models.load(replace(spec, prediction="epsilon"), "cpu", torch.float64)
    unet = lora.shared_lora_unet(prior.unet, RANK, torch.Generator().manual_seed(0))
    schedule = replace(prior.schedule, prediction="v_prediction")
    words = torch.randn(2, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    texts = Texts("a dog", dict(zip(("a dog", ""), words, strict=True)))
    guidance = VariationalGuidance(prior, replace(prior, unet=AsVelocity(unet, schedule), schedule=schedule), texts, 0.0)
    rgb, at = pictures(1), shot([30.0])
    alike = Branch((64, 64), 1.0, 1.0, constant(0.3), constant(0.4), model_size=(64, 64))
    usual = guidance(rgb, at, replace(alike, scale=7.5), 0.5, torch.Generator().manual_seed(0)).grad.abs().max()
    assert guidance(rgb, at, alike, 0.5, torch.Generator().manual_seed(0)).grad.abs().max() < 1e-12 * usual
    before = lora.lora_state(unet)
    torch.optim.AdamW([parameter for _, parameter in lora.trainable(unet)], 1e-2).step()
    after = lora.lora_state(unet)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if "lora_B" in name} | {"class_embedding.linear_2.weight"} <= moved
    assert guidance(rgb, at, alike, 0.5, torch.Generator().manual_seed(0)).grad.abs().max() > 1e-6 * usual
    said_wrong = replace(guidance, lora=replace(guidance.lora, schedule=prior.schedule))
    assert said_wrong(rgb, at, alike, 0.5, torch.Generator().manual_seed(0)).grad.abs().max() > 0.01 * usual


def test_size_at_full_scale() -> None:
    """The counts of the released code on SD-2.1: 829,952 of LoRA, 1,661,440 of camera embedding; 32 attentions of 4 layers."""
    unet = network.described(sizes.unet("lora", "full"), network.UNETS, "here")
    assert sum(parameter.numel() for parameter in unet.parameters()) == 865_910_724
    lora.adapt(unet, 4, torch.Generator().manual_seed(0))
    counts = {name: parameter.numel() for name, parameter in lora.trainable(unet)}
    assert sum(size for name, size in counts.items() if ".lora_" in name) == 829_952
    assert sum(".lora_A." in name for name in counts) == 32 * 4
    assert sum(counts[name] for name in lora.CAMERA_KEYS) == 1_661_440
