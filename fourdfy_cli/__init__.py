"""fourdfy: a sentence becomes a moving 3D scene, by hybrid score distillation sampling (4D-fy, CVPR 2024)."""

__version__ = "0.1.0"
