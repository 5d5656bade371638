"""The command as a process: what it imports, what it prints into a pipe, what a mistake of ours looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourdfy_cli.cli import main

DOG = "a red dog jumping"


def test_unforeseen_failure_is_one_line_too(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("import fourdfy_cli.presets as p\np.PRESETS['nano'] = lambda: 1 / 0\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "fourdfy_cli", "generate", DOG]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1 and "ZeroDivisionError" in ended.stderr and len(ended.stderr.splitlines()) == 2
    assert "Traceback" in subprocess.run([*command, "--debug"], env=environment, capture_output=True, text=True).stderr


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["generate", "a dgo"]])
def test_nothing_heavy_is_imported(args: list[str]):
    code = (
        "import sys\nfrom fourdfy_cli.cli import main\n"
        f"main.run({args!r})\n"
        "heavy = {'torch', 'numpy', 'numba', 'diffusers', 'transformers', 'PIL', 'jaxtyping', 'skimage', 'trimesh', 'pxr'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env=dict(os.environ, PYTHONPATH=str(Path(main.__file__).parents[2]))
    )


def test_module_runs_and_piped_output_is_plain():
    environment = dict(os.environ, PYTHONPATH=str(Path(main.__file__).parents[2]))
    for module in ("fourdfy_cli", "fourdfy_cli.cli.main"):
        ended = subprocess.run([sys.executable, "-m", module, "generate", ""], capture_output=True, text=True, env=environment)
        assert ended.returncode == 2 and ended.stdout == ""
        assert ended.stderr == 'error: the prompt is empty\nhint:  fourdfy generate "a red dog jumping"\n'
