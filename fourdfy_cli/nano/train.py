"""How the nano models are trained, part by part: autoencoder, multi-view and image UNet with their text encoder, video UNet, CLIP."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, UNet2DConditionModel, UNetMotionModel
from torch import Tensor
from transformers import CLIPTextModel

from fourdfy_cli.diffusion import models
from fourdfy_cli.diffusion.models import ModelSpec, Vae
from fourdfy_cli.diffusion.verify import write_lock
from fourdfy_cli.errors import USAGE, FourdfyError, typed
from fourdfy_cli.nano import data, networks
from fourdfy_cli.nano.fit import Fit, Plan
from fourdfy_cli.nano.sample import draw, tile
from fourdfy_cli.nano.train_clip import train_clip
from fourdfy_cli.nano.train_multiview import train_multiview
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
    "multiview": Plan(steps=12000, batch=512, rate=1.5e-3, pool=32768, ema=0.999),
    "video": Plan(steps=7400, batch=128, rate=1.5e-3, pool=98304, ema=0.999),
}


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
