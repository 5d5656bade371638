"""One scene over several processes (ranks): who does what of a step, how gradients meet, and how all end together.

"frames": a step's rays, its encoded pictures and the two texts of a model are split over the ranks, and every draw is the same on all of
them: it is the step of one process. "views": each rank draws cameras and noise of its own, N times the batch. Either way the mean of
the ranks' gradients is the step's, and their copies of scene, LoRA and optimizer stay equal: nothing changes them but what all know.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fourdfy_cli.diffusion.models import Diffusion
from fourdfy_cli.errors import FAILURE, TERMINATED, FourdfyError
from fourdfy_cli.guidance.base import Guidance
from fourdfy_cli.memory import WHOLE, Machine, Share

TIMEOUT = timedelta(minutes=30)  # a rank waits while the first one saves or renders a preview
REASON = "why a rank failed"  # a key of the store that the ranks share


class Ranks:
    """The processes of a run; here it is the only one. `share`: its part of a step; `draws`: of whose draws its own are (0: a single
    process's); `views`: how many shots a step has, if more than one."""

    rank, size, draws, views = 0, 1, 0, 0
    share: Share = WHOLE

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def shared(self, value: Any) -> Any:
        """The first rank's value (builtins and CPU tensors)."""
        return value

    def average(self, optimizer: torch.optim.Optimizer, losses: dict[str, float]) -> None:
        """Put the means over the ranks in place of gradients and losses."""

    def stop(self, code: int | None) -> int | None:
        """The exit code of a signal that reached any of the ranks."""
        return code

    def score_together(self, guidances: dict[str, Guidance]) -> dict[str, Guidance]:
        """Guidances whose work is split over the ranks."""
        return guidances


ALONE = Ranks()


class Group(Ranks, Share):
    """Several processes, joined through what `torchrun` or run/launch.py put in the environment. Raises FourdfyError (exit 1) from any
    method when one of them is gone."""

    def __init__(self, mode: str, device: str):
        self.parent = os.getppid()
        self.store, self.rank, self.size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        if device != "cpu":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.size, timeout=TIMEOUT)
        if mode == "frames":
            self.share = self
        else:
            self.draws, self.views = self.rank, self.size

    def shared(self, value: Any) -> Any:
        box = [value if self.first else None]
        with self._together():
            dist.broadcast_object_list(box)
        return box[0]

    def average(self, optimizer: torch.optim.Optimizer, losses: dict[str, float]) -> None:
        """A parameter that has a gradient on one rank gets it on all, the others count as zero."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        told = torch.tensor([*(float(p.grad is not None) for p in parameters), *losses.values()], dtype=torch.float64)
        self._sum(told)
        counts, values = told.split([len(parameters), len(losses)])
        losses.update(zip(losses, (values / self.size).tolist(), strict=True))
        trained = [p for p, count in zip(parameters, counts.tolist(), strict=True) if count]
        if trained:
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
            self._sum(flat)
            for parameter, mean in zip(trained, (flat / self.size).split([p.numel() for p in trained]), strict=True):
                parameter.grad = mean.view_as(parameter)

    def stop(self, code: int | None) -> int | None:
        """A rank whose launcher is gone wants to stop, too."""
        told = torch.tensor(code or (TERMINATED if os.getppid() != self.parent else 0))
        with self._together():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told) or None

    def score_together(self, guidances: dict[str, Guidance]) -> dict[str, Guidance]:
        if self.share is WHOLE:
            return guidances
        models: dict[str, Diffusion] = {name: cast(Any, guidance).diffusion for name, guidance in guidances.items()}
        for vae in {id(model.vae): model.vae for model in models.values()}.values():
            Split(self, vae.encoder)
        return {name: replace(cast(Any, guidances[name]), diffusion=halved(model, self)) for name, model in models.items()}

    def gather(self, part: Tensor, total: int) -> Tensor:
        spare = part.new_zeros(-(-total // self.size) - len(part), *part.shape[1:])
        return torch.stack(self.parts(torch.cat([part, spare])), 1).flatten(0, 1)[:total]

    def parts(self, own: Tensor) -> list[Tensor]:
        """A tensor of every rank; they are of one shape."""
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self._meet(own)
        with self._together():
            dist.all_gather(parts, own.contiguous())
        return parts

    def tell(self, error: FourdfyError) -> None:
        """Let the others know why this rank ends."""
        with contextlib.suppress(RuntimeError):
            self.store.set(REASON, f"rank {self.rank}: {error.message}")

    def _sum(self, tensor: Tensor) -> None:
        self._meet(tensor)
        with self._together():
            dist.all_reduce(tensor)

    def _meet(self, tensor: Tensor) -> None:
        """Before ranks exchange something that is on GPUs: NCCL would wait for a dead one, and gloo tells of it."""
        if tensor.is_cuda:
            with self._together():
                dist.all_reduce(torch.zeros(1))

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise FourdfyError(self._why(), "", FAILURE) from error

    def _why(self) -> str:
        with contextlib.suppress(RuntimeError):
            if self.store.check([REASON]):
                return self.store.get(REASON).decode()
        return "another process of this run is gone"


@contextlib.contextmanager
def joined(machine: Machine) -> Iterator[Ranks]:
    """The processes that a run is to share, until the block ends."""
    if machine.distributed is None:
        yield ALONE
        return
    group = Group(machine.distributed, machine.device)
    try:
        yield group
    except FourdfyError as error:
        group.tell(error)
        raise
    finally:
        dist.destroy_process_group()


def halved(model: Diffusion, group: Group) -> Diffusion:
    """A model that even ranks ask about the prompt, and odd ones about the negative prompt."""

    @torch.no_grad()
    def predict(self: Diffusion, z_t: Tensor, t: int, cond: Tensor, uncond: Tensor, camera: Tensor | None = None) -> tuple[Tensor, Tensor]:
        text = (cond, uncond)[group.rank % 2]
        found = group.parts(self.output(z_t, t, text.expand(len(z_t), -1, -1), camera))
        return found[0], found[1]

    kind = type(model)
    return type(kind.__name__, (kind,), {"predict": predict})(**vars(model))


class Split:
    """An encoder whose batch is split over the ranks on the way in, and whole again on the way out, forward and backward. A batch that
    does not divide is filled up with its first pictures."""

    def __init__(self, share: Share, encoder: nn.Module):
        self.share, self.total = share, 0
        encoder.register_forward_pre_hook(self._take)
        encoder.register_forward_hook(self._join)

    def rows(self, total: int) -> Tensor:
        """The pictures that this rank encodes."""
        size = self.share.size
        return torch.arange(self.share.rank, -(-total // size) * size, size) % total

    def _take(self, encoder: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        self.total = len(args[0])
        return _Take.apply(args[0], self, self.total)

    def _join(self, encoder: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _Join.apply(output, self, self.total)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, split: Split, total: int) -> Tensor:
        ctx.split, ctx.total = split, total
        return x[split.rows(total)]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.split.share.gather(grad, ctx.total), None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, split: Split, total: int) -> Tensor:
        ctx.split, ctx.total = split, total
        return split.share.gather(x, total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.split.rows(ctx.total)], None, None
