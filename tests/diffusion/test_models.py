"""The loader on tiny random networks of the real classes in the real folder layout, and on everything that can be wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel
from safetensors.torch import load_file, save_file

from fourdfy_cli.diffusion import models, text
from fourdfy_cli.diffusion.models import NANO, Diffusion, ModelSpec
from fourdfy_cli.errors import FourdfyError

CPU = torch.device("cpu")


def rejects(spec: ModelSpec, words: str) -> None:
    with pytest.raises(FourdfyError, match=words) as caught:
        models.load(spec, CPU, torch.float32)
    assert caught.value.code == 3
    assert caught.value.hint
    assert "\n" not in caught.value.message


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
    z, camera = torch.randn(4, 12, 8, 8), torch.randn(4, 18)
    cond, uncond = torch.randn(1, 5, 64), torch.randn(1, 5, 64)
    one, other = diffusion.predict(z, 300, cond, uncond, camera)
    with torch.no_grad():
        torch.testing.assert_close(one, models.predict(diffusion.unet, z, 300, cond.expand(4, -1, -1), camera), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other, models.predict(diffusion.unet, z, 300, uncond.expand(4, -1, -1), camera), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, other, atol=1e-3)


def test_dtype_is_the_networks_alone(specs: dict[str, ModelSpec]) -> None:
    diffusion = models.load(specs["multiview"], CPU, torch.bfloat16)
    assert {p.dtype for p in diffusion.unet.parameters()} == {torch.bfloat16}
    z, _ = models.encode(diffusion.vae, torch.rand(4, 3, 64, 64))
    assert z.dtype == torch.float32
    assert diffusion.predict(z, 5, torch.randn(1, 5, 64), torch.randn(1, 5, 64), torch.randn(4, 18))[0].dtype == torch.float32


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
        z, std = models.encode(vae, rgb)
        assert std is None
        torch.testing.assert_close(z, vae.encode(rgb * 2 - 1).latent * vae.config.scaling_factor)
        torch.testing.assert_close(models.decode(vae, z), vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5)


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
    with pytest.raises(FourdfyError, match="holds no.*only a pickle") as caught:
        models.load(copied, CPU, torch.float32)
    assert caught.value.code == 3
    assert caught.value.hint.startswith("fourdfy models convert")


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
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
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


def test_code_in_a_folder_is_never_run(copied: ModelSpec) -> None:
    """A folder with a pipeline of its own, as some on the Hub, loads without it; one whose config names such a class does not load."""
    marker = Path(copied.source) / "ran"
    code = f"open({str(marker)!r}, 'w').close()\n"
    for name in ("pipeline.py", "image_unet/mv_unet.py", "text_encoder/modeling.py", "tokenizer/tokenization.py"):
        (Path(copied.source) / name).write_text(code)
    (Path(copied.source) / "model_index.json").write_text('{"_class_name": "MyPipeline", "unet": ["mv_unet", "MyUNet"]}')
    path = Path(copied.source) / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["tokenization.Mine", None]}}))
    assert isinstance(models.load(copied, CPU, torch.float32), Diffusion)
    text.encode(copied, ["a red dog"], CPU)
    path = Path(copied.source) / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "modeling.Mine"}}))
    with pytest.raises(FourdfyError, match="Mine") as caught:
        text.encode(copied, ["a red dog"], CPU)
    assert caught.value.code == 3
    assert not marker.exists()


def test_prediction_can_be_overridden(specs: dict[str, ModelSpec]) -> None:
    assert models.schedule(specs["image"]).prediction == "v_prediction"
    assert models.schedule(replace(specs["image"], prediction="epsilon")).prediction == "epsilon"
    with pytest.raises(FourdfyError, match="prediction_type"):
        models.schedule(replace(specs["image"], prediction="noise"))


def test_drawn_weights_need_no_file(copied: ModelSpec) -> None:
    for path in Path(copied.source).rglob("*.safetensors"):
        path.unlink()
    one, again, other = (models.load(replace(copied, seed=seed), CPU, torch.bfloat16) for seed in (1, 1, 2))
    for key, value in one.unet.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, again.unet.state_dict()[key])
    assert not torch.equal(one.unet.conv_in.weight, other.unet.conv_in.weight)
    assert not any(parameter.requires_grad for parameter in one.unet.parameters())


def test_keys_a_class_does_not_know_are_left_out(copied: ModelSpec) -> None:
    path = Path(copied.source) / copied.unet / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "x", "use_checkpoint": False}))
    assert isinstance(models.load(copied, CPU, torch.float32), Diffusion)


def test_model_for_another_role(specs: dict[str, ModelSpec]) -> None:
    rejects(replace(specs["video"], unet="image_unet"), "must be a UNet3DConditionModel or UNetMotionModel")
    rejects(replace(specs["image"], unet="video_unet"), "must be a UNet2DConditionModel")
    rejects(replace(specs["multiview"], unet="image_unet"), "projection class embedding")


def test_nano_specs_share_all_but_the_unet_and_what_the_video_model_has_of_its_own() -> None:
    assert {role: spec.unet for role, spec in NANO.items()} == {r: f"{r}_unet" for r in ("multiview", "image", "video")}
    assert {role: s.text_encoder for role, s in NANO.items() if s.text_encoder != "text_encoder"} == {"video": "video_text_encoder"}
    assert {role: s.scheduler for role, s in NANO.items() if s.scheduler != "scheduler"} == {"video": "video_scheduler"}
    assert len({(s.source, s.vae, s.tokenizer) for s in NANO.values()}) == 1
