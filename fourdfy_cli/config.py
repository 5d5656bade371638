"""The recipe of a run: frozen dataclasses, overrides by dotted key, to and from plain dictionaries.

Units: degrees, world units (the scene box is [-1,1]^3), fractions of a stage's steps for every schedule, of the T diffusion steps for
every noise level, pixels as (height, width). Sources: presets.py. Numbers have bounds: no file may ask for more than a machine may have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import statistics
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.schedule import Ramp

Pixels = Width = Annotated[int, 1, 4096]
Every = Annotated[int, 1, 10**9]
Chance = Annotated[float, 0, 1]
UNIONS = (type(int | str), typing.Union)
_hints = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))


@dataclass(frozen=True)
class Grid:
    """A multiresolution hash grid, tiny-cuda-nn's parameters; the defaults are 4D-fy's."""

    levels: Annotated[int, 1, 32] = 16
    features: Annotated[int, 1, 32] = 2
    log2_table: Annotated[int, 1, 24] = 19
    base: Annotated[int, 1, 1024] = 16
    growth: Annotated[float, 1, 8] = 1.447269237440378


@dataclass(frozen=True)
class Field:
    """Static 3D grid + dynamic 4D grid, added, or the other kinds of scene/field.py; a density and a colour net of one hidden layer."""

    static: Grid = Grid()
    dynamic: Grid = Grid()
    hidden: Width = 64
    blob_height: float = 10.0  # density bias at the origin
    density_power: Annotated[float, 1, 4] = 1.0  # density = softplus(net + bias) to this power; above 1 surfaces are sharper
    init: float = 1e-4  # grid entries start in U(-init, init)
    kind: Literal["hashgrid", "hexplane", "deformation"] = "hashgrid"
    deformation: Grid = Grid(levels=8, base=4)  # of a deformation's displacement


@dataclass(frozen=True)
class Background:
    """Spherical-harmonics network; in training, with chance `random`, one plain colour a clip in [low, high] instead, grey if `grey`."""

    hidden: Width = 16
    random: Chance = 0.5
    low: Chance = 0.0
    high: Chance = 1.0
    grey: bool = False


@dataclass(frozen=True)
class March:
    """Ray marching and pruning, by nerfacc's names: `samples` steps across the box's diagonal, occupancy grid of `resolution`^3 cells."""

    samples: Annotated[int, 1, 8192] = 512
    resolution: Annotated[int, 1, 256] = 32
    alpha_thre: float = 0.01  # a sample fainter than this is dropped
    early_stop_eps: float = 1e-4  # and one behind less transmittance than this
    update_every: Every = 16  # steps between occupancy updates
    warmup_steps: int = 256  # steps during which every cell is updated


@dataclass(frozen=True)
class Cameras:
    """Training cameras: uniform ranges, degrees and world units."""

    distance: tuple[Annotated[float, 0.01, 1000], Annotated[float, 0.01, 1000]] = (2.5, 3.0)
    fovy: tuple[Annotated[float, 1, 179], Annotated[float, 1, 179]] = (15.0, 60.0)
    elevation: tuple[Annotated[float, -90, 90], Annotated[float, -90, 90]] = (0.0, 30.0)
    flat_area: bool = False  # the half of the elevations that is uniform in area ends at asin(elevation / 90 degrees)


@dataclass(frozen=True)
class Branch:
    """One branch of Algorithm 1 in one stage: it renders `groups` of views (4 in the multi-view branch, else 1) at `size`, or
    `coarse_groups` at `coarse` before progress `fine_from`. Its guidance has a classifier-free `scale` and a loss `weight`."""

    size: tuple[Pixels, Pixels]
    scale: float
    weight: float
    low: Ramp  # lowest and highest noise level
    high: Ramp
    model_size: tuple[Pixels, Pixels] = (256, 256)  # of the pictures that the diffusion model sees
    groups: Annotated[int, 1, 64] = 1
    coarse: tuple[Pixels, Pixels] | None = None
    coarse_groups: Annotated[int, 1, 64] = 1
    fine_from: float = 0.0
    form: Literal["sds", "reconstruction"] = "sds"
    rescale: Chance = 0.5  # of the guided x0, reconstruction form only
    negative: str = ""
    amplification: float = 1.0  # how much more than its mean over frames the video gradient's deviation from it counts
    pixel_weight: float = 0.0  # of the distance between pictures, beside that between latents (guidance/base.py)
    view_words: tuple[float, float] | Literal["sectors"] | None = None  # thresholds (front, back) in degrees, or eight sectors
    levels: Literal["drawn", "annealed"] = "drawn"  # the noise level: anywhere from low to high, or from high down to low with progress
    encoder: Literal["own", "tiny"] = "own"  # the model's autoencoder, or a small one up to progress own_from
    own_from: float = 1.0
    still: Ramp = Ramp(0.0, 0.0)  # how likely views that share a moment (multi-view, image) are of the first one, at time 0
    clean_first: bool = False  # the video model is shown the clip's first frame, at time 0, without noise


@dataclass(frozen=True)
class LearningRates:
    """AdamW's, part by part; 0 freezes."""

    static: float
    dynamic: float
    nets: float
    background: float
    lora: float


