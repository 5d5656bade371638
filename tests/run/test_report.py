"""The report of a run: what stands in it, that it needs nothing beside it, and that nothing in a run folder becomes markup."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chromium import browser
from samples import fails, tiny_recipe
from samples import isolated as isolated

import fourdfy_cli as fourdfy
from fourdfy_cli.cli import main
from fourdfy_cli.config import leaves, to_dict
from fourdfy_cli.output.page import SCRIPT, Page, html
from fourdfy_cli.run import batch, report
from fourdfy_cli.schedule import constant

WICKED = "</title><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">'\"&"


class Parsed(HTMLParser):
    """Tags with their attributes, text by tag, and addresses."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "poster", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = fourdfy.generate("a red dog", tiny_recipe(), {"preview_every": 2}, tmp_path_factory.mktemp("report"), 3).run_dir
    (recipe / "clip.json").write_text(json.dumps({"clip": "nano", "videos": [{"score": 61.25, "clip_f": 99.5}]}))
    (recipe / "nano.json").write_text(json.dumps({"iou": 0.8125, "per_view": []}))
    shutil.copy(next((recipe / "previews").iterdir()), recipe / "clip-profile.png")
    return recipe


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def test_everything_stands_in_it(run: Path):
    written = report.write(run, run / "report.html")
    text = (run / "report.html").read_text()
    page = Parsed(text)
    for file in (run / "orbit.mp4", run / "clip-profile.png", *(run / "previews").iterdir()):
        assert base64.b64encode(file.read_bytes()).decode() in text
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    quantities = {name for row in logged for name in row} - report.ABOUT_A_STEP
    captions = set(re.findall(r"<figcaption>([^<]*?)(?: \(log\))?</figcaption></?(?:svg)", text))
    assert captions == quantities and written.charts == len(quantities)
    for key, value in leaves(to_dict(tiny_recipe())).items():
        if key != "preview_every":
            assert f"<tr><td>{key}</td><td>{'none' if value is None else json.dumps(value).replace(chr(34), '&quot;')}</td>" in text
    assert "61.25" in page.text and "0.8125" in page.text and "ships with this package" in page.text
    assert (written.steps, written.previews, written.videos) == (11, len([*(run / "previews").iterdir()]), 1)
    assert written.bytes == (run / "report.html").stat().st_size


def test_nothing_is_fetched_and_nothing_else_runs(run: Path):
    report.write(run, run / "report.html")
    page = Parsed((run / "report.html").read_text())
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    assert page.tags.count("script") == 1 and not page.handlers and "link" not in page.tags and "iframe" not in page.tags


def wicked(run: Path) -> Path:
    about = json.loads((run / "run.json").read_text())
    del about["crc"]  # as a hand leaves it that wants to be believed
    about |= {"prompt": WICKED, "why": WICKED, "status": WICKED, "versions": {WICKED: WICKED}}
    (run / "run.json").write_text(json.dumps(about))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"branch": WICKED, WICKED: float(row["step"])} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "clip.json").write_text(json.dumps({"clip": WICKED, "videos": [{"score": WICKED}]}))
    (run / "nano.json").write_text(json.dumps({"iou": WICKED}))
    wicked_name = re.sub("/", "", WICKED)
    shutil.copy(run / "orbit.mp4", run / f"{wicked_name}.mp4")
    (run / f"{wicked_name}.avi").write_bytes(b"x")
    named = run.with_name(wicked_name)
    run.rename(named)
    return named


def test_no_word_from_a_run_becomes_markup(run: Path):
    honest = Parsed(html(report.gather(run)[0]))
    named = wicked(run)
    page = Parsed(html(report.gather(named)[0]))
    assert page.tags.count("script") == 1 and not page.handlers and all(address.startswith("data:") for address in page.addresses)
    assert page.tags.count("img") == honest.tags.count("img") and page.tags.count("title") > 1
    assert page.text.count(WICKED) >= 8


