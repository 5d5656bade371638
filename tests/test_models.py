"""The loader on tiny random networks of the real classes in the real folder layout, and on everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from reference_guidance import save_models
from safetensors.torch import load_file, save_file

from fourdfy_cli.diffusion import models, text
from fourdfy_cli.diffusion.models import NANO, Diffusion, ModelSpec
from fourdfy_cli.diffusion.text import Texts, view_word
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.nano import networks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def copied(specs: dict[str, ModelSpec], tmp_path: Path) -> ModelSpec:
    """The image model in a folder of its own, to be damaged."""
    shutil.copytree(specs["image"].source, tmp_path / "models")
    return replace(specs["image"], source=str(tmp_path / "models"))


def rejects(spec: ModelSpec, words: str) -> None:
    with pytest.raises(FourdfyError, match=words) as caught:
        models.load(spec, CPU, torch.float32)
    assert caught.value.code == 3
    assert caught.value.hint
    assert "\n" not in caught.value.message


def kl() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        scaling_factor=0.18215,
    )


@pytest.mark.parametrize("role", ["image", "video", "multiview"])
def test_weights_and_outputs_are_those_saved(specs: dict[str, ModelSpec], role: str) -> None:
    ours = models.load(specs[role], CPU, torch.float32)
    kind = UNet3DConditionModel if role == "video" else UNet2DConditionModel
    theirs = kind.from_pretrained(Path(specs[role].source) / specs[role].unet).eval()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.unet.state_dict()[name], value), name
    assert not any(p.requires_grad for module in (ours.unet, ours.vae) for p in module.parameters())
    assert not ours.unet.training
    if role != "multiview":
        z = torch.randn(2, 12, *([3] if role == "video" else []), 8, 8, generator=torch.Generator().manual_seed(0))
        words = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(models.predict(ours.unet, z, 400, words), theirs(z, 400, words).sample, rtol=1e-4, atol=1e-4)


def test_halves_of_the_guided_batch(specs: dict[str, ModelSpec]) -> None:
    diffusion = models.load(specs["multiview"], CPU, torch.float32)
    z, camera = torch.randn(4, 12, 8, 8), torch.randn(4, 16)
    cond, uncond = torch.randn(1, 5, 64), torch.randn(1, 5, 64)
    one, other = diffusion.predict(z, 300, cond, uncond, camera)
    with torch.no_grad():
        torch.testing.assert_close(one, models.predict(diffusion.unet, z, 300, cond.expand(4, -1, -1), camera), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other, models.predict(diffusion.unet, z, 300, uncond.expand(4, -1, -1), camera), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, other, atol=1e-3)


def test_dtype_is_the_networks_alone(specs: dict[str, ModelSpec]) -> None:
    diffusion = models.load(specs["multiview"], CPU, torch.bfloat16)
    assert {p.dtype for p in diffusion.unet.parameters()} == {torch.bfloat16}
    z = models.encode(diffusion.vae, torch.rand(4, 3, 64, 64), None)
    assert z.dtype == torch.float32
    assert diffusion.predict(z, 5, torch.randn(1, 5, 64), torch.randn(1, 5, 64), torch.randn(4, 16))[0].dtype == torch.float32


def test_half_precision_file(copied: ModelSpec) -> None:
    folder = Path(copied.source) / copied.unet
    plain = load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    save_file({k: v.half() for k, v in plain.items()}, folder / "diffusion_pytorch_model.fp16.safetensors")
    unet = models.load(copied, CPU, torch.float32).unet
    assert all(torch.equal(v, plain[k].half().float()) for k, v in unet.state_dict().items())


def test_dc_autoencoder(specs: dict[str, ModelSpec]) -> None:
    vae = models.load(specs["image"], CPU, torch.float32).vae
    rgb = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        z = models.encode(vae, rgb, torch.Generator().manual_seed(0))
        torch.testing.assert_close(z, vae.encode(rgb * 2 - 1).latent * vae.config.scaling_factor)
        torch.testing.assert_close(models.decode(vae, z), vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5)


def test_kl_autoencoder_samples_its_posterior(tmp_path: Path) -> None:
    theirs = kl()
    theirs.save_pretrained(tmp_path)
    ours = models.network(tmp_path, models.VAES, torch.float32)
    rgb = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        posterior = theirs.encode(rgb * 2 - 1).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(5))
        sample = (posterior.mean + posterior.std * noise) * 0.18215
        torch.testing.assert_close(models.encode(ours, rgb, torch.Generator().manual_seed(5)), sample, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(models.encode(ours, rgb, None), posterior.mean * 0.18215, rtol=1e-4, atol=1e-6)


def test_kl_autoencoder_with_old_attention_names(tmp_path: Path) -> None:
    theirs = kl()
    theirs.save_pretrained(tmp_path)
    old = {new: before for before, new in models.OLD_NAMES.items()}
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for key, value in load_file(path).items():
        for new, before in old.items():
            key = key.replace(new, before)
        renamed[key] = value
    assert "encoder.mid_block.attentions.0.query.weight" in renamed
    save_file(renamed, path)
    ours = models.network(tmp_path, models.VAES, torch.float32)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())


def test_one_autoencoder_can_be_shared(specs: dict[str, ModelSpec]) -> None:
    image = models.load(specs["image"], CPU, torch.float32)
    assert models.load(specs["video"], CPU, torch.float32, image.vae).vae is image.vae


def test_missing_folder(copied: ModelSpec) -> None:
    rejects(replace(copied, source=copied.source + "-elsewhere"), "cannot be read")
    rejects(replace(copied, vae="no_vae"), "no_vae")


def test_missing_file(copied: ModelSpec) -> None:
    (Path(copied.source) / copied.unet / "diffusion_pytorch_model.safetensors").unlink()
    rejects(copied, "holds no diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_truncated_file(copied: ModelSpec, keep: int) -> None:
    path = Path(copied.source) / copied.unet / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    rejects(copied, "damaged")


def test_pickles_are_not_read(copied: ModelSpec) -> None:
    folder = Path(copied.source) / copied.unet
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    rejects(copied, "holds no")


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit(copied: ModelSpec, change: str) -> None:
    path = Path(copied.source) / copied.unet / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    if change == "missing":
        del state["conv_in.bias"]
    if change == "extra":
        state["conv_in.more"] = torch.zeros(1)
    if change == "shape":
        state["conv_in.bias"] = torch.zeros(3)
    save_file(state, path)
    rejects(copied, "does not fit.*conv_in")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"_class_name": "MyOwnModel"}, "MyOwnModel"),
        ({"_class_name": "UNet3DConditionModel", "down_block_types": ["CrossAttnDownBlock3D"] * 2}, "UNet"),
        ({"_class_name": None}, "None"),
        ({"block_out_channels": "wide"}, "does not describe|does not fit"),
        ({"down_block_types": ["NoSuchBlock"] * 2}, "does not describe"),
    ],
)
def test_config_that_is_wrong(copied: ModelSpec, change: dict, words: str) -> None:
    path = Path(copied.source) / copied.unet / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    rejects(copied, words)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_config_that_is_not_json(copied: ModelSpec, content: str) -> None:
    (Path(copied.source) / copied.scheduler / "scheduler_config.json").write_text(content)
    rejects(copied, "JSON")


def test_keys_a_class_does_not_know_are_left_out(copied: ModelSpec) -> None:
    path = Path(copied.source) / copied.unet / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "x", "use_checkpoint": False}))
    assert isinstance(models.load(copied, CPU, torch.float32), Diffusion)


def test_model_for_another_role(specs: dict[str, ModelSpec]) -> None:
    rejects(replace(specs["video"], unet="image_unet"), "must be a UNet3DConditionModel")
    rejects(replace(specs["image"], unet="video_unet"), "must be a UNet2DConditionModel")
    rejects(replace(specs["multiview"], unet="image_unet"), "projection class embedding")


def test_text_is_the_last_hidden_state(specs: dict[str, ModelSpec]) -> None:
    folder = Path(specs["image"].source)
    prompts = ["a red dog jumping", "", "a red dog jumping, front view"]
    ours = text.encode(specs["image"], prompts, CPU)
    assert ours.shape == (3, networks.TEXT_LENGTH, networks.TEXT_WIDTH)
    tokens = networks.tokenizer(folder.parent / "again")
    torch.manual_seed(0)
    encoder = networks.text_encoder(tokens)
    encoder.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"))
    with torch.no_grad():
        theirs = encoder.eval()(networks.token_ids(tokens, prompts)).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours[0], ours[2], atol=1e-2)


def test_text_weights_of_older_files(copied: ModelSpec) -> None:
    before = text.encode(copied, ["a red dog"], CPU)
    path = Path(copied.source) / "text_encoder" / "model.safetensors"
    state = {"text_model." + key: value for key, value in load_file(path).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(networks.TEXT_LENGTH)[None]
    save_file(state, path)
    assert torch.equal(text.encode(copied, ["a red dog"], CPU), before)


@pytest.mark.parametrize("name", ["tokenizer/vocab.json", "text_encoder/model.safetensors", "text_encoder/config.json"])
def test_text_without_a_file(copied: ModelSpec, name: str) -> None:
    (Path(copied.source) / name).unlink()
    with pytest.raises(FourdfyError) as caught:
        text.encode(copied, ["a red dog"], CPU)
    assert caught.value.code == 3


@pytest.mark.parametrize(
    "azimuth, words",
    [
        *((azimuth, "front") for azimuth in (0, 44.9, -44.9, 359, 720)),
        *((azimuth, "side") for azimuth in (45, 90, 150, -45, -150)),
        *((azimuth, "back") for azimuth in (150.1, -179, 180)),
    ],
)
def test_view_words(azimuth: float, words: str) -> None:
    assert view_word(float(azimuth), 45.0, 30.0) == f"{words} view"


def test_texts_by_camera() -> None:
    names = ["a cube", "a cube, front view", "a cube, side view", "a cube, back view", ""]
    texts = Texts("a cube", {name: torch.full((2, 3), float(i)) for i, name in enumerate(names)})
    azimuth = torch.tensor([0.1, torch.pi / 2, torch.pi, -torch.pi / 2])
    assert texts.facing(azimuth, (45.0, 45.0))[:, 0, 0].tolist() == [1, 2, 3, 2]
    assert texts.facing(azimuth, None)[:, 0, 0].tolist() == [0, 0, 0, 0]
    assert texts[""].shape == (1, 2, 3)


def test_nano_specs_share_all_but_the_unet() -> None:
    assert {role: spec.unet for role, spec in NANO.items()} == {r: f"{r}_unet" for r in ("multiview", "image", "video")}
    assert len({(s.source, s.vae, s.text_encoder, s.tokenizer, s.scheduler) for s in NANO.values()}) == 1
