"""Video models of every kind through the real loader: tiny random folders in the published layout against diffusers' own pipelines."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, UMT5EncoderModel

from fourdfy_cli.config import Models
from fourdfy_cli.diffusion import hub, network, priors, randoms, sets, sizes_video, t5, taehv, text, textcache
from fourdfy_cli.diffusion.encoders import Encoder
from fourdfy_cli.diffusion.models import ModelSpec
from fourdfy_cli.diffusion.prior import VideoPrior
from fourdfy_cli.diffusion.table import COGVIDEOX, WAN, WAN_5B
from fourdfy_cli.diffusion.text import Texts
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.guidance import base
from fourdfy_cli.guidance.video import VideoGuidance
from fourdfy_cli.presets import preset
from fourdfy_cli.scene.cameras import Shot, orbit_camera
from fourdfy_cli.schedule import constant

SIZE, FRAMES = (32, 64), 9
CHANNELS = {WAN: 4, WAN_5B: 8, COGVIDEOX: 4}


def spec(id: str) -> ModelSpec:
    return sets.specs(Models(set="random", size="tiny", video=id), ["video"])["video"]


def loaded(id: str, dtype: torch.dtype = torch.float32) -> VideoPrior:
    return priors.load(spec(id), "cpu", dtype)


def copied(id: str, tmp_path: Path) -> ModelSpec:
    """A folder of its own, to be damaged."""
    shutil.copytree(spec(id).source, tmp_path / "model")
    return replace(spec(id), source=str(tmp_path / "model"))


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | values).items() if v != "gone"}))


def refused(action: Callable[[], object], words: str, code: int = 3) -> None:
    with pytest.raises(FourdfyError, match=words) as caught:
        action()
    assert caught.value.code == code and caught.value.hint and "\n" not in caught.value.message


def rgb(frames: int = FRAMES, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(frames, *SIZE, 3, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "id, transformer, autoencoder",
    [(WAN, 1_418_996_800, 126_892_531), (COGVIDEOX, 1_693_783_872, 215_583_907), (WAN_5B, 4_999_787_712, 704_688_668)],
)
def test_parameters_at_full_size(id: str, transformer: int, autoencoder: int) -> None:
    assert sets.counts(Models(set="random", video=id), "video") == {"unet": transformer, "vae": autoencoder}


@pytest.mark.parametrize("id", sizes_video.IDS)
def test_folders_are_what_diffusers_and_transformers_read(id: str) -> None:
    """Sharded weights, key sets and tensors: from_pretrained gives the same numbers as our loader."""
    ours, folder = loaded(id), Path(spec(id).source)
    assert any(path.name.endswith("index.json") for path in folder.rglob("*.json"))
    kinds = (CogVideoXTransformer3DModel, AutoencoderKLCogVideoX) if id == COGVIDEOX else (WanTransformer3DModel, AutoencoderKLWan)
    for mine, kind, part in zip((ours.unet, ours.vae), kinds, ("transformer", "vae"), strict=True):
        theirs = kind.from_pretrained(folder / part)
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(value, mine.state_dict()[name]) for name, value in theirs.state_dict().items())
        assert all(torch.equal(value, dict(mine.named_buffers())[name]) for name, value in theirs.named_buffers())
    assert hub.files("video", folder)


@pytest.mark.parametrize("id, steps", [(WAN, 27), (WAN_5B, 27), (COGVIDEOX, 20)])
def test_networks_hear_what_the_pipelines_of_diffusers_tell_them(id: str, steps: int) -> None:
    """At 20 levels and more: the times, and with the same latents and texts the network's guided output."""
    ours, folder = loaded(id), Path(spec(id).source)
    words = torch.randn(1, ours_length := t5.READERS[type(ours).TEXTS].window, 16, generator=torch.Generator().manual_seed(0))
    heard: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    pipeline = pipe(id, ours)
    ours.unet.register_forward_pre_hook(
        lambda m, a, k: heard.append((named(a, k, "timestep", 1), named(a, k, "hidden_states", 0), a)), with_kwargs=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        prompt_embeds=words, negative_prompt_embeds=-words, height=SIZE[0], width=SIZE[1], num_frames=FRAMES, num_inference_steps=steps,
        guidance_scale=1.0, output_type="latent", max_sequence_length=ours_length,
    )  # fmt: skip
    told, levels = list(heard), pipeline.scheduler.timesteps.tolist()
    assert len(levels) >= 20
    for (times, z_t, _), level, k in zip(told, levels, range(len(levels)), strict=False):
        heard.clear()
        t = level if id == COGVIDEOX else nearest(ours, float(pipeline.scheduler.sigmas[k]))
        clip = z_t.transpose(1, 2) if id == COGVIDEOX else z_t
        ours.output(clip, t, words)
        assert torch.equal(heard[0][0].float(), times.float()), (heard[0][0], times)
        assert torch.equal(heard[0][1], z_t)
    assert folder.is_dir()


