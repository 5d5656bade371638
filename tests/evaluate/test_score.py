"""`fourdfy clip-score` from files to table: against a plain computation on the nano CLIP; errors, cache, crops, runs."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from samples import film, save

from fourdfy_cli.cli import main
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate import clip as clip_module
from fourdfy_cli.evaluate import embeddings, videos
from fourdfy_cli.evaluate import score as command
from fourdfy_cli.evaluate.clip import cosines, load_clip, shrunk, square
from fourdfy_cli.evaluate.score import Choice, different, same, score
from fourdfy_cli.memory import Machine, PeakMemory
from fourdfy_cli.nano.train_clip import CONFIG, export_clip
from fourdfy_cli.run import engines
from fourdfy_cli.scene.cameras import mav3d
from fourdfy_cli.store.cache import cache_folder

PROMPTS = {"a_red_dog.mp4": "a red dog", "a_blue_cat.mp4": "a blue cat", "a_green_fish.mp4": "a green fish"}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for seed, name in enumerate(PROMPTS):
        film(folder / name, 124 if seed == 0 else 8, seed=seed)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOURDFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def plainly(path: Path, prompt: str, candidates: list[str]) -> dict[str, float]:
    """The measures of an mp4, frame by frame in NumPy."""
    clip = load_clip("nano")
    frames = np.stack(list(videos.frames(path))) / 255.0
    seen = clip.pictures(torch.tensor(frames, dtype=torch.float32).permute(0, 3, 1, 2)).double().numpy()
    words = {text: clip.texts([text])[0].double().numpy() for text in candidates}
    right = [max(words, key=lambda text, e=e: float(e @ words[text])) == prompt for e in seen]
    result = {
        "score": 100 * np.mean([e @ words[prompt] for e in seen]),
        "clip_f": 100 * np.mean([a @ b for a, b in zip(seen[1:], seen[:-1], strict=True)]),
        "r_precision": 100 * np.mean(right),
    }
    if len(frames) == 124:
        pairs = [(k - 1, k) for b in range(4) for k in range(31 * b + 1, 31 * b + 16)]
        triples = [(k - 1, k, k + 1) for b in range(4) for k in range(31 * b + 1, 31 * b + 15)]
        result["motion"] = 100 * np.mean([np.abs(frames[a] - frames[b]).mean() for a, b in pairs])
        result["flicker"] = 100 * np.mean([np.abs(frames[a] - 2 * frames[b] + frames[c]).mean() / 2 for a, b, c in triples])
    return result


def test_the_report_equals_a_plain_computation(films: Path, tmp_path: Path):
    found, problems = score([films], Choice("nano", out=tmp_path))
    assert not problems
    rows = {Path(row["video"]).name: row for row in found["videos"]}
    assert {name: row["prompt"] for name, row in rows.items()} == PROMPTS
    expected = {name: plainly(films / name, prompt, list(PROMPTS.values())) for name, prompt in PROMPTS.items()}
    for name, wanted in expected.items():
        assert {key: rows[name][key] for key in wanted} == pytest.approx(wanted, abs=1e-3)
        assert np.mean(rows[name]["per_frame"]) == pytest.approx(wanted["score"], abs=1e-3)
    assert rows["a_blue_cat.mp4"]["motion"] is None and rows["a_blue_cat.mp4"]["profile"]["time"] is None
    (total,) = found["sets"]
    scores = [wanted["score"] for wanted in expected.values()]
    assert (total["prompts"], total["videos"]) == (3, 3) and total["score"] == pytest.approx(np.mean(scores), abs=1e-3)
    assert min(scores) - 1e-3 <= total["low"] < total["score"] < total["high"] <= max(scores) + 1e-3
    assert total["motion"] == rows["a_red_dog.mp4"]["motion"]
    kept = json.loads((tmp_path / "clip.json").read_text())
    assert kept["sets"][0]["score"] == total["score"] and len(kept["videos"]) == 3
    assert (tmp_path / "clip-profile.png").stat().st_size > 1000


def test_profile_of_the_whole_path(films: Path, tmp_path: Path):
    found, _ = score([films / "a_red_dog.mp4"], Choice("nano", out=tmp_path))
    (row,) = found["videos"]
    values, azimuth = np.array(row["per_frame"]), torch.rad2deg(mav3d(1).azimuth()).round().numpy() % 360
    assert dict(row["profile"]["azimuth"])[180.0] == pytest.approx(values[azimuth == 180].mean(), abs=2e-3)
    assert row["profile"]["time"][5][1] == pytest.approx((values[5] + values[67]) / 2, abs=2e-3)
    clip = load_clip("nano")
    front, back = clip.texts(["a red dog, front view", "a red dog, back view"])
    frame = torch.tensor(np.stack(list(videos.frames(films / "a_red_dog.mp4")))[18]).permute(2, 0, 1)[None] / 255
    expected = 100 * float(clip.pictures(frame)[0] @ (front - back))
    assert dict(row["profile"]["front"])[342.0] == pytest.approx(expected, abs=2e-3)  # frame 18 is the only one there
    assert row["r_precision"] is None and found["sets"][0]["low"] is None


def test_mean_over_the_videos_of_a_prompt_first(tmp_path: Path):
    for seed, name in enumerate(("a_red_dog", "a-red-dog", "a_blue_cat")):
        film(tmp_path / "x" / f"{name}.mp4", seed=seed)
    found, _ = score([tmp_path / "x"], Choice("nano", out=tmp_path))
    by_name = {Path(row["video"]).stem: row["score"] for row in found["videos"]}
    dogs = (by_name["a_red_dog"] + by_name["a-red-dog"]) / 2
    assert found["sets"][0]["score"] == pytest.approx((dogs + by_name["a_blue_cat"]) / 2) and found["sets"][0]["prompts"] == 2


def test_a_second_call_looks_at_no_frame(films: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, _ = score([films], Choice("nano", out=tmp_path))
    assert len(list(cache.rglob("*.safetensors"))) == 3

    def never(path: Path, crop: str | None = None) -> None:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(videos, "frames", never)
    again, _ = score([films], Choice("nano", out=tmp_path))
    assert again == first
    with pytest.raises(AssertionError):
        score([films], Choice("nano", crop="left", out=tmp_path))  # another view is another entry


def test_embeddings_made_ahead_by_an_engine(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The report is the same, and no frame is left to be looked at; what the engine could not do is told as ever."""
    choice = Choice("nano", out=tmp_path)
    plain, _ = score([films], choice)
    shutil.rmtree(cache_folder())
    told: list[str] = []
    embeddings.ahead([films], choice, engines.InProcess(Machine()), told.append)
    with monkeypatch.context() as patch:
        patch.setattr("fourdfy_cli.evaluate.score.embed", lambda *_: pytest.fail("looked again"))
        assert score([films], choice)[0] == plain
    assert told == [f"{len(plain['videos'])}/{len(plain['videos'])} videos"] and len(plain["videos"]) > 1


