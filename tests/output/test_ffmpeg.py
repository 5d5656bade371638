"""What ffmpeg says of films, what it is given, and what happens where it cannot do what is needed."""

from __future__ import annotations

import shlex
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from samples import film

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate import videos
from fourdfy_cli.output import ffmpeg, render
from fourdfy_cli.output.ffmpeg import Stream, describe, probe, stream


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Another ffmpeg: a shell script before the real one, which is $real."""
    script = tmp_path / "bin" / "ffmpeg"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!/bin/bash\nreal={shlex.quote(imageio_ffmpeg.get_ffmpeg_exe())}\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))


OLD = """args=(); for a in "$@"; do case "$a" in
  -fps_mode) echo "Unrecognized option 'fps_mode'." >&2; echo "Error splitting the argument list: Option not found" >&2; exit 1;;
  -vsync) args+=(-fps_mode);; *) args+=("$a");; esac; done; exec "$real" "${args[@]}"
"""
NO_X264 = """for a in "$@"; do [ "$a" = libx264 ] && { echo "[vost#0:0 @ 0x5] Unknown encoder 'libx264'" >&2
  echo "Error opening output files: Encoder not found" >&2; exit 8; }; done; exec "$real" "$@"
"""
NO_FPS_MODE = OLD.replace("-vsync) args+=(-fps_mode);;", "-vsync) echo \"Unrecognized option 'vsync'.\" >&2; exit 1;;")


def test_the_ffmpeg_here_can_do_what_is_needed():
    assert probe() is None


def test_an_old_ffmpeg_reads_good_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = film(tmp_path / "a.mp4", 7)
    new = np.stack(list(videos.frames(path)))
    pretend(tmp_path, monkeypatch, OLD)
    assert probe() is None and ffmpeg.passthrough() == ("-vsync", "passthrough")
    assert np.array_equal(np.stack(list(videos.frames(path))), new) and len(new) == 7


@pytest.mark.parametrize("body, words", [(NO_X264, "Unknown encoder 'libx264'"), (NO_FPS_MODE, "Unrecognized option"), ("exit 7", "")])
def test_an_ffmpeg_that_lacks_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str):
    pretend(tmp_path, monkeypatch, body)
    missing = probe()
    assert missing and missing.code == 3 and words in missing.message and missing.hint == "unset IMAGEIO_FFMPEG_EXE"


def test_an_ffmpeg_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As ffmpeg 7.0.2 does on every .ts, without a word."""
    path = film(tmp_path / "a.mp4", 2, (32, 48))
    pretend(tmp_path, monkeypatch, "kill -SEGV $$")
    with pytest.raises(FourdfyError, match="code -11"):
        describe(path)


def test_a_film_is_not_damaged_because_ffmpeg_lacks_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = film(tmp_path / "a.mp4")
    pretend(tmp_path, monkeypatch, NO_FPS_MODE)
    with pytest.raises(FourdfyError) as reading:
        list(videos.frames(path))
    pretend(tmp_path, monkeypatch, NO_X264)
    with pytest.raises(FourdfyError) as writing:
        render.write_video(tmp_path / "b.mp4", iter([np.zeros((16, 16, 3), np.uint8)]))
    for error in (reading.value, writing.value):
        assert error.code == 3 and "damaged" not in error.message and not error.hint.startswith(("rm", "df"))
    assert "Unknown encoder" in writing.value.message and not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize("kind", ["nowhere", "no program", "a folder"])
def test_an_ffmpeg_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    pretend(tmp_path, monkeypatch, "")
    script = tmp_path / "bin" / "ffmpeg"
    if kind == "no program":
        script.write_bytes(b"\x7fELF nonsense")
    elif kind == "nowhere":
        script.unlink()
    else:
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path))
    missing = probe()
    assert missing and missing.code == 3 and missing.hint
    for call in (lambda: describe(tmp_path / "a.mp4"), lambda: render.write_video(tmp_path / "a.mp4", [np.zeros((16, 16, 3), np.uint8)])):
        with pytest.raises(FourdfyError) as caught:
            call()
        assert caught.value.code == 3


