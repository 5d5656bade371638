"""Eq. 6: consecutive frames of one fixed camera, judged as one clip by a video model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.config import Branch
from fourdfy_cli.diffusion.encoders import Encoder
from fourdfy_cli.diffusion.prior import VideoPrior
from fourdfy_cli.diffusion.text import Texts
from fourdfy_cli.guidance import base, sds
from fourdfy_cli.guidance.base import GuidanceOutput
from fourdfy_cli.scene.cameras import Shot


@dataclass(frozen=True)
class VideoGuidance:
    """All V pictures are the frames of one clip; the view words are those of its first camera."""

    diffusion: VideoPrior
    texts: Texts
    tiny: Encoder | None = None

    def __call__(
        self,
        rgb: Float[Tensor, "F H W 3"],
        shot: Shot,
        branch: Branch,
        progress: float,
        generator: torch.Generator,
        chunk: int | None = None,
    ) -> GuidanceOutput:
        """Draws the noise level (one for the clip), the VAE's sample if it has one, then the noise (independent per latent frame). With
        branch.clean_first the first latent frame is given to the model as it is, and has no gradient."""
        prior, first = replace(self.diffusion, clean_first=branch.clean_first), int(branch.clean_first)
        t = base.noise_level(branch, progress, len(prior.schedule), generator)
        prompt = self.texts.facing(shot.azimuth()[:1], branch.view_words)

        def gradient(frames: Tensor) -> Tensor:
            clip = frames.transpose(0, 1)[None]  # [T C h w] to [1 C T h w]
            x = sds.noised(prior.schedule, clip, t, generator)
            z_t = torch.cat([clip[:, :, :first], x.z_t[:, :, first:]], 2)
            outputs = prior.predict(z_t, t, prompt, self.texts[branch.negative])
            z, eps, z_t, cond, uncond = (part[:, :, first:] for part in (clip, x.eps, z_t, *outputs))
            x = sds.Noised(z, eps, z_t, t, prior.schedule)
            grad = sds.amplified(base.latent_gradient(x, (cond, uncond), branch, 1), branch.amplification)
            return F.pad(grad, (0, 0, 0, 0, first, 0))[0].transpose(0, 1)

        encoder = base.encoder_of(prior.encoder, self.tiny, branch, progress)
        output = base.through_encoder(encoder, rgb, branch, 1, gradient, generator, chunk)
        return replace(output, logs=output.logs | {"t": float(t)})

    def to(self, device: torch.device | str) -> None:
        self.diffusion.to(device)
        base.move(self.tiny, device)
