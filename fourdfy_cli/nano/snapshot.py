"""A model out of a training that still runs: its averaged weights so far, as a folder that `--set models.video=FOLDER` takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from fourdfy_cli.diffusion import text
from fourdfy_cli.errors import USAGE, FourdfyError, typed
from fourdfy_cli.nano import networks
from fourdfy_cli.nano.fit import averaged

PARTS = ("multiview", "video")


def snapshot(folder: Path, part: str, out: Path) -> int:
    """Write unet, text_encoder, tokenizer, scheduler and vae of a part of `fourdfy nano train --out folder`; returns the step it is from.

    Raises FourdfyError (exit 2) for another part, or one that has not begun.
    """
    if part not in PARTS:
        raise FourdfyError(
            f"there is no snapshot of {part!r}",
            f"one of {', '.join(PARTS)}: {typed('fourdfy', 'nano', 'snapshot', folder, '--part', PARTS[-1])}",
            USAGE,
        )
    if not (folder / part / "state.pt").is_file():
        raise FourdfyError(f"{folder / part} holds no training", typed("fourdfy", "nano", "train", "--part", part, "--out", folder), USAGE)
    average, step = averaged(folder / part)
    shutil.copytree(folder / "multiview" / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    shutil.copytree(folder / "vae" / "vae", out / "vae", dirs_exist_ok=True)
    unet = networks.video_unet() if part == "video" else networks.unet2d(camera=True)
    encoder = networks.text_encoder(text._tokenizer(out / "tokenizer"))
    for module, name in ((unet, "unet"), (encoder, "text_encoder")):
        module.load_state_dict(average[name])
        network: Any = module
        network.to(memory_format=torch.contiguous_format)
        network.save_pretrained(out / name)
    networks.scheduler(to_noise=part == "video").save_pretrained(out / "scheduler")
    return step
