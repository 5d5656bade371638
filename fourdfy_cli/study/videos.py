"""The videos of a user study: found by prompt, decoded once to see that they are whole, copied without anything that tells
where they come from."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output import films, limits
from fourdfy_cli.output.ffmpeg import describe, lacking, named, passthrough, reason, running, source, unreadable
from fourdfy_cli.output.textfile import typed
from fourdfy_cli.store.folder import read_json

BROWSERS_PLAY = ("h264", "vp9", "av1")
FROM_RUN = ("mav3d.mp4", "orbit.mp4")


@dataclass(frozen=True)
class Shape:
    """What the two videos of a pair must share: size in pixels, frames a second, frames; the codec may differ."""

    width: int
    height: int
    fps: float
    frames: int
    codec: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.fps:g} fps, {self.frames} frames"


def find(folder: Path) -> dict[str, tuple[str, Path]]:
    """Prompt and video by the prompt's words: every film of a folder (prompts.tsv or its name has the prompt, see `films.prompt_of`), and
    of every run folder in it, or of the run folder it is, mav3d.mp4 or else orbit.mp4 (run.json has the prompt).

    Raises FourdfyError (exit 2): no such folder, no video, a film or a run without prompt, a run without video, two videos for one prompt.
    """
    if not folder.is_dir():
        raise FourdfyError(f"there is no folder {folder}", typed("ls", folder.parent), USAGE)
    runs = [path.parent for path in (folder / "run.json", *sorted(folder.glob("*/run.json"))) if path.is_file()]
    loose = [] if folder in runs else films.films(folder)
    found: dict[str, tuple[str, Path]] = {}
    for prompt, path in [*((films.prompt_of(path), path) for path in loose), *map(_of_run, runs)]:
        words = " ".join(re.findall(r"[^\W_]+", prompt.casefold()))
        if words in found:
            raise FourdfyError(
                f"{found[words][1]} and {path} are both for {prompt!r}",
                f"keep one of them: {typed('ls', '-l', found[words][1], path)}",
                USAGE,
            )
        found[words] = (prompt, path)
    if not found:
        raise FourdfyError(f"there is no video in {folder}", f"PROMPT.mp4 or run folders are wanted: {typed('ls', folder)}", USAGE)
    return found


def _of_run(run: Path) -> tuple[str, Path]:
    prompt = (read_json(run / "run.json") or {}).get("prompt")
    if not isinstance(prompt, str):
        raise FourdfyError(f"{run / 'run.json'} names no prompt", typed("cat", run / "run.json"), USAGE)
    video = next((run / name for name in FROM_RUN if (run / name).is_file()), None)
    if video is None:
        raise FourdfyError(f"the run {run} has no video", typed("fourdfy", "render", run, "--path", "mav3d"), USAGE)
    return prompt, video


def probe(path: Path) -> Shape:
    """Decode a whole video and say what it is. Raises FourdfyError: exit 2 for a damaged file, one beyond `limits` or one that browsers do
    not play, 3 without ffmpeg."""
    found = describe(path)
    again = typed("ffmpeg", "-i", named(path), *"-vf scale=-2:256 -c:v libx264 -crf 18 -pix_fmt yuv420p".split(), _beside(path, "small"))
    limits.check_film(path, found.width, found.height, found.frames, f"a smaller one: {again}")
    count = 0
    told = ["-nostdin", "-v", "error", "-xerror", "-threads", "2", *source(path), "-map", "0:V:0", *passthrough()]
    with running([*told, "-f", "framemd5", "pipe:1"], stdout=subprocess.PIPE) as process:
        assert process.popen.stdout
        for line in process.popen.stdout:
            count += not line.startswith(b"#")
            limits.check_film(path, found.width, found.height, count, f"a shorter one: {again}")
        if process.ended() or not count:
            raise unreadable(path, process.said or [f"{count} frames can be read"])
    if found.codec not in BROWSERS_PLAY or found.pixels not in ("yuv420p", "yuvj420p"):
        again = typed("ffmpeg", "-i", named(path), *"-c:v libx264 -crf 18 -pix_fmt yuv420p".split(), _beside(path, "h264"))
        raise FourdfyError(f"{path} is {found.codec} {found.pixels}, which not every browser plays", again, USAGE)
    return Shape(found.width, found.height, found.fps, count, found.codec)


def _beside(path: Path, what: str) -> str:
    return named(path.with_name(f"{path.stem}-{what}.mp4"))


def copy_plain(path: Path, target: Path, codec: str) -> None:
    """The pictures of a video as they are, without sound, titles, dates, chapters, and the encoder's note on its settings
    (H.264 units of type 6). Raises FourdfyError: exit 2 if it cannot be copied, 3 without ffmpeg."""
    plain = ["-map", "0:V:0", "-c", "copy", "-map_metadata", "-1", "-map_chapters", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    notes = ["-bsf:v", "filter_units=remove_types=6"] if codec == "h264" else []
    with running(["-nostdin", "-v", "error", *source(path), *plain, *notes, "-movflags", "+faststart", named(target)]) as process:
        if process.ended():
            raise lacking(process.said) or FourdfyError(
                f"cannot copy {path}: {reason(process.said)}", typed("df", "-h", target.parent), USAGE
            )
    was, now = describe(path), describe(target)
    if (was.width, was.height) != (now.width, now.height):
        raise FourdfyError(
            f"{path} is turned by its metadata, which its copy would lose",
            typed("ffmpeg", "-i", named(path), _beside(path, "turned")),
            USAGE,
        )
