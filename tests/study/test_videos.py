"""Finding, checking and copying the videos of a study."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest
from reference_study import film

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.output import ffmpeg
from fourdfy_cli.study import videos


def refused(call, *args: object) -> str:
    with pytest.raises(FourdfyError) as caught:
        call(*args)
    assert caught.value.code == 2 and caught.value.hint
    return caught.value.message


def run_folder(folder: Path, prompt: object, *videos: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"prompt": prompt}))
    for name in videos:
        (folder / name).touch()
    return folder


def test_videos_are_found_by_name_and_in_run_folders(tmp_path: Path):
    (tmp_path / "A_red-dog.mp4").touch()
    (tmp_path / ".hidden.mp4").touch()
    run_folder(tmp_path / "cat-s0", "a cat, sitting", "orbit.mp4", "mav3d.mp4")
    run_folder(tmp_path / "owl-s0", "An owl", "orbit.mp4")
    found = videos.find(tmp_path)
    assert {words: (prompt, path.name) for words, (prompt, path) in found.items()} == {
        "a red dog": ("A red dog", "A_red-dog.mp4"),
        "a cat sitting": ("a cat, sitting", "mav3d.mp4"),
        "an owl": ("An owl", "orbit.mp4"),
    }
    assert list(videos.find(tmp_path / "owl-s0")) == ["an owl"]  # a run folder's own clips are not prompts


def test_what_cannot_be_found_is_told(tmp_path: Path):
    assert "no folder" in refused(videos.find, tmp_path / "none")
    assert "no video" in refused(videos.find, tmp_path)
    run_folder(tmp_path / "runs/cat-s0", "a cat")
    assert "cat-s0 has no video" in refused(videos.find, tmp_path / "runs")
    run_folder(tmp_path / "odd/cat-s0", 7, "orbit.mp4")
    assert "names no prompt" in refused(videos.find, tmp_path / "odd")
    run_folder(tmp_path / "twice/cat-s0", "A cat.", "orbit.mp4")
    run_folder(tmp_path / "twice/cat-s1", "a cat", "orbit.mp4")
    assert "are both for" in refused(videos.find, tmp_path / "twice")


def test_probe_counts_what_was_encoded(tmp_path: Path):
    shape = videos.probe(film(tmp_path / "a b.mp4", frames=11, size=96, fps=24))
    assert shape == videos.Shape(96, 96, 24.0, 11, "h264") and str(shape) == "96x96, 24 fps, 11 frames"
    assert shape == videos.Shape(96, 96, 24.0, 11, "vp9") != videos.Shape(96, 96, 24.0, 12, "h264")


@pytest.mark.parametrize("kept", [0, 40, 0.5, 0.999])
def test_truncated_videos_are_refused(kept: float, tmp_path: Path):
    whole = film(tmp_path / "a.mp4", "testsrc2", frames=30).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    assert "cut.mp4 is damaged" in refused(videos.probe, tmp_path / "cut.mp4")


def test_videos_that_browsers_do_not_play_are_refused(tmp_path: Path):
    assert "mpeg4" in refused(videos.probe, film(tmp_path / "a.mp4", "testsrc", 6, 64, 15, "-c:v", "mpeg4"))
    assert "yuv444p" in refused(videos.probe, film(tmp_path / "b.mp4", "testsrc", 6, 64, 15, "-pix_fmt", "yuv444p"))


def test_copies_show_the_same_and_tell_nothing(tmp_path: Path):
    source = film(tmp_path / "SECRET.mp4", "testsrc2")
    for name in ("one.mp4", "two.mp4"):
        videos.copy_plain(source, tmp_path / name, "h264")
    plain = (tmp_path / "one.mp4").read_bytes()
    traces = [word for word in (b"SECRET", b"x264", b"Lavc", b"Lavf") if word in source.read_bytes()]  # encoders sign as they like
    assert b"SECRET" in traces and not any(word in plain for word in traces)

    def pictures(path: Path) -> bytes:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-"]
        return subprocess.run(command, capture_output=True, check=True).stdout

    assert len(pictures(source)) == 6 * 64 * 64 * 3 // 2 and pictures(source) == pictures(tmp_path / "one.mp4")
    assert plain == (tmp_path / "two.mp4").read_bytes()
    assert videos.probe(tmp_path / "one.mp4") == videos.probe(source)


def test_a_copy_that_fails_is_told(tmp_path: Path):
    (tmp_path / "bad.mp4").write_text("no video")
    assert "cannot copy" in refused(videos.copy_plain, tmp_path / "bad.mp4", tmp_path / "new.mp4", "h264")


def test_without_ffmpeg_it_is_the_environment(monkeypatch: pytest.MonkeyPatch):
    def none() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    with pytest.raises(FourdfyError) as caught:
        ffmpeg.ffmpeg()
    assert caught.value.code == 3


def test_other_kinds_tables_and_names_that_say_nothing(tmp_path: Path):
    for name in ("A_red-dog.MOV", "x1.webm", "orbit.mp4"):
        (tmp_path / name).touch()
    assert "has no prompt" in refused(videos.find, tmp_path)
    (tmp_path / "prompts.tsv").write_bytes("\ufefforbit\ta cat\nx1\tAn owl\n".encode())
    assert {words: path.name for words, (_, path) in videos.find(tmp_path).items()} == {
        "a red dog": "A_red-dog.MOV", "an owl": "x1.webm", "a cat": "orbit.mp4"
    }  # fmt: skip


def test_a_film_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = film(tmp_path / "a.mp4")
    monkeypatch.setattr(videos, "describe", lambda path: ffmpeg.describe(path)._replace(frames=10**6))
    assert "1000000 frames" in refused(videos.probe, path)
    monkeypatch.setattr(videos, "describe", lambda path: ffmpeg.describe(path)._replace(frames=0))
    monkeypatch.setattr(videos.limits, "FRAMES", 5)
    assert "6 frames are more than 5" in refused(videos.probe, path)


def test_copies_are_turned_as_their_source(tmp_path: Path):
    film(tmp_path / "a.mp4", "testsrc2", 4, 64, 15, "-vf", "crop=64:32")
    turned = tmp_path / "turned.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", str(tmp_path / "a.mp4"), "-c", "copy"]
    subprocess.run([*command, str(turned)], check=True)
    assert str(videos.probe(turned)) == "32x64, 15 fps, 4 frames"
    videos.copy_plain(turned, tmp_path / "b.mp4", "h264")
    assert videos.probe(tmp_path / "b.mp4") == videos.probe(turned)
