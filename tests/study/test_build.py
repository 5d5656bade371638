"""A study's site: complete, neutral, the same every time; and everything that stops a build leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from reference_study import PROMPTS, film, films

from fourdfy_cli.cli import main
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.store.folder import read_json
from fourdfy_cli.study import build, questions
from fourdfy_cli.study.answers import read_key


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods' videos; not to be changed."""
    root = tmp_path_factory.mktemp("methods")
    films(root, gooduns="testsrc", zebra="testsrc2", yak="rgbtestsrc")
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("gooduns", "zebra", "yak"):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


def plan(**changes: object) -> build.Plan:
    return dataclasses.replace(build.Plan(Path("gooduns"), {"zebra": Path("zebra"), "yak": Path("yak")}), **changes)


def test_a_site_has_every_pair_under_names_that_mean_nothing(here: Path, made: Path):
    told = build.build(plan(tie=True), Path("site"), Path("key.json"))
    assert (told["pairs"], told["trials"], told["minutes"]) == (6, 9, 3)
    manifest = read_json(Path("site/manifest.json"))
    key = json.loads(Path("key.json").read_text())
    files = sorted(p.relative_to("site").as_posix() for p in Path("site").rglob("*") if p.is_file())
    videos = sorted(name for pair in manifest["pairs"] for name in pair["videos"])
    assert files == sorted(["index.html", "manifest.json", *(f"videos/{name}" for name in videos)]) and len(set(videos)) == 12
    assert all(re.fullmatch(r"[0-9a-f]{16}\.mp4", name) for name in videos)
    assert [pair["videos"] for pair in manifest["pairs"]] == [sorted(pair["videos"]) for pair in manifest["pairs"]]
    assert manifest["tie"] is True and [q["id"] for q in manifest["questions"]] == list(questions.USUAL)
    for path in (*Path("site").rglob("*"),):
        text = str(path).encode() + (path.read_bytes() if path.is_file() else b"")
        assert not re.search(rb"gooduns|zebra|yak|SECRET|x264|fourdfy|4d-?fy", text, re.I), path
    assert [pair["id"] for pair in key["pairs"]] == [pair["id"] for pair in manifest["pairs"]]
    assert {(pair["baseline"], pair["prompt"]) for pair in key["pairs"]} == {(b, p) for b in ("zebra", "yak") for p in PROMPTS}
    for pair in key["pairs"]:  # the key is right: the file named as ours has our pictures
        ours = Path("site/videos") / pair["videos"][pair["ours"]]
        build.copy_plain(made / "gooduns" / f"{pair['prompt'].replace(' ', '_')}.mp4", here / "x.mp4", "h264")
        assert ours.read_bytes() == (here / "x.mp4").read_bytes()
        (here / "x.mp4").unlink()
    assert read_key(Path("key.json")).study == manifest["study"] == told["study"]


def test_order_of_names_and_of_times_does_not_tell_whose_a_video_is(here: Path):
    first = []
    for seed in range(8):
        key = build.describe(
            plan(seed=seed), [build.Pair("b", p, (Path(f"gooduns/{p}.mp4".replace(" ", "_")),) * 2, ("h264",) * 2) for p in PROMPTS]
        )
        first += [pair["ours"] for pair in key[1]["pairs"]]
        names = [name for _, name in key[2]]
        assert names == sorted(names)  # files are written in this order
    assert 4 < sum(first) < 20


def test_the_same_input_gives_the_same_site_and_anything_else_another(here: Path):
    one = build.build(plan(), Path("site"), Path("key.json"))
    two = build.build(plan(), Path("site2"), Path("key.json"))  # the same study may write its key again
    assert one["study"] == two["study"]
    for path in Path("site").rglob("*.*"):
        assert path.read_bytes() == (Path("site2") / path.relative_to("site")).read_bytes()
    with pytest.raises(FourdfyError, match="another study"):
        build.build(plan(seed=1), Path("site3"), Path("key.json"))
    assert not Path("site3").exists()


def test_the_page_is_one_file_that_asks_nobody_else(here: Path):
    build.build(plan(), Path("site"), Path("key.json"))
    page = Path("site/index.html").read_text()
    assert not re.search(r"https?://|//cdn|@import|<link[^>]+stylesheet|<script[^>]+src|url\(|{{", page)
    inside = re.search(r'<script type="application/json" id="study">(.*?)</script>', page, re.S)
    assert inside and json.loads(inside.group(1)) == read_json(Path("site/manifest.json"))


def test_text_cannot_leave_the_script_element():
    page = build.page({"pairs": [{"prompt": "</script><script>alert(1)</script>"}]})
    assert "alert(1)</script>" not in page and "\\u003c/script>\\u003cscript>alert(1)" in page


