"""`fourdfy clip-score`: CLIP score, CLIP-F, R-precision, motion and flicker of videos and runs.

CLIP score is 100 times the cosine between prompt and frame, mean over frames, then over the videos of a prompt, then over prompts: the
protocol of 4D-fy's Table 2. What CLIP sees in a video is kept in the cache folder by content, so a second call only needs the prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fourdfy_cli import __version__
from fourdfy_cli.diffusion import textcache
from fourdfy_cli.diffusion.text import VIEW_WORDS
from fourdfy_cli.errors import FAILURE, USAGE, FourdfyError
from fourdfy_cli.evaluate import measures, profile, videos
from fourdfy_cli.evaluate.clip import BAND, BATCH, Clip, load_clip, shrunk
from fourdfy_cli.evaluate.videos import Video
from fourdfy_cli.output.ffmpeg import named
from fourdfy_cli.output.limits import within_memory
from fourdfy_cli.output.render import Picture
from fourdfy_cli.output.textfile import typed
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.cache import cache_folder
from fourdfy_cli.store.folder import make_writable, write_json

SIZE = 256  # pixels a side of the published videos
FREE = "how much is free: free -m"
SHORTER = "shorter prompts, with what differs first, in prompts.tsv or the list of --prompts: fourdfy clip-score --help"
MEANS = ("score", "clip_f", "r_precision", "motion", "flicker")
PANELS = {
    "azimuth": "CLIP score by azimuth, degrees",
    "time": "CLIP score by time",
    "front": "CLIP score with 'front view' less with 'back view', by azimuth",
}
Counted = Callable[[Iterable[Picture], int, str], Iterable[Picture]]


@dataclass(frozen=True)
class Choice:
    """How to score: CLIP by name, which of some pictures side by side to look at ("left", "right", "K/N", "none"; None: whole, but not
    several pictures), a file of prompts that R-precision tells apart, the folder for clip.json, the device."""

    clip: str = "ViT-B-32"
    crop: str | None = None
    prompts: Path | None = None
    out: Path = Path()
    device: str = "cpu"


class Embedded(NamedTuple):
    """A video of N frames as CLIP saw it: unit `embedding` [N C]; `change` [N] and `bend` [N] as in measures.py."""

    embedding: Tensor
    change: Tensor
    bend: Tensor


def score(
    paths: list[Path], choice: Choice, counted: Counted = lambda frames, total, what: frames
) -> tuple[dict[str, Any] | None, list[FourdfyError]]:
    """The report, also written to clip.json and clip-profile.png in choice.out and to clip.json of each run folder (None if there was
    nothing to score), and what is wrong with the videos that are not in it. `counted` sees the frames of each video go by.

    Raises FourdfyError: exit 2 for a prompt file that cannot be read, a crop that is none or an unknown CLIP, 3 for a CLIP that cannot be
    had, 4 where memory does not even suffice for CLIP itself.
    """
    videos.panel(choice.crop)
    listed = videos.read_prompts(choice.prompts) if choice.prompts else []
    found, problems = videos.find(paths)
    found, more = videos.alike(found, choice.crop)
    problems = [*problems, *more, *_unserved(listed, found, choice)]
    if not found:
        return None, problems
    with within_memory(f"CLIP {choice.clip}", FREE):
        clip = load_clip(choice.clip, choice.device)
        names = different([*listed, *(video.prompt for video in found)])
        names, more = distinct(clip, names)
    found = [video for video in found if same(video.prompt) in set(map(same, names))]
    problems += more
    seen = _seen(clip, found, choice, counted, problems)
    if not seen:
        return None, problems
    with within_memory(f"CLIP {choice.clip}", FREE):
        texts = clip.texts(names).cpu()
        rows = [row(clip, video, part, names, texts) for video, part in seen.items()]
    return _write(rows, found, choice, problems, {"left_out": videos.left_out(paths), "cut": cut(clip, names)}), problems


def _seen(clip: Clip, found: list[Video], choice: Choice, counted: Counted, problems: list[FourdfyError]) -> dict[Video, Embedded]:
    """What CLIP sees in each video that can be read; the others are added to the problems."""
    key, seen = fingerprint(clip), {}
    for number, video in enumerate(found, 1):
        what = f"{number}/{len(found)} {video.prompt}"
        small = typed("ffmpeg", "-i", named(video.path), "-vf", "scale=-2:256", named(video.path.with_suffix(".small.mp4")))
        try:
            with within_memory(video.path, FREE if video.checkpoint else f"a smaller one: {small}"):
                seen[video] = cached(
                    clip, key, video, choice, lambda frames, what=what: counted(frames, measures.LENGTH, what), cache_folder()
                )
        except FourdfyError as error:
            problems.append(error)
    return seen


def distinct(clip: Clip, prompts: list[str]) -> tuple[list[str], list[FourdfyError]]:
    """The prompts that this CLIP can tell apart, and one error (exit 2) for each group of those that it cannot: because it reads no further
    than its window, or does not know what they differ in."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for prompt, ids in zip(prompts, clip.ids(prompts).tolist(), strict=True):
        groups.setdefault(tuple(ids), []).append(prompt)
    problems = []
    for group in groups.values():
        if len(group) > 1:
            fits = clip.fit(group[0])
            why = f"it reads {fits.room} tokens and they have {fits.tokens}" if fits.lost else "it does not know the words that differ"
            names = " and ".join(repr(_brief(one)) for one in group[:3]) + (f" and {len(group) - 3} more" if len(group) > 3 else "")
            problems.append(FourdfyError(f"CLIP {clip.name} cannot tell {names} apart: {why}", SHORTER, USAGE))
    return [group[0] for group in groups.values() if len(group) == 1], problems


