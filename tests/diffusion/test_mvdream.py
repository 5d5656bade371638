"""MVDream under its own names: against its code's constructor written out once more, and against diffusers' own conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file

from fourdfy_cli.config import Models
from fourdfy_cli.diffusion import models, mvdream, network, sets, sizes
from fourdfy_cli.diffusion.convolutions import flatten_convolutions
from fourdfy_cli.diffusion.models import ModelSpec
from fourdfy_cli.errors import FourdfyError

NAMELESS = {key: value for key, value in sizes.unet("multiview", "full").items() if key != "_class_name"}
CAMERA = {f"camera_embed.{at}.{kind}": f"class_embedding.linear_{n}.{kind}" for n, at in ((1, 0), (2, 2)) for kind in ("weight", "bias")}


def ldm_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Names and shapes of latent-diffusion's UNet with a camera, block by block as its constructor makes them."""
    found: dict[str, list[int]] = {}
    width = config["model_channels"]
    time, text = 4 * width, config["context_dim"]

    def add(name: str, *shape: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = list(shape), [shape[0]]

    def residual(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.in_layers.0", inputs)
        add(f"{name}.in_layers.2", outputs, inputs, 3, 3)
        add(f"{name}.emb_layers.1", outputs, time)
        add(f"{name}.out_layers.0", outputs)
        add(f"{name}.out_layers.3", outputs, outputs, 3, 3)
        if inputs != outputs:
            add(f"{name}.skip_connection", outputs, inputs, 1, 1)

    def transformer(name: str, channels: int) -> None:
        add(f"{name}.norm", channels)
        add(f"{name}.proj_in", channels, channels)
        inner = f"{name}.transformer_blocks.0"
        for attention, keys in (("attn1", channels), ("attn2", text)):
            for part, inputs in (("to_q", channels), ("to_k", keys), ("to_v", keys)):
                found[f"{inner}.{attention}.{part}.weight"] = [channels, inputs]
            add(f"{inner}.{attention}.to_out.0", channels, channels)
        for norm in (1, 2, 3):
            add(f"{inner}.norm{norm}", channels)
        add(f"{inner}.ff.net.0.proj", 8 * channels, channels)
        add(f"{inner}.ff.net.2", channels, 4 * channels)
        add(f"{name}.proj_out", channels, channels)

    for name, inputs in (("time_embed", width), ("camera_embed", config["camera_dim"])):
        add(f"{name}.0", time, inputs)
        add(f"{name}.2", time, time)
    add("input_blocks.0.0", width, config["in_channels"], 3, 3)
    number, channels, skips = 1, width, [width]
    for level, factor in enumerate(config["channel_mult"]):
        for _ in range(config["num_res_blocks"]):
            residual(f"input_blocks.{number}.0", channels, factor * width)
            channels = factor * width
            if 2**level in config["attention_resolutions"]:
                transformer(f"input_blocks.{number}.1", channels)
            skips.append(channels)
            number += 1
        if level < len(config["channel_mult"]) - 1:
            add(f"input_blocks.{number}.0.op", channels, channels, 3, 3)
            skips.append(channels)
            number += 1
    residual("middle_block.0", channels, channels)
    transformer("middle_block.1", channels)
    residual("middle_block.2", channels, channels)
    number = 0
    for level, factor in reversed(list(enumerate(config["channel_mult"]))):
        for block in range(config["num_res_blocks"] + 1):
            residual(f"output_blocks.{number}.0", channels + skips.pop(), factor * width)
            channels, behind = factor * width, 1
            if 2**level in config["attention_resolutions"]:
                transformer(f"output_blocks.{number}.1", channels)
                behind = 2
            if level and block == config["num_res_blocks"]:
                add(f"output_blocks.{number}.{behind}.conv", channels, channels, 3, 3)
            number += 1
    add("out.0", width)
    add("out.2", config["out_channels"], width, 3, 3)
    return found


@pytest.mark.parametrize("size, tensors, numbers", [("full", 690, 867_572_164), ("tiny", 690 - 2, None)])
def test_names_and_shapes_are_those_of_the_original_code(size: str, tensors: int, numbers: int | None) -> None:
    """690 tensors at full size; the tiny one lacks a skip convolution, because its second level is not wider than its first."""
    config = sizes.unet("multiview", size)
    unet = network.described(config, network.UNETS, "here")
    theirs, names = ldm_shapes(config), mvdream.ldm_names(unet.state_dict())
    assert len(names) == len(theirs) == tensors
    assert {names[key]: list(value.shape) for key, value in unet.state_dict().items()} == theirs
    assert numbers in (None, sum(p.numel() for p in unet.parameters()))


@pytest.mark.parametrize("name", [*mvdream.LDM_CLASSES, None])
def test_config_as_it_is_published_or_converted(name: str | None) -> None:
    config = NAMELESS | ({} if name is None else {"_class_name": name, "_diffusers_version": "0.25.0", "use_checkpoint": False})
    unet = network.described(config, network.UNETS, "here")
    assert sum(parameter.numel() for parameter in unet.parameters()) == 867_572_164


def test_a_few_names_as_they_are_published() -> None:
    names = mvdream.ldm_names(network.described(sizes.unet("multiview", "full"), network.UNETS, "here").state_dict())
    assert (
        names["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
        == "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    )
    assert names["down_blocks.2.downsamplers.0.conv.bias"] == "input_blocks.9.0.op.bias"
    assert names["up_blocks.0.upsamplers.0.conv.weight"] == "output_blocks.2.1.conv.weight"
    assert names["up_blocks.1.upsamplers.0.conv.weight"] == "output_blocks.5.2.conv.weight"
    assert names["up_blocks.3.resnets.2.conv_shortcut.weight"] == "output_blocks.11.0.skip_connection.weight"
    assert names["class_embedding.linear_2.bias"] == "camera_embed.2.bias"


@pytest.fixture(scope="module")
def published() -> ModelSpec:
    return sets.specs(Models(set="random", size="tiny"), ["multiview"])["multiview"]


def theirs(spec: ModelSpec) -> UNet2DConditionModel:
    """The published tiny file by way of diffusers' own conversion, in a stock network spelled out, its convolutions as a CPU's."""
    state = {key: value.float() for key, value in load_file(spec.folder("unet") / "diffusion_pytorch_model.safetensors").items()}
    camera = {CAMERA[key]: state.pop(key) for key in CAMERA}
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    stock = convert_ldm_unet_checkpoint({f"model.diffusion_model.{key}": value for key, value in state.items()}, config)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 32, 64, 64),
        cross_attention_dim=16,
        attention_head_dim=(2, 2, 4, 4),
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=16,
    )
    unet.load_state_dict(stock | camera, strict=True)
    flatten_convolutions(unet)
    return unet.eval()


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "z_t": torch.randn(4, 4, 8, 8, generator=generator),
        "time": 400,
        "text": torch.randn(4, 5, 16, generator=generator),
        "camera": torch.randn(4, 16, generator=generator),
    }


@torch.no_grad()
def test_published_file_is_the_same_function(published: ModelSpec) -> None:
    ours, stock = models.load_unet(published, "cpu", torch.float32), theirs(published)
    expected = models.predict(stock, **inputs())
    torch.testing.assert_close(models.predict(ours, **inputs()), expected, rtol=0, atol=2e-6)  # sums in another order, on some processors
    assert expected.std() > 0.1
    turned = inputs() | {"camera": -inputs()["camera"]}
    assert (models.predict(ours, **turned) - expected).abs().max() > 1e-3


def written(published: ModelSpec, folder: Path, layout: str) -> ModelSpec:
    """The tiny multi-view UNet in one of the published layouts."""
    state, config = load_file(published.folder("unet") / f"{network.STEM}.safetensors"), sizes.unet("multiview", "tiny")
    spec = ModelSpec("multiview", str(folder))
    spec.folder("unet").mkdir(parents=True)
    if layout == "diffusers":
        unet = models.load_unet(published, "cpu", torch.float16)
        state = unet.state_dict()
        spec.folder("camera").mkdir()
        camera = {key.removeprefix("class_embedding."): state.pop(key) for key in CAMERA.values()}
        save_file(camera, spec.folder("camera") / f"{network.STEM}.safetensors")
        config = dict(unet.config) | {
            "_class_name": "UNet2DConditionModel",
            "class_embed_type": None,
            "projection_class_embeddings_input_dim": None,
        }
    else:
        state = {layout + key: value for key, value in state.items()}
        if layout:
            config["_class_name"] = "MultiViewUNetWrapperModel"
    save_file(state, spec.folder("unet") / f"{network.STEM}.safetensors")
    (spec.folder("unet") / "config.json").write_text(json.dumps(config))
    return spec


@pytest.mark.parametrize("layout", ["", "unet.", "model.diffusion_model.", "diffusers"])
def test_every_layout_gives_the_same_weights(published: ModelSpec, tmp_path: Path, layout: str) -> None:
    expected = theirs(published).state_dict()
    ours = models.load_unet(written(published, tmp_path, layout), "cpu", torch.float32).state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in ours.items())


