"""The scene: a radiance field in space and time, how rays go through it, and what they see."""
