"""One run, one writer: who holds a folder, what a dead holder leaves, and races for it."""

from __future__ import annotations

import errno
import json
import os
import re
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
        assert (tmp_path / NAME).stat().st_mode & 0o111 == 0
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


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to(NAME),
        lambda path: path.symlink_to("none"),
        lambda path: path.symlink_to(__file__),
    ],
    ids=["folder", "pipe", "link to itself", "link to nothing", "link to a file"],
)
def test_what_is_no_file_is_no_lock(tmp_path: Path, make):
    make(tmp_path / NAME)
    with pytest.raises(FourdfyError, match="no file, hence no lock") as caught, RunLock(tmp_path):
        pass
    assert caught.value.code == USAGE and os.listdir(tmp_path) == [NAME] and "ls -ld" in caught.value.hint


def failing(number: int):
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("call, number", [("open", errno.ENOSPC), ("link", errno.EIO), ("link", errno.ENOSPC)])
def test_a_disk_that_refuses_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int):
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(FourdfyError, match=os.strerror(number)) as caught, RunLock(tmp_path):
        pass
    monkeypatch.undo()
    assert caught.value.code == FAILURE and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", lock.NO_LINKS)
def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    monkeypatch.setattr(os, "link", failing(number))
    with RunLock(tmp_path):
        assert holder(tmp_path)["pid"] == os.getpid() and os.listdir(tmp_path) == [NAME]
        with pytest.raises(FourdfyError, match="Operation|Too many|not|Function"), RunLock(tmp_path):
            pass
        assert holder(tmp_path)["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_it_is_whole_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    real = os.link

    def watched(source: Path, target: Path) -> None:
        seen.append((json.loads(Path(source).read_text())["pid"], Path(target).exists()))
        real(source, target)

    monkeypatch.setattr(os, "link", watched)
    with RunLock(tmp_path):
        pass
    assert seen == [(os.getpid(), False)]


def test_somebody_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between reading a dead one's lock and moving it away, another process has taken it over."""
    path = tmp_path / NAME
    path.write_text(json.dumps({"pid": dead(), "host": socket.gethostname()}))
    theirs = json.dumps({"pid": 1, "host": "elsewhere"})
    real = os.rename

    def late(source: Path, target: Path) -> None:
        if Path(source).name == NAME:
            path.write_text(theirs)
        real(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(FourdfyError, match="process 1 on elsewhere"), RunLock(tmp_path):
        pass
    assert path.read_text() == theirs and os.listdir(tmp_path) == [NAME]


def test_three_tries_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tries = []
    monkeypatch.setattr(RunLock, "_made", lambda self: tries.append(1))
    with pytest.raises(FourdfyError, match="another process is at work"), RunLock(tmp_path):
        pass
    assert len(tries) == 3


def test_a_beat_touches_and_a_clock_that_cannot_be_set_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with RunLock(tmp_path) as held:
        os.utime(tmp_path / NAME, (1, 1))
        held.beat()
        assert time.time() - (tmp_path / NAME).stat().st_mtime < 60
        monkeypatch.setattr(os, "utime", failing(errno.EPERM))
        held.beat()


def test_who_holds_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, here = tmp_path / NAME, socket.gethostname()
    path.touch()
    assert lock.holds(path, {"pid": os.getpid(), "host": here}) and lock.holds(path, {"pid": os.getpid(), "host": here, "started": None})
    assert not lock.holds(path, {"pid": 0, "host": here}) and not lock.holds(path, {"pid": 2**31, "host": here})
    assert lock.holds(path, {"pid": True, "host": here})  # no number: as another machine's
    assert not lock.holds(tmp_path / "none", {"pid": 1, "host": "elsewhere"})
    if Path("/proc/self/stat").exists():
        assert lock._started(os.getpid()) == re.sub(r".*\)", "x x", Path("/proc/self/stat").read_text()).split()[21]  # proc(5): the 22nd
    assert lock._started(2**30) is None
    monkeypatch.setattr(Path, "read_text", lambda self: "1 (x)")
    assert lock._started(1) is None
