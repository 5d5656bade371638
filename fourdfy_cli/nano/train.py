"""How the nano models are trained, part by part: autoencoder, multi-view and image UNet with their text encoder, video UNet, CLIP."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, UNet2DConditionModel, UNetMotionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from fourdfy_cli.diffusion import models
from fourdfy_cli.diffusion.models import ModelSpec, Unet, Vae
from fourdfy_cli.diffusion.multiview import fold_views
from fourdfy_cli.diffusion.verify import write_lock
from fourdfy_cli.errors import USAGE, FourdfyError, typed
from fourdfy_cli.nano import data, networks
from fourdfy_cli.nano.fit import Draw, Fit, Plan, Recorded
from fourdfy_cli.nano.latents import Captions, cache, decode_subject, noised, words
from fourdfy_cli.nano.sample import draw, tile
from fourdfy_cli.nano.train_clip import train_clip
from fourdfy_cli.nano.train_video import train_video
from fourdfy_cli.output.render import write_png

PLANS = {
    "vae": Plan(steps=2400, batch=16, rate=2e-3, pool=16000, decay_from=0.4),
    "decoder": Plan(steps=4000, batch=16, rate=1.2e-3, pool=16000, decay_from=0.3),
    "multiview": Plan(steps=16000, batch=32, rate=1e-3, pool=12288),
    "video": Plan(steps=24000, batch=8, rate=1.5e-3, pool=24576, ema=0.999),
    "clip": Plan(steps=2800, batch=128, rate=1e-3, pool=6144),
}
ON_GPU = PLANS | {
    "multiview": Plan(steps=6000, batch=512, rate=1.5e-3, pool=32768, ema=0.999),
    "video": Plan(steps=4600, batch=128, rate=1.5e-3, pool=98304, ema=0.999),
}
POSED = 600  # noise level below which half of the things are caught in motion (multiview_draw)
NAMED = 5 / 6  # of the single pictures' captions name the view; the twin of Eq. 4 is shown the bare prompt


def image_psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of rgb in [-1,1]."""
    return -10 * torch.log10(((a - b) / 2).square().mean()).item()


