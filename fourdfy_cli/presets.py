"""The numbers of each preset, with their sources.

[P] paper (CVPR 2024), [S] its arXiv supplement, [C] released code sherwinbahmani/4dfy @13abf47, [M] measured here.
"""

from __future__ import annotations

from fourdfy_cli.config import (
    Background,
    Branch,
    Cameras,
    Field,
    Grid,
    March,
    Models,
    Ramp,
    Rates,
    Recipe,
    Score,
    Shots,
    Stage,
    Vsd,
    constant,
)
from fourdfy_cli.errors import USAGE, FourdfyError


def nano() -> Recipe:
    """Minutes on a laptop CPU, on the models that ship with the package. Everything here is [M]; what differs from the
    paper and why stands beside it."""
    model = (64, 64)
    coarse, fine = (32, 32), (64, 64)
    # The reconstruction form (the released code's for Eq. 3) for the video branch too: small scales, no colour drift.
    anneal = {"form": "reconstruction", "size": model, "rescale": 0.5}
    falling = Score(3.0, 1.0, Ramp(0.98, 0.02, 0.0, 0.8), Ramp(0.98, 0.5, 0.0, 0.8), **anneal)
    settled = Score(3.0, 1.0, constant(0.02), constant(0.5), **anneal)
    image = Score(3.0, 1.0, constant(0.02), constant(0.5), size=model, view_words=(45.0, 45.0))
    # Noise from 0.95 down, not from 0.98: "side view" does not say which side. Motion amplified as the released code's VideoCrafter
    # guidance does (30 there): this video model shows a still clip only a tenth of the way it should move (CHANGELOG.md).
    video = Score(5.0, 1.0, Ramp(0.8, 0.2, 0.0, 0.9), Ramp(0.95, 0.5, 0.0, 0.9), **anneal, motion=40.0, view_words=(45.0, 45.0))
    growing = Shots(fine, coarse=coarse, fine_from=0.7)
    return Recipe(
        name="nano",
        models=Models("nano"),
        frames=8,
        multiview=Branch((growing, Shots(fine), Shots(coarse)), (falling, settled, settled)),
        image=Branch((Shots(fine),) * 3, (image,) * 3),
        video=Branch((Shots(coarse),) * 3, (video,) * 3),
        stage1=Stage(250, 1.0, 1.0, Rates(2e-2, 0.0, 5e-3, 0.0, 0.0), cooldown=Ramp(1.0, 0.2, 0.6, 1.0), opaque=Ramp(0.0, 5.0, 0.0, 1.0)),
        stage2=Stage(80, 0.5, 1.0, Rates(1e-2, 0.0, 2e-3, 0.0, 1e-3), cooldown=Ramp(1.0, 0.1, 0.5, 1.0), opaque=constant(5.0)),
        stage3=Stage(
            250, 0.15, 0.1, Rates(1e-3, 3e-2, 5e-4, 0.0, 1e-3), moving=True, reach=1, alpha=1e-5, cooldown=Ramp(1.0, 0.1, 0.6, 1.0),
            opaque=constant(1.0),
        ),
        field=Field(Grid(4, 4, 16, 8, 2.0), Grid(4, 4, 16, 4, 1.6), hidden=32),
        background=Background(random=1.0, low=0.45, high=0.75, grey=True),  # as the models were trained (nano/data.py)
        march=March(samples=96, cells=32, alpha=0.003, refresh=16, warmup=256),
        cameras=Cameras(distance=(2.6, 2.8), fovy=(40.0, 40.0), elevation=(0.0, 30.0)),
        vsd=Vsd(),
        weight_decay=0.0,
        preview_every=50,
        save_minutes=1.0,
    )  # fmt: skip


PRESETS = {"nano": nano}


def preset(name: str) -> Recipe:
    """The recipe of that name; raises FourdfyError (exit 2) for another name."""
    if name not in PRESETS:
        raise FourdfyError(f"there is no preset {name!r}", f"--preset {next(iter(PRESETS))}   ({', '.join(PRESETS)})", USAGE)
    return PRESETS[name]()
