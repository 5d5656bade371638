"""The videos of a user study: found by prompt, decoded once to see that they are whole, copied without anything that tells
where they come from."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output.ffmpeg import ffmpeg, stream
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
    """Prompt and video by the prompt's words: every mp4 of a folder (its name is the prompt, with _ or - for spaces), and of
    every run folder in it, or of the run folder it is, mav3d.mp4 or else orbit.mp4 (run.json has the prompt).

    Raises FourdfyError (exit 2): no such folder, no video, a run without video, two videos for one prompt.
    """
    if not folder.is_dir():
        raise FourdfyError(f"there is no folder {folder}", f"ls {folder.parent}", USAGE)
    runs = [path.parent for path in (folder / "run.json", *sorted(folder.glob("*/run.json"))) if path.is_file()]
    loose = [] if folder in runs else sorted(path for path in folder.glob("*.mp4") if not path.name.startswith("."))
    found: dict[str, tuple[str, Path]] = {}
    for prompt, path in [*((_spoken(path.stem), path) for path in loose), *map(_of_run, runs)]:
        words = " ".join(re.findall(r"[^\W_]+", prompt.casefold()))
        if words in found:
            raise FourdfyError(f"{found[words][1]} and {path} are both for {prompt!r}", f"ls {folder}   (keep one of them)", USAGE)
        found[words] = (prompt, path)
    if not found:
        raise FourdfyError(f"there is no video in {folder}", f"ls {folder}   (wanted: PROMPT.mp4, or run folders)", USAGE)
    return found


def _spoken(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name)).strip()


def _of_run(run: Path) -> tuple[str, Path]:
    prompt = (read_json(run / "run.json") or {}).get("prompt")
    if not isinstance(prompt, str):
        raise FourdfyError(f"{run / 'run.json'} names no prompt", f"cat {run / 'run.json'}", USAGE)
    video = next((run / name for name in FROM_RUN if (run / name).is_file()), None)
    if video is None:
        raise FourdfyError(f"the run {run} has no video", f"fourdfy render {run} --path mav3d", USAGE)
    return prompt, video


def probe(path: Path) -> Shape:
    """Decode a whole video and say what it is. Raises FourdfyError: exit 2 for a damaged file or one that browsers do not
    play, 3 without ffmpeg."""
    command = ["-nostats", "-xerror", "-i", f"file:{path}", "-map", "0:v:0", "-f", "framemd5", "-"]
    ended = subprocess.run([ffmpeg(), "-hide_banner", *command], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    found = stream(ended.stderr)
    frames = sum(not line.startswith("#") for line in ended.stdout.splitlines())
    if ended.returncode or not found or not frames:
        raise FourdfyError(f"{path} is damaged or no video: {frames} frames can be read", f"rm {path}   (and make it again)", USAGE)
    if found.codec not in BROWSERS_PLAY or found.pixels not in ("yuv420p", "yuvj420p"):
        again = f"ffmpeg -i {path} -c:v libx264 -crf 18 -pix_fmt yuv420p {path.stem}-h264.mp4"
        raise FourdfyError(f"{path} is {found.codec} {found.pixels}, which not every browser plays", again, USAGE)
    return Shape(found.width, found.height, found.fps, frames, found.codec)


def copy_plain(source: Path, target: Path, codec: str) -> None:
    """The pictures of a video as they are, without sound, titles, dates, chapters, and the encoder's note on its settings
    (H.264 units of type 6). Raises FourdfyError: exit 2 if it cannot be copied, 3 without ffmpeg."""
    plain = ["-map", "0:v:0", "-c", "copy", "-map_metadata", "-1", "-map_chapters", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    notes = ["-bsf:v", "filter_units=remove_types=6"] if codec == "h264" else []
    command = [ffmpeg(), "-loglevel", "error", "-i", f"file:{source}", *plain, *notes, "-movflags", "+faststart", f"file:{target}"]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or ["ffmpeg failed"])[-1]
        raise FourdfyError(f"cannot copy {source}: {reason}", f"df -h {target.parent}", USAGE)
