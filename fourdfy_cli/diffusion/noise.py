"""Noise levels and what networks predict.

Notation: t is an integer noise level in 0..T-1 (an int, or a tensor [B] of them); abar_t = alphas_cumprod[t]; z is a clean latent, eps
standard normal noise, z_t the noised latent, all [B ...]. Variance-preserving models noise by

    z_t = a z + s eps,   a = sqrt(abar_t),   s = sqrt(1 - abar_t),

and predict eps ("epsilon") or v = a eps - s z ("v_prediction"). Flow models ("flow_prediction") noise by z_t = (1 - tau) z + tau eps and
predict eps - z; they fit the same table with abar = (1 - tau)^2 / ((1 - tau)^2 + tau^2), the abar of equal signal-to-noise ratio.

The time that a network is told is not always its level's index: `Schedule.time` knows it. A flow model hears T tau.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fourdfy_cli.errors import ENVIRONMENT, FourdfyError
from fourdfy_cli.store.gate import within

PREDICTIONS = ("epsilon", "v_prediction", "flow_prediction")
MOST_STEPS = 100_000  # noise levels of a schedule


@dataclass(frozen=True)
class Schedule:
    """alphas_cumprod [T] (float64, falling, in [0,1]), what the network predicts, one of PREDICTIONS, and the times [T] that it is told
    (None: 0..T-1)."""

    alphas_cumprod: Tensor
    prediction: str
    times: Tensor | None = None

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise _unsupported("prediction_type", self.prediction, PREDICTIONS)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @staticmethod
    def from_config(config: dict[str, Any]) -> Schedule:
        """The schedule of a diffusers `scheduler_config.json`; raises FourdfyError (exit 3) for one it does not know."""
        steps = config.get("num_train_timesteps", 1000)
        if not within(steps, int, 2, MOST_STEPS):
            raise _unsupported("num_train_timesteps", steps, (f"2 to {MOST_STEPS}",))
        flow = str(config.get("_class_name", "")).startswith("FlowMatch") or config.get("use_flow_sigmas", False)
        return _flow(steps, config) if flow else _diffusion(steps, config)

    def time(self, t: int) -> int | float:
        """What the network must be told at level t."""
        return t if self.times is None else self.times[t].item()

    def scales(self, t: int | Int[Tensor, " B"], like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale of z_t, shaped to multiply `like`."""
        abar = self._abar(t, like)
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        total = signal + noise if self.prediction == "flow_prediction" else torch.ones_like(abar)
        return (signal / total).to(like.dtype), (noise / total).to(like.dtype)

    def weight(self, t: int | Int[Tensor, " B"], like: Tensor) -> Tensor:
        """DreamFusion's w(t) = 1 - abar_t, shaped to multiply `like`."""
        return (1 - self._abar(t, like)).to(like.dtype)

    def add(self, z: Float[Tensor, "B ..."], eps: Float[Tensor, "B ..."], t: int | Int[Tensor, " B"]) -> Float[Tensor, "B ..."]:
        """z_t, the clean latent noised to level t."""
        signal, noise = self.scales(t, z)
        return signal * z + noise * eps

    def x0(self, output: Float[Tensor, "B ..."], z_t: Float[Tensor, "B ..."], t: int | Int[Tensor, " B"]) -> Float[Tensor, "B ..."]:
        """The clean latent that a network's output stands for."""
        signal, noise = self.scales(t, z_t)
        if self.prediction == "epsilon":
            return (z_t - noise * output) / signal
        return signal * z_t - noise * output if self.prediction == "v_prediction" else z_t - noise * output

    def eps(self, output: Float[Tensor, "B ..."], z_t: Float[Tensor, "B ..."], t: int | Int[Tensor, " B"]) -> Float[Tensor, "B ..."]:
        """The noise that a network's output stands for."""
        signal, noise = self.scales(t, z_t)
        if self.prediction == "epsilon":
            return output
        return noise * z_t + signal * output if self.prediction == "v_prediction" else z_t + signal * output

    def target(self, z: Float[Tensor, "B ..."], eps: Float[Tensor, "B ..."], t: int | Int[Tensor, " B"]) -> Float[Tensor, "B ..."]:
        """What the network should output for z noised by eps to level t."""
        signal, noise = self.scales(t, z)
        if self.prediction == "epsilon":
            return eps
        return signal * eps - noise * z if self.prediction == "v_prediction" else eps - z

    def _abar(self, t: int | Tensor, like: Tensor) -> Tensor:
        abar = self.alphas_cumprod[t if isinstance(t, int) else t.to(self.alphas_cumprod.device)].to(like.device)
        return abar.reshape(-1, *[1] * (like.dim() - 1)) if abar.dim() else abar


