"""The numbers of each preset, with their sources.

[P] paper (CVPR 2024), [S] its arXiv supplement, [C] released code sherwinbahmani/4dfy @13abf47, [M] measured here, [O] our own choice.
Where paper and released code differ, both are written down, in SOURCES.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

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

Same = TypeVar("Same")


def thrice(same: Same) -> tuple[Same, Same, Same]:
    """The same thing for each of the three stages."""
    return same, same, same


def nano() -> Recipe:
    """Minutes on a laptop CPU, on the models that ship with the package. Everything here is [M]; what differs from the
    paper and why stands beside it."""
    model = (64, 64)
    coarse, fine = (32, 32), (64, 64)
    # The reconstruction form (the released code's for Eq. 3) for the video branch too: small scales, no colour drift.
    anneal = {"form": "reconstruction", "size": model, "rescale": 0.5}
    # Noise down to 0.3, not to 0.5, and the distance between pictures counts too: smoother surfaces, fewer false faces (CHANGELOG.md).
    falling = Score(3.0, 1.0, Ramp(0.98, 0.02, 0.0, 0.8), Ramp(0.98, 0.3, 0.0, 0.8), **anneal, pixels=5.0)
    settled = Score(3.0, 1.0, constant(0.02), constant(0.3), **anneal, pixels=5.0)
    moving = replace(settled, pixels=15.0)  # the video branch roughens surfaces, this smooths them
    image = Score(3.0, 1.0, constant(0.02), constant(0.5), size=model, view_words=(45.0, 45.0))
    # Noise from 0.95 down, not from 0.98: "side view" does not say which side. A small weight, and motion amplified as the released
    # code's VideoCrafter guidance does, so that this branch decides how the thing moves and the others what it looks like (CHANGELOG.md).
    video = Score(2.0, 0.1, Ramp(0.8, 0.2, 0.0, 0.9), Ramp(0.95, 0.5, 0.0, 0.9), **anneal, motion=30.0, view_words=(45.0, 45.0))
    growing = Shots(fine, coarse=coarse, fine_from=0.7)
    return Recipe(
        name="nano",
        models=Models("nano"),
        frames=8,
        multiview=Branch((growing, Shots(fine), Shots(coarse)), (falling, settled, moving)),
        image=Branch(thrice(Shots(fine)), thrice(image)),
        video=Branch(thrice(Shots(coarse)), thrice(video)),
        stage1=Stage(125, 1.0, 1.0, Rates(2e-2, 0.0, 5e-3, 0.0, 0.0), cooldown=Ramp(1.0, 0.2, 0.6, 1.0), opaque=Ramp(0.0, 5.0, 0.0, 1.0)),
        stage2=Stage(40, 0.5, 1.0, Rates(1e-2, 0.0, 2e-3, 0.0, 1e-3), cooldown=Ramp(1.0, 0.1, 0.5, 1.0), opaque=constant(5.0)),
        stage3=Stage(
            150, 0.5, 0.1, Rates(1e-3, 3e-2, 5e-4, 0.0, 1e-3), moving=True, dynamic_always=True, reach=1, alpha=1e-5,
            cooldown=Ramp(1.0, 0.1, 0.6, 1.0), opaque=constant(1.0),
        ),
        field=Field(Grid(4, 4, 16, 8, 2.0), Grid(4, 4, 16, 4, 1.6), hidden=32, deformation=Grid(4, 4, 16, 4, 1.6)),
        background=Background(random=1.0, low=0.45, high=0.75, grey=True),  # as the models were trained (nano/data.py)
        march=March(samples=96, cells=32, alpha=0.003, refresh=16, warmup=256),
        cameras=Cameras(distance=(2.6, 2.8), fovy=(40.0, 40.0), elevation=(0.0, 30.0)),
        vsd=Vsd(),
        weight_decay=0.0,
        preview_every=50,
        save_minutes=1.0,
    )  # fmt: skip


NEGATIVE = (
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, lowres, low quality, "
    "artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, bad proportions"
)


def paper() -> Recipe:
    """4D-fy as published: 10 000 + 10 000 + 100 000 steps. Where the paper is silent, the released code's numbers; where the two disagree,
    SOURCES says which one this follows."""
    multiview = Score(50.0, 1.0, constant(0.02), constant(0.5), "reconstruction", 0.5, (256, 256), NEGATIVE)
    falling = replace(multiview, low=Ramp(0.98, 0.02, 0.0, 0.8), high=Ramp(0.98, 0.5, 0.0, 0.8))
    image = Score(7.5, 1.0, constant(0.02), constant(0.5), size=(512, 512), view_words=(30.0, 30.0))
    video = Score(101.0, 0.1, constant(0.02), constant(0.98), size=(320, 576), view_words=(45.0, 45.0))
    fine = Shots((256, 256))
    growing = Shots((256, 256), coarse=(64, 64), coarse_groups=2, fine_from=0.5)
    still = Rates(static=1e-2, dynamic=0.0, nets=1e-3, background=1e-3, lora=0.0)
    return Recipe(
        name="paper",
        models=Models("paper"),
        frames=16,
        multiview=Branch((growing, fine, fine), (falling, multiview, multiview)),
        image=Branch(thrice(fine), thrice(image)),
        video=Branch(thrice(Shots((160, 288))), thrice(video)),
        stage1=Stage(10_000, 1.0, 1.0, still, sparsity=constant(10.0)),
        stage2=Stage(10_000, 0.5, 1.0, replace(still, lora=1e-4), sparsity=constant(10.0)),
        stage3=Stage(
            100_000, 0.5, 0.5, Rates(static=1e-4, dynamic=1e-2, nets=1e-3, background=1e-3, lora=1e-4), moving=True,
            blob=Ramp(0.5, 5.0, 0.0, 0.5), sparsity=constant(10.0), opaque=Ramp(0.0, 1000.0, 0.1, 0.10001),
        ),
    )  # fmt: skip


def official() -> Recipe:
    """The released code where it is at odds with the paper: a stage 2 of 25 000 steps that starts at 64 pixels once more, and whose last
    15 000 steps press the opacity to all or nothing. Its one habit left out: a new plain background in each frame of a clip."""
    base = paper()
    look = replace(base.multiview.shots[0], coarse_groups=1, fine_from=0.2)
    return replace(
        base,
        name="official",
        multiview=replace(base.multiview, shots=(base.multiview.shots[0], look, base.multiview.shots[2])),
        stage2=replace(base.stage2, steps=25_000, opaque=Ramp(0.0, 1000.0, 0.4, 0.40004)),
    )


def fast() -> Recipe:
    """A tenth of the paper's steps, schedules and all (they are fractions of a stage), with three changes. Motion comes from video steps
    alone: half of stage 3's steps are (a quarter in the paper), so 4 900 of them are left of 25 000. Their highest noise falls from 0.98 to
    0.5 over the stage (0.98 throughout in the paper), from where motion is made to where it settles; the authors do so with VideoCrafter.
    And all rates fall to a tenth over each stage's second half: Adam's steps do not shrink by themselves, and fewer of them average less
    noise out. Reasoned, not measured."""
    base = paper()
    scores = tuple(replace(score, high=Ramp(0.98, 0.5, 0.0, 1.0)) for score in base.video.scores)
    cooldown = Ramp(1.0, 0.1, 0.5, 1.0)
    return replace(
        base,
        name="fast",
        video=Branch(base.video.shots, (scores[0], scores[1], scores[2])),
        stage1=replace(base.stage1, steps=1_000, cooldown=cooldown),
        stage2=replace(base.stage2, steps=1_000, cooldown=cooldown),
        stage3=replace(base.stage3, steps=10_000, p_3d=0.3, p_image=0.3, cooldown=cooldown),
        preview_every=250,
    )


PRESETS = {"nano": nano, "paper": paper, "official": official, "fast": fast}


def preset(name: str) -> Recipe:
    """The recipe of that name; raises FourdfyError (exit 2) for another name."""
    if name not in PRESETS:
        raise FourdfyError(f"there is no preset {name!r}", f"--preset {next(iter(PRESETS))}   ({', '.join(PRESETS)})", USAGE)
    return PRESETS[name]()


def tiny(recipe: Recipe) -> Recipe:
    """The same run at a size that a laptop's CPU steps through in a second: pictures of a quarter of the width, a few thousand entries in
    the hash grids. For checks and for the tiny random models; steps and schedules stay."""

    def small(shots: Shots) -> Shots:
        coarse = shots.coarse and (shots.coarse[0] // 4, shots.coarse[1] // 4)
        return replace(shots, size=(shots.size[0] // 4, shots.size[1] // 4), coarse=coarse)

    def branch(old: Branch) -> Branch:
        s = [small(shots) for shots in old.shots]
        c = [replace(score, size=(max(score.size[0] // 4, 64), max(score.size[1] // 4, 64))) for score in old.scores]
        return Branch((s[0], s[1], s[2]), (c[0], c[1], c[2]))

    grid = Grid(levels=4, log2_table=12, base=8, growth=1.6)
    return replace(
        recipe,
        multiview=branch(recipe.multiview),
        image=branch(recipe.image),
        video=branch(recipe.video),
        field=replace(recipe.field, static=grid, dynamic=grid, deformation=grid),
        march=replace(recipe.march, samples=64, cells=16),
    )


def smoke(recipe: Recipe) -> Recipe:
    """Two steps of each stage, on the branch that the stage adds: does everything load and step?"""
    return replace(
        recipe,
        stage1=replace(recipe.stage1, steps=2, p_3d=1.0),
        stage2=replace(recipe.stage2, steps=2, p_3d=0.0, p_image=1.0),
        stage3=replace(recipe.stage3, steps=2, p_3d=0.0, p_image=0.0),
    )


# Pattern of dotted keys -> source; the first that fits holds. What a preset changes of `paper` comes before what it leaves alone.
PAPER = {
    "name": "the preset",
    "models.set": "[P] MVDream, Stable Diffusion 2.1, Zeroscope v2 576w",
    "models.*": "the set's own",
    "frames": "[P] [C]",
    "multiview.shots.0.*": "[C] 8 views of 64 px for 5 000 steps, then 4 of 256 px",
    "multiview.shots.1.*": "[P] 256 px throughout; [C] 64 px for its first 5 000 steps",
    "multiview.shots.2.*": "[C]",
    "multiview.scores.0.low.*": "[C] 0.98 to 0.02 over 8 000 steps; [S] 0.02 throughout",
    "multiview.scores.0.high.*": "[C] 0.98 to 0.5 over 8 000 steps; [S] over 5 000",
    "multiview.scores.?.form": "[C] distance to the guided clean latents; [P] writes SDS in Eq. 3",
    "multiview.scores.?.motion": "means nothing here",
    "*.scores.?.pixels": "[P] [C] none",
    "multiview.scores.?.view_words": "[C] none: the model sees its cameras",
    "multiview.scores.*": "[C]",
    "image.shots.*": "[C]",
    "image.scores.?.low.*": "[P] [C]",
    "image.scores.?.high.*": "[P]; [C] sets 0.98 for 5 000 steps of stage 2, but its hand-over between stages undoes that",
    "image.scores.?.form": "[P] Eq. 4, whatever this says",
    "image.scores.?.rescale": "means nothing here",
    "image.scores.?.motion": "means nothing here",
    "image.scores.*": "[C]",
    "video.shots.*": "[P] [C]",
    "video.scores.?.scale": "[C] 100 in eps_c + s (eps_c - eps_u), 101 in eps_u + s (eps_c - eps_u)",
    "video.scores.?.weight": "[C] a factor of the loss; [S] calls it a learning rate",
    "video.scores.?.form": "[P] Eq. 6, [C]",
    "video.scores.?.rescale": "means nothing here",
    "video.scores.?.motion": "[C] amplified with VideoCrafter only",
    "video.scores.*": "[C]",
    "stage1.steps": "[P] [C]",
    "stage2.steps": "[P]; [C] 25 000",
    "stage3.steps": "[P] [C]",
    "stage1.p_image": "means nothing here",
    "stage?.p_*": "[P] Algorithm 1, [C]",
    "stage?.rates.static": "[P] [C]",
    "stage3.rates.dynamic": "[P] [C]",
    "stage?.rates.nets": "[P] [C]",
    "stage?.rates.*": "[C]",
    "stage?.moving": "[P] Algorithm 1, [C]",
    "stage?.dynamic_always": "[P] Algorithm 1, [C]",
    "stage?.cooldown.*": "[C] constant rates",
    "stage?.reach": "[C] none",
    "stage?.alpha": "[C] as march.alpha",
    "stage3.blob.*": "[C] 0.5 to 5 over 50 000 steps; not in [P]",
    "stage?.blob.*": "[C]; not in [P]",
    "stage?.sparsity.*": "[C]; not in [P]",
    "stage1.opaque.*": "[C] none up to step 10 000; not in [P]",
    "stage2.opaque.*": "[C] none up to step 10 000; not in [P]",
    "stage3.opaque.*": "[C] 0, then 1000 after step 10 000; not in [P]",
    "stage?.smooth.*": "[C] of its deformation variant alone",
    "field.*": "[C]",
    "background.hidden": "[C]; [P] has a background network too",
    "background.*": "[C]",
    "march.samples": "[P] [C]",
    "march.*": "[C], nerfacc's occupancy grid",
    "cameras.*": "[C]",
    "vsd.share_base": "[C] a second model, Stable Diffusion 2.1",
    "vsd.*": "[C]",
    "weight_decay": "[C] AdamW's default; not in [P]",
    "preview_every": "[C]",
    "save_minutes": "[O]",
}
OFFICIAL = {
    "multiview.shots.1.coarse*": "[C] 64 px for 5 000 steps; [P] 256 px throughout",
    "multiview.shots.1.fine_from": "[C] 64 px for 5 000 steps; [P] 256 px throughout",
    "stage2.steps": "[C]; [P] 10 000",
    "stage2.opaque.*": "[C] 0, then 1000 after step 10 000; not in [P]",
}
FAST = {
    "video.scores.?.high.*": "[O] falls, so that a short run settles; [P] 0.98 throughout",
    "stage?.steps": "[O] a tenth of [P]",
    "stage3.p_*": "[O] half of the steps are video steps; [P] a quarter",
    "stage?.cooldown.*": "[O] fewer steps average less noise out; [C] constant rates",
    "preview_every": "[O]",
}
SOURCES = {"nano": ({"*": "[M] on the nano models"},), "paper": (PAPER,), "official": (OFFICIAL, PAPER), "fast": (FAST, PAPER)}


def source(name: str, key: str) -> str:
    """Where the number under a dotted key of the preset `name` comes from; "unknown" for a recipe that is no preset."""
    tables = SOURCES.get(name, ())
    return next((text for table in tables for pattern, text in table.items() if fnmatchcase(key, pattern)), "unknown")
