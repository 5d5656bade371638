"""The page in a real browser, from consent to the file of answers, and what `study analyze` makes of that file."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import downloaded
from reference_study import PROMPTS, films

from fourdfy_cli.cli import main
from fourdfy_cli.study import answers, build, questions

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[test]'")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on the PATH: apt-get install chromium chromium-driver"
)
FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update",
    "disable-sync", "disable-dev-shm-usage", "window-size=1280,860",
)  # fmt: skip
LEFT, UP, RIGHT, DOWN, ENTER, BACKSPACE = "\ue012", "\ue013", "\ue014", "\ue015", "\ue007", "\ue003"


class Page:
    """A browser with the study's page open."""

    def __init__(self, site: Path, place: Path):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"user-data-dir={place / 'profile'}"):
            options.add_argument(f"--{flag}")
        options.add_experimental_option("prefs", {"download.default_directory": str(place / "downloads")})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.set_script_timeout(30)
        self.downloads = place / "downloads"
        self.driver.get((site / "index.html").as_uri())

    def js(self, code: str) -> Any:
        return self.driver.execute_script(f"return {code}")

    def element(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def click(self, name: str) -> None:
        self.element(name).click()

    def text(self, name: str) -> str:
        return self.element(name).text

    def type(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def until(self, condition: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30, poll_frequency=0.05).until(lambda _: condition())

    def shown(self) -> str:
        return self.js("['consent', 'task', 'done'].filter(id => !document.getElementById(id).hidden).join()")

    def names(self) -> list[str]:
        """File names of the left and the right video."""
        return [name.rpartition("/")[2] for name in self.js("[left.currentSrc || left.src, right.currentSrc || right.src]")]

    def chosen(self) -> dict[str, str]:
        return dict(self.js("[...document.querySelectorAll('#questions input:checked')].map(i => [i.name, i.value])"))

    def playing(self) -> bool:
        return self.js("[left, right].every(v => !v.paused && v.readyState === 4 && v.videoWidth === 64)")

    def downloaded(self) -> Path:
        return downloaded(self.downloads, "answers-*.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    films(root, ours="testsrc", theirs="testsrc2")
    return root


def built(made: Path, place: Path, **changes: Any) -> tuple[Path, answers.Key, set[str]]:
    """The site, its key, and the file names of our videos."""
    plan = build.Plan(made / "ours", {"x": made / "theirs"}, tie=True, checks=2, seed=5, **changes)
    build.build(plan, place / "site", place / "key.json")
    key = answers.read_key(place / "key.json")
    return place / "site", key, {pair["videos"][pair["ours"]] for pair in key.pairs.values()}


@pytest.fixture
def opened() -> Iterator[Callable[[Path, Path], Page]]:
    pages: list[Page] = []

    def start(site: Path, place: Path) -> Page:
        pages.append(Page(site, place))
        return pages[-1]

    yield start
    for page in pages:
        page.driver.quit()


def test_a_whole_sitting(made: Path, tmp_path: Path, opened: Callable[[Path, Path], Page], capsys: pytest.CaptureFixture[str]):
    site, key, ours = built(made, tmp_path)
    page = opened(site, tmp_path)
    consent(page)

    def arrows() -> tuple[str, str]:  # the key for ours and the key for theirs
        return (LEFT, RIGHT) if page.names()[0] in ours else (RIGHT, LEFT)

    order = questions.order(key.study, key.seed, "anna", sorted(key.pairs), 2)
    assert len(order) == 5
    for number, trial in enumerate(order):
        pair = key.pairs[trial.pair]
        assert page.text("where") == f"Pair {number + 1} of 5" and page.text("prompt") == f"\u201c{pair['prompt']}\u201d"
        assert page.names() == (pair["videos"][::-1] if trial.swapped else pair["videos"])
        page.until(page.playing)
        if number + 1 < len(order):
            assert page.js("document.getElementById('ahead-left').src").rpartition("/")[2] in key.pairs[order[number + 1].pair]["videos"]
        mine, other = arrows()
        if number == 0:
            controls(page)
        if number == 1:
            page.type(mine, other)
            before = page.chosen()
            page.driver.refresh()
            assert page.shown() == "task" and page.text("where") == "Pair 2 of 5" and page.chosen() == before and len(before) == 2
            page.type("t", mine, mine)
            page.type(BACKSPACE)
            assert page.text("where") == "Pair 1 of 5" and len(page.chosen()) == 5
        else:
            page.type(mine, other, "t", mine, mine)
        page.type(*[ENTER] * (2 if number == 1 else 1))
    assert page.shown() == "done" and page.text("done-title") == "Thank you!"
    assert page.js("performance.getEntriesByType('resource').every(e => e.name.startsWith('file:'))")
    page.click("download")
    path = page.downloaded()
    handed_over(path, key, order, tmp_path, capsys)
    page.driver.refresh()
    assert page.shown() == "done"
    assert [line for line in page.driver.get_log("browser") if line["level"] == "SEVERE"] == []


def consent(page: Page) -> None:
    """Nothing starts without agreement, nor with an e-mail address for an id."""
    assert page.shown() == "consent" and page.text("count") == "5"
    page.click("start")
    assert page.shown() == "consent" and "tick the box" in page.text("start-error")
    page.click("agree")
    page.element("rater").send_keys("anna@example.org")
    page.click("start")
    assert page.shown() == "consent" and not page.js("document.getElementById('rater').validity.valid")
    page.element("rater").clear()
    page.element("rater").send_keys("anna", ENTER)
    assert page.shown() == "task" and page.js("localStorage.length") == 1


def controls(page: Page) -> None:
    """Keys and buttons of the first pair; ends with its last question answered and its first one active."""
    page.type(ENTER)
    assert page.text("where") == "Pair 1 of 5" and "every question" in page.text("message") and not page.element("next").is_enabled()
    page.type(BACKSPACE)
    assert page.text("where") == "Pair 1 of 5"
    page.type(" ")
    assert page.js("left.paused && right.paused") and page.text("pause") == "Play"
    page.click("pause")
    page.until(page.playing)
    page.js("(left.loop = right.loop = false, left.currentTime = right.currentTime = 0.35)")
    page.until(lambda: page.js("left.ended && right.ended"))
    page.type("r")
    page.until(lambda: page.js("left.currentTime < 0.3 && !left.ended && !right.ended"))
    page.js("(left.loop = right.loop = true)")
    page.click("replay")
    page.until(page.playing)
    page.type(DOWN, DOWN, UP)
    assert page.js("active") == 1
    page.driver.find_element("css selector", "input[name=overall][value=right]").find_element("xpath", "..").click()
    assert page.chosen() == {"overall": "right"} and page.js("active") == 4
    page.type(*[UP] * 9)
    assert page.js("active") == 0


def handed_over(path: Path, key: answers.Key, order: list[questions.Trial], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file holds what was chosen, in the order that Python replays, and no more; its analysis gives the votes back."""
    sheet = json.loads(path.read_text())
    assert set(sheet) == {"format", "version", "page", "study", "seed", "rater", "sitting", "started", "finished", "trials"}
    assert path.name == f"answers-{sheet['sitting']}.json" and sheet["rater"] == "anna" and sheet["seed"] == 5
    assert [questions.Trial(t["pair"], t["swapped"], t["repeat"]) for t in sheet["trials"]] == order
    assert all(0 < t["seconds"] < 60 and len(t["answers"]) == 5 for t in sheet["trials"]) and sheet["started"] < sheet["finished"]
    assert answers.read_rater(path, key).name == "anna"
    capsys.readouterr()
    assert main.run(["study", "analyze", str(place / "key.json"), str(path), "--out", str(place), "--json"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])["data"]
    assert {row["question"]: row["ours"] for row in data["table"]} == {"aq": 100, "sq": 0, "mq": 50, "ta": 100, "overall": 100}
    assert {row["n"] for row in data["table"]} == {len(PROMPTS)} and data["consistency"][-1]["agree"] == 100


class Inbox(http.server.BaseHTTPRequestHandler):
    """Takes what is posted, as a page from anywhere may."""

    got: list[Any] = []

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200 if len(self.got) > 1 else 503)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_missing_video_an_early_stop_and_sending(made: Path, tmp_path: Path, opened: Callable[[Path, Path], Page]):
    with http.server.HTTPServer(("127.0.0.1", 0), Inbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site, key, _ = built(made, tmp_path, mailto="someone@example.org", post=f"http://127.0.0.1:{server.server_port}/in")
        page = opened(site, tmp_path)
        page.click("agree")
        page.click("start")
        (site / "videos" / page.names()[0]).unlink()
        page.driver.refresh()
        page.until(lambda: "cannot be shown" in page.text("message"))
        page.type(LEFT, ENTER)  # a pair that cannot be seen may be left out
        assert page.text("where") == "Pair 2 of 5" and not page.element("next").is_enabled()
        page.type(LEFT, RIGHT)
        page.click("stop")
        assert page.shown() == "done" and "5 of 5 pairs are not answered" in page.text("done-text")
        page.click("send")
        page.until(lambda: "Not accepted (503)" in page.text("done-message"))
        page.click("send")
        page.until(lambda: "have arrived" in page.text("done-message"))
        assert page.element("mail").get_attribute("href").startswith("mailto:someone@example.org?subject=Answers")
        server.shutdown()
    page.click("send")
    page.until(lambda: "not certain" in page.text("done-message"))
    (tmp_path / "sent.json").write_text(json.dumps(Inbox.got[-1]))
    rater = answers.read_rater(tmp_path / "sent.json", key)
    assert rater.answered == 3 and rater.name == Inbox.got[-1]["sitting"] and len(list(rater.votes(0, key))) == 3
    page.click("resume")
    assert page.text("where") == "Pair 2 of 5" and len(page.chosen()) == 2
    page.click("stop")
    page.click("anew")
    page.driver.switch_to.alert.accept()
    assert page.shown() == "consent" and page.js("localStorage.length") == 0
