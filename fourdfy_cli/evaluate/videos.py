"""What there is to score: videos and runs, found below paths, each with its prompt; and their frames.

Nothing that is wrong with one of them stops the others: it becomes a FourdfyError in a list.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output import render
from fourdfy_cli.output.ffmpeg import ffmpeg, stream
from fourdfy_cli.scene.cameras import mav3d
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import read_json

PROMPTS = "prompts.tsv"


@dataclass(frozen=True)
class Video:
    """An mp4, or a run that is still to be rendered: from `checkpoint`. `content` is a sha256 of what it shows, `folder` the set of
    videos that it is averaged with."""

    path: Path
    prompt: str
    folder: Path
    content: str
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Form:
    """What the videos of a folder must share: pixels and frames a second."""

    width: int
    height: int
    fps: float

    def __str__(self) -> str:
        return f"{self.width}x{self.height} at {self.fps:g} fps"


def find(paths: list[Path]) -> tuple[list[Video], list[FourdfyError]]:
    """Each video once, and what is wrong (exit 2; 6 for a damaged checkpoint).

    A path is an mp4, a checkpoint, a run folder (its newest checkpoint; without one its mav3d.mp4, else all its mp4), or a folder of
    these. The prompt of an mp4: prompts.tsv beside it (lines FILE<tab>PROMPT), else run.json beside it, else its name.
    """
    found = [item for path in paths for item in _at(path)]
    videos = {item.path.resolve(): item for item in found if isinstance(item, Video)}
    return list(videos.values()), [item for item in found if isinstance(item, FourdfyError)]


def _at(path: Path) -> Iterator[Video | FourdfyError]:
    if not path.exists():
        yield FourdfyError(f"{path} does not exist", f"ls {path.parent}", USAGE)
    elif path.is_file():
        yield _film(path, path.parent) if path.suffix == ".mp4" else _run(path)
    elif (path / "run.json").is_file():
        yield from _run_folder(path)
    else:
        yield from _folder(path)


def _folder(folder: Path) -> Iterator[Video | FourdfyError]:
    films, runs = _films(folder), sorted(path.parent for path in folder.glob("*/run.json"))
    try:
        listed = {folder / name for name in prompts_beside(folder)}
    except FourdfyError as error:
        yield error
        return
    for path in sorted(listed - set(films)):
        yield FourdfyError(f"{folder / PROMPTS} names {path.name}, which does not exist", f"ls {folder}", USAGE)
    if not (films or runs or listed):
        yield FourdfyError(f"there is no video and no run in {folder}", 'fourdfy generate "a red dog jumping"', USAGE)
    for path in films:
        yield _film(path, folder)
    for run in runs:
        yield from _run_folder(run)


def _run_folder(run: Path) -> Iterator[Video | FourdfyError]:
    films = _films(run)
    if any(run.glob("*.pt")):
        yield _run(run)
    elif films:
        chosen = [path for path in films if path.name == "mav3d.mp4"] or films
        yield from (_film(path, run.parent) for path in chosen)
    else:
        yield FourdfyError(f"the run {run} has neither a checkpoint nor a video", f"ls {run}", USAGE)


def _films(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.mp4") if not path.name.startswith("."))


def _run(path: Path) -> Video | FourdfyError:
    try:
        newest = render.locate(path)
        state = checkpoint.load(newest)
    except FourdfyError as error:
        return error
    return Video(path, state["prompt"], path.parent, state["digest"], newest)


def _film(path: Path, folder: Path) -> Video | FourdfyError:
    try:
        prompt = prompt_of(path)
        return Video(path, prompt, folder, hashlib.sha256(path.read_bytes()).hexdigest())
    except FourdfyError as error:
        return error
    except OSError as error:
        return FourdfyError(f"{path} cannot be read: {error.strerror}", f"ls -l {path}", USAGE)


def prompt_of(path: Path) -> str:
    """The prompt of an mp4, see `find`. Raises FourdfyError (exit 2) if prompts.tsv cannot be read or nothing says a word."""
    prompt = prompts_beside(path.parent).get(path.name) or (read_json(path.parent / "run.json") or {}).get("prompt")
    prompt = prompt if isinstance(prompt, str) else " ".join(re.split(r"[\s_-]+", path.stem)).strip()
    if not re.search(r"\w", prompt):
        raise FourdfyError(f"{path} has no prompt", f"printf '{path.name}\\tA PROMPT\\n' >> {path.parent / PROMPTS}", USAGE)
    return prompt


def prompts_beside(folder: Path) -> dict[str, str]:
    """Prompts by file name from a folder's prompts.tsv, if it has one. Raises FourdfyError (exit 2) for a line that is none."""
    path, found = folder / PROMPTS, {}
    for number, line in enumerate(_lines(path) if path.is_file() else [], 1):
        name, _, prompt = (part.strip() for part in line.partition("\t"))
        if line and not line.startswith("#") and (number, prompt.lower()) != (1, "prompt"):
            if not (name and prompt):
                raise FourdfyError(f"{path}: line {number} is not FILE<tab>PROMPT", f"sed -n {number}p {path}", USAGE)
            found[name if name.endswith(".mp4") else f"{name}.mp4"] = prompt
    return found


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line; empty lines and those that start with # do not count. Raises FourdfyError (exit 2)."""
    found = [line for line in _lines(path) if line and not line.startswith("#")]
    if not found:
        raise FourdfyError(f"there is no prompt in {path}", f"cat {path}", USAGE)
    return found


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise FourdfyError(f"cannot read {path}: {why}", f"ls -l {path}", USAGE) from None