def _brief(prompt: str) -> str:
    return prompt if len(prompt) <= 120 else f"{prompt[:60]} ... {prompt[-50:]}"


def cut(clip: Clip, prompts: list[str]) -> list[dict[str, Any]]:
    """The prompts that are longer than a CLIP reads: [{prompt, tokens, read, left_out}]."""
    fits = {prompt: clip.fit(prompt) for prompt in prompts}
    return [{"prompt": p, "tokens": f.tokens, "read": f.room, "left_out": f.lost} for p, f in fits.items() if f.lost]


def _unserved(listed: list[str], found: list[Video], choice: Choice) -> list[FourdfyError]:
    """One error for each folder that has no video for some of the listed prompts."""
    problems = []
    for folder in dict.fromkeys(video.folder for video in found):
        there = {same(video.prompt) for video in found if video.folder == folder}
        missing = [prompt for prompt in listed if same(prompt) not in there]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            message = f"{folder} has no video for {missing[0]!r}{more} of {choice.prompts}"
            problems.append(FourdfyError(message, typed("fourdfy", "generate", missing[0], "--out", folder), USAGE))
    return problems


def same(prompt: str) -> str:
    """What two spellings of a prompt share."""
    return " ".join(prompt.casefold().split()).rstrip(".")


def different(prompts: list[str]) -> list[str]:
    """Each prompt once, in the first of its spellings."""
    return list({same(prompt): prompt for prompt in reversed(prompts)}.values())[::-1]


def fingerprint(clip: Clip) -> str:
    """sha256 of all that decides what a CLIP sees."""
    about = {"size": clip.size, "mean": list(clip.mean), "std": list(clip.std), "version": __version__}
    return checkpoint.digest({"model": clip.model.state_dict(), **about})


def cached(clip: Clip, key: str, video: Video, choice: Choice, counted: Callable[..., Iterable[Picture]], cache: Path) -> Embedded:
    """What CLIP sees in a video, from the folder `cache` if it is there. Raises FourdfyError as `videos.frames` and `videos.rendered`."""
    size = clip.size if choice.clip == "nano" else SIZE  # the nano CLIP sees 64 pixels, more would cost a laptop minutes
    view = ["mav3d", size] if video.checkpoint else ["as shown", *videos.panel(choice.crop)]
    name = hashlib.sha256(json.dumps([key, video.content, view]).encode()).hexdigest()
    path = cache / "clip" / f"{name}.safetensors"
    table = textcache.read(path)
    if table is None:
        made = videos.rendered(video.checkpoint, size, choice.device) if video.checkpoint else videos.frames(video.path, choice.crop)
        table = embed(clip, counted(made))
        textcache.write(path, table)
    return Embedded(table[:, :-2], table[:, -2], table[:, -1])


def embed(clip: Clip, frames: Iterable[Picture]) -> Float[Tensor, "N C2"]:
    """`Embedded` as one table on the CPU, its three parts side by side. Whatever the size of the frames, three of them are held at once,
    as bytes, and a batch of small ones."""
    rows: list[Tensor] = []
    looked = _looked(frames, clip.size)
    while batch := list(islice(looked, BATCH)):
        small, change, bend = zip(*batch, strict=True)
        moved = torch.tensor([change, bend], dtype=torch.float32).T
        rows.append(torch.cat([clip.pictures(torch.stack(small)).float().cpu(), moved], 1))
    return torch.cat(rows)


