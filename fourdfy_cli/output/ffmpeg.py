"""The ffmpeg that videos are written, read and copied with: the one place where it is started.

Paths go to it as `file:PATH`, so that no name is taken for a protocol or an option. What it reads is a film in a file and nothing else: no
playlist, no network. Its own last line is the reason in every error; what that line says is read, not guessed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fourdfy_cli.errors import ENVIRONMENT, FAILURE, MEMORY, USAGE, FourdfyError
from fourdfy_cli.output.codecs import codec
from fourdfy_cli.output.textfile import typed

CONTAINERS = "mov,matroska,avi,gif,apng,mpeg,mpegvideo,mpegts,ogg,flv,asf"  # demuxers
BLOCK = 2**29  # bytes that ffmpeg may take at once: a picture of 8192 x 4096 needs 0.2 GB
PATIENCE = 120  # seconds for what takes a tenth of one

_VIDEO = re.compile(r"Stream #0:\d+.*?: Video: (\w+).*?, (\w+)(?:\([^)]*\))?, (\d+)x(\d+)\b(.*)")
_EMPTY = re.compile(r"At least one output file must be|Conversion failed|Error (opening|splitting|while opening|selecting)|Exiting|^Press ")
_LACKING = re.compile(
    r"Unrecognized option|Option .*not found|Unknown (en|de)coder|(En|De)coder\b.*not found|Unknown bitstream filter|No such filter"
    r"|Protocol not found|Muxer not found|not a suitable output format|suitable output format for|shared librar|Missing argument for option"
)


class Stream(NamedTuple):
    """A video stream as ffmpeg describes it: size in pixels as players show it, turned and with square pixels; frames a second (0: not
    told); how many frames the header claims (0: not told); whether the stored pixels are not square."""

    codec: str
    pixels: str
    width: int
    height: int
    fps: float
    frames: int = 0
    stretched: bool = False


def stream(told: str) -> Stream | None:
    """The first video stream, cover pictures aside, in what ffmpeg says of its input on stderr."""
    for found in _VIDEO.finditer(told):
        if "(attached pic)" not in found[5]:
            after = told[found.end() :].partition("Stream #")[0]
            return _stream(found, after, told)
    return None


def _stream(found: re.Match[str], after: str, told: str) -> Stream:
    width, height = int(found[3]), int(found[4])
    across, down = _last_ratio(found[5])
    stretched = across != down
    width = max(1, round(width * across / down)) if stretched else width
    angle = re.search(r"rotation of (-?[\d.]+) degrees|^\s*rotate\s*: (-?[\d.]+)", after, re.M)
    turn = float(angle[1] or angle[2]) % 180 if angle else 0.0
    if abs(turn - 90) < 1:
        width, height = height, width
    fps = _rate(found[5], "fps") or _rate(found[5], "tbr")
    lasts = re.search(r"Duration: (\d+):(\d+):([\d.]+)", told)
    seconds = 3600 * int(lasts[1]) + 60 * int(lasts[2]) + float(lasts[3]) if lasts else 0.0
    return Stream(found[1], found[2], width, height, fps, round(seconds * fps), stretched)


def _last_ratio(text: str) -> tuple[int, int]:
    """Width and height of a pixel; the container's word, which stands last, is the one that holds."""
    ratios = [(int(a), int(b)) for a, b in re.findall(r"SAR (\d+):(\d+)", text) if int(a) and int(b)]
    return ratios[-1] if ratios else (1, 1)


def _rate(text: str, unit: str) -> float:
    """A rate as ffmpeg prints it: "15 fps", "29.97 fps", "1k fps"."""
    found = re.search(rf"([\d.]+)(k?) {unit}\b", text)
    return float(found[1]) * (1000 if found[2] else 1) if found else 0.0


def ffmpeg() -> str:
    """Path of the ffmpeg that imageio-ffmpeg brings, or of $IMAGEIO_FFMPEG_EXE; raises FourdfyError (exit 3) if there is none."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError, OSError):
        raise FourdfyError("there is no ffmpeg for videos", mend(), ENVIRONMENT) from None


def mend() -> str:
    """The command that brings an ffmpeg that can do what is needed."""
    chosen = os.environ.get("IMAGEIO_FFMPEG_EXE")
    return "unset IMAGEIO_FFMPEG_EXE" if chosen else "pip install --upgrade --force-reinstall imageio-ffmpeg"


def named(path: Path) -> str:
    """A path as ffmpeg takes it, whatever its name."""
    return f"file:{path}"


def source(path: Path | None) -> list[str]:
    """Options that read a film from a file (None: from stdin)."""
    plain = ["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS]
    return ["-max_alloc", str(BLOCK), *plain, "-i", "pipe:0" if path is None else named(path)]


class Process:
    """A running ffmpeg. What it says is read while it runs, so that it never waits for us; `said` keeps the end of it."""

    def __init__(self, arguments: list[str], stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL):
        try:
            self.popen = subprocess.Popen([ffmpeg(), *arguments], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)
        except OSError as error:
            raise FourdfyError(f"ffmpeg cannot be started: {error.filename}: {error.strerror}", mend(), ENVIRONMENT) from None
        self.said: deque[str] = deque(maxlen=400)
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.popen.stderr
        with self.popen.stderr as told:
            for line in iter(lambda: told.readline(10_000), b""):
                self.said.append(line.decode(errors="replace").rstrip())

    def ended(self) -> int:
        """Its exit code, once everything that it said has been read."""
        code = self.popen.wait()
        self.listener.join()
        return code


@contextlib.contextmanager
def running(arguments: list[str], stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL) -> Iterator[Process]:
    """An ffmpeg at work; it is stopped if the block fails. Raises FourdfyError (exit 3) if it cannot be started."""
    process = Process(arguments, stdin, stdout)
    try:
        yield process
    except BaseException:
        process.popen.kill()
        raise
    finally:
        for pipe in (process.popen.stdin, process.popen.stdout):
            with contextlib.suppress(OSError):
                pipe.close() if pipe else None
        process.ended()


def run(arguments: list[str], given: bytes = b"") -> tuple[int, bytes, list[str]]:
    """Exit code, stdout and what it said of an ffmpeg that is done in a moment. Raises FourdfyError (exit 3) if it is not."""
    try:
        ended = subprocess.run([ffmpeg(), "-hide_banner", *arguments], input=given, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise FourdfyError(f"ffmpeg does not answer in {PATIENCE} seconds", mend(), ENVIRONMENT) from None
    except OSError as error:
        raise FourdfyError(f"ffmpeg cannot be started: {error.filename}: {error.strerror}", mend(), ENVIRONMENT) from None
    said = ended.stderr.decode(errors="replace").splitlines()
    return ended.returncode, ended.stdout, said or [f"ffmpeg ended with code {ended.returncode}"] * (ended.returncode != 0)


def reason(said: Iterable[str]) -> str:
    """ffmpeg's own last line that tells why, without the address that it puts before it."""
    lines = [re.sub(r"^(\[[^\]]* @ 0x\w+\] ?)+", "", line).strip() for line in said]
    telling = [line for line in lines if line and not _EMPTY.search(line)]
    return (telling or [line for line in lines if line] or ["it gave no reason"])[-1][:300]