@dataclass(frozen=True)
class Stage:
    """One stage of Algorithm 1: its branches and how often each is drawn, and how fast what learns."""

    steps: Annotated[int, 0, 10**9]
    p_3d: Chance
    p_image: Chance
    lr: LearningRates
    multiview: Branch
    image: Branch
    video: Branch
    moving: bool = False  # static stages look at t = 0
    dynamic_always: bool = False  # train the dynamic grid on every branch, not on video steps alone
    lr_decay: Ramp = Ramp(1.0, 1.0)  # factor on all learning rates
    dilation: Annotated[int, 0, 64] = 0  # cells around the occupied ones that count as occupied too, so that matter can move there
    alpha_thre: float | None = None  # pruning of faint samples in this stage; None: march.alpha_thre
    blob: Ramp = Ramp(0.5, 0.5)  # standard deviation of the density blob
    sparsity: Ramp = Ramp(0.0, 0.0)
    opaque: Ramp = Ramp(0.0, 0.0)
    smooth: Ramp = Ramp(0.0, 0.0)  # of a deformation's displacement
    odds_3d: Ramp = Ramp(1.0, 1.0)  # factor on the odds of p_3d, so that 0 stays never and 1 always
    sobol: bool = False  # cameras and moments are a scrambled Sobol sequence's: as random one by one, together evenly spread
    l1_time: Chance = 0.0  # how much of its learning rate draws each dynamic feature back to 0 at a step (losses.py)

    def chance_3d(self, progress: float) -> float:
        """How likely the 3D branch is at a moment of the stage: p_3d, its odds times `odds_3d`."""
        factor = self.odds_3d.at(progress)
        return factor * self.p_3d / (1 + (factor - 1) * self.p_3d) if self.p_3d < 1 else 1.0

    def chances(self) -> dict[str, float]:
        """How often each branch is drawn, the mean over the stage, without those that never are."""
        p_3d = statistics.fmean(self.chance_3d((k + 0.5) / 100) for k in range(100))
        every = (("multiview", p_3d), ("image", (1 - p_3d) * self.p_image), ("video", (1 - p_3d) * (1 - self.p_image)))
        return {branch: chance for branch, chance in every if chance > 1e-9}


@dataclass(frozen=True)
class Vsd:
    """The LoRA network of Eq. 4 and 5: on models.lora, or with `share_base` on the image model itself."""

    rank: Annotated[int, 1, 1024] = 4
    drop_camera: Chance = 0.1
    share_base: bool = False


