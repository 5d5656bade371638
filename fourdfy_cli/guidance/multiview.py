"""Eq. 3: four views at a time, judged by a multi-view model that sees their cameras."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.config import Branch
from fourdfy_cli.diffusion.encoders import Encoder, Pictures
from fourdfy_cli.diffusion.models import Diffusion
from fourdfy_cli.diffusion.multiview import VIEWS
from fourdfy_cli.diffusion.text import Texts
from fourdfy_cli.guidance import base, sds
from fourdfy_cli.guidance.base import GuidanceOutput
from fourdfy_cli.scene.cameras import Shot, timed_camera, unit_camera


@dataclass(frozen=True)
class MultiviewGuidance:
    """Groups of 4 adjacent views; the prompt without view words; c2w with unit translation for both halves of the guidance."""

    diffusion: Diffusion
    texts: Texts
    tiny: Encoder | None = None

    def __call__(
        self,
        rgb: Float[Tensor, "V H W 3"],
        shot: Shot,
        branch: Branch,
        progress: float,
        generator: torch.Generator,
        chunk: int | None = None,
    ) -> GuidanceOutput:
        """Draws the noise level (one for all views), the VAE's sample if it has one, then the noise."""
        t = base.noise_level(branch, progress, len(self.diffusion.schedule), generator)
        camera = timed_camera(shot.c2w, shot.time) if self.diffusion.timed else unit_camera(shot.c2w)

        def gradient(z: Tensor) -> Tensor:
            x = sds.noised(self.diffusion.schedule, z, t, generator)
            outputs = self.diffusion.predict(x.z_t, t, self.texts.plain(1), self.texts[branch.negative], camera)
            return base.latent_gradient(x, outputs, branch, len(z) // VIEWS)

        output = base.through_encoder(
            base.encoder_of(Pictures(self.diffusion.vae), self.tiny, branch, progress), rgb, branch, len(rgb), gradient, generator, chunk
        )
        return replace(output, logs=output.logs | {"t": float(t)})

    def to(self, device: torch.device | str) -> None:
        self.diffusion.to(device)
        base.move(self.tiny, device)
