"""CLIP embeddings of many videos, computed by an engine of run/engines.py or run/cluster.py and left in the cache folder.

A video that fails there is looked at again by `score.score`, which tells what is wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate import score, videos
from fourdfy_cli.evaluate.clip import load_clip
from fourdfy_cli.evaluate.videos import Video
from fourdfy_cli.memory import Machine
from fourdfy_cli.run.batch import Engine
from fourdfy_cli.run.progress import Events
from fourdfy_cli.run.signals import StopSignals
from fourdfy_cli.store.cache import cache_folder

GROUP = 8  # videos of a job: CLIP is loaded once for each


@dataclass(frozen=True)
class Embedding:
    """A job of an engine: what CLIP sees in a few videos goes into the cache folder `out`. It has no seed and no checkpoint to start
    from."""

    videos: tuple[Video, ...]
    choice: score.Choice
    out: Path
    seed: int = 0
    start: Path | None = None

    @property
    def prompt(self) -> str:
        return self.videos[0].prompt

    @property
    def folder(self) -> Path:
        return self.out

    def go(self, machine: Machine, events: Events) -> None:
        """Embed the videos that can be read. Raises FourdfyError as `load_clip`."""
        choice = replace(self.choice, device=machine.device)
        clip = load_clip(choice.clip, choice.device)
        key = score.fingerprint(clip)
        for video in self.videos:
            with contextlib.suppress(FourdfyError):
                score.cached(clip, key, video, choice, lambda frames: frames, self.out)


def ahead(paths: list[Path], choice: score.Choice, engine: Engine, note: Callable[[str], None]) -> None:
    """Have an engine look at the videos at `paths` that can be scored; CLIP is fetched first. Raises FourdfyError: exit 2, 3 for a CLIP
    that cannot be had, and 75, 129, 130 or 143 when stopped."""
    found, _ = videos.alike(videos.find(paths)[0], choice.crop)
    load_clip(choice.clip, "cpu")
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    groups = [tuple(map(absolute, found[k : k + GROUP])) for k in range(0, len(found), GROUP)]
    jobs = {number: Embedding(group, choice, folder) for number, group in enumerate(groups)}
    done = 0
    with StopSignals() as signals:
        for ended in engine.run(jobs, lambda: None, signals):
            done += len(groups[ended.number])
            note(f"{done}/{len(found)} videos")
        if signals.raised is not None:
            raise signals.stop("type the same command again to go on")


def absolute(video: Video) -> Video:
    """The video for a process that works in another folder."""
    return replace(video, path=video.path.absolute(), checkpoint=video.checkpoint and video.checkpoint.absolute())