def test_halves_of_a_film(tmp_path: Path):
    film(tmp_path / "p" / "a_red_dog.mp4", size=(32, 64))
    halves = {crop: score([tmp_path / "p"], Choice("nano", crop=crop, out=tmp_path))[0]["videos"][0] for crop in ("left", "right", "none")}
    assert len({row["score"] for row in halves.values()}) == 3
    clip = load_clip("nano")
    left = torch.tensor(np.stack(list(videos.frames(tmp_path / "p" / "a_red_dog.mp4")))[:, :, :32]).permute(0, 3, 1, 2) / 255
    expected = 100 * (clip.pictures(left) @ clip.texts(["a red dog"])[0]).mean()
    assert halves["left"]["score"] == pytest.approx(float(expected), abs=1e-3)


def test_a_run_is_rendered_and_keeps_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    export_clip(open_clip.CLIP(**CONFIG), tmp_path / "clip")
    choice = Choice(f"local-dir:{tmp_path / 'clip'}", out=tmp_path)
    monkeypatch.setattr(command, "SIZE", 4)
    run = tmp_path / "outputs" / "a-red-dog-s0"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"prompt": "a red dog"}))
    save(run / "stage1.pt")
    counts = []
    found, problems = score([run], choice, lambda frames, total, what: counts.append((total, what)) or frames)
    (row,) = found["videos"]
    assert not problems and row["frames"] == 124 and row["motion"] is not None and counts == [(124, "1/1 a red dog")]
    assert json.loads((run / "clip.json").read_text())["videos"][0]["score"] == row["score"]
    frames = torch.tensor(np.stack([frame for frame, _ in zip(videos.rendered(run, 4, "cpu"), range(5), strict=False)]))
    assert row["per_frame"][:5] == pytest.approx(
        cosines(load_clip(choice.clip), "a red dog", frames.permute(0, 3, 1, 2) / 255).tolist(), abs=2e-3
    )
    (run / "stage1.pt").write_bytes((run / "stage1.pt").read_bytes()[:-50])
    _, problems = score([run], choice)
    assert [problem.code for problem in problems] == [6]