def _looked(frames: Iterable[Picture], size: int) -> Iterator[tuple[Tensor, float, float]]:
    """Each frame as CLIP takes it, `size` pixels a side, and its `change` and `bend` (0 for the first frames)."""
    before: deque[Picture] = deque(maxlen=2)
    for frame in frames:
        yield shrunk(frame, size), *moved(frame, *reversed(before))
        before.append(frame)


def moved(new: Picture, *earlier: Picture) -> tuple[float, float]:
    """Change and bend (measures.py) of a frame after none, one or two earlier ones, the last first; rows by rows, in whole numbers."""
    change = bend = 0
    step = max(1, BAND // new.shape[1])
    for top in range(0, len(new) if earlier else 0, step):
        a, b, *c = (frame[top : top + step].astype(np.int16) for frame in (new, *earlier))
        change += int(np.abs(a - b).sum(dtype=np.int64))
        bend += int(np.abs(a - 2 * b + c[0]).sum(dtype=np.int64)) if c else 0
    return change / (255 * new.size), bend / (2 * 255 * new.size)


def row(clip: Clip, video: Video, seen: Embedded, names: list[str], texts: Float[Tensor, "P C"]) -> dict[str, Any]:
    """The measures of one video; `names` are all prompts, `texts` their embeddings."""
    true = [same(name) for name in names].index(same(video.prompt))
    value = 100 * seen.embedding @ texts[true]
    front, back = clip.texts([f"{video.prompt}, {view}" for view in (VIEW_WORDS[0], VIEW_WORDS[2])]).cpu()
    curves = {
        "azimuth": measures.by_azimuth(value),
        "time": measures.by_time(value),
        "front": measures.by_azimuth(100 * seen.embedding @ (front - back)),
    }
    return {
        "video": str(video.path),
        "folder": str(video.folder),
        "prompt": video.prompt,
        "frames": len(value),
        "score": float(value.mean()),
        "clip_f": measures.clip_f(seen.embedding),
        "r_precision": measures.r_precision(seen.embedding, texts, true),
        "motion": measures.motion(seen.change),
        "flicker": measures.flicker(seen.bend),
        "profile": curves,
        "per_frame": [round(v, 3) for v in value.tolist()],
    }


def summary(folder: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the prompts of a folder, each the mean over its videos, with the 95 % interval of the score."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for one in rows:
        by_prompt.setdefault(same(one["prompt"]), []).append(one)
    means = {name: [m for group in by_prompt.values() if (m := _mean([one[name] for one in group])) is not None] for name in MEANS}
    interval = measures.bootstrap(means["score"])
    curves = {name: measures.mean_curve([one["profile"][name] for one in rows if one["profile"][name]]) for name in PANELS}
    return {
        "folder": folder,
        "prompts": len(by_prompt),
        "videos": len(rows),
        "score": _mean(means["score"]),
        "low": interval[0] if interval else None,
        "high": interval[1] if interval else None,
        **{name: _mean(means[name]) for name in MEANS[1:]},
        "profile": curves,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def report(rows: list[dict[str, Any]], choice: Choice) -> dict[str, Any]:
    """clip.json: the CLIP, a summary of each folder, and the videos."""
    folders = dict.fromkeys(one["folder"] for one in rows)
    sets = [summary(folder, [one for one in rows if one["folder"] == folder]) for folder in folders]
    return {"clip": choice.clip, "sets": sets, "videos": rows}


def _write(
    rows: list[dict[str, Any]], found: list[Video], choice: Choice, problems: list[FourdfyError], about: dict[str, Any]
) -> dict[str, Any]:
    """Write the files of `score` and return the report, with what else is to be told; a run folder that cannot be written becomes a
    problem."""
    make_writable(choice.out)
    whole = report(rows, choice)
    panels = {
        title: {one["folder"]: one["profile"][name] for one in whole["sets"] if one["profile"][name]} for name, title in PANELS.items()
    }
    panels = {title: curves for title, curves in panels.items() if curves}
    whole |= about | {"picture": str(profile.picture(choice.out / "clip-profile.png", panels)) if panels else None}
    runs = {str(video.path) for video in found if video.checkpoint and video.path.is_dir()}
    for one in rows:
        if one["video"] in runs:
            try:
                write_json(Path(one["video"]) / "clip.json", report([one], choice))
            except OSError as error:
                hint = typed("ls", "-ld", one["video"])
                problems.append(FourdfyError(f"cannot write {one['video']}/clip.json: {error.strerror}", hint, FAILURE))
    write_json(choice.out / "clip.json", whole)
    return {"clip": choice.clip, "json": str(choice.out / "clip.json"), **whole}
