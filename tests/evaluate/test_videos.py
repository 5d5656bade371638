"""Finding what is to be scored, its prompts, its frames; and everything that can be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from samples import TINY, film, save, scene

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate import videos
from fourdfy_cli.output import render
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
    for ours, (theirs, _) in zip([next(frames) for _ in range(3)], wanted, strict=True):
        assert np.array_equal(ours, theirs)
