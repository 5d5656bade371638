"""One browser that looks at a scene: its camera, its panel, and the thread that draws for it.

While something moves, pictures are as large as fits a tenth of a second; once all is still they become sharper, step by step, up to what a
second allows. Nothing is written on this machine: screenshots and paths are downloads of the browser.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections import deque
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.output import render as pictures
from fourdfy_cli.output.colours import depth_picture, over_black
from fourdfy_cli.output.loaded import LoadedScene
from fourdfy_cli.output.viewpoint import PRESETS, AdaptiveResolution, View, c2w_of, path_file, place

MODES = ("colour", "depth", "opacity")
OVERLAYS = ("off", "wireframe", "surface")
MESH = 64  # grid points a side of the mesh that is laid over: it is to come at once, not to be exported
MOVING, STILL = 0.1, 1.0  # seconds that a picture may take while something moves, and the sharpest one once nothing does
IDLE = 0.25  # seconds after which a thread looks again whether anything has changed
PATH_SIZE = 512  # pixels high, of a recorded path
MOST = 20_000  # views of a recorded path


class Source(Protocol):
    """What is looked at: a name for files, how far away a camera starts, `version` (another number whenever the scene has changed), whether
    it changes at all, and the scene for as long as a block lasts."""

    name: str
    distance: float
    live: bool
    version: int

    def borrowed(self) -> AbstractContextManager[LoadedScene]: ...


def shown(scene: LoadedScene, view: View, height: int, mode: str) -> np.ndarray:
    """A view as uint8 [H W 3]: colour, depth (yellow is near, violet far) or opacity."""
    frames = scene.view(view.shot(height))
    if mode == "depth":
        middle, opacity = float(np.linalg.norm(view.c2w[:3, 3])), frames.opacity[0].cpu().numpy()
        distance = frames.depth[0].cpu().numpy() / opacity.clip(1e-6)
        return over_black(depth_picture(distance, opacity, max(0.0, middle - 1), middle + 1))
    return pictures.to_uint8(frames.rgb[0] if mode == "colour" else frames.opacity[0][..., None].expand(-1, -1, 3))


class Visitor:
    """Draws for one client of a viser server until `gone` is set. `times` collects the seconds of each picture."""

    def __init__(self, client: Any, source: Source, largest: int, times: deque[float]):
        self.client, self.source, self.times = client, source, times
        self.resolution = AdaptiveResolution(largest=largest)
        self.changed, self.gone = threading.Event(), threading.Event()
        self.version, self.overlaid, self.files = -1, ("off", 0.0), 0
        self.moments: deque[tuple[float, View]] | None = None
        self._panel(client.gui)
        client.camera.on_update(lambda _: self.changed.set())
        threading.Thread(target=self._work, name="viewer", daemon=True).start()

    def _panel(self, gui: Any) -> None:
        """The controls; each of them wakes the thread."""
        with gui.add_folder("Time"):
            self.time = gui.add_slider("time", min=0.0, max=1.0, step=0.005, initial_value=0.0)
            self.play = gui.add_checkbox("play", False)
            self.speed = gui.add_slider("speed", min=0.1, max=2.0, step=0.1, initial_value=0.5)
        with gui.add_folder("Show"):
            self.mode = gui.add_dropdown("picture", MODES)
            self.overlay = gui.add_dropdown("mesh", OVERLAYS, visible=not self.source.live)
            self.told = gui.add_text("size", "", disabled=True)
        with gui.add_folder("Camera"):
            preset = gui.add_button_group("from", tuple(PRESETS))
            preset.on_click(lambda _: self._go(preset.value))
            gui.add_button("screenshot").on_click(lambda _: self._screenshot())
            self.record = gui.add_checkbox("record a path", False)
            self.record.on_update(lambda _: self._record())
        for control in (self.time, self.play, self.speed, self.mode, self.overlay):
            control.on_update(lambda _: self.changed.set())

    def view(self) -> View:
        """What the browser's camera sees now."""
        camera = self.client.camera
        return View(c2w_of(camera.position, camera.wxyz), float(camera.fov), float(camera.aspect), float(self.time.value))

    def _work(self) -> None:
        """Draw whenever something has changed, sharper pictures while nothing does; a mistake ends this browser's pictures, no more."""
        height, last = 0, time.monotonic()
        try:
            while not self.gone.is_set():
                now = time.monotonic()
                if self.play.value:
                    self._advance(now - last)
                last = now
                height = self._next(height)
        except BaseException as error:
            if not self.gone.is_set():
                self.client.add_notification("no more pictures", f"{type(error).__name__}: {error}"[:300], color="red")
            raise SystemExit from error

    def _next(self, height: int) -> int:
        """Draw what is due, or wait; the height of what is seen then."""
        if self.changed.is_set() or self.version != self.source.version:
            self.changed.clear()
            return self._draw(self.resolution.height(self.client.camera.aspect, MOVING))
        best = self.resolution.height(self.client.camera.aspect, STILL)
        if 1.25 * height < best and not self.play.value:
            return self._draw(min(2 * height, best))
        self._lay_over()
        self.changed.wait(IDLE)
        return height

    def _advance(self, seconds: float) -> None:
        self.time.value = (self.time.value + seconds * self.speed.value) % 1
        self.changed.set()

    def _draw(self, height: int) -> int:
        """One picture behind the scene; its height."""
        view = self.view()
        self.version = self.source.version
        if self.moments is not None:
            self.moments.append((time.monotonic(), view))
        picture, seconds = self._picture(view, height)
        self.times.append(seconds)
        self.resolution.learn(picture.shape[0] * picture.shape[1], seconds)
        self.client.scene.set_background_image(picture, format="jpeg", jpeg_quality=90)
        self.told.value = f"{picture.shape[1]} x {height}, {1000 * seconds:.0f} ms"
        return height

    def _picture(self, view: View, height: int) -> tuple[np.ndarray, float]:
        """A view, and how long it took once the scene was free."""
        with self.source.borrowed() as scene:
            began = time.perf_counter()
            picture = shown(scene, view, height, self.mode.value)
            return picture, time.perf_counter() - began

    def _lay_over(self) -> None:
        """The mesh of this moment, if one is wanted and nothing moves."""
        wanted = (self.overlay.value, round(self.time.value, 3))
        if self.play.value or wanted == self.overlaid:
            return
        self.overlaid = wanted
        self.client.scene.remove_by_name("/mesh")
        if wanted[0] != "off":
            try:
                self._add_mesh(*wanted)
            except FourdfyError as error:
                self.client.add_notification("no mesh", f"{error.message}. {error.hint}", color="yellow")

    def _add_mesh(self, style: str, moment: float) -> None:
        from fourdfy_cli.output.mesh import mesh

        with self.source.borrowed() as scene:
            found = mesh(scene.model, moment, resolution=MESH)
        if style == "wireframe":
            self.client.scene.add_mesh_simple("/mesh", found.vertices, found.faces, color=(60, 160, 255), wireframe=True)
        else:
            self.client.scene.add_mesh_trimesh("/mesh", found.trimesh())

    def _go(self, name: str) -> None:
        """The camera to one of the presets."""
        with self.client.atomic():
            self.client.camera.position = place(name, self.source.distance)
            self.client.camera.look_at = (0.0, 0.0, 0.0)
        self.changed.set()

    def _screenshot(self) -> None:
        """What is seen, as sharp as it gets, as a PNG for the browser to keep."""
        picture, _ = self._picture(self.view(), self.resolution.largest)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        self._hand_over("png", file.getvalue())

    def _record(self) -> None:
        """Begin to record a path, or hand it over as a file that `fourdfy render --path` takes."""
        if self.record.value:
            self.moments = deque([(time.monotonic(), self.view())], maxlen=MOST)
            return
        taken, self.moments = self.moments, None
        if taken:
            path = path_file([*taken, (time.monotonic(), self.view())], PATH_SIZE)
            self._hand_over("json", json.dumps(path).encode())
            self.client.add_notification("path recorded", f"{len(path['camera_path'])} views: fourdfy render RUN --path FILE.json")

    def _hand_over(self, kind: str, content: bytes) -> None:
        self.files += 1
        self.client.send_file_download(f"{self.source.name}-{self.files}.{kind}", content, save_immediately=True)