def test_the_slider_and_the_policy_in_a_browser(run: Path, tmp_path: Path):
    named = wicked(run)
    report.write(named, tmp_path / "report.html")
    with browser(tmp_path) as driver:
        driver.get((tmp_path / "report.html").as_uri())
        assert driver.title == WICKED
        seen = "[...document.querySelectorAll('#previews figure')].map(f => f.hidden)"
        count = len([*(named / "previews").iterdir()])
        assert driver.execute_script(f"return {seen}") == [True] * (count - 1) + [False]
        driver.execute_script("const s = document.getElementById('step'); s.value = 0; s.dispatchEvent(new Event('input'))")
        assert driver.execute_script(f"return {seen}") == [False] + [True] * (count - 1)
        whole = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
        assert driver.execute_script(f"return {whole}")
        assert driver.execute_script("return performance.getEntriesByType('resource').every(e => e.name.startsWith('data:'))")
        assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []


def test_times_and_counts_by_branch():
    recipe = tiny_recipe()
    recipe = dataclasses.replace(recipe, stage3=dataclasses.replace(recipe.stage3, odds_3d=constant(1.0)))
    drawn = [("video", float("nan")), ("video", 2.0), ("image", 6.0)]
    rows = report.branches([report.LoggedStep(k, 3, branch, seconds, {}) for k, (branch, seconds) in enumerate(drawn)], recipe)
    assert (rows[0]["stage"], rows[0]["branch"], rows[0]["steps"], rows[0]["share"], rows[0]["wanted"]) == (3, "video", 2, "67%", "36%")
    assert (rows[0]["seconds"], rows[0]["seconds a step"], rows[0]["of the time"]) == (2.0, 2.0, "25%")
    assert (rows[1]["seconds"], rows[1]["of the time"], rows[1]["wanted"]) == (6.0, "75%", "24%")


def test_a_clock_that_starts_again_is_no_time(tmp_path: Path):
    rows = [(1, 0, 9.0), (1, 1, 10.0), (2, 0, 3.0), (2, 1, 5.5), (2, 2, 1.0), (2, 3, 1.5)]
    lines = [json.dumps({"stage": s, "step": k, "branch": "image", "seconds": t, "t": 5, "none": None}) for s, k, t in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], "{cut", "[]", *lines[1:], '{"stage": 9}']))
    told = list(report.steps(tmp_path / "metrics.jsonl", tiny_recipe()))
    assert [str(one.seconds) for one in told] == ["nan", "1.0", "nan", "2.5", "nan", "0.5"]
    assert [one.at for one in told] == [0, 1, 2, 3, 4, 5] and told[0].values == {"t": 5.0}


def test_a_run_that_lost_almost_everything(run: Path):
    for name in ("run.json", "metrics.jsonl", "orbit.mp4", "clip.json", "nano.json", "clip-profile.png"):
        (run / name).unlink()
    shutil.rmtree(run / "previews")
    page, steps = report.gather(run)
    assert page.title == "a red dog" and steps == 0 and page.settings and not page.charts
    assert Parsed(html(page)).tags.count("section") == 2


def test_an_empty_page():
    page = Parsed(html(Page("nothing", {})))
    assert "nothing" in page.text and SCRIPT.strip() in page.text


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(["report", str(run), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["report"] == str(run / "report.html") and data["steps"] == 11
    fails(capsys, ["report", str(run / "previews")], 2, "is no run folder", "fourdfy runs")
    fails(capsys, ["report", str(run), "--out", "page.pdf"], 2, "ends in .html", "page.pdf.html")
    (run / "file").write_text("")
    fails(capsys, ["report", str(run), "--out", str(run / "file" / "page.html")], 2, "cannot write in")
    (run / "run.json").unlink()
    for path in run.glob("*.pt"):
        path.write_bytes(b"nothing")
    fails(capsys, ["report", str(run)], 6, "damaged")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_place_of_the_metrics_is_not_waited_for(run: Path):
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    assert report.gather(run)[1] == 0
    job = batch.Job("a red dog", 3, report.recipe_of(run)[0], run.parent)
    run.rename(job.folder)
    assert batch.running(job) == batch.SceneStatus("running", 1, 0, job.recipe.stage1.steps)


def test_what_the_truth_score_measured_is_there(run: Path):
    (run / "nano.json").write_text(json.dumps({"iou": 0.5, "chamfer": 0.0625, "volume_iou": None}))
    assert report.truth(run) == [
        {"measure": "iou", "value": 0.5},
        {"measure": "chamfer", "value": 0.0625},
        {"measure": "volume_iou", "value": None},
    ]