@pytest.mark.parametrize("layout", ["", "unet.", "diffusers"])
@pytest.mark.parametrize("change", ["missing", "extra", "shape", "truncated"])
def test_file_that_does_not_fit(published: ModelSpec, tmp_path: Path, layout: str, change: str) -> None:
    spec = written(published, tmp_path, layout)
    path = spec.folder("camera" if layout == "diffusers" else "unet") / f"{network.STEM}.safetensors"
    state = load_file(path)
    key = next(key for key in state if key.endswith(("camera_embed.0.bias", "linear_1.bias")))
    changed = {
        "missing": {k: v for k, v in state.items() if k != key},
        "extra": state | {key + "s": state[key].clone()},
        "shape": state | {key: torch.zeros(3)},
        "truncated": state,
    }[change]
    save_file(changed, path)
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        FourdfyError, match="damaged" if change == "truncated" else "does not fit.*(camera_embed|class_embedding)"
    ) as caught:
        models.load_unet(spec, "cpu", torch.float32)
    assert caught.value.code == 3
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "change, words",
    [
        ({"camera_dim": 12}, "camera_dim is 12"),
        ({"model_channels": None}, "does not describe"),
        ({"num_head_channels": "many"}, "does not describe"),
        ({"channel_mult": []}, "does not describe"),
        ({"channel_mult": [1, 1]}, "does not fit"),
        ({"_class_name": "MyUNet"}, "MyUNet"),
        ({"auto_map": {"AutoModel": "mv_unet.MultiViewUNetModel"}}, "auto_map"),
    ],
)
def test_config_that_is_wrong(published: ModelSpec, tmp_path: Path, change: dict, words: str) -> None:
    spec = written(published, tmp_path, "")
    path = spec.folder("unet") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FourdfyError, match=words) as caught:
        models.load_unet(spec, "cpu", torch.float32)
    assert caught.value.code == 3


def test_config_without_a_key(published: ModelSpec, tmp_path: Path) -> None:
    spec = written(published, tmp_path, "")
    path = spec.folder("unet") / "config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "context_dim"}))
    with pytest.raises(FourdfyError, match="context_dim"):
        models.load_unet(spec, "cpu", torch.float32)
