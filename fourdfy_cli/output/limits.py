"""How large a film may be, told in one line before memory is taken; and what to say where memory ends all the same."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from fourdfy_cli.errors import MEMORY, USAGE, FourdfyError

PIXELS = 2**25  # of a picture: 8K
FRAMES = 20_000
TOTAL = 2**37  # pixels of all frames: an hour of 256 x 256, two minutes of 8K
SLIM = 64  # longer side over the shorter one


def check_film(what: object, width: int, height: int, frames: int, hint: str) -> None:
    """Raises FourdfyError (exit 2) for a film beyond the bounds; `frames` 0 if nobody knows how many there are."""
    why = None
    if width * height > PIXELS:
        why = f"{width}x{height} pixels are more than {PIXELS / 1e6:.0f} million"
    elif max(width, height) > SLIM * min(width, height):
        why = f"{width}x{height} pixels are too narrow, one side is more than {SLIM} times the other"
    elif frames > FRAMES:
        why = f"{frames} frames are more than {FRAMES}"
    elif frames * width * height > TOTAL:
        why = f"{frames} frames of {width}x{height} are more than {TOTAL / 1e9:.0f} billion pixels"
    if why:
        raise FourdfyError(f"{what} is too large: {why}", hint, USAGE)


@contextlib.contextmanager
def within_memory(what: object, hint: str) -> Iterator[None]:
    """Lack of memory inside the block, Python's or torch's, on a CPU or a GPU, becomes a FourdfyError (exit 4)."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise FourdfyError(f"out of memory at {what}", hint, MEMORY) from None


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory does not suffice; torch's CPU allocator says so in a plain RuntimeError."""
    said = r"can't allocate memory|not enough memory|out of memory|ALLOC_FAILED|std::bad_alloc"
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(re.search(said, str(error)))