def guided(cond: Float[Tensor, "B ..."], uncond: Float[Tensor, "B ..."], scale: float) -> Float[Tensor, "B ..."]:
    """Classifier-free guidance, the one convention of this package: uncond + scale (cond - uncond)."""
    return uncond + scale * (cond - uncond)


def _diffusion(steps: int, config: dict[str, Any]) -> Schedule:
    """Variance-preserving noise from betas; CogVideoX shifts its signal-to-noise ratio by 1 / snr_shift_scale; at wish zero at the end."""
    low, high, kind = (config.get(key) for key in ("beta_start", "beta_end", "beta_schedule"))
    if kind not in ("linear", "scaled_linear"):
        raise _unsupported("beta_schedule", kind, ("linear", "scaled_linear"))
    if not (isinstance(low, float) and isinstance(high, float) and 0 < low < high < 1):
        raise _unsupported("beta_start, beta_end", (low, high), ("0 < start < end < 1",))
    if config.get("trained_betas") is not None:
        raise _unsupported("betas", "trained", ("plain",))
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS[:2]:
        raise _unsupported("prediction_type", prediction, PREDICTIONS[:2])
    root = 2 if kind == "scaled_linear" else 1
    betas = torch.linspace(low ** (1 / root), high ** (1 / root), steps, dtype=torch.float64) ** root
    abar = (1 - betas).cumprod(0)
    shift = config.get("snr_shift_scale", 3.0 if str(config.get("_class_name", "")).startswith("CogVideoX") else 1.0)
    if shift != 1:
        abar = abar / (_shift("snr_shift_scale", shift) + (1 - shift) * abar)
    if not config.get("rescale_betas_zero_snr", False):
        return Schedule(abar, prediction)
    if prediction == "epsilon":
        raise _unsupported("prediction_type of zero terminal SNR", prediction, ("v_prediction",))
    return Schedule(_to_pure_noise(abar), prediction)


def _to_pure_noise(abar: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Signal scales shifted and stretched so that the last is 0 and the first as before (Lin et al. 2024, algorithm 1)."""
    signal = abar.sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2


def _flow(steps: int, config: dict[str, Any]) -> Schedule:
    """Rectified flow with a fixed timestep shift, tau = shift u / (1 + (shift - 1) u) for u = 1/T..1. The network hears T tau;
    UniPC's and DPM-Solver's schedulers of diffusers cut it to a whole number below T, so a model that is published with one hears that."""
    euler = str(config.get("_class_name", "")).startswith("FlowMatch")
    for key in ("use_dynamic_shifting", "invert_sigmas"):
        if config.get(key, False):
            raise _unsupported(key, True, (False,))
    prediction = config.get("prediction_type", "flow_prediction")
    if prediction != "flow_prediction":
        raise _unsupported("prediction_type of flow sigmas", prediction, ("flow_prediction",))
    key = "shift" if euler else "flow_shift"
    shift = _shift(key, config.get(key, 1.0))
    u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    tau = shift * u / (1 + (shift - 1) * u)
    times = steps * tau if euler else (steps * tau + 1e-9).long().clamp(max=steps - 1)
    return Schedule((1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2), "flow_prediction", times)


def _shift(key: str, value: Any) -> float:
    if not within(value, float, 0.01, 100):
        raise _unsupported(key, value, ("0.01 to 100",))
    return float(value)


def _unsupported(key: str, value: Any, known: tuple) -> FourdfyError:
    return FourdfyError(
        f"scheduler_config.json: {key} {value!r} is not supported (known: {', '.join(map(str, known))})", "fourdfy models list", ENVIRONMENT
    )
