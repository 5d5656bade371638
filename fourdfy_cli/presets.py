"""The numbers of each preset, with their sources.

[P] paper (CVPR 2024), [S] its arXiv supplement, [C] released code sherwinbahmani/4dfy @13abf47, [M] measured here, [O] our own choice.
Where paper and released code differ, both are written down, in SOURCES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

from fourdfy_cli.config import Background, Branch, Cameras, Field, Grid, LearningRates, March, Models, Recipe, Stage, Vsd
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.schedule import Ramp, constant


def nano() -> Recipe:
    """Minutes on a laptop CPU, on the models that ship with the package. Everything here is [M]; what differs from the
    paper and why stands beside it, and in nano/README.md."""
    coarse, fine = (32, 32), (64, 64)
    # The reconstruction form (the released code's for Eq. 3) for the video branch too: small scales, no colour drift.
    anneal = {"form": "reconstruction", "model_size": (64, 64), "rescale": 0.5}
    # The distance between pictures counts too: smoother surfaces, fewer false faces. Noise up to 0.6: eyes and noses (nano/README.md).
    base = Branch(fine, 3.0, 1.0, constant(0.02), constant(0.6), **anneal, pixel_weight=5.0)
    falling = replace(
        base, low=Ramp(0.98, 0.02, 0.0, 0.8), high=Ramp(0.98, 0.3, 0.0, 0.8), coarse=coarse, fine_from=0.7,
    )  # fmt: skip
    # The video branch roughens surfaces, this smooths them; told the moment, it also moves what lags. Below 0.3 smudges would do for eyes.
    moving = replace(base, size=coarse, scale=2.0, low=constant(0.3), high=Ramp(0.7, 0.58, 0.65, 0.75), pixel_weight=15.0)
    image = Branch(fine, 3.0, 1.0, constant(0.02), constant(0.5), model_size=(64, 64), view_words="sectors")
    # From high noise, where motion is made, to low, where it settles. It smears eyes: the second half is the multi-view model's.
    video = Branch(coarse, 2.0, 1.0, Ramp(0.8, 0.2, 0.0, 0.9), Ramp(0.95, 0.5, 0.0, 0.9), **anneal, view_words="sectors")
    return Recipe(
        name="nano",
        models=Models("nano"),
        frames=8,
        stage1=Stage(
            125, 1.0, 1.0, LearningRates(2e-2, 0.0, 5e-3, 0.0, 0.0), falling, image, video,
            lr_decay=Ramp(1.0, 0.2, 0.6, 1.0), opaque=Ramp(0.0, 5.0, 0.0, 1.0),
        ),
        stage2=Stage(
            60, 0.8, 1.0, LearningRates(6e-2, 0.0, 1e-2, 0.0, 1e-2), base, image, video,  # the image model knows less (nano/README.md)
            lr_decay=Ramp(1.0, 0.1, 0.5, 1.0), opaque=constant(5.0),
        ),
        stage3=Stage(
            450, 0.67, 0.1, LearningRates(2e-2, 2.2e-2, 2e-3, 0.0, 1e-2), moving, image, video,
            moving=True, dynamic_always=True, sobol=True, l1_time=0.06, dilation=1, alpha_thre=1e-5, lr_decay=Ramp(1.0, 0.1, 0.7, 1.0),
            odds_3d=Ramp(1.0, 20.0, 0.3, 0.5), opaque=Ramp(0.0, 2000.0, 0.5, 0.9),  # mean of a shot: below some hundreds nothing
        ),
        field=Field(Grid(4, 4, 16, 8, 2.0), Grid(4, 4, 16, 8, 1.6), hidden=32, density_power=2.0, deformation=Grid(4, 4, 16, 4, 1.6)),
        background=Background(random=1.0, low=0.45, high=0.75, grey=True),  # as the models were trained (nano/data.py)
        march=March(samples=96, resolution=32, alpha_thre=0.003, update_every=16, warmup_steps=256),
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
    multiview = Branch(
        (256, 256), 50.0, 1.0, constant(0.02), constant(0.5), (256, 256), form="reconstruction", rescale=0.5, negative=NEGATIVE,
    )  # fmt: skip
    growing = replace(
        multiview, low=Ramp(0.98, 0.02, 0.0, 0.8), high=Ramp(0.98, 0.5, 0.0, 0.8), coarse=(64, 64), coarse_groups=2, fine_from=0.5,
    )  # fmt: skip
    image = Branch((256, 256), 7.5, 1.0, constant(0.02), constant(0.5), (512, 512), view_words=(30.0, 30.0))
    video = Branch((160, 288), 101.0, 0.1, constant(0.02), constant(0.98), (320, 576), view_words=(45.0, 45.0))
    static = LearningRates(static=1e-2, dynamic=0.0, nets=1e-3, background=1e-3, lora=0.0)
    moving = LearningRates(static=1e-4, dynamic=1e-2, nets=1e-3, background=1e-3, lora=1e-4)
    return Recipe(
        name="paper",
        models=Models("paper"),
        frames=16,
        stage1=Stage(10_000, 1.0, 1.0, static, growing, image, video, sparsity=constant(10.0)),
        stage2=Stage(10_000, 0.5, 1.0, replace(static, lora=1e-4), multiview, image, video, sparsity=constant(10.0)),
        stage3=Stage(
            100_000, 0.5, 0.5, moving, multiview, image, video, moving=True,
            blob=Ramp(0.5, 5.0, 0.0, 0.5), sparsity=constant(10.0), opaque=Ramp(0.0, 1000.0, 0.1, 0.10001),
        ),
    )  # fmt: skip


def official() -> Recipe:
    """The released code where it is at odds with the paper: a stage 2 of 25 000 steps that starts at 64 pixels once more, and whose last
    15 000 steps press the opacity to all or nothing. guidance/README.md lists what is left out."""
    base = paper()
    growing = replace(base.stage2.multiview, coarse=(64, 64), fine_from=0.2)
    opaque = Ramp(0.0, 1000.0, 0.4, 0.40004)
    stage2 = replace(base.stage2, steps=25_000, multiview=growing, opaque=opaque)
    return replace(base, name="official", stage2=stage2, cameras=replace(base.cameras, flat_area=True))


def fast() -> Recipe:
    """A tenth of the paper's steps, schedules and all (they are fractions of a stage), with three changes. Motion comes from video steps
    alone: half of stage 3's steps are (a quarter in the paper), so 4 900 of them are left of 25 000. Their highest noise falls from 0.98 to
    0.5 over the stage (0.98 throughout in the paper), from where motion is made to where it settles; the authors do so with VideoCrafter.
    And all learning rates fall to a tenth over each stage's second half: Adam's steps do not shrink by themselves, and fewer of them
    average less noise out. Reasoned, not measured."""
    base, decay = paper(), Ramp(1.0, 0.1, 0.5, 1.0)
    video = replace(base.stage3.video, high=Ramp(0.98, 0.5, 0.0, 1.0))
    return replace(
        base,
        name="fast",
        stage1=replace(base.stage1, steps=1_000, video=video, lr_decay=decay),
        stage2=replace(base.stage2, steps=1_000, video=video, lr_decay=decay),
        stage3=replace(base.stage3, steps=10_000, p_3d=0.3, p_image=0.3, video=video, lr_decay=decay),
        preview_every=250,
    )


def with_wan(recipe: Recipe) -> Recipe:
    """The recipe with Wan 2.1 1.3B (Apache-2.0) as its video model: 17 frames, noise from high down to low, words against stillness."""
    change = {"scale": 25.0, "levels": "annealed", "negative": "low motion, static statue, not moving, no motion"}
    stages = {f"stage{n}": replace(recipe.stage(n), video=replace(recipe.stage(n).video, **change)) for n in (1, 2, 3)}
    return replace(recipe, models=replace(recipe.models, video="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"), frames=17, **stages)


def wan() -> Recipe:
    """`paper` with a video model that may be used for profit. Not measured on a GPU."""
    return replace(with_wan(paper()), name="wan")


def hour() -> Recipe:
    """Full quality in about an hour on a card of 24 GB, as guidance/README.md reckons: a twelfth of the steps, noise that falls with them
    in every branch, small encoders (TAESD) until the last fifth, and rates that fall too. Not measured on a GPU."""
    base, decay = paper(), Ramp(1.0, 0.1, 0.5, 1.0)
    small = each_branch(base, lambda branch: replace(branch, levels="annealed", encoder="tiny", own_from=0.8, low=constant(0.02)))
    bold = {"low": constant(0.25), "high": constant(0.98)}
    return replace(
        small, name="hour", preview_every=250,
        stage1=replace(small.stage1, steps=3_000, multiview=replace(small.stage1.multiview, **bold), lr_decay=decay),
        stage2=replace(small.stage2, steps=1_000, lr_decay=decay),
        stage3=replace(small.stage3, steps=6_000, p_3d=0.4, p_image=1 / 3, video=replace(small.stage3.video, **bold), lr_decay=decay),
    )  # fmt: skip


PRESETS = {"nano": nano, "paper": paper, "official": official, "fast": fast, "wan": wan, "hour": hour}


def preset(name: str) -> Recipe:
    """The recipe of that name; raises FourdfyError (exit 2) for another name."""
    if name not in PRESETS:
        raise FourdfyError(f"there is no preset {name!r}", f"one of {', '.join(PRESETS)}: --preset {next(iter(PRESETS))}", USAGE)
    return PRESETS[name]()


def each_branch(recipe: Recipe, change: Callable[[Branch], Branch]) -> Recipe:
    """The recipe with every branch of every stage changed in the same way."""

    def stage(old: Stage) -> Stage:
        return replace(old, multiview=change(old.multiview), image=change(old.image), video=change(old.video))

    return replace(recipe, stage1=stage(recipe.stage1), stage2=stage(recipe.stage2), stage3=stage(recipe.stage3))


def tiny(recipe: Recipe) -> Recipe:
    """The same run at a size that a laptop's CPU steps through in a second: pictures of a quarter of the width, a few thousand entries in
    the hash grids. For checks and for the tiny random models; steps and schedules stay."""

    def quarter(size: tuple[int, int], least: int = 1) -> tuple[int, int]:
        return max(size[0] // 4, least), max(size[1] // 4, least)

    def branch(old: Branch) -> Branch:
        coarse = old.coarse and quarter(old.coarse)
        return replace(old, size=quarter(old.size), coarse=coarse, model_size=quarter(old.model_size, 64))

    grid = Grid(levels=4, log2_table=12, base=8, growth=1.6)
    return replace(
        each_branch(recipe, branch),
        field=replace(recipe.field, static=grid, dynamic=grid, deformation=grid),
        march=replace(recipe.march, samples=64, resolution=16),
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
    "stage?.*.levels": "[P] [C] drawn",
    "stage?.*.[oe][wn][nc]*": "[P] [C] the model's own encoder",
    "stage?.*.clean_first": "[P] [C] no",
    "frames": "[P] [C]",
    "stage[13].steps": "[P] [C]",
    "stage2.steps": "[P]; [C] 25 000",
    "stage1.p_image": "means nothing here",
    "stage?.p_*": "[P] Algorithm 1, [C]",
    "stage?.lr.[sn]*": "[P] [C]",
    "stage3.lr.dynamic": "[P] [C]",
    "stage?.lr.*": "[C]",
    "stage1.multiview.low.*": "[C] 0.98 to 0.02 over 8 000 steps; [S] 0.02 throughout",
    "stage1.multiview.high.*": "[C] 0.98 to 0.5 over 8 000 steps; [S] over 5 000",
    "stage?.multiview.form": "[C] distance to the guided clean latents; [P] writes SDS in Eq. 3",
    "stage?.multiview.amplification": "means nothing here",
    "stage?.*.pixel_weight": "[P] [C] none",
    "stage?.multiview.view_words": "[C] none: the model sees its cameras",
    "stage1.multiview.size.*": "[C] 8 views of 64 px for 5 000 steps, then 4 of 256 px",
    "stage1.multiview.coarse*": "[C] 8 views of 64 px for 5 000 steps, then 4 of 256 px",
    "stage1.multiview.fine_from": "[C] 8 views of 64 px for 5 000 steps, then 4 of 256 px",
    "stage2.multiview.size.*": "[P] 256 px throughout; [C] 64 px for its first 5 000 steps",
    "stage2.multiview.coarse*": "[P] 256 px throughout; [C] 64 px for its first 5 000 steps",
    "stage2.multiview.fine_from": "[P] 256 px throughout; [C] 64 px for its first 5 000 steps",
    "stage?.multiview.*": "[C]",
    "stage?.image.low.*": "[P] [C]",
    "stage?.image.high.*": "[P]; [C] sets 0.98 for 5 000 steps of stage 2, but its hand-over between stages undoes that",
    "stage?.image.form": "[P] Eq. 4, whatever this says",
    "stage?.image.[ar]*": "means nothing here",
    "stage?.image.*": "[C]",
    "stage?.video.size.*": "[P] [C]",
    "stage?.video.scale": "[C] 100 in eps_c + s (eps_c - eps_u), 101 in eps_u + s (eps_c - eps_u)",
    "stage?.video.weight": "[C] a factor of the loss; [S] calls it a learning rate",
    "stage?.video.form": "[P] Eq. 6, [C]",
    "stage?.video.rescale": "means nothing here",
    "stage?.video.amplification": "[C] amplified with VideoCrafter only",
    "stage?.video.*": "[C]",
    "stage?.moving": "[P] Algorithm 1, [C]",
    "stage?.dynamic_always": "[P] Algorithm 1, [C]",
    "stage?.lr_decay.*": "[C] constant rates",
    "stage?.[dls][i1o]*": "[C] none",  # dilation, l1_time, sobol
    "stage?.alpha_thre": "[C] as march.alpha_thre",
    "stage3.blob.*": "[C] 0.5 to 5 over 50 000 steps; not in [P]",
    "stage?.[bs][lp]*": "[C]; not in [P]",
    "stage[12].opaque.*": "[C] none up to step 10 000; not in [P]",
    "stage3.opaque.*": "[C] 0, then 1000 after step 10 000; not in [P]",
    "stage?.smooth.*": "[C] of its deformation variant alone",
    "stage?.odds_3d.*": "[P] Algorithm 1, [C]: p_3d throughout",
    "field.*": "[C]",
    "background.hidden": "[C]; [P] has a background network too",
    "background.*": "[C]",
    "march.samples": "[P] [C]",
    "march.*": "[C], nerfacc's occupancy grid",
    "cameras.flat_area": "[O] uniform in area up to 30 degrees, as later threestudio; [C] up to 19.47",
    "cameras.*": "[C]",
    "vsd.share_base": "[C] a second model, Stable Diffusion 2.1",
    "vsd.*": "[C]",
    "weight_decay": "[C] AdamW's default; not in [P]",
    "preview_every": "[C]",
    "save_minutes": "[O]",
}
OFFICIAL = {
    "cameras.flat_area": "[C] half of the elevations are uniform in area, up to asin(1/3) = 19.47 degrees",
    "stage2.multiview.coarse*": "[C] 64 px for 5 000 steps; [P] 256 px throughout",
    "stage2.multiview.fine_from": "[C] 64 px for 5 000 steps; [P] 256 px throughout",
    "stage2.steps": "[C]; [P] 10 000",
    "stage2.opaque.*": "[C] 0, then 1000 after step 10 000; not in [P]",
}
FAST = {
    "stage?.video.high.*": "[O] falls, so that a short run settles; [P] 0.98 throughout",
    "stage?.steps": "[O] a tenth of [P]",
    "stage3.p_*": "[O] half of the steps are video steps; [P] a quarter",
    "stage?.lr_decay.*": "[O] fewer steps average less noise out; [C] constant rates",
    "preview_every": "[O]",
}
WAN = {
    "models.video": "[O] Apache-2.0, of Zeroscope's size; 1.42 B parameters",
    "frames": "[O] 4k + 1, as its autoencoder takes them; [P] 16",
    "stage?.video.scale": "[O] CHORD (arXiv 2601.04194) begins at 25 with Wan",
    "stage?.video.levels": "[O] from high to low, as CHORD; [P] [C] drawn",
    "stage?.video.negative": "[O] TC4D's (arXiv 2403.17920) words against stillness",
    "stage?.video.form": "[O] Eq. 6 for flow, guidance/README.md",
}
HOUR = {
    "stage?.*.levels": "[O] falling noise settles in fewer steps (DreamTime); [P] [C] drawn",
    "stage?.*.encoder": "[O] TAESD, an eighth of the arithmetic",
    "stage?.*.own_from": "[O] the last fifth by the true encoder",
    "stage?.*.[lh]*": "[O] where the noise begins and ends; SDI (NeurIPS 2024) ends at 0.25",
    "stage?.steps": "[O] 3,000 + 1,000 + 6,000",
    "stage3.p_*": "[O] two fifths of the steps are video steps; [P] a quarter",
}
SOURCES = {
    "nano": ({"*": "[M] on the nano models"},), "paper": (PAPER,), "official": (OFFICIAL, PAPER), "fast": (FAST, PAPER),
    "wan": (WAN, PAPER), "hour": (HOUR, FAST, PAPER),
}  # fmt: skip


def source(name: str, key: str) -> str:
    """Where the number under a dotted key of the preset `name` comes from; "unknown" for a recipe that is no preset."""
    tables = SOURCES.get(name, ())
    return next((text for table in tables for pattern, text in table.items() if fnmatchcase(key, pattern)), "unknown")
