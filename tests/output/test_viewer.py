"""The viewer in a real browser, and what it refuses."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import browser, downloaded, until
from PIL import Image
from samples import fails, save
from samples import isolated as isolated

import fourdfy_cli as fourdfy
from fourdfy_cli.output.viewpoint import View, place
from fourdfy_cli.output.visitor import shown

viser = pytest.importorskip("viser", reason="viser is not installed: pip install '.[viewer]'")
from fourdfy_cli.output import viewer as viewers  # noqa: E402

RIGHT, LEFT = "\ue014", "\ue012"


class Ball(torch.nn.Module):
    """A dense red ball that rises along z: at time t its centre is at (0, 0, t - 1/2)."""

    def forward(self, x: torch.Tensor, time: torch.Tensor, blob_std: float) -> tuple[torch.Tensor, torch.Tensor]:
        middle = torch.stack([0 * time, 0 * time, time - 0.5], -1)
        return 200.0 * ((x - middle).norm(dim=-1) < 0.3), torch.tensor([0.9, 0.1, 0.1]).expand(len(x), 3)


@pytest.fixture
def ball(tmp_path: Path) -> fourdfy.LoadedScene:
    scene = fourdfy.load(save(tmp_path / "stage3.pt", stage=3))
    scene.model.field = Ball()
    return scene


@pytest.fixture
def served(ball: fourdfy.LoadedScene) -> Iterator[viewers.Viewer]:
    viewer = viewers.serve(viewers.Still(ball), ball.recipe, largest=128)
    yield viewer
    viewer.stop()


def seen(driver: Any) -> np.ndarray:
    """The picture left of the panel."""
    whole = np.asarray(Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"), float)
    return whole[200:, : int(0.65 * whole.shape[1])]


def red(picture: np.ndarray) -> np.ndarray:
    """Which pixels show the ball."""
    return picture[..., 0] - picture[..., 1] > 60


def height_of(driver: Any) -> float:
    """The mean row of the ball, once it is seen."""

    def row() -> float | None:
        rows = np.nonzero(red(seen(driver)))[0]
        return float(rows.mean()) if len(rows) > 5000 else None

    return until(row)


def test_the_slider_moves_the_object_and_files_come(served: viewers.Viewer, ball: fourdfy.LoadedScene, tmp_path: Path):
    with browser(tmp_path) as driver:
        driver.get(served.url)
        low = height_of(driver)
        before = seen(driver)
        assert np.std(before) > 5
        slider = driver.find_elements("css selector", "[role=slider]")[0]
        slider.send_keys(*[RIGHT] * 80)
        (visitor,) = served.visitors.values()
        until(lambda: abs(visitor.time.value - 0.4) < 1e-6)
        until(lambda: height_of(driver) < low - 40)
        assert np.abs(seen(driver) - before).mean() > 1

        click(driver, "screenshot")
        shot = np.asarray(Image.open(downloaded(tmp_path / "downloads", "*.png")))
        view = visitor.view()
        assert shot.shape == (128, round(128 * view.aspect), 3) and np.array_equal(shot, shown(ball, view, 128, "colour"))
        assert red(shot.astype(float)).any()

        click(driver, "orbit")  # the arrows that move the slider turn the camera too, for as long as a key is down
        until(lambda: np.allclose(visitor.client.camera.position, place("orbit", served.source.distance), atol=1e-3))
        record = driver.find_elements("css selector", "input[type=checkbox]")[-1]
        press(driver, record)
        until(lambda: visitor.moments is not None)
        click(driver, "left")
        until(lambda: np.allclose(visitor.client.camera.position, place("left", served.source.distance), atol=1e-3))
        time.sleep(0.5)
        press(driver, record)
        told = json.loads(downloaded(tmp_path / "downloads", "*.json").read_text())
        poses = [np.reshape(one["camera_to_world"], (4, 4)) for one in told["camera_path"]]
        assert np.allclose(poses[0][:3, 3], place("orbit", served.source.distance), atol=1e-2)
        assert np.allclose(poses[-1][:3, 3], place("left", served.source.distance), atol=1e-2) and told["fps"] == 15
        assert all(abs(one["render_time"] - 0.4) < 1e-4 for one in told["camera_path"])

        play = driver.find_elements("css selector", "input[type=checkbox]")[-2]
        press(driver, play)
        until(lambda: abs(visitor.time.value - 0.4) > 0.1)
        press(driver, play)
        until(lambda: not visitor.play.value)
        assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []
    until(lambda: not served.visitors)
    until(lambda: visitor.gone.is_set())


def click(driver: Any, text: str) -> None:
    press(driver, next(button for button in driver.find_elements("css selector", "button") if button.text == text))


def press(driver: Any, element: Any) -> None:
    """A real click, as downloads want one each."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    webdriver = pytest.importorskip("selenium.webdriver")
    webdriver.ActionChains(driver).move_to_element(element).click().perform()


def test_pictures_by_mode(ball: fourdfy.LoadedScene):
    view = View(fourdfy.cameras(0, 0).c2w[0].numpy(), 0.7, 1.0, 0.5)
    colour, depth, opacity = (shown(ball, view, 32, mode) for mode in ("colour", "depth", "opacity"))
    assert colour.shape == depth.shape == opacity.shape == (32, 32, 3) and colour.dtype == np.uint8
    frames = ball.render(fourdfy.cameras(0, 0, fovy=np.degrees(0.7)), 0.5, 32)
    assert np.abs(opacity[..., 0] / 255 - frames.opacity[0].numpy()).max() < 0.01 and opacity.max() > 250
    assert depth[16, 16, 1] > depth[16, 12, 1] > 0 and depth[0, 0, 1] == 0  # the middle of a ball is nearer, hence lighter, than its side
    assert np.abs(colour / 255.0 - frames.rgb[0].numpy()).max() < 0.01


def test_only_this_machine_is_listened_to(served: viewers.Viewer):
    port = served.server.get_port()
    with socket.create_connection(("127.0.0.1", port)):
        pass
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others | {"127.0.0.2"}:
        with pytest.raises(OSError), socket.create_connection((address, port), timeout=2):
            pass
    assert served.url == f"http://127.0.0.1:{port}" and served.server.request_share_url() is None


def test_a_port_in_use(served: viewers.Viewer, ball: fourdfy.LoadedScene, capsys: pytest.CaptureFixture[str]):
    port = served.server.get_port()
    assert viewers.free("127.0.0.1", None) not in (port, 0)
    save(Path("stage1.pt"))
    fails(capsys, ["view", "stage1.pt", "--port", str(port)], 2, f"port {port}", "in use", f"--port {port + 1}")
    fails(capsys, ["view", "stage1.pt", "--host", "203.0.113.7"], 2, "203.0.113.7")
    fails(capsys, ["view", "nowhere.pt"], 2, "does not exist")


def test_without_viser(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    save(Path("stage1.pt"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    fails(capsys, ["view", "stage1.pt"], 3, "viser", "pip install 'fourdfy[viewer]'")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Python itself says nothing of a SystemExit
def test_a_visitors_mistake_stays_with_it(ball: fourdfy.LoadedScene, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    class Broken(viewers.Still):
        def borrowed(self):
            raise RuntimeError("no scene today")

    viewer = viewers.serve(Broken(ball), ball.recipe)
    try:
        with browser(tmp_path) as driver:
            driver.get(viewer.url)
            until(lambda: "no scene today" in driver.execute_script("return document.body.innerText"))
    finally:
        viewer.stop()
    assert "Traceback" not in "".join(capfd.readouterr())
