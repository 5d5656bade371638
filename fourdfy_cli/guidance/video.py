"""Eq. 6: consecutive frames of one fixed camera, judged as one clip by a video model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.config import Score
from fourdfy_cli.diffusion.models import Diffusion
from fourdfy_cli.diffusion.text import Texts
from fourdfy_cli.guidance import pull, sds
from fourdfy_cli.guidance.pull import Pull
from fourdfy_cli.scene.cameras import Shot


@dataclass(frozen=True)
class VideoGuidance:
    """All V pictures are the frames of one clip; the view words are those of its first camera."""

    diffusion: Diffusion
    texts: Texts

    def __call__(
        self, rgb: Float[Tensor, "F H W 3"], shot: Shot, score: Score, progress: float, generator: torch.Generator, chunk: int | None = None
    ) -> Pull:
        """Draws the noise level (one for the clip), the VAE's sample if it has one, then the noise (independent per frame)."""
        t = pull.level(score, progress, len(self.diffusion.schedule), generator)
        prompt = self.texts.facing(shot.azimuth()[:1], score.view_words)

        def gradient(frames: Tensor) -> Tensor:
            clip = frames.transpose(0, 1)[None]  # [F C h w] to [1 C F h w]
            x = sds.noised(self.diffusion.schedule, clip, t, generator)
            outputs = self.diffusion.predict(x.z_t, t, prompt, self.texts[score.negative])
            grad = sds.amplified(pull.latent_gradient(x, outputs, score, 1), score.motion)
            return grad[0].transpose(0, 1)

        pulled = pull.through_encoder(self.diffusion.vae, rgb, score, 1, gradient, generator, chunk)
        return replace(pulled, logs=pulled.logs | {"t": float(t)})

    def to(self, device: torch.device | str) -> None:
        self.diffusion.to(device)