@dataclass(frozen=True)
class Models:
    """A set ("paper", "nano", or "random" of `size` "full" or "tiny"); a folder or Hub id[@revision] stands in for a role's own."""

    set: Literal["paper", "nano", "random"] = "paper"
    multiview: str = ""
    image: str = ""
    lora: str = ""
    video: str = ""
    clip: str = ""
    size: Literal["full", "tiny"] = "full"
    tiny: str = ""  # small encoders, of Stable Diffusion's latents and of a video model's
    tiny_video: str = ""
    embeddings: str = ""  # a folder of texts that are encoded already (diffusion/textcache.py), for the video model


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run besides the prompt and the seed."""

    name: str
    models: Models
    frames: Annotated[int, 1, 512]
    stage1: Stage
    stage2: Stage
    stage3: Stage
    field: Field = Field()
    background: Background = Background()
    march: March = March()
    cameras: Cameras = Cameras()
    vsd: Vsd = Vsd()
    weight_decay: float = 0.01
    preview_every: Every = 1000
    save_minutes: float = 5.0

    def stage(self, number: int) -> Stage:
        return (self.stage1, self.stage2, self.stage3)[number - 1]


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain nested builtins, for run.json and checkpoints; pairs are lists."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def from_dict(values: dict[str, Any]) -> Recipe:
    """Inverse of `to_dict`. Raises FourdfyError for unknown or mistyped keys, and for missing ones that have no default."""
    return _build(Recipe, values, "")


def override(recipe: Recipe, assignment: str, today: Callable[[str], str] = str) -> Recipe:
    """A recipe with one setting changed: "stage3.steps=500", "stage3.video.size=32,32", "stage3.video.view_words=none". Raises FourdfyError
    (exit 2) for a value of the wrong type or an unknown key, naming the nearest right one to `today(key)`, an older key's name of now."""
    key, equals, text = assignment.partition("=")
    keys = leaves(values := typing.cast(Any, to_dict(recipe)))
    if not equals:
        raise FourdfyError(f"--set wants key=value, not {assignment!r}", "--set stage3.steps=500", USAGE)
    if key not in keys and f"{key}.1" not in keys:
        near = difflib.get_close_matches(today(key), keys, 1, cutoff=0.3)
        raise FourdfyError(f"there is no setting {key!r}", f"--set {near[0]}={keys[near[0]]}" if near else "fourdfy generate --help", USAGE)
    *path, last = [int(k) if k.isdigit() else k for k in key.split(".")]
    at: Any = functools.reduce(lambda inside, name: inside[name], path, values)
    kind: Any = functools.reduce(lambda kind, name: _hints(kind)[name], [k for k in (*path, last) if isinstance(k, str)], Recipe)
    at[last] = _any(text) if isinstance(last, str) and typing.get_origin(kind) in (tuple, *UNIONS) else _read(text, keys[key], key)
    return from_dict(values)


def leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of nested builtins by its dotted key."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, (tuple, list)) else None
    if items is None:
        return {prefix: values}
    return {k: v for name, value in items for k, v in leaves(value, f"{prefix}.{name}".lstrip(".")).items()}


def _any(text: str) -> Any:
    """Text as none, a number, numbers or a word."""
    with contextlib.suppress(ValueError):
        numbers = [int(word) if word.isdigit() else float(word) for word in text.split(",")]
        return numbers if len(numbers) > 1 else numbers[0]
    return None if text.lower() == "none" else text


def _read(text: str, old: Any, key: str) -> Any:
    """Text as a value of the old one's type."""
    try:
        if isinstance(old, (bool, str)):
            return text if isinstance(old, str) else {"true": True, "false": False}[text.lower()]
        number = float(text)
        if not math.isfinite(number) or (isinstance(old, int) and not number.is_integer()):
            raise ValueError
        return int(number) if isinstance(old, int) else number
    except (KeyError, ValueError):
        raise FourdfyError(f"{key} wants a value like {old!r}, not {text!r}", f"--set {key}={old}", USAGE) from None


def _build(kind: Any, value: Any, path: str) -> Any:
    """A value of the annotated type, within its bounds (a number without any: 0 to 1e9), from plain builtins."""

    def wrong(what: str, hint: str = "fourdfy info CHECKPOINT") -> FourdfyError:
        return FourdfyError(f"recipe{path} wants {what}, not {str(value)[:80]!r}", hint, USAGE)

    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
        if not isinstance(value, dict) or not needed <= set(value) <= set(hints):
            names = ", ".join(sorted(map(str, needed - set(value) | set(value) - set(hints)))) if isinstance(value, dict) else ""
            raise wrong(f"no missing or unknown settings ({names[:80]})" if names else "settings by name")
        return kind(**{name: _build(hint, value[name], f"{path}.{name}") for name, hint in hints.items() if name in value})
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    kind, least, most = options if origin is Annotated else (kind, 0, 10**9)
    if origin is Literal:
        if value not in options:
            raise wrong(f"one of {', '.join(options)}", f"--set {path[1:]}={options[0]}")
        return value
    if origin in UNIONS:
        fits = sorted(options, key=lambda o: (o is type(None), (typing.get_origin(o) is Literal) != isinstance(value, str)))
        return None if value is None else _build(fits[0], value, path)
    if origin is tuple:
        if not isinstance(value, (tuple, list)) or len(value) != len(options):
            raise wrong(f"{len(options)} values", f"--set {path[1:]}=32,32")
        return tuple(_build(o, v, f"{path}.{i}") for i, (o, v) in enumerate(zip(options, value, strict=True)))
    value = float(value) if kind is float and type(value) is int and abs(value) < 2**63 else value
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)) or (kind is float and not math.isfinite(value)):
        raise wrong(kind.__name__)
    if kind in (int, float) and not least <= value <= most:
        raise wrong(f"a number from {least} to {most}", f"--set {path[1:]}={min(max(value, least), most)}")
    return value