def alike(videos: list[Video], crop: str | None) -> tuple[list[Video], list[FourdfyError]]:
    """The videos that can be scored together, and what is wrong with the others: no video at all, another size or frame rate than
    most of their folder, or (if no crop is chosen) two pictures side by side. Runs are rendered alike, they pass."""
    forms: dict[Path, Form] = {}
    problems = []
    for video in videos:
        if not video.checkpoint:
            try:
                forms[video.path] = probe(video.path)
            except FourdfyError as error:
                problems.append(error)
    for folder in dict.fromkeys(video.folder for video in videos):
        own = {video.path: forms[video.path] for video in videos if video.folder == folder and video.path in forms}
        if own:
            usual = Counter(own.values()).most_common(1)[0][0]
            for path, form in own.items():
                if form != usual:
                    problems.append(_odd(path, form, usual))
                    del forms[path]
                elif crop is None and form.width == 2 * form.height:
                    hint = f"fourdfy clip-score {folder} --crop left   (or right; none if it is one picture)"
                    problems.append(FourdfyError(f"{path} is {form}: two pictures side by side?", hint, USAGE))
                    del forms[path]
    return [video for video in videos if video.checkpoint or video.path in forms], problems


def _odd(path: Path, form: Form, usual: Form) -> FourdfyError:
    again = f"ffmpeg -i {path} -vf scale={usual.width}:{usual.height} -r {usual.fps:g} {path.stem}-again.mp4"
    return FourdfyError(f"{path} is {form}, most in its folder are {usual}", again, USAGE)


def probe(path: Path) -> Form:
    """Size and frame rate, from the header alone. Raises FourdfyError: exit 2 for what is no video, 3 without ffmpeg."""
    told = subprocess.run([ffmpeg(), "-hide_banner", "-i", f"file:{path}"], capture_output=True, stdin=subprocess.DEVNULL)
    found = stream(told.stderr.decode(errors="replace"))  # without an output ffmpeg only describes its input
    if not found:
        raise _damaged(path)
    return Form(found.width, found.height, found.fps)


def frames(path: Path, crop: str | None = None) -> Iterator[render.Picture]:
    """The frames of an mp4 as they are stored, all of them, or their left or right half.

    Raises FourdfyError (exit 2), possibly after some frames, if the file is damaged or ends too early.
    """
    form = probe(path)
    size = form.width * form.height * 3
    half = {"left": slice(0, form.width // 2), "right": slice(form.width - form.width // 2, None)}.get(crop or "", slice(None))
    told = ["-nostdin", "-v", "error", "-xerror", "-noautorotate", "-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough"]
    command = [ffmpeg(), *told, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    count = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        try:
            while len(data := process.stdout.read(size)) == size:
                count += 1
                yield np.frombuffer(data, np.uint8).reshape(form.height, form.width, 3)[:, half]
        except BaseException:
            process.kill()
            raise
    if process.returncode or data or not count:
        raise _damaged(path)


def _damaged(path: Path) -> FourdfyError:
    return FourdfyError(f"{path} is cut off, damaged, or no video", f"rm {path}   (and make it again)", USAGE)


def rendered(path: Path, size: int, device: str) -> Iterator[render.Picture]:
    """The frames of a checkpoint on the MAV3D path. Raises FourdfyError as `render.load_scene`."""
    scene, recipe, _ = render.load_scene(path, device)
    for rgb, _ in render.views(scene, recipe, mav3d(size)):
        yield rgb
