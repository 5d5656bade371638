"""What there is to score: videos and runs, found below paths, each with its prompt; and their frames.

Nothing that is wrong with one of them stops the others: it becomes a FourdfyError in a list.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output import films, limits, render
from fourdfy_cli.output.ffmpeg import describe, named, passthrough, running, source, unreadable
from fourdfy_cli.output.films import PROMPTS, prompt_of, prompts_beside, read_prompts
from fourdfy_cli.output.textfile import typed
from fourdfy_cli.scene.cameras import mav3d
from fourdfy_cli.store import checkpoint

__all__ = ["read_prompts"]
ZIP = b"PK\x03\x04"  # a checkpoint starts with it
HALVES = {"left": (1, 2), "right": (2, 2), "none": (1, 1)}
PANELS = 64  # side by side at the most


@dataclass(frozen=True)
class Video:
    """A film, or a run that is still to be rendered: from `checkpoint`. `content` is a sha256 of what it shows, `folder` the set of
    videos that it is averaged with."""

    path: Path
    prompt: str
    folder: Path
    content: str
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Form:
    """What the videos of a folder must share: pixels as players show them, turned and square, and frames a second."""

    width: int
    height: int
    fps: float

    def __str__(self) -> str:
        return f"{self.width}x{self.height} at {self.fps:g} fps"

    @property
    def panels(self) -> int:
        """How many squares stand side by side, encoders' padding aside; 0 for other shapes."""
        count = round(self.width / self.height)
        return count if count > 1 and abs(self.width - count * self.height) <= count else 0


def panel(crop: str | None) -> tuple[int, int]:
    """K and N of "K/N": the K-th of N pictures side by side; left is 1/2, right 2/2, none (or None) 1/1. Raises FourdfyError (exit 2)."""
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", crop or "none")
    k, n = (int(found[1]), int(found[2])) if found else HALVES.get(crop or "none", (0, 0))
    if not 1 <= k <= n <= PANELS:
        hint = "the first of three side by side (K/N; or left, right, none): --crop 1/3"
        raise FourdfyError(f"there is no picture {crop!r} of some side by side", hint, USAGE)
    return k, n


def find(paths: list[Path]) -> tuple[list[Video], list[FourdfyError]]:
    """Each video once, and what is wrong (exit 2; 6 for a damaged checkpoint).

    A path is a film (of films.KINDS), a checkpoint, a run folder (its newest checkpoint; without one its mav3d.mp4, else all its films),
    or a folder of these. The prompt of a film is `films.prompt_of`.
    """
    found = [item for path in paths for item in _at(path)]
    videos = {item.path.resolve(): item for item in found if isinstance(item, Video)}
    return list(videos.values()), [item for item in found if isinstance(item, FourdfyError)]


def left_out(paths: list[Path]) -> list[dict[str, str]]:
    """What `find` passes over in the folders among these paths: [{file, why}]."""
    plain = [path for path in dict.fromkeys(paths) if path.is_dir() and not films.is_run(path)]
    runs = [run for path in paths if path.is_dir() for run in ([path] if films.is_run(path) else _runs(path))]
    passed = [(film, run) for run in dict.fromkeys(runs) for film in films.films(run) if film not in _chosen(run)]
    why = "a film in the folder of a run, which is judged by its checkpoint or its mav3d.mp4"
    return [one for path in plain for one in films.left_out(path)] + [
        {"file": str(film), "why": why} for film, _ in passed if not films.own_name(film.stem)
    ]


def _at(path: Path) -> Iterator[Video | FourdfyError]:
    if not path.exists():
        yield FourdfyError(f"{path} does not exist", typed("ls", path.parent), USAGE)
    elif path.is_dir():
        yield from _run_folder(path) if films.is_run(path) else _folder(path)
    elif films.is_film(path):
        yield _film(path, path.parent)
    elif path.suffix == ".pt" or _starts(path) == ZIP:
        yield _run(path)
    else:
        kinds = ", ".join(sorted(films.KINDS))
        message = f"{path} is no checkpoint (.pt) and no kind of video that is read ({kinds})"
        yield FourdfyError(message, f"if ffmpeg can read it: {typed('ffmpeg', '-i', named(path), named(path.with_suffix('.mp4')))}", USAGE)


def _starts(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(ZIP))
    except OSError:
        return b""


def _runs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".") and films.is_run(path))


def _folder(folder: Path) -> Iterator[Video | FourdfyError]:
    loose, runs = films.films(folder), _runs(folder)
    checkpoints = sorted(path for path in folder.glob("*.pt") if path.is_file() and not path.name.startswith("."))
    try:
        listed = {folder / name for name in prompts_beside(folder)}
    except FourdfyError as error:
        yield error
        return
    for path in sorted(listed - set(loose)):
        yield FourdfyError(f"{folder / PROMPTS} names {path.name}, which does not exist", typed("ls", folder), USAGE)
    if not (loose or runs or listed or checkpoints):
        others = films.left_out(folder)
        more = f"; left out: {', '.join(Path(one['file']).name for one in others[:20])}" if others else ""
        yield FourdfyError(f"there is no video and no run in {folder}{more}", 'fourdfy generate "a red dog jumping"', USAGE)
    for path in loose:
        yield _film(path, folder)
    for path in checkpoints:
        yield _run(path)
    for run in runs:
        yield from _run_folder(run)


