"""CLIP as a judge against a hand computation, transformers' CLIP and Pillow."""

from __future__ import annotations

import json
import re

import numpy as np
import open_clip
import pytest
import torch
import transformers
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate.clip import cosines, load_clip, square
from fourdfy_cli.nano.train_clip import CONFIG, MEAN, STD, export_clip, said, true_of, worn

RENAMED = {
    r"^positional_embedding": "text_model.embeddings.position_embedding.weight",
    r"^token_embedding": "text_model.embeddings.token_embedding",
    r"^ln_final": "text_model.final_layer_norm",
    r"^text_projection": "text_projection.weight",
    r"^transformer\.resblocks": "text_model.encoder.layers",
    r"^visual\.class_embedding": "vision_model.embeddings.class_embedding",
    r"^visual\.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.conv1": "vision_model.embeddings.patch_embedding",
    r"^visual\.ln_pre": "vision_model.pre_layrnorm",
    r"^visual\.ln_post": "vision_model.post_layernorm",
    r"^visual\.proj": "visual_projection.weight",
    r"^visual\.transformer\.resblocks": "vision_model.encoder.layers",
    r"\.attn\.": ".self_attn.",
    r"\.ln_([12])": r".layer_norm\1",
    r"\.mlp\.c_fc": ".mlp.fc1",
    r"\.mlp\.c_proj": ".mlp.fc2",
}  # open_clip's names (left) in transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP with random weights, in open_clip's own layout."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("clip")
    export_clip(open_clip.CLIP(**CONFIG), place)
    return place


def test_score_equals_a_hand_computation(folder):
    clip = load_clip(f"local-dir:{folder}")
    frames = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = open_clip.CLIP(**CONFIG)
    from safetensors.torch import load_file

    model.load_state_dict({k: v.float() for k, v in load_file(folder / "open_clip_model.safetensors").items()})
    model.eval()
    tokens = open_clip.SimpleTokenizer(context_length=24)(["a red dog jumping"])
    with torch.no_grad():
        words = model.encode_text(tokens)[0]
        expected = []
        for frame in frames:
            picture = model.encode_image(((frame - 0.5) / 0.5)[None])[0]
            expected.append(100 * float(picture @ words) / float(picture.norm() * words.norm()))
    assert torch.allclose(cosines(clip, "a red dog jumping", frames), torch.tensor(expected), rtol=0, atol=1e-5 * 100)


def as_transformers(model: open_clip.CLIP, activation: str) -> transformers.CLIPModel:
    """The same CLIP in the classes of transformers, weight by weight."""
    vision, text = CONFIG["vision_cfg"], CONFIG["text_cfg"]
    both = {"projection_dim": CONFIG["embed_dim"], "hidden_act": activation}
    vision_sizes = {
        "hidden_size": vision["width"], "intermediate_size": 4 * vision["width"], "num_hidden_layers": vision["layers"],
        "num_attention_heads": vision["width"] // vision["head_width"],
        "image_size": vision["image_size"], "patch_size": vision["patch_size"],
    }  # fmt: skip
    text_sizes = {
        "hidden_size": text["width"], "intermediate_size": 4 * text["width"], "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"], "max_position_embeddings": text["context_length"], "vocab_size": text["vocab_size"],
        "eos_token_id": text["vocab_size"] - 1, "bos_token_id": text["vocab_size"] - 2,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config={**text_sizes, **both}, vision_config={**vision_sizes, **both}, **both)
    weights = {}
    for key, value in model.state_dict().items():
        name = key
        for old, new in RENAMED.items():
            name = re.sub(old, new, name)
        if "in_proj" in name:
            kind = "weight" if value.dim() == 2 else "bias"
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                weights[name.replace(f"in_proj_{kind}", f"{letter}_proj.{kind}")] = part
        else:
            weights[name] = value.T if key in ("visual.proj", "text_projection") else value
    twin = transformers.CLIPModel(config)
    buffers = {key: value for key, value in twin.state_dict().items() if key.endswith("position_ids")}
    twin.load_state_dict(weights | buffers)
    return twin.eval()