def named(args: tuple, kwargs: dict, name: str, position: int) -> torch.Tensor:
    if name in kwargs:
        return kwargs[name].detach().clone()
    order = ("hidden_states", "encoder_hidden_states", "timestep") if len(args) > 2 else ("hidden_states", "timestep")
    return args[order.index(name)].detach().clone()


def nearest(ours: VideoPrior, sigma: float) -> int:
    """The index of a level of our table."""
    noise = ours.schedule.scales(torch.arange(1000), torch.zeros(1, dtype=torch.float64))[1]
    t = int((noise - sigma).abs().argmin())
    assert abs(noise[t].item() - sigma) < 2e-6
    return t


def pipe(id: str, ours: VideoPrior):
    scheduler = json.loads((Path(ours.spec.source) / "scheduler" / "scheduler_config.json").read_text())
    if id == COGVIDEOX:
        return CogVideoXPipeline(None, None, ours.vae, ours.unet, CogVideoXDDIMScheduler.from_config(scheduler))
    return WanPipeline(None, None, ours.vae, UniPCMultistepScheduler.from_config(scheduler), ours.unet, expand_timesteps=id == WAN_5B)


def test_a_clean_first_frame_is_told_time_zero() -> None:
    """As WanImageToVideoPipeline does: 0 for the tokens of the first latent frame, T tau for all others."""
    ours = loaded(WAN_5B)
    pipeline = WanImageToVideoPipeline(
        None, None, ours.vae, UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        transformer=ours.unet, expand_timesteps=True,
    )  # fmt: skip
    heard: list[torch.Tensor] = []
    ours.unet.register_forward_pre_hook(lambda m, a, k: heard.append(named(a, k, "timestep", 1)), with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    words, picture = torch.zeros(1, 512, 16), torch.rand(1, 3, *SIZE)
    pipeline(
        picture, prompt_embeds=words, negative_prompt_embeds=words, height=SIZE[0], width=SIZE[1], num_frames=FRAMES,
        num_inference_steps=27, guidance_scale=1.0, output_type="latent",
    )  # fmt: skip
    for k, times in enumerate(list(heard)):
        mine = replace(ours, clean_first=True).times(nearest(ours, float(pipeline.scheduler.sigmas[k])), torch.zeros(1, 8, 3, 2, 4))
        assert torch.equal(mine.float(), times.float()) and (mine[0, :2] == 0).all() and (mine[0, 2:] > 0).all()


@pytest.mark.parametrize("id", sizes_video.IDS)
def test_latents_are_the_autoencoders_scaled_as_published(id: str) -> None:
    ours, pictures = loaded(id), rgb(17).permute(0, 3, 1, 2)
    mean, std, _ = ours.encoder.step(pictures, None)
    posterior = ours.vae.encode((2 * pictures - 1).transpose(0, 1)[None]).latent_dist
    config = ours.vae.config
    if id == COGVIDEOX:
        wanted = posterior.mean * config.scaling_factor
        torch.testing.assert_close(std, (posterior.std * config.scaling_factor)[0].transpose(0, 1))
    else:
        shift, scale = (torch.tensor(config[key])[None, :, None, None, None] for key in ("latents_mean", "latents_std"))
        wanted = (posterior.mode() - shift) / scale
        assert std is None
    torch.testing.assert_close(mean, wanted[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
    assert mean.shape == (5, CHANNELS[id], SIZE[0] // (16 if id == WAN_5B else 8), SIZE[1] // (16 if id == WAN_5B else 8))


def small() -> Encoder:
    return taehv.load(sets.random_taehv(Models(set="random", size="tiny", video=WAN)), "cpu", torch.float64)


@pytest.mark.parametrize("id", [*sizes_video.IDS, "taehv"])
@pytest.mark.parametrize("frames", [1, 5, 17])
def test_pieces_have_the_gradient_of_the_whole(id: str, frames: int) -> None:
    """float64: a clip piece by piece, its states kept, against the whole clip's graph; and against autograd through diffusers' encode."""
    encoder = small() if id == "taehv" else loaded(id, torch.float64).encoder
    branch = replace(preset("paper").stage3.video, model_size=SIZE, weight=0.7)
    pictures, made = rgb(frames, dtype=torch.float64), []

    def pull(z: torch.Tensor) -> torch.Tensor:
        made.append(z)
        return torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(3))

    whole, pieces = (
        base.through_encoder(encoder, pictures, branch, 1, pull, torch.Generator().manual_seed(4), chunk) for chunk in (None, 1)
    )
    assert encoder.pieces(frames, None) == [frames] and sum(encoder.pieces(frames, 1)) == frames
    assert len(encoder.pieces(17, 1)) > 1
    assert (made[0] - made[1]).norm() <= 1e-9 * made[0].norm()
    assert whole.grad.norm() > 0 and (whole.grad - pieces.grad).norm() <= 1e-9 * whole.grad.norm()
    if id in (WAN, WAN_5B):
        leaf = pictures.clone().requires_grad_(True)
        vae = encoder.vae
        z = vae.encode((2 * leaf.permute(3, 0, 1, 2) - 1)[None]).latent_dist.mean[0].transpose(0, 1)
        z = z / torch.tensor(vae.config["latents_std"], dtype=z.dtype)[:, None, None]
        (direct,) = torch.autograd.grad(z, leaf, 0.7 * pull(z))
        assert (whole.grad - direct).norm() <= 1e-9 * direct.norm()


@pytest.mark.parametrize("id", [WAN, COGVIDEOX])
def test_texts_are_the_pipelines(id: str) -> None:
    one, folder = spec(id), Path(spec(id).source) / "text_encoder"
    texts = ["a red dog", "a  dog &amp; a cat"]
    states = text.encode(one, texts, "cpu")
    kind = T5EncoderModel if id == COGVIDEOX else UMT5EncoderModel
    theirs, window = kind.from_pretrained(folder), t5.READERS[kind.__name__].window
    tokens = t5.tokenizer(Path(one.source) / "tokenizer")
    assert tokens(texts[1]) == tokens("a dog & a cat") and tokens("a")[-1] == 1
    for words, state in zip(texts, states, strict=True):
        row = torch.tensor([tokens(words) + [0] * (window - len(tokens(words)))])
        if id == COGVIDEOX:
            wanted = theirs(row)[0][0]
        else:
            wanted = theirs(row, (row != 0).long())[0][0] * (row[0] != 0)[:, None]
        torch.testing.assert_close(state, wanted, rtol=1e-4, atol=1e-4)


def test_a_tokenizer_of_sentencepiece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, path = pytest.importorskip("sentencepiece"), tmp_path / "spiece.model"
    lines = ["a red dog jumps", "a blue bird flies", "the cat sleeps on a mat"] * 4
    with path.open("wb") as file:
        made.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=25, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2
        )
    ids = t5.tokenizer(tmp_path)("a  red dog")
    assert ids == [*made.SentencePieceProcessor(model_file=str(path)).encode("a red dog"), 1] and len(ids) > 3
    path.write_bytes(b"nothing")
    refused(lambda: t5.tokenizer(tmp_path), "not a tokenizer")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    refused(lambda: t5.tokenizer(tmp_path), "wants the package sentencepiece")


def test_a_long_text_is_cut_and_told() -> None:
    found = text.fitted(spec(COGVIDEOX), ["word " * 300 + ", front view"])[0]
    assert found.lost and found.text.endswith(", front view") and found.room == 225


def test_ready_embeddings_stand_for_the_text_encoder(tmp_path: Path) -> None:
    one = copied(WAN, tmp_path)
    state = text.encode(one, ["a dog"], "cpu")[0]
    textcache.keep_ready(tmp_path / "ready", {"a dog": state})
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(tmp_path / "model" / part)
    refused(lambda: sets.located("video", str(tmp_path / "model")), "has no")
    found = sets.specs(Models(video=str(tmp_path / "model"), embeddings=str(tmp_path / "ready")), ["video"])["video"]
    assert torch.equal(textcache.embed(found, ["a dog"], "cpu")["a dog"], state)
    refused(lambda: textcache.embed(found, ["a dog", "a cat"], "cpu"), "no embedding of 'a cat'")
    save_file({"embedding": torch.zeros(3)}, tmp_path / "ready" / "x.safetensors", metadata={"text": "x"})
    refused(lambda: textcache.embed(found, ["a dog"], "cpu"), "an embedding is")


def clip_shot(frames: int = FRAMES) -> Shot:
    c2w = orbit_camera(torch.zeros(frames), torch.full((frames,), 0.3), torch.full((frames,), 2.7))
    return Shot(c2w, torch.full((frames,), 0.7), torch.arange(frames) / frames, SIZE)


@pytest.mark.parametrize("id", sizes_video.IDS)
def test_guidance_pulls_every_frame_but_a_clean_first_one(id: str) -> None:
    ours = loaded(id)
    texts = Texts("a", {"a": torch.zeros(t5.READERS[type(ours).TEXTS].window, 16), "": torch.ones(t5.READERS[type(ours).TEXTS].window, 16)})
    branch = replace(preset("wan").stage3.video, model_size=SIZE, view_words=None, negative="")
    pulled = VideoGuidance(ours, texts)(rgb(), clip_shot(), branch, 0.5, torch.Generator().manual_seed(0))
    assert (pulled.grad.flatten(1).norm(dim=1) > 0).all() and pulled.logs["t"] == 500
    if id == WAN_5B:
        held = VideoGuidance(ours, texts)(rgb(), clip_shot(), replace(branch, clean_first=True), 0.5, torch.Generator().manual_seed(0))
        assert held.grad.isfinite().all() and held.grad.norm() > 0 and held.loss != pulled.loss


def test_frames_and_sizes_that_do_not_fit() -> None:
    refused(lambda: priors.kind(spec(WAN)).check(spec(WAN), 16, (320, 576), False), "4k\\+1 frames, not 16", 2)
    refused(lambda: priors.kind(spec(COGVIDEOX)).check(spec(COGVIDEOX), 18, (320, 576), False), "4k\\+1 frames", 2)
    refused(lambda: priors.kind(spec(WAN)).check(spec(WAN), 17, (320, 570), False), "multiples of 16", 2)
    refused(lambda: priors.kind(spec(WAN_5B)).check(spec(WAN_5B), 17, (320, 560), False), "multiples of 32", 2)
    refused(lambda: priors.kind(spec(WAN)).check(spec(WAN), 17, (320, 576), True), "text alone", 2)
    for id in sizes_video.IDS:
        priors.kind(spec(id)).check(spec(id), 17, (320, 576), id == WAN_5B)


@pytest.mark.parametrize(
    "part, values, words",
    [
        ("vae", {"latents_std": "gone"}, "has no latents_std"),
        ("vae", {"latents_mean": [0.0]}, "has no latents_mean of 4 numbers"),
        ("vae", {"latents_std": [0.0] * 4}, "latents_std cannot be"),
        ("vae", {"base_dim": 10**9}, "base_dim cannot be"),
        ("transformer", {"num_layers": 10**6}, "num_layers cannot be"),
        ("transformer", {"num_layers": 3}, "lacks blocks.2"),
        ("transformer", {"num_layers": 90, "num_attention_heads": 128, "attention_head_dim": 256}, "parameters are too many"),
        ("transformer", {"ffn_dim": 64}, r"is \[32, 24\], not \[64, 24\]|is \[32\], not \[64\]|is \[24, 32\], not"),
        ("transformer", {"patch_size": "1"}, "patch_size cannot be"),
        ("transformer", {"auto_map": {"a": "b"}}, "never run"),
        ("transformer", {"_class_name": "SanaVideoTransformer3DModel"}, "must be one of"),
    ],
    ids=str,
)
def test_a_config_that_asks_for_what_is_not_there(part: str, values: dict, words: str, tmp_path: Path) -> None:
    one = copied(WAN, tmp_path)
    changed(tmp_path / "model" / part / "config.json", **values)
    refused(lambda: priors.load(one, "cpu", torch.float32), words)


def test_cogvideox_that_cannot_be(tmp_path: Path) -> None:
    one, config = copied(COGVIDEOX, tmp_path), tmp_path / "model" / "transformer" / "config.json"
    changed(config, use_rotary_positional_embeddings=True)
    refused(lambda: priors.load(one, "cpu", torch.float32), "use_rotary_positional_embeddings")
    changed(config, use_rotary_positional_embeddings=False)
    changed(tmp_path / "model" / "vae" / "config.json", scaling_factor="gone")
    refused(lambda: priors.load(one, "cpu", torch.float32), "has no scaling_factor")


def test_a_scheduler_that_shifts_with_the_picture(tmp_path: Path) -> None:
    one = copied(WAN, tmp_path)
    changed(tmp_path / "model" / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    refused(lambda: priors.load(one, "cpu", torch.float32), "use_dynamic_shifting True is not supported")


def test_another_text_encoder(tmp_path: Path) -> None:
    one, path = copied(WAN, tmp_path), tmp_path / "model" / "text_encoder" / "config.json"
    for name in ("T5EncoderModel", "CLIPTextModel", "Qwen2Model"):
        changed(path, architectures=[name])
        refused(lambda: priors.check_texts(one), f"must be a UMT5EncoderModel, not .*{name}")
    changed(path, architectures=["Qwen2Model"])
    refused(lambda: text.encode(one, ["a"], "cpu"), "is not CLIPTextModel|neither vocab.json")


def test_shards_that_are_not_all_there(tmp_path: Path) -> None:
    one = copied(WAN, tmp_path)
    folder = tmp_path / "model" / "text_encoder"
    if not (folder / "model.safetensors.index.json").exists():
        folder = tmp_path / "model" / "vae"
    index = next(folder.glob("*.index.json"))
    last = sorted(folder.glob("*-of-*.safetensors"))[-1]
    kept = last.read_bytes()
    last.unlink()
    refused(lambda: sets.located("video", one.source), f"has no .*{last.name}")
    refused(lambda: priors.load(one, "cpu", torch.float32), f"names {last.name}, which is missing")
    last.write_bytes(kept[: len(kept) // 2])
    refused(lambda: priors.load(one, "cpu", torch.float32), "is damaged")
    last.write_bytes(kept)
    names = json.loads(index.read_text())["weight_map"]
    for wrong in ("../../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..safetensors", "x.bin"):
        changed(index, weight_map=names | {next(iter(names)): wrong})
        refused(lambda: priors.load(one, "cpu", torch.float32), "is not a safetensors file beside it|which is missing")
    changed(index, weight_map={})
    refused(lambda: priors.load(one, "cpu", torch.float32), "no weight_map")


def test_a_small_encoder_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"encoder.0.weight": torch.zeros(64, 5, 3, 3)}, path)
    refused(lambda: taehv.load(path, "cpu", torch.float32), "not an encoder of TAEHV's")
    randoms.write_taehv(path, 16, 0)
    state = load_file(path)
    save_file(state | {"decoder.1.weight": torch.zeros(1)}, path)
    assert taehv.load(path, "cpu", torch.float32).vae.channels == 16
    save_file({k: v for k, v in state.items() if "14.conv.0" not in k}, path)
    refused(lambda: taehv.load(path, "cpu", torch.float32), "lacks encoder.14.conv.0")


def test_annealed_levels_fall_through_the_range() -> None:
    branch = replace(preset("wan").stage3.video, low=constant(0.02), high=constant(0.98))
    levels = [base.noise_level(branch, k / 100, 1000, torch.Generator()) for k in range(101)]
    assert levels[0] == 980 and levels[-1] == 20 and levels == sorted(levels, reverse=True) and len(set(levels)) == 101


def test_networks_keep_what_must_be_wide() -> None:
    ours = loaded(WAN, torch.float16)
    dtypes = {name: value.dtype for name, value in ours.unet.state_dict().items()}
    assert dtypes["scale_shift_table"] == torch.float32 and dtypes["blocks.0.attn1.to_q.weight"] == torch.float16
    assert network.kept(ours.vae, "encoder.conv_in.weight", torch.float16) == torch.float16