def test_run_folders_and_partial_baselines(here: Path, made: Path):
    for name in ("dog-s0", "cube-s0"):
        Path("runs", name).mkdir(parents=True)
    Path("runs/dog-s0/run.json").write_text(json.dumps({"prompt": "A red dog, jumping!"}))
    Path("runs/dog-s0/orbit.mp4").symlink_to(made / "yak" / "a_red_dog_jumping.mp4")
    Path("runs/cube-s0/run.json").write_text(json.dumps({"prompt": PROMPTS[2]}))
    Path("runs/cube-s0/mav3d.mp4").symlink_to(made / "yak" / "a_blue_cube_turning.mp4")
    with pytest.raises(FourdfyError, match="runs has no video for 'an octopus is underwater'$"):
        build.build(plan(baselines={"b": Path("runs")}), Path("site"), Path("key.json"))
    told = build.build(plan(baselines={"b": Path("runs")}, partial=True), Path("site"), Path("key.json"))
    assert told["pairs"] == 2


def stops(capsys: pytest.CaptureFixture[str], args: list[str], *words: str, code: int = 2) -> None:
    """One line, one hint, this exit code, and not a file more than before."""
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    assert main.run(["study", "build", *args]) == code
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint:  ") and all(word in error + hint for word in words), (error, hint)
    assert sorted(Path.cwd().rglob("*")) == before


GOOD = ["--ours", "gooduns", "--baseline", "zebra=zebra"]


@pytest.mark.parametrize(
    "args, words",
    [
        (["--ours", "gooduns"], ["--baseline"]),
        (["--baseline", "zebra=zebra"], ["--ours"]),
        (["--ours", "gooduns", "--baseline", "zebra"], ["NAME=DIR"]),
        (["--ours", "gooduns", "--baseline", "=zebra"], ["NAME=DIR"]),
        ([*GOOD, "--baseline", "zebra=yak"], ["of its own"]),
        (["--ours", "none", "--baseline", "zebra=zebra"], ["no folder none"]),
        ([*GOOD, "--questions", "aq,sp"], ["'sp'", "overall"]),
        ([*GOOD, "--questions", "aq,aq"], ["each once"]),
        ([*GOOD, "--key", "site/key.json"], ["must not be in the site", "--key site-key.json"]),
        ([*GOOD, "--key", "site/../site/sub/key.json"], ["must not be in the site"]),
        ([*GOOD, "--out", "gooduns"], ["not empty"]),
        ([*GOOD, "--post", "ftp://x"], ["--post"]),
        ([*GOOD, "--mailto", "nobody"], ["--mailto"]),
        ([*GOOD, "--mailto", "Zebra@example.org"], ["would show the name 'zebra'"]),
        ([*GOOD, "--checks", "-1"], ["--checks"]),
        (["--ours", "gooduns", "--baseline", "zebra=gooduns"], ["same video"]),
    ],
)
def test_bad_input(args: list[str], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]):
    stops(capsys, args, *words)


@pytest.mark.parametrize(
    "video, words",
    [
        (("smptebars", 6, 64, 30), ["64x64, 15 fps, 6 frames", "64x64, 30 fps, 6 frames", "'a red dog jumping'", "ffmpeg"]),
        (("smptebars", 6, 32, 15), ["32x32", "scale=64:64"]),
        (("smptebars", 7, 64, 15), ["7 frames"]),
    ],
)
def test_videos_that_do_not_fit_each_other(video: tuple, words: list[str], here: Path, made: Path, capsys: pytest.CaptureFixture[str]):
    for prompt in PROMPTS[1:]:
        name = f"{prompt.replace(' ', '_')}.mp4"
        (here / "new").mkdir(exist_ok=True)
        (here / "new" / name).symlink_to(made / "yak" / name)
    film(here / "new" / "a_red_dog_jumping.mp4", *video)
    stops(capsys, ["--ours", "gooduns", "--baseline", "x=new"], *words)


def test_missing_extra_and_truncated_videos(here: Path, made: Path, capsys: pytest.CaptureFixture[str]):
    (here / "new").mkdir()
    whole = (made / "yak" / "a_red_dog_jumping.mp4").read_bytes()
    (here / "new" / "a_red_dog_jumping.mp4").write_bytes(whole[:-20])
    args = ["--ours", "gooduns", "--baseline", "x=new"]
    stops(capsys, args, "new has no video for 'a blue cube turning' (and 1 more)", "--partial")
    stops(capsys, [*args, "--partial"], "new/a_red_dog_jumping.mp4 is damaged")
    (here / "new" / "a_cat.mp4").write_bytes(whole)
    stops(capsys, [*args, "--partial"], "gooduns has no video for 'a cat'")


def test_a_build_that_fails_late_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, values: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_json", full)
    before = sorted(here.rglob("*"))
    with pytest.raises(FourdfyError, match="cannot write site: No space left"):
        build.build(plan(), Path("site"), Path("key.json"))
    assert sorted(here.rglob("*")) == before


def test_the_command_tells_where_things_are(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(["study", "build", *GOOD, "--seed", "7", "--checks", "1", "--out", "here/site", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "private" in lines[0]["text"] and lines[-1]["command"] == "study build"
    assert lines[-1]["data"]["key"] == "here/key.json" and lines[-1]["data"]["trials"] == 4
    assert json.loads(Path("here/key.json").read_text())["seed"] == 7 and Path("here/site/index.html").is_file()