@pytest.mark.parametrize("quick, activation", [(False, "gelu"), (True, "quick_gelu")])
def test_embeddings_are_those_of_transformers(quick, activation, tmp_path):
    torch.manual_seed(3)
    model = open_clip.CLIP(**CONFIG, quick_gelu=quick)
    export_clip(model, tmp_path)
    about = json.loads((tmp_path / "open_clip_config.json").read_text())
    about["model_cfg"]["quick_gelu"] = quick
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    clip, twin = load_clip(f"local-dir:{tmp_path}"), as_transformers(model, activation)
    frames = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    prompts = ["a red dog jumping", "a blue cat"]
    with torch.no_grad():
        out = twin(input_ids=clip.tokenize(prompts), pixel_values=(frames - 0.5) / 0.5)
    assert (clip.texts(prompts) - out.text_embeds).abs().max() < 1e-5
    assert (clip.pictures(frames) - out.image_embeds).abs().max() < 1e-5
    theirs = 100 * (out.image_embeds * out.text_embeds[0]).sum(-1)
    assert (cosines(clip, prompts[0], frames) - theirs).abs().max() < 1e-3 and theirs.std() > 1e-2


@pytest.mark.parametrize("height, width", [(256, 256), (96, 130), (131, 97), (40, 64), (64, 64), (100, 71), (77, 200), (90, 161)])
def test_pictures_are_prepared_as_open_clip_does_it(height, width):
    """Resize and CenterCrop of its transform, on a PIL picture."""
    rng = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC))
    resize, crop, *_ = open_clip.image_transform(64, is_train=False, interpolation="bicubic", resize_mode="shortest").transforms
    theirs = np.asarray(crop(resize(Image.fromarray(picture)))).astype(int)
    ours = square(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255, 64)
    assert np.abs((ours[0].permute(1, 2, 0) * 255).numpy() - theirs).max() <= 1.6  # Pillow rounds twice


def test_a_folder_that_changed_is_read_again(tmp_path):
    loaded = []
    for seed in range(2):
        torch.manual_seed(seed)
        export_clip(open_clip.CLIP(**CONFIG), tmp_path)
        loaded.append([load_clip(f"local-dir:{tmp_path}"), load_clip(f"local-dir:{tmp_path}")])
    assert loaded[0][0] is loaded[0][1] and loaded[1][0] is loaded[1][1]
    assert not torch.allclose(loaded[0][0].texts(["a red dog"]), loaded[1][0].texts(["a red dog"]), atol=1e-2)


def test_pictures_of_another_size_are_resized_to_the_models(folder):
    clip = load_clip(f"local-dir:{folder}")
    plain = torch.full((1, 3, 64, 64), 0.3)
    assert torch.allclose(clip.pictures(plain), clip.pictures(torch.full((1, 3, 100, 100), 0.3)), atol=1e-5)
    assert MEAN == STD == (0.5, 0.5, 0.5) and clip.size == 64


def test_real_vit_b_32_has_its_size():
    with torch.device("meta"):
        model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 151_277_313


@pytest.mark.parametrize("name, code", [("no-such-clip", 2), ("local-dir:/does/not/exist", 3)])
def test_unknown_and_missing_models(name, code):
    with pytest.raises(FourdfyError) as error:
        load_clip(name)
    assert error.value.code == code and error.value.hint.startswith("fourdfy clip-score")


def test_the_published_model_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FourdfyError) as error:
        load_clip("ViT-B-32")
    assert error.value.code == 3 and "--clip nano" in error.value.message and error.value.hint.endswith("fourdfy models pull clip")


def test_a_damaged_model_is_one_line(folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_model.safetensors").write_bytes((folder / "open_clip_model.safetensors").read_bytes()[:1000])
    with pytest.raises(FourdfyError) as error:
        load_clip(f"local-dir:{tmp_path}")
    assert error.value.code == 3 and "\n" not in error.value.message
    save_file({"x": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(FourdfyError):
        load_clip(f"local-dir:{tmp_path}")


def test_a_caption_matches_where_every_word_is_true():
    from numpy.random import default_rng

    from fourdfy_cli.nano.prompts import Subject

    label = (Subject("dog", "red", None), "front view")
    assert true_of(("dog", None, None, None), label) and true_of(("dog", "red", None, "front view"), label)
    assert not true_of(("dog", "red", "jumping", None), label) and not true_of(("dog", "blue", None, None), label)
    rng = default_rng(0)
    assert all(true_of(said(label, rng), label) for _ in range(50))


def test_worn_pictures_keep_their_colours_and_lose_detail():
    """What the judge learns from besides clean pictures: the mean stays (noise aside), contrast never grows."""
    generator = torch.Generator().manual_seed(0)
    fine = torch.rand(4, 3, 64, 64, generator=generator).round().mul(2).sub(1).mul(0.8)  # checks of one pixel
    seen = []
    for seed in range(40):
        out = worn(fine, np.random.default_rng(seed), generator)
        assert out.shape == fine.shape and (out.mean((2, 3)) - fine.mean((2, 3))).abs().max() < 0.15
        seen.append(out.var().item() / fine.var().item())
    assert min(seen) < 0.2 < 0.9 < max(seen) < 1.2
