"""Score distillation: what a diffusion model wants changed in pictures of the scene."""