@pytest.mark.parametrize("name", ["2024-05-01T10:00:00", "http:", "-y", "%03d", "a b'c\"", "concat:x|y", "ü", "pipe:1", "a\nb"])
def test_no_name_is_a_protocol_or_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    pictures = [np.full((16, 16, 3), value, np.uint8) for value in (25, 225)]
    path = render.write_video(Path(name) / f"{name}.mp4", iter(pictures))
    assert [round(picture.mean()) // 10 for picture in videos.frames(path)] == [2, 22]


def test_a_film_that_is_a_list_of_others_is_not_read(tmp_path: Path):
    film(tmp_path / "secret.mp4")
    for number, text in enumerate(("ffconcat version 1.0\nfile secret.mp4\n", "#EXTM3U\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")):
        path = tmp_path / f"{number}.mp4"
        path.write_text(text)
        with pytest.raises(FourdfyError) as error:
            describe(path)
        assert error.value.code == 2


LINE = "  Stream #0:0[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709, progressive), 640x360%s, 30 kb/s, %s, 90k tbn\n"
INPUT = "Input #0, mov, from 'a.mp4':\n  Duration: 00:00:08.27, start: 0.000000, bitrate: 52 kb/s\n"


@pytest.mark.parametrize(
    "ratio, rate, after, width, height, fps",
    [
        ("", "15 fps, 15 tbr", "", 640, 360, 15),
        ("", "29.97 fps, 29.97 tbr", "", 640, 360, 29.97), ("", "1k fps, 1k tbr", "", 640, 360, 1000),
        ("", "0.5000 fps, 30 tbr", "", 640, 360, 0.5), ("", "25 tbr", "", 640, 360, 25), ("", "start 1", "", 640, 360, 0),
        (" [SAR 1:1 DAR 16:9]", "15 fps", "", 640, 360, 15), (" [SAR 64:64 DAR 16:9]", "15 fps", "", 640, 360, 15),
        (" [SAR 2:1 DAR 32:9]", "15 fps", "", 1280, 360, 15), (" [SAR 1:1 DAR 16:9], SAR 1:2 DAR 8:9", "15 fps", "", 320, 360, 15),
        (" [SAR 0:1 DAR 0:1]", "15 fps", "", 640, 360, 15),
        ("", "15 fps", "      Display Matrix: rotation of -90.00 degrees\n", 360, 640, 15),
        ("", "15 fps", "      displaymatrix: rotation of 90.00 degrees\n", 360, 640, 15),
        ("", "15 fps", "      rotate          : 270\n", 360, 640, 15), ("", "15 fps", "      rotate          : 180\n", 640, 360, 15),
        (" [SAR 2:1 DAR 32:9]", "15 fps", "      rotate          : 90\n", 360, 1280, 15),
        ("", "15 fps", "  Stream #0:1: Audio: aac, 44100 Hz\n      rotate          : 90\n", 640, 360, 15),
    ],
)  # fmt: skip
def test_what_ffmpeg_says_of_a_film(ratio: str, rate: str, after: str, width: int, height: int, fps: float):
    found = stream(INPUT + LINE % (ratio, rate) + after)
    assert found and (found.codec, found.pixels) == ("h264", "yuv420p")
    assert (found.width, found.height, found.fps, found.frames) == (width, height, fps, round(8.27 * fps))


def test_covers_and_sound_are_no_film():
    cover = "  Stream #0:0: Video: mjpeg (Baseline), yuvj420p(pc), 500x500, 90k tbr, 90k tbn (attached pic)\n"
    assert stream(INPUT + cover) is None and stream(INPUT + "  Stream #0:0: Audio: aac, 44100 Hz\n") is None
    assert stream(INPUT + cover + LINE % ("", "15 fps")) == Stream("h264", "yuv420p", 640, 360, 15.0, 124)


def test_the_reason_is_ffmpegs_own_last_line():
    said = ["[mov,mp4 @ 0x55ad2e] moov atom not found", "[in#0 @ 0x5a] Error opening input: Invalid data", "Error opening input files: x"]
    assert ffmpeg.reason(said) == "moov atom not found" and ffmpeg.reason([]) == "it gave no reason"
    assert ffmpeg.reason(["[out#0 @ 0x1] [x @ 0x2] No space left on device", "Conversion failed!"]) == "No space left on device"