def pictures(seed: int, count: int) -> Tensor:
    """`count` single pictures [N 3 H W] in [-1,1], half of them of moving things at any time."""
    rng = np.random.default_rng((seed, 1))
    still = data.draw(rng, count // 8, 4, "still").rgb.flatten(0, 1)
    moving = data.clips(rng, count // 16).rgb.flatten(0, 1)
    return torch.cat([still, moving])


def reconstruction(error: Tensor) -> Tensor:
    """What the autoencoder minimises: L1, squares, and L1 of the differences of neighbours, of an error [N 3 H W]."""
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return 3 * error.square().mean() + error.abs().mean() + 0.5 * edges


def train_vae(folder: Path, plan: Plan, seed: int = 0, device: str = "cpu", report=print) -> None:
    """Train the autoencoder under latent noise; fold a scale into its weights that gives every latent channel unit variance; then train
    its decoder on alone, which leaves the latents, and so the models of them, as they are."""
    torch.manual_seed(seed)
    model: Vae = networks.vae()
    fit = Fit("vae", {"vae": model}, plan, folder, seed, device, report=report)
    fit.resume()
    pool = pictures(seed, plan.pool)

    def draw(rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(rng.integers(0, len(pool), plan.batch))
        return pool[chosen], torch.randn(plan.batch, *networks.LATENT, generator=generator)

    def loss(x: Tensor, noise: Tensor) -> Tensor:
        z = model.encode(x).latent
        error = model.decode(z + 0.03 * noise).sample - x
        return reconstruction(error) + 0.02 * z.mean((0, 2, 3)).square().mean()

    fit.run(draw, loss)
    test = pictures(seed + 1, 512)
    with torch.no_grad():
        std = model.encode(test).latent.std((0, 2, 3))
        model.encoder.conv_out.weight.div_(std[:, None, None, None])
        model.encoder.conv_out.bias.div_(std)
        model.decoder.conv_in.weight.mul_(std[None, :, None, None])
    train_decoder(folder / "decoder", model, pool, seed, device, report)
    with torch.no_grad():
        z = model.encode(test).latent
        back = model.decode(z).sample
    report(f"vae: {image_psnr(back, test):.2f} dB on unseen pictures; latent mean {z.mean((0, 2, 3)).abs().max():.3f} at most")
    model.save_pretrained(folder / "vae")
    write_png(folder / "samples.png", tile((torch.cat([test[:8], back[:8]]) + 1) / 2, 8))


def train_decoder(folder: Path, model: Vae, pool: Tensor, seed: int, device: str = "cpu", report=print) -> None:
    """Train the decoder on, from the frozen encoder's latents of a pool of pictures, under a little noise."""
    plan = PLANS["decoder"]
    with torch.no_grad():
        latents = torch.cat([model.encode(part).latent for part in pool.split(128)])
    fit = Fit("decoder", {"decoder": model.decoder}, plan, folder, seed, device, report=report)
    fit.resume()

    def draw(rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(rng.integers(0, len(pool), plan.batch))
        return latents[chosen] + 0.05 * torch.randn(plan.batch, *networks.LATENT, generator=generator), pool[chosen]

    fit.run(draw, lambda z, x: reconstruction(model.decoder(z) - x))


def train_multiview(folder: Path, vae_folder: Path, plan: Plan, seed: int = 0, device: str = "cpu", report=print) -> None:
    """Train the multi-view UNet and the text encoder together, mean squared error of v; then fold the zero camera away for the image
    UNet."""
    torch.manual_seed(seed)
    tokens = networks.tokenizer(folder / "tokenizer")
    encoder = networks.text_encoder(tokens)
    unet: Unet = networks.unet2d(camera=True)
    unet.to(memory_format=torch.channels_last)
    fit = Fit("multiview", {"unet": unet, "text_encoder": encoder}, plan, folder, seed, device, report=report)
    fit.resume()

    losses = {views: Recorded(MultiviewLoss(unet, encoder, views)) for views in (4, 1)}
    draw = multiview_draw(folder, vae_folder, plan, seed, Captions(tokens), device, report)
    fit.run(draw, lambda views, *drawn: losses[views](*drawn))
    encoder.save_pretrained(folder / "text_encoder")
    networks.scheduler().save_pretrained(folder / "scheduler")
    fold_views(unet, 1)
    unet.to(memory_format=torch.contiguous_format).save_pretrained(folder / "multiview_unet")
    image_half(unet).save_pretrained(folder / "image_unet")


class MultiviewLoss(nn.Module):
    """Squared error of v over pictures [N C h w], N / `views` groups of `views` with a caption [G L] each, as a function of tensors."""

    def __init__(self, unet, encoder: CLIPTextModel, views: int):
        super().__init__()
        self.unet, self.encoder, self.views = unet, encoder, views

    def forward(self, z_t: Tensor, v: Tensor, t: Tensor, camera: Tensor, ids: Tensor) -> Tensor:
        fold_views(self.unet, self.views)
        z_t = z_t.contiguous(memory_format=torch.channels_last)
        return (self.unet(z_t, t, words(self.encoder, ids, len(t)), class_labels=camera).sample - v).square().mean()


def multiview_draw(folder: Path, vae_folder: Path, plan: Plan, seed: int, captions: Captions, device: str = "cpu", report=print) -> Draw:
    """As MVDream was trained: 70 % of the batches are groups of 4 views with cameras, the rest single pictures with
    view words and a zero camera. Draws the number of views and what MultiviewLoss takes.

    Above the noise level POSED everything stands in its canonical pose, whatever motion the caption names, so that stage 1, which
    starts up there, makes that pose. Below it the picture shows the pose, and half of the things are caught at a random time of a
    motion that their caption names: stage 3 asks about those.
    """
    vae = AutoencoderDC.from_pretrained(vae_folder).eval().requires_grad_(False)
    kinds: tuple[data.Kind, ...] = ("still", "posed")
    pools = [cache(folder / f"{kind}.safetensors", seed, plan.pool, kind, vae, device, report) for kind in kinds]
    pool, size = {name: torch.cat([p[name] for p in pools]) for name in pools[0]}, len(pools[0]["latents"])
    abar = networks.scheduler().alphas_cumprod

    def draw(rng: np.random.Generator, generator: torch.Generator) -> tuple:
        views = 4 if rng.random() < 0.7 else 1
        groups = plan.batch // views
        t = torch.randint(0, 1000, (groups,), generator=generator)
        posed = (t.numpy() < POSED) & (rng.random(groups) < 0.5)
        chosen = torch.from_numpy(rng.integers(0, size, groups) + size * posed)
        subjects = [decode_subject(row) for row in pool["subjects"][chosen]]
        named = [1.0 if s.motion else 0.5 for s in subjects]
        if views == 4:
            z, camera = pool["latents"][chosen].float().flatten(0, 1), pool["cameras"][chosen].flatten(0, 1)
            texts = [data.caption(s, rng, motion=m) for s, m in zip(subjects, named, strict=True)]
            t = t.repeat_interleave(4)
        else:
            view = torch.from_numpy(rng.integers(0, 4, groups))
            z, camera = pool["latents"][chosen, view].float(), torch.zeros(groups, 16)
            azimuth = pool["azimuth"][chosen, view].tolist()
            texts = [data.caption(s, rng, a, m, view=NAMED) for s, a, m in zip(subjects, azimuth, named, strict=True)]
        return views, *noised(z, t, abar, generator), t, camera, captions(texts)

    return draw


def image_half(unet: Unet) -> UNet2DConditionModel:
    """The image UNet inside a multi-view one: the embedding of the zero camera folded into the time embedding."""
    image = networks.unet2d(camera=False)
    with torch.no_grad():
        state = {k: v.clone() for k, v in unet.state_dict().items() if not k.startswith("class_embedding")}
        state["time_embedding.linear_2.bias"] += unet.class_embedding(torch.zeros(1, 16))[0]
    image.load_state_dict(state)
    return image


FOLDERS = ("multiview_unet", "image_unet", "video_unet", "vae", "text_encoder", "video_text_encoder")


def assemble(sources: list[Path], weights: Path) -> None:
    """Collect the trained parts into one diffusers-style folder, networks in half precision."""
    classes = (UNet2DConditionModel, UNet2DConditionModel, UNetMotionModel, AutoencoderDC, CLIPTextModel, CLIPTextModel)
    for name, kind in zip(FOLDERS, classes, strict=True):
        found = next((s / name for s in sources if (s / name).is_dir()), None)
        if found is not None:
            model: Any = kind.from_pretrained(found)
            model.half()
            if kind is not CLIPTextModel:
                model.register_to_config(_name_or_path=name)  # not the folder it was trained in
            model.save_pretrained(weights / name)
    for name in ("tokenizer", "scheduler", "video_scheduler", "clip"):
        found = next((s / name for s in sources if (s / name).is_dir()), None)
        if found is not None:
            shutil.copytree(found, weights / name, dirs_exist_ok=True)
    write_lock(weights)


PARTS = ("vae", "multiview", "video", "clip")


def train(part: str | None, folder: Path, resume: bool, seed: int, device: str = "cpu", report=print) -> list[Path]:
    """Train one part or all of them in order, in subfolders of `folder`, and collect the results in `folder`/weights. On a GPU the two
    diffusion models see larger batches.

    Every part needs those before it (but clip none). Without `resume`, a folder with a started part is refused.
    Raises FourdfyError (exit 2) for an unknown part, a missing earlier part, or a started one.
    """
    if part not in (None, *PARTS):
        raise FourdfyError(f"there is no part {part!r}", f"one of {', '.join(PARTS)}: fourdfy nano train --part {PARTS[-1]}", USAGE)
    parts = PARTS if part is None else (part,)
    needs = {"multiview": ("vae/vae",), "video": ("vae/vae", "multiview/image_unet")}  # what an earlier part leaves at its end
    for name in parts:
        if (folder / name / "state.pt").exists() and not resume:
            raise FourdfyError(f"{folder / name} holds a started training", _again(name, folder), USAGE)
        missing = [n.split("/")[0] for n in needs.get(name, ()) if not (folder / n).is_dir()]
        if part and missing:
            raise FourdfyError(f"{name} is trained after {missing[0]}, which has not ended", _again(missing[0], folder), USAGE)
    for name in parts:
        train_part(name, folder, seed, device, report)
    assemble([folder / name for name in reversed(PARTS)], folder / "weights")
    return [folder / "weights"]


def _again(part: str, folder: Path) -> str:
    """The command that goes on with a part."""
    return typed("fourdfy", "nano", "train", "--part", part, "--resume", "--out", folder)


def train_part(name: str, folder: Path, seed: int, device: str = "cpu", report=print) -> None:
    here, vae, plan = folder / name, folder / "vae" / "vae", (PLANS if device == "cpu" else ON_GPU)[name]
    if device != "cpu":
        torch.set_float32_matmul_precision("high")  # TF32, where it is not bfloat16; cuDNN takes it anyway
    if name == "vae":
        train_vae(here, plan, seed, device, report)
    elif name == "multiview":
        train_multiview(here, vae, plan, seed, device, report)
    elif name == "video":
        train_video(here, folder / "multiview", vae, plan, seed, device, report)
    else:
        train_clip(here, plan, seed, device, report)
    if name in ("multiview", "video"):
        sample_sheet(folder, name, seed)


SAMPLES = ("a red dog jumping", "a green cat walking", "a blue bird spinning", "an orange car bouncing", "a purple dog swaying")


def sample_sheet(folder: Path, role: str, seed: int) -> Path:
    """What a trained model makes of five prompts, the last one held out, as a PNG beside its log."""
    own = "video/video_" if role == "video" else "multiview/"
    spec = ModelSpec(role, str(folder), f"{role}/{role}_unet", "vae/vae", f"{own}text_encoder", "multiview/tokenizer", f"{own}scheduler")
    pictures = draw(models.load(spec, "cpu", torch.float32), list(SAMPLES), role, seed, 20, 3.0)
    return write_png(folder / role / "samples.png", tile(pictures.flatten(0, 1), pictures.shape[1]))
