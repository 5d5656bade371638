"""What a run may be asked for: does this machine have the device, do the models know the prompt, which preset fits."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError

if TYPE_CHECKING:
    from fourdfy_cli.config import Recipe


def has_gpu() -> bool:
    """Whether torch can use a GPU; torch, which is slow to load, is only asked where there is a driver."""
    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia/version").exists():
        return False
    import torch

    return torch.cuda.is_available()


def fitting_preset() -> str:
    """The preset that fits this machine."""
    return "paper" if has_gpu() else "nano"


def device_for(recipe: Recipe, wanted: str | None = None) -> str:
    """Where a recipe runs; raises FourdfyError as `check_device`."""
    chosen = wanted or ("cuda" if recipe.models.set != "nano" and has_gpu() else "cpu")
    check_device(chosen)
    return chosen


def check_device(device: str) -> None:
    """Raises FourdfyError: exit 2 for a name that is none, exit 3 for a GPU that is not there."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise FourdfyError(f"there is no device {device!r}", "cpu, cuda or cuda:N: --device cpu", USAGE)
    if device != "cpu":
        import torch

        if not torch.cuda.is_available() or int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise FourdfyError(f"this machine has no {device} that torch can use", "--device cpu", ENVIRONMENT)


def check_prompt(prompt: str, models: str) -> None:
    """Raises FourdfyError (exit 2) for an empty prompt, or one that the nano models do not understand."""
    if not prompt.strip():
        raise FourdfyError("the prompt is empty", 'fourdfy generate "a red dog jumping"', USAGE)
    if models == "nano":
        from fourdfy_cli.nano import prompts

        prompts.parse(prompt)
