"""The notebook, executed by a real kernel with a run of a few steps."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourdfy_cli import run

NOTEBOOK = Path(run.__file__).parent / "first-scene.ipynb"


@pytest.mark.long
def test_the_notebook_runs_and_shows_what_it_made(tmp_path: Path):
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install '.[test-extras]'")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[test-extras]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[test-extras]'")
    notebook = nbformat.read(NOTEBOOK, 4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    (first,) = [cell for cell in notebook.cells if "settings = {}" in cell.source]
    few = {"stage1.steps": 4, "stage2.steps": 1, "stage3.steps": 1, "march.samples": 24, "march.resolution": 8, "march.warmup_steps": 4}
    first.source = first.source.replace("settings = {}", f"settings = {few}")
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()

    results = [part.data for cell in notebook.cells for part in cell.get("outputs", ()) if part.output_type == "execute_result"]
    video = (tmp_path / "outputs" / "a-red-dog-jumping-s0" / "orbit.mp4").read_bytes()
    assert base64.b64encode(video).decode() in results[0]["text/html"]
    assert "prompt='a red dog jumping'" in results[1]["text/plain"] and "tensor(" in results[3]["text/plain"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(results[2]["image/png"]))))
    assert picture.shape == (128, 512, 3) and picture.std() > 5
    assert "3)" in results[4]["text/plain"]