def test_other_videos_are_scored_in_spite_of_all(films: Path, tmp_path: Path):
    for seed, name in enumerate(("a_red_dog", "a_blue_cat")):
        film(tmp_path / "x" / f"{name}.mp4", seed=seed)
    film(tmp_path / "x" / "large.mp4", size=(48, 48))
    whole = film(tmp_path / "x" / "cut.mp4", 12).read_bytes()
    (tmp_path / "x" / "cut.mp4").write_bytes(whole[:-300])
    (tmp_path / "x" / "prompts.tsv").write_text("gone\ta green fish\n")
    (tmp_path / "list.txt").write_text("A red dog.\na pink car\na white car\n")
    found, problems = score([tmp_path / "x", tmp_path / "none.mp4"], Choice("nano", prompts=tmp_path / "list.txt", out=tmp_path))
    assert sorted(row["prompt"] for row in found["videos"]) == ["a blue cat", "a red dog"]
    words = ("gone.mp4", "none.mp4", "large.mp4", "'a pink car' and 1 more", "cut.mp4")
    assert len(problems) == len(words) and all(word in problem.message for word, problem in zip(words, problems, strict=True))
    assert all(problem.code == 2 and problem.hint and "\n" not in problem.message for problem in problems)
    dog = next(row for row in found["videos"] if row["prompt"] == "a red dog")
    candidates = ["a red dog", "a pink car", "a white car", "a blue cat"]  # those listed and those scored
    assert dog["r_precision"] == plainly(tmp_path / "x" / "a_red_dog.mp4", "a red dog", candidates)["r_precision"]


def test_spellings():
    assert same(" A panda  Dancing. ") == same("a panda dancing") != same("a panda")
    assert different(["A dog.", "a cat", "a dog", "a cat"]) == ["A dog.", "a cat"]


def test_nothing_to_score(tmp_path: Path):
    found, problems = score([tmp_path / "none"], Choice("no-such-clip", out=tmp_path))
    assert found is None and len(problems) == 1 and not (tmp_path / "clip.json").exists()


def test_unknown_clip_and_missing_prompt_file(films: Path, tmp_path: Path):
    for choice in (Choice("no-such-clip", out=tmp_path), Choice("nano", prompts=tmp_path / "none.txt", out=tmp_path)):
        with pytest.raises(FourdfyError) as error:
            score([films], choice)
        assert error.value.code == 2
    assert not (tmp_path / "clip.json").exists()


def test_looking_in_batches_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    clip = load_clip("nano")
    frames = list(np.random.default_rng(0).integers(0, 256, (11, 20, 20, 3), dtype=np.uint8))
    whole = command.embed(clip, frames)
    for size in (1, 2, 3, 10):
        monkeypatch.setattr(command, "BATCH", size)
        assert torch.allclose(command.embed(clip, frames), whole, atol=1e-6)
    pixels = np.stack(frames) / 255.0
    assert whole[0, -2:].tolist() == [0, 0] and whole[1, -1] == 0
    assert whole[5, -2] == pytest.approx(np.abs(pixels[5] - pixels[4]).mean(), rel=1e-5)
    assert whole[5, -1] == pytest.approx(np.abs(pixels[5] - 2 * pixels[4] + pixels[3]).mean() / 2, rel=1e-5)


