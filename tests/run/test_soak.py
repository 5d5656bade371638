"""A short soak; tests/soak.py tells what it does, and runs for as long as it is asked to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


@pytest.mark.slow
def test_runs_under_attack_end_as_the_one_that_nobody_cut(tmp_path: Path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    line = [sys.executable, str(HERE / "soak.py"), str(tmp_path), "--minutes", "0.5", "--drawn"]
    ended = subprocess.run(line, env=environment, capture_output=True, text=True)
    told = json.loads(ended.stdout)
    assert ended.returncode == 0 and told["failed"] == "" and told["runs"] > 0, ended.stdout + ended.stderr[-2000:]
