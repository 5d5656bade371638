"""One run, one writer: who holds a folder, what a dead holder leaves, and races for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fourdfy_cli.errors import FAILURE, USAGE, FourdfyError
from fourdfy_cli.store import lock
from fourdfy_cli.store.lock import NAME, STALE, RunLock, holder


def dead() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_second_process_is_told_who_works(tmp_path: Path):
    with RunLock(tmp_path):
        found = holder(tmp_path)
        assert found and found["pid"] == os.getpid() and found["host"] == socket.gethostname()
        with pytest.raises(FourdfyError, match=f"process {os.getpid()} on ") as caught, RunLock(tmp_path):
            pass
        assert caught.value.code == USAGE and (tmp_path / NAME).exists()
    assert holder(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "x"}', '{"pid": -1, "host": "HERE"}', '{"pid": DEAD, "host": "HERE"}'])
def test_a_dead_ones_lock_is_taken_over(tmp_path: Path, content: str):
    path = tmp_path / NAME
    path.write_text(content.replace("HERE", socket.gethostname()).replace("DEAD", str(dead())))
    os.utime(path, (time.time() - STALE - 5,) * 2)
    with RunLock(tmp_path):
        assert holder(tmp_path)["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_number_given_out_again_is_not_its_old_process(tmp_path: Path):
    (tmp_path / NAME).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": "1"}))
    with RunLock(tmp_path):
        assert holder(tmp_path)["started"] == lock._started(os.getpid())


def test_another_machines_lock_counts_while_it_is_touched(tmp_path: Path):
    path = tmp_path / NAME
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(FourdfyError, match="process 1 on elsewhere"), RunLock(tmp_path):
        pass
    os.utime(path, (time.time() - STALE - 5,) * 2)
    with RunLock(tmp_path):
        pass


def test_a_lock_that_is_gone_or_taken_ends_the_run(tmp_path: Path):
    for theirs in (None, {"pid": 1, "host": "elsewhere"}):
        with RunLock(tmp_path) as held:
            held.beat()
            (tmp_path / NAME).unlink() if theirs is None else (tmp_path / NAME).write_text(json.dumps(theirs))
            with pytest.raises(FourdfyError) as caught:
                held.beat()
            assert caught.value.code == FAILURE
        assert (tmp_path / NAME).exists() == (theirs is not None)  # nobody's lock but its own is taken away


def test_of_many_at_once_one_gets_it(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from fourdfy_cli.store.lock import RunLock\n"
        "try:\n    with RunLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(3)\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    (tmp_path / NAME).write_text(json.dumps({"pid": dead(), "host": socket.gethostname()}))
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = sorted(child.communicate()[0].strip() for child in children)
    assert said.count("held") == 1 and set(said) <= {"held", "FourdfyError"}
