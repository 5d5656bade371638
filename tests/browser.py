"""Node packages and a headless Chromium for tests; a test that lacks one of them is skipped and says what to install."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

WEB = Path(__file__).parent / "output" / "web"
FLAGS = (
    "headless", "no-sandbox", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync",
    "disable-dev-shm-usage", "window-size=600,600", "use-angle=swiftshader", "enable-unsafe-swiftshader", "ignore-gpu-blocklist",
)  # fmt: skip


def node_packages(cache: Path) -> Path:
    """The folder with the packages of web/package.json, installed once into pytest's cache; skips the test where that cannot be done."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node and npm on the PATH: apt-get install nodejs npm")
    wanted = (WEB / "package.json").read_text()
    if not (cache / "done").exists() or (cache / "done").read_text() != wanted:
        shutil.copy(WEB / "package.json", cache)
        ended = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=cache, capture_output=True, text=True)
        if ended.returncode:
            pytest.skip(f"npm cannot install the packages of {WEB / 'package.json'}: {ended.stderr[-200:]}")
        (cache / "done").write_text(wanted)
    for script in WEB.glob("*.js"):
        shutil.copy(script, cache)
    return cache


def validate(packages: Path, file: Path) -> dict[str, Any]:
    """The Khronos validator's report."""
    return json.loads(subprocess.run(["node", "validate.js", file], cwd=packages, capture_output=True, check=True).stdout)


class Stage:
    """A page with three.js and a GLB in it."""

    def __init__(self, packages: Path, place: Path, file: Path, size: int):
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[test]'")
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if not (chromium and driver):
            pytest.skip("no chromium and chromedriver on the PATH: apt-get install chromium chromium-driver")
        bundle = ["npx", "esbuild", "page.js", "--bundle", "--log-level=error", f"--outfile={place / 'bundle.js'}"]
        subprocess.run(bundle, cwd=packages, check=True)
        (place / "index.html").write_text("<!doctype html><meta charset=utf-8><script src=bundle.js></script>")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"user-data-dir={place / 'profile'}"):
            options.add_argument(f"--{flag}")
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.driver.set_script_timeout(60)
        self.driver.get((place / "index.html").as_uri())
        content = base64.b64encode(file.read_bytes()).decode()
        code = "const done = arguments[2]; load(arguments[0], arguments[1]).then(done, e => done(String(e)))"
        self.about = self.driver.execute_async_script(code, content, size)
        assert isinstance(self.about, dict), self.about

    def shoot(self, time: float, c2w: np.ndarray, fovy: float) -> np.ndarray:
        """RGBA [H W 4] from a camera of the world (z up, radians), at a moment in seconds."""
        turned = np.eye(4)
        turned[:3] = np.asarray(c2w, float)[[1, 2, 0]]
        url = self.driver.execute_script("return shoot(...arguments)", time, turned.T.ravel().tolist(), float(np.rad2deg(fovy)))
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))
