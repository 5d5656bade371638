"""The interactive viewer: a scene in the browser, drawn as somebody looks. The server is viser's; it listens on this machine alone unless
told, and opens no tunnel, whoever asks for one."""

from __future__ import annotations

import contextlib
import io
import math
import socket
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from fourdfy_cli.config import Recipe
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output.extras import require
from fourdfy_cli.output.loaded import LoadedScene
from fourdfy_cli.output.viewpoint import place
from fourdfy_cli.output.visitor import Source, Visitor
from fourdfy_cli.store.folder import slug

HOST, PORT, NEXT = "127.0.0.1", 8080, 50  # how many ports after that one are tried
KEPT = 100_000  # seconds of pictures that are remembered


class Still:
    """A scene that stays as it is, for one picture at a time."""

    live, version = False, 0

    def __init__(self, scene: LoadedScene):
        self.scene, self.name, self.distance = scene, slug(scene.prompt), distance_of(scene.recipe)
        self.turn = threading.Lock()

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[LoadedScene]:
        with self.turn:
            yield self.scene


def distance_of(recipe: Recipe) -> float:
    """From where the training cameras look, on average; world units."""
    return sum(recipe.cameras.distance) / 2


class Viewer:
    """A running server: `url`, and `times`, the seconds that each picture took."""

    def __init__(self, source: Source, host: str, port: int, largest: int, fovy: float):
        import viser

        class Private(viser.ViserServer):
            """Browsers may ask for a public address through somebody's tunnel; there is none."""

            def request_share_url(self, verbose: bool = True) -> None:
                return None

        self.source, self.largest = source, largest
        self.times: deque[float] = deque(maxlen=KEPT)
        self.visitors: dict[int, Visitor] = {}
        with contextlib.redirect_stdout(io.StringIO()):  # its banner: stdout is for results
            self.server: Any = Private(host=host, port=port, label="fourdfy", verbose=False)
        self.url = f"http://{host if host not in ('0.0.0.0', '::') else socket.gethostname()}:{self.server.get_port()}"
        self.server.gui.configure_theme(show_logo=False, show_share_button=False, control_layout="collapsible")
        self.server.scene.set_up_direction("+z")
        camera = self.server.initial_camera
        camera.position, camera.look_at, camera.fov = place("orbit", source.distance), (0.0, 0.0, 0.0), fovy
        self.server.on_client_connect(self._come)
        self.server.on_client_disconnect(self._leave)

    def _come(self, client: Any) -> None:
        self.visitors[client.client_id] = Visitor(client, self.source, self.largest, self.times)

    def _leave(self, client: Any) -> None:
        visitor = self.visitors.pop(client.client_id, None)
        if visitor:
            visitor.gone.set()

    def stop(self) -> None:
        for visitor in self.visitors.values():
            visitor.gone.set()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()


def serve(source: Source, recipe: Recipe, host: str = HOST, port: int | None = None, largest: int = 512) -> Viewer:
    """A viewer of a source; without a port the first free one from PORT on. Pictures are at most `largest` pixels high.

    Raises FourdfyError: exit 2 for a port in use or an address that is none of this machine's, exit 3 without viser.
    """
    require("viewer", "viser")
    chosen = free(host, port)
    return Viewer(source, host, chosen, largest, math.radians(sum(recipe.cameras.fovy) / 2))


def free(host: str, port: int | None) -> int:
    """The port itself, or the first free one from PORT on. Raises FourdfyError (exit 2)."""
    candidates = range(PORT, PORT + NEXT) if port is None else (port,)
    for candidate in candidates:
        try:
            with socket.create_server((host, candidate)):
                return candidate
        except OSError as error:
            why = error.strerror or str(error)
    named = f"port {port}" if port is not None else f"ports {PORT} to {PORT + NEXT - 1}"
    raise FourdfyError(f"cannot listen on {named} of {host}: {why}", f"--port {(port or PORT) % 60000 + 1}", USAGE)
