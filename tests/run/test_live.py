"""`generate --view`: the scene is lent between two steps and nowhere else; pausing keeps a run where it is."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import browser, until
from samples import Watch, lines, tiny_recipe

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.output.loaded import cameras
from fourdfy_cli.run import live, train
from fourdfy_cli.run.aside import Several
from fourdfy_cli.run.progress import Onlooker, StepInfo
from fourdfy_cli.store import checkpoint

pytestmark = pytest.mark.long


class Slow(Watch):
    """Gives onlookers time to come."""

    def step(self, info: StepInfo) -> None:
        super().step(info)
        time.sleep(0.05)


def run(out: Path, *watchers: object) -> train.RunResult:
    return train.run("a red dog", tiny_recipe(), out, 3, (1, 2, 3), None, Machine(), Several(watchers))  # type: ignore[arg-type]


def test_a_run_that_is_looked_at_is_the_same_run(tmp_path: Path):
    onlooker, pictures, done = live.Live("a red dog", tiny_recipe()), [], threading.Event()

    def look() -> None:
        while not done.is_set():
            with onlooker.borrowed() as scene:
                pictures.append((scene.stage, scene.step, scene.render(cameras(), 0.0, 8).rgb))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    made = run(tmp_path / "a", Slow(), onlooker)
    done.set()
    plain = run(tmp_path / "b", Watch())
    assert len(pictures) >= 3 and {(stage, step) for stage, step, _ in pictures} <= {(s, k) for s in (1, 2, 3) for k in range(1, 6)}
    assert lines(made.run_dir) == lines(plain.run_dir)
    assert checkpoint.load(made.checkpoint)["digest"] == checkpoint.load(plain.checkpoint)["digest"]


def test_a_picture_is_of_the_scene_between_two_steps(tmp_path: Path):
    onlooker, seen = live.Live("a red dog", tiny_recipe()), {}

    class Snapshot(Watch):
        def between(self, current, waiting) -> None:
            seen[current.stage, current.step] = {k: v.clone() for k, v in current.scene.state_dict().items()}

    def look() -> None:
        for _ in range(3):
            with onlooker.borrowed() as scene:
                now = {k: v.clone() for k, v in scene.model.state_dict().items()}
                same = seen[scene.stage, scene.step]
                assert all(torch.equal(now[k], same[k]) for k in now)
                looked.append(scene.step)

    looked: list[int] = []
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    run(tmp_path, Snapshot(), Slow(), onlooker)
    assert len(looked) == 3


def test_a_paused_run_waits_lends_and_goes_on(tmp_path: Path):
    onlooker, watch = live.Live("a red dog", tiny_recipe()), Watch()
    onlooker.paused.set()
    thread = threading.Thread(target=run, args=(tmp_path, watch, onlooker), daemon=True)
    thread.start()
    for _ in range(2):
        with onlooker.borrowed() as scene:
            assert scene.step == 1
    assert watch.steps == 1 and thread.is_alive()
    onlooker.paused.clear()
    thread.join(60)
    assert watch.steps == 11


def test_a_paused_run_can_be_stopped(tmp_path: Path):
    onlooker = live.Live("a red dog", tiny_recipe())
    onlooker.paused.set()
    with pytest.raises(FourdfyError) as caught:
        run(tmp_path, Watch(stop_after=2, how=signal.SIGTERM), Watch(stop_after=1, how=signal.SIGTERM), onlooker)
    assert caught.value.code == 143 and checkpoint.load(tmp_path / "a-red-dog-s3" / "last.pt")["step"] == 1


def test_whoever_waits_when_the_run_ends_gets_the_last_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    onlooker = live.Live("a red dog", tiny_recipe())
    onlooker.asked.set()  # by somebody who never comes: the run goes on after a while
    monkeypatch.setattr(live, "PATIENCE", 0.01)
    run(tmp_path, Watch(), onlooker)
    onlooker.over()
    with onlooker.borrowed() as scene:
        assert (scene.stage, scene.prompt) == (1, "a red dog")


def test_only_onlookers_are_asked_between_steps():
    assert isinstance(live.Live("x", tiny_recipe()), Onlooker) and not isinstance(Watch(), Onlooker)


def test_curves_keep_their_values_between_their_own_steps():
    step, image, video, never = live.curves(
        [(1, "image", 5.0), (2, "video", 7.0), (3, "image", 6.0), (4, "video", -1.0)], ["image", "video", "x"]
    )
    assert step.tolist() == [1, 2, 3, 4] and image.tolist() == [5, 5, 6, 6] and video.tolist() == [7, 7, 7, 7] and np.isnan(never).all()
    assert all(len(part) <= live.POINTS for part in live.curves([(k, "image", 1.0) for k in range(100_001)], ["image"]))
    assert [len(part) for part in live.curves([], ["image"])] == [1, 1]


def test_in_a_browser(tmp_path: Path):
    pytest.importorskip("viser", reason="viser is not installed: pip install '.[viewer]'")
    from fourdfy_cli.output.viewer import serve

    recipe = tiny_recipe()
    onlooker, watch = live.Live("a red dog", recipe), Watch()
    viewer = serve(onlooker, recipe)
    panel = live.Panel(viewer, onlooker)
    onlooker.paused.set()
    thread = threading.Thread(target=run, args=(tmp_path / "run", watch, onlooker), daemon=True)
    thread.start()
    try:
        with browser(tmp_path) as driver:
            driver.get(viewer.url)
            until(lambda: viewer.times)
            until(lambda: "stage 1/3 step 1/2" in panel.told.value)
            onlooker.paused.clear()
            thread.join(60)
            until(lambda: "stage 3/3 step 5/5" in panel.told.value)
            shown = "return [...document.querySelectorAll('input')].map(i => i.value).join('|')"
            until(lambda: "stage 3/3 step 5/5" in driver.execute_script(shown))
            assert driver.find_elements("css selector", "canvas") and len(panel.chart.data) == 1 + len(panel.names)
    finally:
        panel.close()
    assert watch.steps == 11
