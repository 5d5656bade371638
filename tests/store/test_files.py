"""Files appear whole, or not at all; no link is followed; what the disk says is told."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from fourdfy_cli.errors import FAILURE, FourdfyError
from fourdfy_cli.store.files import alive, filled, replacing, sweep, sync
from fourdfy_cli.store.folder import Metrics, read_json, write_json


def test_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run.json").symlink_to(victim)
    write_json(tmp_path / "run.json", {"a": 1})
    assert victim.read_text() == "mine" and not (tmp_path / "run.json").is_symlink()


def test_a_temporary_name_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("secrets.token_hex", lambda n: "ab")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".tmp-{os.getpid()}-ab-run.json").symlink_to(victim)
    with pytest.raises(FourdfyError) as caught:
        write_json(tmp_path / "run.json", {"a": 1})
    assert caught.value.code == FAILURE and victim.read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_the_disk_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    write_json(tmp_path / "run.json", {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FourdfyError, match=os.strerror(number)) as caught:
        write_json(tmp_path / "run.json", {"new": 1})
    assert caught.value.code == FAILURE and read_json(tmp_path / "run.json") == {"old": 1} and os.listdir(tmp_path) == ["run.json"]


def test_what_a_killed_process_left_goes_when_the_same_file_is_written(tmp_path: Path):
    ours, another = tmp_path / ".tmp-999999999-aa-a[1].json", tmp_path / ".tmp-999999999-aa-b.json"
    ours.touch(), another.touch()
    write_json(tmp_path / "a[1].json", {})
    assert not ours.exists() and another.exists()


def test_sweep_leaves_the_living_alone(tmp_path: Path):
    mine, theirs = tmp_path / f".tmp-{os.getpid()}-aa-a.pt", tmp_path / ".tmp-999999999-aa-a.pt"
    mine.touch(), theirs.touch()
    sweep(tmp_path)
    assert mine.exists() and not theirs.exists()


def test_numbers_that_json_lacks_become_null(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": [math.nan, math.inf, 1.5], "b": {"c": -math.inf}})
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert {name: read[name] for name in "ab"} == {"a": [None, None, 1.5], "b": {"c": None}}
    metrics = Metrics(tmp_path / "metrics.jsonl", 1, 0)
    metrics.write({"stage": 1, "step": 0, "loss": math.nan})
    metrics.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)["loss"] is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object_is_none(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None


def test_previous_is_kept_and_order_is_sync_rename_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said, path = [], tmp_path / "a" / "deeper" / "b.txt"
    files, before = Path("/proc/self/fd"), os.umask(0o027)
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (said.append(name), real(*args))[1])
    for text in ("one", "two"):
        with replacing(path, path.with_name("old.txt")) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".txt" and temporary.stat().st_size == 0
            temporary.write_text(text)
    assert (path.read_text(), path.with_name("old.txt").read_text()) == ("two", "one")
    os.umask(before)
    assert said == ["fsync", "replace", "fsync", "fsync", "replace", "replace", "fsync"] and path.stat().st_mode & 0o777 == 0o640
    if files.exists():
        opened = len(list(files.iterdir()))
        write_json(path, {})
        assert len(list(files.iterdir())) == opened


@pytest.mark.parametrize("number, told", [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_file_systems_that_know_no_sync(monkeypatch: pytest.MonkeyPatch, number: int, told: bool):
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if told:
        with pytest.raises(OSError, match=os.strerror(number)):
            sync(0)
    else:
        sync(0)


@pytest.mark.parametrize("error, there", [(ProcessLookupError, False), (PermissionError, True), (OverflowError, True), (None, True)])
def test_who_is_alive(monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None, there: bool):
    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (5, 0)
        if error:
            raise error

    monkeypatch.setattr(os, "kill", kill)
    assert alive(5) is there


def test_sweep_takes_nothing_else(tmp_path: Path):
    for name in (".tmp-999999999-aa-a.pt", ".tmp-x-aa-a.pt", "tmp-999999999-aa-a.pt", ".tmp-999999999"):
        (tmp_path / name).touch()
    (tmp_path / ".tmp-999999999-folder-x").mkdir()
    sweep(tmp_path)
    sweep(tmp_path / "none")
    assert sorted(os.listdir(tmp_path)) == sorted([".tmp-999999999-folder-x", ".tmp-x-aa-a.pt", "tmp-999999999-aa-a.pt", ".tmp-999999999"])


def test_a_name_that_cannot_be(tmp_path: Path):
    with pytest.raises(FourdfyError, match="File name too long") as caught:
        write_json(tmp_path / ("x" * 300), {})
    assert caught.value.code == FAILURE and not list(tmp_path.iterdir())
    (tmp_path / "a.json").mkdir()
    with pytest.raises(FourdfyError, match="cannot write"):
        write_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_filled_at_the_end_or_not_at_all(tmp_path: Path):
    folder = tmp_path / "frames"
    with pytest.raises(RuntimeError), filled(folder) as temporary:
        assert temporary
        (temporary / "0.png").touch()
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    left = tmp_path / ".part-999999999-frames"
    left.mkdir()
    ours = tmp_path / f".part-{os.getppid()}-frames"
    ours.mkdir()
    with filled(folder) as temporary:
        assert temporary and not folder.exists() and not left.exists() and ours.exists()
        (temporary / "0.png").write_text("new")
    assert os.listdir(folder) == ["0.png"]
    with filled(folder) as temporary:
        assert temporary
        (temporary / "1.png").write_text("more")
    assert sorted(os.listdir(folder)) == ["0.png", "1.png"] and sorted(os.listdir(tmp_path)) == [ours.name, "frames"]
    with filled(None) as nothing:
        assert nothing is None


def test_a_folder_where_none_can_be(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(FourdfyError, match="cannot write .*frames") as caught, filled(tmp_path / "file" / "frames"):
        raise AssertionError
    assert caught.value.code == FAILURE and caught.value.hint.startswith("df -h")
