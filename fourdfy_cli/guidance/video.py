"""Eq. 6: consecutive frames of one fixed camera, judged as one clip by a video model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.config import Branch
from fourdfy_cli.diffusion.models import Diffusion
from fourdfy_cli.diffusion.text import Texts
from fourdfy_cli.guidance import base, sds
from fourdfy_cli.guidance.base import GuidanceOutput
from fourdfy_cli.scene.cameras import Shot


@dataclass(frozen=True)
class VideoGuidance:
    """All V pictures are the frames of one clip; the view words are those of its first camera."""

    diffusion: Diffusion
    texts: Texts

    def __call__(
        self,
        rgb: Float[Tensor, "F H W 3"],
        shot: Shot,
        branch: Branch,
        progress: float,
        generator: torch.Generator,
        chunk: int | None = None,
    ) -> GuidanceOutput:
        """Draws the noise level (one for the clip), the VAE's sample if it has one, then the noise (independent per frame)."""
        t = base.noise_level(branch, progress, len(self.diffusion.schedule), generator)
        prompt = self.texts.facing(shot.azimuth()[:1], branch.view_words)

        def gradient(frames: Tensor) -> Tensor:
            clip = frames.transpose(0, 1)[None]  # [F C h w] to [1 C F h w]
            x = sds.noised(self.diffusion.schedule, clip, t, generator)
            outputs = self.diffusion.predict(x.z_t, t, prompt, self.texts[branch.negative])
            grad = sds.amplified(base.latent_gradient(x, outputs, branch, 1), branch.amplification)
            return grad[0].transpose(0, 1)

        output = base.through_encoder(self.diffusion.vae, rgb, branch, 1, gradient, generator, chunk)
        return replace(output, logs=output.logs | {"t": float(t)})

    def to(self, device: torch.device | str) -> None:
        self.diffusion.to(device)