def _run_folder(run: Path) -> Iterator[Video | FourdfyError]:
    if any(run.glob("[!.]*.pt")):
        yield _run(run)
    elif chosen := _chosen(run):
        yield from (_film(path, run.parent) for path in chosen)
    else:
        yield FourdfyError(f"the run {run} has neither a checkpoint nor a video", typed("ls", run), USAGE)


def _chosen(run: Path) -> list[Path]:
    """The films that stand for a run without checkpoint."""
    own = [] if any(run.glob("[!.]*.pt")) else films.films(run)
    return [path for path in own if path.name == "mav3d.mp4"] or own


def _run(path: Path) -> Video | FourdfyError:
    try:
        newest = render.locate(path)
        state = checkpoint.load(newest)
    except FourdfyError as error:
        return error
    return Video(path, state["prompt"], path.parent, state["digest"], newest)


def _film(path: Path, folder: Path) -> Video | FourdfyError:
    try:
        return Video(path, prompt_of(path), folder, films.content(path))
    except FourdfyError as error:
        return error
    except OSError as error:
        return FourdfyError(f"{path} cannot be read: {error.strerror}", typed("ls", "-l", path), USAGE)


def alike(videos: list[Video], crop: str | None) -> tuple[list[Video], list[FourdfyError]]:
    """The videos that can be scored together, and what is wrong with the others: no video at all, too large, another size or frame rate
    than most of their folder, or (if no crop is chosen) pictures side by side. Runs are rendered alike, they pass."""
    forms: dict[Path, Form] = {}
    problems = []
    for video in videos:
        if not video.checkpoint:
            try:
                forms[video.path] = probe(video.path, crop)
            except FourdfyError as error:
                problems.append(error)
    for folder in dict.fromkeys(video.folder for video in videos):
        own = {video.path: forms[video.path] for video in videos if video.folder == folder and video.path in forms}
        usual = Counter(own.values()).most_common(1)[0][0] if own else None
        for path, form in own.items():
            problem = _odd(path, form, usual) if usual and form != usual else _several(path, form, folder) if crop is None else None
            if problem:
                problems.append(problem)
                del forms[path]
    return [video for video in videos if video.checkpoint or video.path in forms], problems


def _odd(path: Path, form: Form, usual: Form) -> FourdfyError:
    form_of = ["-vf", f"scale={usual.width}:{usual.height}", "-r", f"{usual.fps:g}", "-aspect", f"{usual.width}:{usual.height}"]
    again = typed("ffmpeg", "-i", named(path), *form_of, named(path.with_name(f"{path.stem}-again.mp4")))
    return FourdfyError(f"{path} is {form}, most in its folder are {usual}", again, USAGE)


def _several(path: Path, form: Form, folder: Path) -> FourdfyError | None:
    """Pictures side by side, or one under another, of which nobody said which one to judge."""
    if form.panels:
        first = "left" if form.panels == 2 else f"1/{form.panels}"
        how = f"the first of them (none if it is one picture): {typed('fourdfy', 'clip-score', folder, '--crop', first)}"
        return FourdfyError(f"{path} is {form}: {form.panels} pictures side by side?", how, USAGE)
    if tall := Form(form.height, form.width, form.fps).panels:
        how = f"if it is one picture: {typed('fourdfy', 'clip-score', folder, '--crop', 'none')}"
        return FourdfyError(f"{path} is {form}: {tall} pictures one under another?", how, USAGE)
    return None


def probe(path: Path, crop: str | None = None) -> Form:
    """Size and frame rate, from the header alone. Raises FourdfyError: exit 2 for what is no video, or one beyond `limits`, of which
    the part chosen by `crop` must not be too narrow; 3 without ffmpeg."""
    found, (_, n) = describe(path), panel(crop)
    smaller = named(path.with_name(f"{path.stem}-small.mp4"))
    hint = f"a part of it, smaller: {typed('ffmpeg', '-i', named(path), '-t', '10', '-vf', 'scale=-2:256', smaller)}"
    limits.check_film(path, found.width, found.height, found.frames, hint)
    limits.check_film(path, max(1, found.width // n), found.height, 0, hint)
    return Form(found.width, found.height, found.fps)


def frames(path: Path, crop: str | None = None) -> Iterator[render.Picture]:
    """The frames of a film, all that are stored, each once, as players show them; or one of some pictures side by side.

    Raises FourdfyError (exit 2), possibly after some frames, if the file is damaged, ends too early or never.
    """
    form, found, (k, n) = probe(path, crop), describe(path), panel(crop)
    size, part = form.width * form.height * 3, max(1, form.width // n)
    start = -(-(k - 1) * form.width // n)
    shown = ["-vf", f"scale={form.width}:{form.height},setsar=1"] if found.stretched else []
    told = ["-nostdin", "-v", "error", "-xerror", "-threads", "2", *source(path), "-map", "0:V:0", *passthrough(), *shown]
    count = 0
    with running([*told, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"], stdout=subprocess.PIPE) as process:
        stdout = process.popen.stdout
        assert stdout
        while len(data := stdout.read(size)) == size:
            count += 1
            limits.check_film(path, form.width, form.height, count, typed("ls", "-l", path))
            yield np.frombuffer(data, np.uint8).reshape(form.height, form.width, 3)[:, start : start + part]
        if process.ended() or data or not count:
            raise unreadable(path, process.said or [f"it ends in the middle of frame {count}"])


def rendered(path: Path, size: int, device: str) -> Iterator[render.Picture]:
    """The frames of a checkpoint on the MAV3D path. Raises FourdfyError as `render.load_scene`."""
    scene, recipe, _ = render.load_scene(path, device)
    yield from render.views(scene, recipe, mav3d(size))
