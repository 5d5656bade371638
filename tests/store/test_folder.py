"""Names of run folders, metrics, cached results, and streams that are given up."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import types
from pathlib import Path

import pytest

from fourdfy_cli.errors import FAILURE, USAGE, FourdfyError
from fourdfy_cli.store import folder, stream
from fourdfy_cli.store.folder import Metrics, make_writable, metrics_row, read_json, read_runs, run_folder, slug, write_json


def lines(path: Path) -> list[tuple[int, int]]:
    return [(row["stage"], row["step"]) for row in map(json.loads, path.read_text().splitlines())]


def test_slugs():
    assert slug("A red  Dog, jumping!") == "a-red-dog-jumping" and slug("x" * 48) == "x" * 48
    cut, lost = slug("x" * 49), slug("a dog 犬")
    assert cut[:40] == "x" * 39 + "-" and len(cut) == 48 and lost[:6] == "a-dog-" and len(lost) == 14
    assert slug("x" * 49) != slug("x" * 50) and slug("犬")[:6] == "scene-" and slug("a dog 犬") == lost
    assert slug("caf\u00e9") == "cafe" and slug("\udc80").startswith("scene-")


def test_json_is_strict_and_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1,\n  "crc": "fba18e97"\n}\n'
    monkeypatch.setattr(folder, "finite", lambda value: value)
    metrics = Metrics(tmp_path / "m.jsonl", 1, 0)
    for write in (lambda: write_json(tmp_path / "b.json", {"a": float("nan")}), lambda: metrics.write({"a": float("inf")})):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write()
    metrics.close()
    assert not (tmp_path / "b.json").exists() and (tmp_path / "m.jsonl").read_bytes() == b""


def test_what_was_not_written_is_not_read(tmp_path: Path):
    """A digit that turned into another is told from what was written; a file without a checksum is believed."""
    path, values = tmp_path / "a.json", {"iou": 0.918, "9": [1, None, {"é": -0.0}], "seconds": 1e-7, "ok": True, "n": 2**70}
    write_json(path, values)
    data = path.read_bytes()
    assert read_json(path) == values
    for place, byte in enumerate(data):
        path.write_bytes(data[:place] + bytes([byte ^ 1]) + data[place + 1 :])
        read = read_json(path)
        assert read is None or {name: read.get(name) for name in values} == values, place
        assert read is None or byte not in b"0123456789", place
    path.write_text('{"iou": 0.918}')
    assert read_json(path) == {"iou": 0.918}


def test_run_folders(tmp_path: Path):
    assert run_folder(tmp_path, "a dog", 3) == tmp_path / "a-dog-s3"
    old = tmp_path / ("y" * 48 + "-s3")
    old.mkdir()
    write_json(old / "run.json", {"prompt": "y" * 60})
    assert run_folder(tmp_path, "y" * 60, 3) == old
    assert run_folder(tmp_path, "y" * 61, 3) == tmp_path / f"{slug('y' * 61)}-s3" and run_folder(tmp_path, "y" * 60, 4) != old


def test_where_nothing_can_be_written(tmp_path: Path):
    make_writable(tmp_path / "a" / "b")
    make_writable(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(FourdfyError, match="file: ") as caught:
        make_writable(tmp_path / "file")
    assert caught.value.code == USAGE


def test_only_objects_of_files_are_read(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": (1, 2.5, None), "b": "\u00e9"})
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None], "b": "\u00e9"} and (tmp_path / "a.json").read_text()[-2:] == "}\n"
    os.mkfifo(tmp_path / "pipe")
    assert read_json(tmp_path / "pipe") is None and read_json(tmp_path) is None and read_json(tmp_path / "none") is None


GOOD = {"name": "a", "iou": 0.5, "fronts": None}


@pytest.mark.parametrize(
    "row, whole",
    [
        (GOOD, True),
        ({"name": "a", "iou": 1}, True),
        (GOOD | {"more": "x"}, True),
        (GOOD | {"name": 1}, False),
        (GOOD | {"iou": None}, False),
        (GOOD | {"iou": "0.5"}, False),
        (GOOD | {"fronts": "x"}, False),
        ({"iou": 0.5}, False),
        ({"name": "a"}, False),
        ([1], False),
    ],
)
def test_results_that_are_believed(tmp_path: Path, row: object, whole: bool):
    write_json(tmp_path / "a.json", {"runs": [row, GOOD]})
    assert read_runs(tmp_path / "a.json", ["name"], ["iou"], ["fronts"]) == ([row] if whole else []) + [GOOD]


@pytest.mark.parametrize("content", ["", "[]", '{"runs": 5}', '{"runs": {"a": 1}}', "{}"])
def test_results_that_are_none(tmp_path: Path, content: str):
    (tmp_path / "a.json").write_text(content)
    assert read_runs(tmp_path / "a.json", ["name"], ["iou"]) == []


@pytest.mark.parametrize(
    "line, place",
    [
        (b'{"stage": 1, "step": 5}', (1, 5)),
        (b'{"stage": 1}', None),
        (b'{"step": 1}', None),
        (b'{"stage": "1", "step": 5}', None),
        (b'{"stage": 1, "step": 5.0}', None),
        (b'{"stage": true, "step": true}', None),
        (b"[1, 2]", None),
        (b"", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_lines_of_metrics(line: bytes, place: tuple[int, int] | None):
    row = metrics_row(line)
    assert (row and (row["stage"], row["step"])) == place


def test_every_flipped_bit_of_a_line_is_noticed_or_a_time(tmp_path: Path):
    row = {"stage": 2, "step": 7, "branch": "image", "image": 0.0123, "t": math.nan, "skipped": "loss", "rung": 1, "seconds": 2.5}
    with contextlib.closing(Metrics(tmp_path / "m.jsonl", 2, 7)) as metrics:
        metrics.write(row)
    line = (tmp_path / "m.jsonl").read_bytes().rstrip()
    written = metrics_row(line)
    assert written == row | {"t": None} and json.loads(line).keys() == row.keys() | {"crc"}
    for bit in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        found = metrics_row(bytes(flipped))
        assert found is None or found | {"rung": 1, "seconds": 2.5} == written, (bit, bytes(flipped))


def test_metrics_go_on_where_the_checkpoint_stands(tmp_path: Path):
    path, notes = tmp_path / "metrics.jsonl", []
    metrics = Metrics(path, 1, 0, notes.append)
    for step in range(4):
        metrics.write({"stage": 1, "step": step})
    assert lines(path) == [(1, k) for k in range(4)]  # written at once
    metrics.sync()
    metrics.close()
    metrics.close()
    Metrics(path, 1, 2, notes.append).close()
    assert lines(path) == [(1, 0), (1, 1)] and notes == []
    second = Metrics(path, 2, 0, notes.append)
    second.write({"stage": 2, "step": 0})
    second.close()
    Metrics(path, 2, 1, notes.append).close()
    assert lines(path) == [(1, 0), (1, 1), (2, 0)] and notes == []


def test_what_is_closed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    metrics, synced = Metrics(tmp_path / "metrics.jsonl", 1, 0), []
    monkeypatch.setattr(os, "fsync", synced.append)
    number = metrics.file.fileno()
    metrics.close()
    assert synced == [number] and metrics.file.closed


def test_lost_lines_are_told_of(tmp_path: Path):
    path, notes = tmp_path / "metrics.jsonl", []
    path.write_bytes(b'{"stage": 1, "step": 0}\n\xff\xfe\n{"stage": 1, "step": 2}\n{"stage": 1, "st')
    Metrics(path, 1, 3, notes.append).close()
    assert lines(path) == [(1, 0), (1, 2)] and len(notes) == 2 and "1 of its lines could not be read" in notes[0] and "has lost" in notes[1]
    path.unlink()
    Metrics(path, 2, 0, notes.append).close()
    assert len(notes) == 2 and path.read_bytes() == b""
    path.write_text('{"stage": 1, "step": 0}\n')
    Metrics(path, 1, 2, notes.append).close()
    assert len(notes) == 3 and "step 2 of stage 1" in notes[2]
    rows = [b'{"stage": %d, "step": %d}\n' % place for place in ((1, 2), (2, 0), (2, 1), (3, 0))]
    for kept, stage, step, told in ((4, 3, 1, 0), (3, 3, 1, 1), (3, 3, 0, 0), (2, 3, 0, 1), (1, 2, 0, 0)):  # begun at step 2 of stage 1
        path.write_bytes(b"".join(rows[:kept]))
        before = len(notes)
        Metrics(path, stage, step, notes.append, (3, 2)[: stage - 1]).close()
        assert len(notes) == before + told, (kept, stage, step)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_no_file_where_metrics_go(tmp_path: Path, make):
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(FourdfyError, match="is no file") as caught:
        Metrics(tmp_path / "metrics.jsonl", 1, 0)
    assert caught.value.code == USAGE and caught.value.hint.startswith("ls ")


def test_metrics_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    metrics = Metrics(tmp_path / "metrics.jsonl", 1, 0)
    real = metrics.file
    metrics.file = types.SimpleNamespace(write=full, fileno=real.fileno, close=full)  # type: ignore[assignment]
    with pytest.raises(FourdfyError, match="cannot write .*metrics.jsonl: No space") as caught:
        metrics.write({"stage": 1, "step": 0})
    assert caught.value.code == FAILURE
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FourdfyError, match="No space"):
        metrics.sync()
    metrics.close()
    real.close()
    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(FourdfyError, match="No space"):
        Metrics(tmp_path / "metrics.jsonl", 1, 0)


class Stream:
    """A text stream that refuses after some calls."""

    encoding = "ascii"

    def __init__(self, calls: int, error: type[Exception] = OSError):
        self.calls, self.error, self.said, self.errors = calls, error, [], ""

    def reconfigure(self, errors: str) -> None:
        self.errors = errors

    def write(self, text: str) -> int:
        self.calls -= 1
        if self.calls < 0:
            raise self.error
        self.said.append(text)
        return len(text)

    def flush(self) -> None:
        self.write("flushed")


@pytest.mark.parametrize("error", [OSError, ValueError, BrokenPipeError])
def test_a_stream_is_given_up_when_it_refuses(error: type[Exception]):
    inner = Stream(2, error)
    willing = stream.Willing(inner)
    assert inner.errors == "backslashreplace" and willing.encoding == "ascii" and not willing.gone
    assert willing.write("abc") == 3 and inner.said == ["abc"]
    willing.flush()
    assert inner.said == ["abc", "flushed"] and willing.write("lost") == 4 and willing.gone
    inner.calls = 5
    willing.write("more")
    assert inner.said == ["abc", "flushed"]


def test_no_stream_at_all():
    willing = stream.Willing(None)
    assert willing.gone and willing.write("abc") == 3
    willing.flush()
    plain = stream.Willing(types.SimpleNamespace(write=lambda text: None))
    assert plain.write("a") == 1 and not plain.gone
    assert folder.finite([float("inf"), (1.0, float("nan")), {"a": True}, "x"]) == [None, [1.0, None], {"a": True}, "x"]