def lacking(said: Iterable[str]) -> FourdfyError | None:
    """The error (exit 3) if what ffmpeg said is that it cannot do what was asked, whatever the film; exit 4 for lack of memory."""
    lines = list(said)
    if any("Cannot allocate memory" in line for line in lines):
        return FourdfyError(f"out of memory: {reason(lines)}", "how much is free: free -m", MEMORY)
    found = next((line for line in lines if _LACKING.search(line)), None)
    return FourdfyError(f"this ffmpeg cannot do what is needed: {reason([found])}", mend(), ENVIRONMENT) if found else None


def unreadable(path: Path, said: Iterable[str]) -> FourdfyError:
    """Why a film cannot be read (exit 2), or what ffmpeg lacks (exit 3, 4)."""
    lines = list(said)
    look = f"what ffmpeg says of it: {typed(ffmpeg(), '-v', 'error', '-i', named(path), '-f', 'null', '-')}"
    return lacking(lines) or FourdfyError(f"{path} is damaged, cut off, or no video: {reason(lines)}", look, USAGE)


def unwritable(path: Path, said: Iterable[str]) -> FourdfyError:
    """Why a film cannot be written (exit 1), or what ffmpeg lacks (exit 3, 4)."""
    lines = list(said)
    return lacking(lines) or FourdfyError(f"cannot write {path}: {reason(lines)}", typed("df", "-h", path.parent), FAILURE)


def describe(path: Path) -> Stream:
    """What the header of a film tells, nothing decoded. Raises FourdfyError: exit 2 for what is no film, 3 without ffmpeg."""
    _, _, said = run(source(path))  # without an output ffmpeg only describes its input
    found = stream("\n".join(said))
    if found is None or not (found.width and found.height):
        silent = any("Input #0" in line for line in said)
        raise unreadable(path, ["it holds no video stream"] if silent else said)
    return found


@functools.lru_cache(8)
def _passthrough(executable: str) -> tuple[str, str]:
    frame = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "2x2", "-i", "pipe:0", "-f", "null", "-"]
    for option in ("-fps_mode", "-vsync"):  # the second is the name before ffmpeg 5.1, gone since
        code, _, said = run([*frame[:-3], option, "passthrough", *frame[-3:]], bytes(12))
        if code == 0:
            return option, "passthrough"
    raise lacking(said) or FourdfyError(f"this ffmpeg does not work: {reason(said)}", mend(), ENVIRONMENT)


def passthrough() -> tuple[str, str]:
    """Options that give every stored frame once, as this ffmpeg spells them. Raises FourdfyError (exit 3)."""
    return _passthrough(ffmpeg())


def encoding(shape: tuple[int, ...], fps: float, suffix: str = ".mp4") -> list[str]:
    """Options that make a film of frames [H W 3] or [H W 4] (with alpha, which .mp4 has not) on stdin; see codecs.py."""
    height, width, channels = shape
    return [
        "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgba" if channels == 4 else "rgb24", "-s", f"{width}x{height}",
        "-r", f"{fps:g}", "-i", "pipe:0", *codec(suffix, channels == 4),
        "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1",
    ]  # fmt: skip


def probe() -> FourdfyError | None:
    """What is missing for videos, None if nothing is: two frames are encoded as `write_video` does it, and read again."""
    try:
        code, film, said = run([*encoding((16, 16, 3), 16), "-movflags", "frag_keyframe+empty_moov", "pipe:1"], bytes(2 * 16 * 16 * 3))
        if code == 0 and film:
            told = ["-v", "error", *source(None), *passthrough(), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
            code, film, said = run(told, film)
    except FourdfyError as error:
        return error
    if code == 0 and len(film) == 2 * 16 * 16 * 3:
        return None
    return lacking(said) or FourdfyError(f"ffmpeg cannot make videos: {reason(said)}", mend(), ENVIRONMENT)
