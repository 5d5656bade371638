"""How fast the inner loops are on this machine, every backend in one sitting: million points per second.

The hash grid is asked about random points, as tiny-cuda-nn's own benchmark does; a rendering step about a shot of a ball, which
fills as much of the picture as a thing does. Of several repetitions the median counts. "eager" is no backend of a run but
what they are measured against: the grid as one writes it first, all points at once and differentiated by autograd.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourdfy_cli import hybrid, kernels
from fourdfy_cli.config import Grid, Recipe
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.hybrid import StepContext, draw_shot
from fourdfy_cli.presets import preset
from fourdfy_cli.scene import volume
from fourdfy_cli.scene.hashgrid import Encoding, HashGrid, Level, corner_bits, corner_rows, corner_weights, locate, points_gradient
from fourdfy_cli.scene.scene import RenderOptions, Scene, camera_rays, render, render_rays, update_occupancy

POINTS = 2**17


def backends(device: str) -> list[kernels.Backend]:
    """Every backend that can be had on a device."""
    found = []
    for name in kernels.NAMES[1:]:
        try:
            found.append(kernels.choose(name, device))
        except FourdfyError:
            continue
    return found


def machine(device: str) -> str:
    """The processor or card, and the number of threads, for people."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine()
    )
    return f"{model}, {torch.get_num_threads()} threads"


def measure(device: str, repeats: int = 3, points: int = POINTS) -> Iterator[dict[str, Any]]:
    """Rows of the table, one by one: {op, dims, log2_table, levels, points, backend, mpts_fwd, mpts_fwd_bwd}."""
    tiny = preset("nano").field
    for dims, grid in ((3, Grid()), (4, Grid()), (3, Grid(log2_table=15)), (4, Grid(log2_table=15)), (3, tiny.static), (4, tiny.dynamic)):
        for backend in (EAGER, *backends(device)):
            yield encoding(backend, dims, grid, points, device, repeats)
    for backend in (EAGER, *backends(device)):
        yield rendering(backend, device, repeats)


def gather(x: Tensor, table: Tensor, levels: list[Level]) -> Tensor:
    """See scene.hashgrid.lookup; every index, weight and row stays in memory for autograd."""
    bits, features = corner_bits(x.shape[1], x.device), []
    for level in levels:
        corner, fraction = locate(x.t(), level)
        rows = corner_rows(corner, bits, level).long() + level.offset
        features.append((table[rows] * corner_weights(fraction, bits)[..., None]).sum(1))
    return torch.cat(features, 1)


def gather_gradient(x: Tensor, table: Tensor, levels: list[Level], grad: Tensor) -> Tensor:
    """See scene.hashgrid.table_gradient."""
    table = table.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(gather(x, table, levels), table, grad)[0]


EAGER = kernels.Backend("eager", Encoding(gather, gather_gradient, points_gradient), volume.TORCH)


def encoding(backend: kernels.Backend, dims: int, grid: Grid, points: int, device: str, repeats: int) -> dict[str, Any]:
    """The hash grid: lookups without, and with, the table's gradient."""
    generator = torch.Generator().manual_seed(0)
    module = HashGrid(dims, grid, 1e-4, generator, backend.encoding).to(device)
    x, grad = (torch.rand(points, n, generator=generator).to(device) for n in (dims, grid.levels * grid.features))
    lookup = (lambda: gather(x, module.table, module.levels)) if backend is EAGER else lambda: module(x)
    forward = seconds(lambda: backend.encoding.lookup(x, module.table.detach(), module.levels), device, repeats)
    both = seconds(lambda: torch.autograd.grad(lookup(), module.table, grad), device, repeats)
    about = {"op": "hash encoding", "dims": dims, "log2_table": grid.log2_table, "levels": grid.levels, "points": points}
    return about | {"backend": backend.name, "mpts_fwd": points / forward / 1e6, "mpts_fwd_bwd": points / both / 1e6}


def rendering(backend: kernels.Backend, device: str, repeats: int) -> dict[str, Any]:
    """A multi-view shot of the nano preset's last steps, four views of 64 x 64 pixels: samples per second without a graph, and with a
    graph and back; and a step of Algorithm 1 around it, regularisers and optimiser included, without its guidance."""
    recipe = preset("nano")
    scene = ball(recipe, backend, device)
    context = StepContext(recipe, 0, 2, 0)
    shot = draw_shot("multiview", context)
    rays, options = camera_rays(scene, shot), RenderOptions(0.5, torch.full((3,), 0.5, device=device))
    samples = len(backend.volume.march(*rays[:2], scene.occupancy.binary, scene.step_length, None, scene.occupancy.bounds()).ray)
    optimizer = torch.optim.AdamW(scene.parameters(), lr=0.0, eps=1e-15, fused=True)

    def step() -> None:
        frames = render_rays(scene, rays, options, train=True)
        hybrid.objective(frames, torch.ones_like(frames.rgb), context, len(rays.time), hybrid.Outcome("multiview")).backward()
        optimizer.step()
        optimizer.zero_grad()

    forward = seconds(lambda: render(scene, shot, *options[:2]), device, repeats)
    both = seconds(step, device, repeats)
    about = {"op": "render", "dims": 4, "log2_table": recipe.field.dynamic.log2_table, "levels": recipe.field.dynamic.levels}
    figures = {"mpts_fwd": samples / forward / 1e6, "mpts_fwd_bwd": samples / both / 1e6, "frames_per_second": len(shot) / forward}
    return about | {"points": samples, "backend": backend.name, **figures}


def ball(recipe: Recipe, backend: kernels.Backend, device: str) -> Scene:
    """The density blob that every run starts from, with its occupancy."""
    scene = Scene(recipe.field, recipe.background, recipe.march, 0, backend).to(device)
    for step in range(2):
        update_occupancy(scene, step, 0.5, 0.0, torch.Generator().manual_seed(step))
    return scene


def seconds(action: Callable[[], Any], device: str, repeats: int) -> float:
    """Median duration of an action, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        action()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
