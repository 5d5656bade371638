"""A real, headless Chromium for tests; skips where there is none."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "headless", "no-sandbox", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update",
    "disable-sync", "disable-dev-shm-usage", "use-angle=swiftshader", "enable-unsafe-swiftshader", "ignore-gpu-blocklist",
)  # fmt: skip


@contextlib.contextmanager
def browser(place: Path, size: tuple[int, int] = (1000, 700)) -> Iterator[Any]:
    """A driver with a profile of its own in `place`, and downloads in place/downloads."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[test]'")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver on the PATH: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"window-size={size[0]},{size[1]}", f"user-data-dir={place / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(place / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    started.set_script_timeout(60)
    try:
        yield started
    finally:
        started.quit()


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """What the condition gives once that is something."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(None, seconds, poll_frequency=0.1).until(lambda _: condition())


def downloaded(folder: Path, pattern: str) -> Path:
    """The file that a browser has saved there, once it is whole: it begins as an empty one of that name, and one whose name says so."""

    def whole() -> Path | None:
        found = next(iter(folder.glob(pattern)), None)
        return found if found and found.stat().st_size and not any(folder.glob("*.crdownload")) else None

    return until(whole)
