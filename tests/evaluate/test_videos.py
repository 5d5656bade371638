"""Finding what is to be scored, its prompts, its frames; and everything that can be wrong with it."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from samples import TINY, film, save, scene

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate import videos
from fourdfy_cli.output import render
from fourdfy_cli.output.ffmpeg import describe
from fourdfy_cli.scene.cameras import mav3d


def prompts(found: list[videos.Video]) -> dict[str, str]:
    return {video.path.name: video.prompt for video in found}


def test_prompts_come_from_the_table_the_run_or_the_name(tmp_path: Path):
    for name in ("a_panda_dancing", "a-goat-drinking_beer", "x1"):
        film(tmp_path / f"{name}.mp4")
    (tmp_path / ".tmp-1-a.mp4").write_text("left behind")
    (tmp_path / "prompts.tsv").write_text("# a comment\nx1\ta cat singing\n\n")
    found, problems = videos.find([tmp_path])
    assert prompts(found) == {
        "a_panda_dancing.mp4": "a panda dancing",
        "a-goat-drinking_beer.mp4": "a goat drinking beer",
        "x1.mp4": "a cat singing",
    }
    assert not problems and {video.folder for video in found} == {tmp_path}
    assert prompts(videos.find([tmp_path / "x1.mp4", tmp_path / "x1.mp4"])[0]) == {"x1.mp4": "a cat singing"}
    (tmp_path / "prompts.tsv").write_text("file\tprompt\nx1.mp4\ta dog\n")
    assert prompts(videos.find([tmp_path])[0])["x1.mp4"] == "a dog"


def test_runs_are_found_with_their_newest_checkpoint(tmp_path: Path):
    for name, kept in {"a": ["stage1.pt", "stage2.pt"], "b": [], "c": []}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"prompt": f"thing {name}"}))
        for number, checkpoint in enumerate(kept):
            save(tmp_path / name / checkpoint, seed=number)
    film(tmp_path / "b" / "mav3d.mp4")
    film(tmp_path / "b" / "orbit.mp4", seed=1)
    film(tmp_path / "c" / "orbit.mp4", seed=2)
    found, problems = videos.find([tmp_path])
    assert not problems and {video.folder for video in found} == {tmp_path}
    assert [(video.path, video.prompt) for video in found] == [
        (tmp_path / "a", "a red dog"), (tmp_path / "b" / "mav3d.mp4", "thing b"), (tmp_path / "c" / "orbit.mp4", "thing c"),
    ]  # fmt: skip
    assert found[0].checkpoint == tmp_path / "a" / "stage2.pt" and len({video.content for video in found}) == 3
    alone, _ = videos.find([tmp_path / "a", tmp_path / "a" / "stage1.pt"])
    assert alone[0] == found[0] and alone[1].content != alone[0].content


def test_what_is_wrong_is_told_and_the_rest_is_found(tmp_path: Path):
    film(tmp_path / "good" / "a_cat.mp4")
    (tmp_path / "good" / "prompts.tsv").write_text("a_cat\ta cat\ngone\ta dog\n")
    (tmp_path / "bad").mkdir()
    film(tmp_path / "bad" / "b.mp4")
    (tmp_path / "bad" / "prompts.tsv").write_text("b.mp4 a dog\n")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text("{}")
    film(tmp_path / "_.mp4")
    (tmp_path / "broken.pt").write_text("hello")
    names = ("missing.mp4", "good", "bad", "nothing", "empty", "_.mp4", "broken.pt")
    found, problems = videos.find([tmp_path / name for name in names])
    assert prompts(found) == {"a_cat.mp4": "a cat"}
    told = [(error.message, error.code) for error in problems]
    words = ("missing.mp4", "gone.mp4", "line 1", "nothing", "empty", "_.mp4", "broken.pt")
    assert len(told) == len(words) and all(word in message for word, (message, _) in zip(words, told, strict=True))
    assert [code for _, code in told] == [2] * 6 + [6] and all(error.hint for error in problems)


def test_prompt_files(tmp_path: Path):
    path = tmp_path / "p.txt"
    path.write_text("# source\na cat\n\n  a dog \n")
    assert videos.read_prompts(path) == ["a cat", "a dog"]
    path.write_text("# nothing\n")
    for wrong in (path, tmp_path / "none.txt", tmp_path):
        with pytest.raises(FourdfyError) as error:
            videos.read_prompts(wrong)
        assert error.value.code == 2
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FourdfyError, match="UTF-8"):
        videos.read_prompts(path)


def test_the_published_prompts():
    folder = Path(__file__).parents[2] / "prompts"
    if not folder.is_dir():
        pytest.skip("the prompts are not installed")
    mav3d_prompts, five = (videos.read_prompts(folder / name) for name in ("mav3d.txt", "ablation.txt"))
    assert len(set(mav3d_prompts)) == len(mav3d_prompts) == 28 and len(set(five)) == 5 and set(five) < set(mav3d_prompts[:17])
    assert "a panda dancing" in five and "shark swimming in the desert" in mav3d_prompts[17:]


def test_frames_are_those_that_were_written(tmp_path: Path):
    path = film(tmp_path / "a.mp4", 5, (34, 60), 12.5)
    assert str(videos.probe(path)) == "60x34 at 12.5 fps"
    whole, left, right = (np.stack(list(videos.frames(path, crop))) for crop in ("none", "left", "right"))
    assert whole.shape == (5, 34, 60, 3) and np.array_equal(np.concatenate([left, right], 2), whole)
    y, x = np.mgrid[:34, :60]
    expected = 127 + 60 * (np.sin((x + 9) / 9) + np.cos((y + 6) / 7))
    assert np.abs(whole[3, ..., 0] - expected).mean() < 6 < np.abs(whole[0, ..., 0] - expected).mean()


def test_a_film_cut_off_anywhere_is_noticed(tmp_path: Path):
    data = film(tmp_path / "whole.mp4", 12).read_bytes()
    path = tmp_path / "cut.mp4"
    assert len(list(videos.frames(tmp_path / "whole.mp4"))) == 12
    for length in (0, 40, *np.random.default_rng(0).integers(100, len(data), 8).tolist(), len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(FourdfyError) as error:
            list(videos.frames(path))
        assert error.value.code == 2 and "cut.mp4" in error.value.message


def test_a_film_left_early_leaves_no_process(tmp_path: Path):
    frames = videos.frames(film(tmp_path / "a.mp4", 60, (128, 128)))
    next(frames)
    frames.close()
    with pytest.raises(StopIteration):
        next(frames)


def test_mixed_sizes_rates_and_side_by_side_films(tmp_path: Path):
    for seed, name in enumerate(("a", "b", "c")):
        film(tmp_path / "mixed" / f"{name}.mp4", seed=seed)
    film(tmp_path / "mixed" / "large.mp4", size=(48, 48))
    film(tmp_path / "mixed" / "slow.mp4", fps=10)
    (tmp_path / "mixed" / "text.mp4").write_text("no video")
    film(tmp_path / "pairs" / "d.mp4", size=(32, 64))
    found, problems = videos.find([tmp_path / "mixed", tmp_path / "pairs"])
    kept, more = videos.alike(found, None)
    assert not problems and sorted(video.path.name for video in kept) == ["a.mp4", "b.mp4", "c.mp4"]
    told = {Path(error.message.split()[0]).name: error for error in more}
    assert set(told) == {"large.mp4", "slow.mp4", "text.mp4", "d.mp4"} and {error.code for error in more} == {2}
    assert "48x48" in told["large.mp4"].message and "scale=32:32 -r 15" in told["large.mp4"].hint and "10 fps" in told["slow.mp4"].message
    assert "--crop left" in told["d.mp4"].hint
    assert {video.path.name for video in videos.alike(found, "left")[0]} == {"a.mp4", "b.mp4", "c.mp4", "d.mp4"}


def test_a_checkpoint_is_rendered_on_the_path(tmp_path: Path):
    frames = videos.rendered(save(tmp_path / "stage1.pt"), 12, "cpu")
    wanted = render.views(scene(), TINY, mav3d(12)[:3])
    for ours, theirs in zip([next(frames) for _ in range(3)], wanted, strict=True):
        assert np.array_equal(ours, theirs)


def converted(source: Path, target: Path, *options: str, before: tuple[str, ...] = ()) -> Path:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *before, "-i", str(source), *options, str(target)]
    subprocess.run(command, check=True)
    return target


@pytest.mark.parametrize("kind", [".MP4", ".mov", ".webm", ".gif", ".mkv", ".avi", ".m4v", ".Mov", ".ts", ".flv", ".wmv"])
def test_every_kind_of_film_is_read(tmp_path: Path, kind: str):
    source = film(tmp_path / "source.mp4", 5, (32, 48))
    (tmp_path / "films").mkdir()
    path = converted(source, tmp_path / "films" / f"a_red_dog{kind}")
    for given in (tmp_path / "films", path):
        found, problems = videos.find([given])
        assert prompts(found) == {f"a_red_dog{kind}": "a red dog"} and not problems
    kept, problems = videos.alike(found, None)
    seen, known = (np.stack(list(videos.frames(p))).astype(int) for p in (path, source))
    assert kept and not problems and seen.shape == known.shape and np.abs(seen - known).mean() < 12


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a", "a.txt", "a.zip"])
def test_other_files_are_refused_by_name(tmp_path: Path, name: str):
    (tmp_path / name).write_text("hello")
    found, (problem,) = videos.find([tmp_path / name])
    assert not found and problem.code == 2 and name in problem.message and "damaged" not in problem.message


def test_checkpoints_go_by_their_content_too(tmp_path: Path):
    path = save(tmp_path / "stage1.pt")
    path.rename(tmp_path / "kept.ckpt")
    (tmp_path / "sub").mkdir()
    save(tmp_path / "sub" / "mine.pt", seed=2)
    found, problems = videos.find([tmp_path / "kept.ckpt", tmp_path / "sub"])
    assert [video.path.name for video in found] == ["kept.ckpt", "mine.pt"] and not problems


def test_what_is_left_out_is_listed(tmp_path: Path):
    film(tmp_path / "a_cat.mp4")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "more").mkdir()
    film(tmp_path / "more" / "a_dog.mp4")
    run = tmp_path / "a-red-dog-s0"
    run.mkdir()
    save(run / "last.pt")
    film(run / "orbit.mp4")
    film(run / "from my phone.mov")
    names = [Path(one["file"]).name for one in videos.left_out([tmp_path, tmp_path])]
    assert names == ["more", "notes.txt", "from my phone.mov"]
    assert not videos.left_out([tmp_path / "a_cat.mp4"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.webp").touch()
    (problem,) = videos.find([tmp_path / "empty"])[1]
    assert "left out: a.webp" in problem.message


@pytest.mark.parametrize("angle, turn", [(90, 1), (180, 2), (270, 3), (-90, 3)])
def test_a_film_is_turned_as_players_do_it(tmp_path: Path, angle: int, turn: int):
    source = film(tmp_path / "a.mp4", 3, (32, 48))
    path = converted(source, tmp_path / "turned.mp4", "-c", "copy", before=("-display_rotation", str(angle)))
    form = videos.probe(path)
    assert (form.height, form.width) == ((48, 32) if turn % 2 else (32, 48))
    known = np.stack(list(videos.frames(source))).astype(int)
    seen = np.stack(list(videos.frames(path))).astype(int)
    errors = [np.abs(np.rot90(known, k, (1, 2)) - seen).mean() if np.rot90(known, k, (1, 2)).shape == seen.shape else 99 for k in range(4)]
    assert int(np.argmin(errors)) == turn and min(errors) < 3


def test_pixels_that_are_not_square_are_shown_as_players_do_it(tmp_path: Path):
    path = converted(film(tmp_path / "a.mp4", 3, (32, 32)), tmp_path / "wide.mp4", "-vf", "setsar=2")
    assert (videos.probe(path).width, videos.probe(path).height) == (64, 32)
    assert next(videos.frames(path)).shape == (32, 64, 3)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_any_number_of_panels_asks_which_one(tmp_path: Path, count: int):
    side = 34 if count == 3 else 32  # 3 x 34 pixels are even, 5 x 33 would be padded
    panels = [np.full((side, side, 3), 40 * k + 20, np.uint8) for k in range(count)]
    path = render.write_video(tmp_path / "a_cat.mp4", iter([np.concatenate(panels, 1)] * 2))
    found, _ = videos.find([path])
    kept, (problem,) = videos.alike(found, None)
    assert not kept and problem.code == 2 and f"{count} pictures side by side" in problem.message
    assert problem.hint.endswith("--crop left" if count == 2 else f"--crop 1/{count}")
    for k in range(count):
        kept, problems = videos.alike(found, f"{k + 1}/{count}")
        frame = next(videos.frames(path, f"{k + 1}/{count}"))
        assert kept and not problems and frame.shape == (side, side, 3) and abs(frame[4:-4, 4:-4].mean() - 40 * k - 20) < 3
    assert videos.alike(found, "none")[0]


def test_padding_hides_no_panels_and_towers_are_asked_about(tmp_path: Path):
    assert videos.Form(142, 48, 15).panels == 3  # three of 47, padded to even sizes
    assert [videos.Form(width, 256, 15).panels for width in (256, 341, 455, 640)] == [0, 0, 0, 0]
    film(tmp_path / "a_cat.mp4", size=(96, 32))
    found, _ = videos.find([tmp_path])
    assert "3 pictures one under another" in videos.alike(found, None)[1][0].message and videos.alike(found, "none")[0]


@pytest.mark.parametrize("crop", ["middle", "0/2", "3/2", "1/65", "1/", "/2", "-1/2", "1/2/3", " 1/2", "1/99999"])
def test_a_crop_that_is_none(crop: str):
    with pytest.raises(FourdfyError) as error:
        videos.panel(crop)
    assert error.value.code == 2
    assert [videos.panel(known) for known in ("left", "right", "none", None, "2/3")] == [(1, 2), (2, 2), (1, 1), (1, 1), (2, 3)]


def test_films_that_are_too_large_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = ["-f", "lavfi", "-i", "color=black:size=8192x8192:rate=15", "-frames:v", "1", "-c:v", "mjpeg"]
    big, long = tmp_path / "big.avi", tmp_path / "long.avi"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, str(big)], check=True)
    source = ["-f", "lavfi", "-i", "color=black:size=16x16:rate=100", "-frames:v", "21000", "-c:v", "mpeg4"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, str(long)], check=True)
    monkeypatch.setattr(videos, "running", lambda *_, **__: pytest.fail("decoded"))
    for path, words in ((big, "8192x8192"), (long, "21000 frames")):
        with pytest.raises(FourdfyError) as error:
            next(videos.frames(path))
        assert error.value.code == 2 and words in error.value.message


def test_a_film_that_does_not_say_how_long_it_is_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = film(tmp_path / "a.mp4", 12)
    monkeypatch.setattr(videos.limits, "FRAMES", 11)
    monkeypatch.setattr(videos, "describe", lambda path: describe(path)._replace(frames=0))
    with pytest.raises(FourdfyError, match="12 frames are more"):
        list(videos.frames(path))


def test_hints_hold_for_any_name(tmp_path: Path):
    folder = tmp_path / "my films; $(x)"
    for seed, name in enumerate(("a cat's", "a dog", "a fish")):
        film(folder / f"{name}.mp4", seed=seed)
    film(folder / "two dogs.mp4", size=(48, 48))
    _, (problem,) = videos.alike(videos.find([folder])[0], None)
    words = shlex.split(problem.hint)
    assert words[:3] == ["ffmpeg", "-i", f"file:{folder / 'two dogs.mp4'}"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *words[1:]], check=True, stdin=subprocess.DEVNULL)
    assert str(videos.probe(folder / "two dogs-again.mp4")) == "32x32 at 15 fps"
