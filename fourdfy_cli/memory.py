"""How much of a step is kept in memory at once.

Score distillation needs no graph from the loss through a diffusion model to the scene, so a step can be cut into tiles of rays and chunks
of pictures without changing its gradient (hybrid.step, guidance/base.py). `LADDER` lists the ways, from fastest to smallest.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fourdfy_cli.config import Branch, Grid, Recipe
from fourdfy_cli.diffusion import sets
from fourdfy_cli.diffusion.prior import TINY_COSTS, Cost
from fourdfy_cli.errors import MEMORY, FourdfyError
from fourdfy_cli.scene.hashgrid import levels


class Share:
    """Which of a step's rays are this process's: every `size`-th from `rank` on. Here: all of them (run/ranks.py has several processes)."""

    rank, size = 0, 1

    @property
    def rows(self) -> slice:
        return slice(self.rank, None, self.size)

    def gather(self, part: Tensor, total: int) -> Tensor:
        """All `total` rows, from this process's rows and the others'."""
        return part


WHOLE = Share()


@dataclass(frozen=True)
class Chunks:
    """At most `rays` rays and `frames` encoded pictures have a graph at a time (None: all); `park`: only the drawn branch's networks are
    on the device, the others wait on the CPU. A process among several renders its `share` of the rays."""

    rays: int | None = None
    frames: int | None = None
    park: bool = False
    share: Share = WHOLE

    def __str__(self) -> str:
        rays = "all rays" if self.rays is None else f"{self.rays} rays"
        frames = "all pictures" if self.frames is None else f"{self.frames} encoded pictures"
        return f"{rays} and {frames} at a time" + (", idle models on the CPU" if self.park else "")


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes: a torch device, the GB to stay within (None: what the card has; on a CPU, no bound), a backend of
    `kernels.NAMES`, what says at the start of each stage how many CPU threads to compute with (None: as torch is set), and how this
    process and others share the run ("frames" or "views", see run/ranks.py; None: it is alone)."""

    device: str = "cpu"
    vram: float | None = None
    backend: str = "auto"
    threads: Callable[[], int] | None = None
    distributed: str | None = None

    def gigabytes(self) -> float | None:
        if self.vram is not None or self.device == "cpu":
            return self.vram
        return torch.cuda.get_device_properties(self.device).total_memory / 1e9


DIRECT = Chunks()
LADDER = (DIRECT, Chunks(2**17, 4), Chunks(2**15, 1), Chunks(2**13, 1), Chunks(2**13, 1, park=True), Chunks(2**11, 1, park=True))


# Numbers alive at the peak, counted on the meta device with the full-size networks (PeakMemory, attention that keeps no matrix): without
# a graph per latent pixel of the UNets, with one per latent pixel of the LoRA network and per pixel of the autoencoder. The width of a
# smaller network is taken to be the square root of its share of the parameters.
PICTURES, LORA_UNET = Cost(8_400, 3_000, (866e6, 83.7e6)), 69_200  # a video model's: diffusion/prior.py and its kinds
RAY = 90_000  # bytes with a graph, of a ray through a full box: 512 samples across its diagonal, 32 features
SPARE = 0.6e9  # bytes of CUDA's own context and of what the allocator cannot use


def estimate(recipe: Recipe, number: int, chunks: Chunks) -> int:
    """Bytes that a stage (1, 2 or 3) needs on a CUDA device at its peak, networks in half precision; no network or GPU is touched."""
    branches = list(recipe.stage(number).chances())
    counts = {role: sets.counts(recipe.models, role) for role in sets.roles(branches, recipe.vsd)}
    weights = {branch: 2 * sum(counts[branch].values()) for branch in branches}
    if "lora" in counts:
        weights["image"] += 2 * sum(counts["lora"].values())
    grids = sum(
        level.entries * grid.features
        for dims, grid in ((3, recipe.field.static), (4, recipe.field.dynamic))
        for level in levels(dims, grid)
    )
    scene = 4 * 5 * grids  # values, gradients and their sum, AdamW's two moments
    steps = [step_bytes(recipe, number, branch, chunks, counts[branch]) for branch in branches]
    return int(SPARE + (max if chunks.park else sum)(weights.values()) + scene + max(steps))


def step_bytes(recipe: Recipe, number: int, branch: str, chunks: Chunks, counts: Mapping[str, int]) -> float:
    """Bytes of one step's own tensors: the networks without a graph, or the autoencoder or the renderer with one. In one piece the
    renderer's graph lives until the end."""
    settings = getattr(recipe.stage(number), branch)
    views = {"multiview": 4 * settings.groups, "image": 1, "video": recipe.frames}[branch]
    cost, tiny = sets.video_cost(recipe.models) if branch == "video" else (PICTURES, TINY_COSTS["tiny"])
    width, pixels = math.sqrt(counts["unet"] / cost.parameters[0]), math.prod(settings.model_size)
    latents = cost.latents(views, pixels)
    unet = 2 * width * 2 * latents * cost.network
    lora = 2 * width * latents * LORA_UNET if branch == "image" else 0
    vae = 2 * encoding(settings, views, chunks, math.sqrt(counts["vae"] / cost.parameters[1]), (cost, tiny))
    rays = views * math.prod(settings.size)
    ray = RAY * recipe.march.samples / 512 * channels(recipe.field.static) / 32
    if chunks.rays is None or chunks.rays >= rays:
        return ray * rays + max(unet, lora, vae)
    return max(ray * chunks.rays, unet, lora, vae)


def encoding(branch: Branch, views: int, chunks: Chunks, width: float, costs: tuple[Cost, Cost]) -> float:
    """Numbers that encoding a shot takes: by the model's own autoencoder, of relative `width`, or by the small one, or either in turn."""
    own, tiny = (cost.encoding(views, math.prod(branch.model_size), chunks.frames) for cost in costs)
    if branch.encoder == "own":
        return width * own
    return tiny if branch.own_from >= 1 else max(width * own, tiny)


def channels(grid: Grid) -> int:
    return grid.levels * grid.features


def choose(recipe: Recipe, number: int, gigabytes: float) -> int:
    """Index of the first rung of LADDER whose estimate fits; raises FourdfyError (exit 4) with the smallest estimate if none does."""
    needs = [estimate(recipe, number, chunks) for chunks in LADDER]
    for rung, need in enumerate(needs):
        if need <= gigabytes * 1e9:
            return rung
    raise out_of_memory(number, min(needs), gigabytes)


def out_of_memory(number: int, need: float, gigabytes: float | None) -> FourdfyError:
    """What there is to say at the end of the ladder (exit 4)."""
    message = f"stage {number} needs about {need / 1e9:.1f} GB even in the smallest pieces" + (
        f", and there are {gigabytes:.1f}" if gigabytes is not None else ""
    )
    return FourdfyError(message, "1.7 GB less, or else a machine with more memory: --set vsd.share_base=true", MEMORY)


class PeakMemory(TorchDispatchMode):
    """The most bytes of tensor storage alive at once while this is entered, beyond what was alive before: on CUDA as torch's allocator
    counts them, elsewhere by following every storage that an operation returns."""

    def __init__(self, device: torch.device | str = "cpu"):
        super().__init__()
        self.device = torch.device(device)
        self.bytes = self._now = self._before = 0
        self._seen: set[int] = set()

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in given:
                self._follow(storage)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed."""
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        self._now += storage.nbytes()
        self.bytes = max(self.bytes, self._now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