def test_the_command(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(["clip-score", str(films), "--clip", "nano", "--out", "report"]) == 0
    out = capsys.readouterr().out
    assert "a red dog" in out and "report/clip.json" in out and (tmp_path / "report" / "clip.json").is_file()
    assert main.run(["clip-score", str(films), "gone.mp4", "away.mp4", "--clip", "nano"]) == 2
    told = capsys.readouterr()
    assert "a red dog" in told.out and told.err.count("error:") == told.err.count("hint:") == 2 and "gone.mp4" in told.err
    assert main.run(["clip-score", str(films), "gone.mp4", "away.mp4", "--clip", "nano", "--json"]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("event") for line in lines] == ["scores", "problem", None]
    assert len(lines[0]["videos"]) == 3 and lines[-1]["error"]["code"] == 2 and "away.mp4" in lines[-1]["error"]["message"]
    assert main.run(["clip-score", str(films), "--crop", "middle"]) == 2
    assert main.run(["clip-score", str(films), "--clip", "bogus"]) == 2


def test_memory_does_not_grow_with_the_pictures():
    """Six 4K frames: a few pictures as bytes, never all of them as numbers of four bytes (0.6 GB)."""
    clip = load_clip("nano")

    def frames():
        for k in range(6):
            yield np.full((2160, 3840, 3), 40 * k, np.uint8)

    tracemalloc.start()
    with PeakMemory() as torchs:
        table = command.embed(clip, frames())
    ours = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ours < 150e6 and torchs.bytes < 150e6 and len(table) == 6
    assert table[1, -2] == pytest.approx(40 / 255) and table[2, -1] == 0


@pytest.mark.parametrize("height, width", [(256, 256), (48, 90), (131, 97), (64, 64), (2000, 40)])
def test_a_frame_is_prepared_as_pictures_are(height: int, width: int, monkeypatch: pytest.MonkeyPatch):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = square(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, 64)[0]
    for band in (1, 1000, 10**9):
        monkeypatch.setattr(clip_module, "BAND", band)
        assert torch.allclose(shrunk(picture, 64), whole, atol=1e-5)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: x")])
def test_lack_of_memory_ends_in_one_line(
    error: Exception, films: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(command, "shrunk", full)
    assert main.run(["clip-score", str(films / "a_red_dog.mp4"), "--clip", "nano"]) == 4
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "out of memory" in told[0] and told[1].startswith("hint:  a smaller one: ffmpeg -i file:")


LONG = "a red dog and a blue cat " * 5


def test_a_prompt_that_is_cut_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    film(tmp_path / "x" / "one.mp4")
    (tmp_path / "x" / "prompts.tsv").write_text(f"one\t{LONG}\n")
    assert main.run(["clip-score", "x", "--clip", "nano", "--json", "--out", "new/out"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (cut,) = lines[-1]["data"]["cut"]
    assert (cut["prompt"], cut["tokens"], cut["read"]) == (LONG.strip(), 35, 22) and cut["left_out"].startswith("red dog and a blue cat")
    assert any("35 tokens" in line.get("text", "") for line in lines)
    clip = load_clip("nano")
    front, back = clip.ids([f"{LONG}, front view", f"{LONG}, back view"])
    assert not torch.equal(front, back)


def test_prompts_that_clip_cannot_tell_apart_are_refused(tmp_path: Path):
    for seed, name in enumerate(("one", "two", "three", "a_red_dog")):
        film(tmp_path / "x" / f"{name}.mp4", seed=seed)
    (tmp_path / "x" / "prompts.tsv").write_text(f"one\t{LONG} jumping\ntwo\t{LONG} walking\nthree\ta pink car\n")
    found, problems = score([tmp_path / "x"], Choice("nano", out=tmp_path))
    assert sorted(row["prompt"] for row in found["videos"]) == ["a pink car", "a red dog"]
    (problem,) = problems
    assert problem.code == 2 and "jumping" in problem.message and "walking" in problem.message and "22 tokens" in problem.message


def test_what_is_left_out_is_told(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    film(tmp_path / "x" / "a_red_dog.mp4")
    for name in ("a.webp", "notes.md"):
        (tmp_path / "x" / name).touch()
    assert main.run(["clip-score", "x", "--clip", "nano"]) == 0
    told = capsys.readouterr().err
    assert "left out: x/a.webp" in told and "left out: x/notes.md" in told
    assert main.run(["clip-score", "x", "--clip", "nano", "--json"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]
    assert [one["file"] for one in data["left_out"]] == ["x/a.webp", "x/notes.md"]
    assert json.loads((tmp_path / "x" / "clip.json").read_text())["left_out"] == data["left_out"]


def test_an_orbit_out_of_its_folder_is_not_scored_against_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    film(tmp_path / "x" / "orbit.mp4")
    assert main.run(["clip-score", "x", "--clip", "nano"]) == 2
    assert "has no prompt" in capsys.readouterr().err
    (tmp_path / "x" / "prompts.tsv").write_bytes("\ufefforbit.mp4\ta red dog\n".encode())
    assert main.run(["clip-score", "x", "--clip", "nano", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["videos"][0]["prompt"] == "a red dog"


def test_three_panels_are_judged_one_by_one(tmp_path: Path):
    film(tmp_path / "p" / "a_red_dog.mp4", size=(32, 96))
    found, (problem,) = score([tmp_path / "p"], Choice("nano", out=tmp_path))
    assert found is None and "--crop 1/3" in problem.hint
    values = [score([tmp_path / "p"], Choice("nano", f"{k}/3", out=tmp_path))[0]["videos"][0]["score"] for k in (1, 2, 3)]
    clip, frames = load_clip("nano"), np.stack(list(videos.frames(tmp_path / "p" / "a_red_dog.mp4")))
    for k, value in enumerate(values):
        part = torch.tensor(frames[:, :, 32 * k : 32 * k + 32].copy()).permute(0, 3, 1, 2) / 255
        assert value == pytest.approx(float(cosines(clip, "a red dog", part).mean()), abs=1e-3)
