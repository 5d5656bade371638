"""Eq. 4: single pictures; an image model against a LoRA network that learns (Eq. 5) what renderings look like.

Two networks see the same noised picture: the image model under the view-dependent prompt with classifier-free guidance, and the LoRA
network under the plain prompt and the raw camera, unguided. The LoRA network's training loss is back-propagated into its `.grad` in the
same call; stepping an optimizer is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli.config import Branch
from fourdfy_cli.diffusion.encoders import Encoder, Pictures
from fourdfy_cli.diffusion.models import Diffusion
from fourdfy_cli.diffusion.noise import guided
from fourdfy_cli.diffusion.text import Texts
from fourdfy_cli.guidance import base, sds
from fourdfy_cli.guidance.base import GuidanceOutput
from fourdfy_cli.scene.cameras import Shot


@dataclass(frozen=True)
class VariationalGuidance:
    """`lora` is a network with LoRA and camera embedding (diffusion/lora.py); `drop_camera` the chance of training it without a camera."""

    diffusion: Diffusion
    lora: Diffusion
    texts: Texts
    drop_camera: float
    tiny: Encoder | None = None

    @property
    def lora_unet(self) -> torch.nn.Module:
        """The network whose trainable parameters (diffusion/lora.py) this guidance gives gradients."""
        return self.lora.unet

    def __call__(
        self,
        rgb: Float[Tensor, "V H W 3"],
        shot: Shot,
        branch: Branch,
        progress: float,
        generator: torch.Generator,
        chunk: int | None = None,
    ) -> GuidanceOutput:
        """Draws the noise level, the VAE's sample if it has one, the noise; then level, noise and camera drop of the LoRA's training.
        Adds Eq. 5's gradient to the `.grad` of the LoRA network's trained parameters."""
        schedule, logs = self.diffusion.schedule, {}
        t = base.noise_level(branch, progress, len(schedule), generator)
        camera = shot.c2w.flatten(1)
        prompt = self.texts.facing(shot.azimuth(), branch.view_words)

        def gradient(z: Tensor) -> Tensor:
            x = sds.noised(schedule, z, t, generator)
            outputs = self.diffusion.predict(x.z_t, t, prompt, self.texts[branch.negative])
            with torch.no_grad():
                output = self.lora.output(x.z_t, t, self.texts.plain(len(z)), camera)
            eps_pretrained = schedule.eps(guided(*outputs, branch.scale), x.z_t, t)
            logs["lora_loss"] = self.learn(z, camera, generator)
            return sds.variational_gradient(x, eps_pretrained, self.lora.schedule.eps(output, x.z_t, t))

        output = base.through_encoder(
            base.encoder_of(Pictures(self.diffusion.vae), self.tiny, branch, progress), rgb, branch, len(rgb), gradient, generator, chunk
        )
        return replace(output, logs=output.logs | logs | {"t": float(t)})

    def to(self, device: torch.device | str) -> None:
        self.diffusion.to(device)
        self.lora.to(device)
        base.move(self.tiny, device)

    @torch.enable_grad()
    def learn(self, z: Float[Tensor, "V C h w"], camera: Float[Tensor, "V 16"], generator: torch.Generator) -> float:
        """Eq. 5 at any noise level 0..T-1, the camera zeroed with chance `drop_camera`; adds to the LoRA network's gradients."""
        T = len(self.lora.schedule)
        x = sds.noised(self.lora.schedule, z, sds.timestep(0.0, 1.0, T, generator), generator)
        keep = torch.rand(len(z), 1, generator=generator, device=generator.device) >= self.drop_camera
        output = self.lora.output(x.z_t, x.t, self.texts.plain(len(z)), camera * keep.to(camera))
        loss = sds.lora_loss(x, output)
        loss.backward()
        return loss.item()
