"""Little films, and answer sheets as the page writes them, for the tests of the user study."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from fourdfy_cli.store.folder import write_json
from fourdfy_cli.study import questions

PROMPTS = ("a red dog jumping", "an octopus is underwater", "a blue cube turning")


def film(path: Path, picture: str = "testsrc", frames: int = 6, size: int = 64, fps: int = 15, *more: str) -> Path:
    """An mp4 with a title that must not come through; `more` are options of ffmpeg's output."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = ["-f", "lavfi", "-i", f"{picture}=size={size}x{size}:rate={fps}", "-frames:v", str(frames)]
    form = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-metadata", "title=SECRET", "-metadata", "comment=SECRET", "-movflags", "+faststart"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *source, *form, *more, str(path)], check=True)
    return path


def films(root: Path, **sources: str) -> None:
    """root/NAME/PROMPT.mp4 of every prompt for each NAME=PICTURE; every file differs from every other."""
    for name, picture in sources.items():
        for k, prompt in enumerate(PROMPTS):
            film(root / name / f"{prompt.replace(' ', '_')}.mp4", picture, 6, 64, 15, "-vf", f"hue=h={40 * k}")


def key_file(path: Path, baselines: dict[str, list[str]], asked: tuple[str, ...] = questions.USUAL, tie: bool = False) -> dict[str, Any]:
    """A key as `study build` writes it, without videos: prompts by baseline; ours is the second video of every other pair."""
    named = [(baseline, prompt) for baseline, prompts in baselines.items() for prompt in prompts]
    pairs = [{"id": f"p{k:03}", "prompt": prompt, "baseline": name, "ours": k % 2} for k, (name, prompt) in enumerate(named)]
    head = {"format": questions.KEY, "version": 1, "study": "cafe", "seed": 4, "checks": 2, "tie": tie, "questions": list(asked)}
    write_json(path, head | {"pairs": pairs})
    return head | {"pairs": pairs}


Prefer = Callable[[str, str, bool], str]
"""(pair, question, whether it is a repeat) to "ours", "theirs", "tie", or "" for a blank."""


def sheet(key: dict[str, Any], name: str, prefer: Prefer, sitting: str = "", started: str = "2025-01-01T00:00:00Z") -> dict[str, Any]:
    """The answers of a rater who can tell ours from theirs."""
    pairs = {pair["id"]: pair for pair in key["pairs"]}
    trials = []
    for trial in questions.order(key["study"], key["seed"], name or sitting, sorted(pairs), key["checks"]):
        ours_right = (pairs[trial.pair]["ours"] == 1) != trial.swapped
        sides = {"ours": "right" if ours_right else "left", "theirs": "left" if ours_right else "right", "tie": "tie"}
        chosen = {question: prefer(trial.pair, question, trial.repeat) for question in key["questions"]}
        answers = {question: sides[choice] for question, choice in chosen.items() if choice}
        trials.append({**vars(trial), "answers": answers, "seconds": 20.0})
    head = {"format": questions.ANSWERS, "version": 1, "study": key["study"], "seed": key["seed"]}
    return head | {"rater": name, "sitting": sitting or f"s-{name}", "started": started, "finished": None, "trials": trials}


def write(path: Path, values: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path
