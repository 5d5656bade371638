"""The gate: sizes, kinds and names of files from outside, before anything is believed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError
from fourdfy_cli.store import gate


def refuses(words: str, code: int = ENVIRONMENT):
    class Refused:
        def __enter__(self):
            self.context = pytest.raises(FourdfyError, match=words)
            self.caught = self.context.__enter__()

        def __exit__(self, *about: object):
            done = self.context.__exit__(*about)
            assert self.caught.value.code == code and "\n" not in self.caught.value.message and self.caught.value.hint
            return done

    return Refused()


def test_objects(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert gate.read_object(path) == {"a": 1} and gate.read_object(path, most=11) == {"a": 1}
    with refuses("has more than 0 MB", USAGE):
        gate.read_object(path, most=10, code=USAGE)
    for content, words in (
        (b"[1]", "is not a JSON object"), (b"{", "is not JSON"), (b"\xff", "is not JSON"), (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"), (b"[" * 10**5, "is not JSON"), (b"", "is not JSON"),
    ):  # fmt: skip
        path.write_bytes(content)
        with refuses(words):
            gate.read_object(path)
    with refuses("cannot be read: No such file"):
        gate.read_object(tmp_path / "none")
    with refuses("cannot be read: Is a directory"):
        gate.read_object(tmp_path)


LIMITS: gate.Limits = {"on": (bool, 0, 1), "count": (int, 1, 5), "rate": (float, 0.5, 2), "name": (str, 1, 3)}


@pytest.mark.parametrize("good", [{}, {"on": True}, {"count": 1}, {"count": 5}, {"rate": 2}, {"rate": 0.5}, {"name": "abc"}, {"name": "a"}])
def test_fields_that_are_allowed(good: dict[str, Any]):
    assert gate.fields(good, LIMITS, "here") is good


@pytest.mark.parametrize(
    "bad",
    [{"x": 1}, {"on": 1}, {"on": None}, {"count": True}, {"count": 0}, {"count": 6}, {"count": 1.0}, {"rate": 0.4}, {"rate": 2.1},
     {"rate": True}, {"rate": float("nan")}, {"rate": "1"}, {"name": ""}, {"name": "abcd"}, {"name": 5}, [1]],
    ids=str,
)  # fmt: skip
def test_fields_that_are_not(bad: Any):
    with refuses("here"):
        gate.fields(bad, LIMITS, "here")


def write(path: Path, header: object, data: int = 24, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return path


def test_headers(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.float16)}, path, {"format": "pt"})
    found = gate.header(path)
    assert found == {"a": ("F32", (2, 3)), "b": ("F16", ())}
    shapes = {name: shape for name, (_, shape) in found.items()}
    gate.compare(path, shapes, {"a": (2, 3), "b": ()})
    with refuses("holds b"):
        gate.compare(path, shapes, {"a": (2, 3)})
    with refuses("lacks c"):
        gate.compare(path, shapes, shapes | {"c": ()})
    with refuses(r"a is \[2, 3\], not \[3, 2\]"):
        gate.compare(path, shapes, shapes | {"a": (3, 2)})


GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


@pytest.mark.parametrize(
    "header, words",
    [
        (GOOD | {"a": {"dtype": "F32", "shape": [2, 4]}}, "header accounts for"),
        (GOOD | {"a": {"dtype": "F9", "shape": [6]}}, "a tensor of F9"),
        (GOOD | {"a": {"dtype": "F32", "shape": [-1]}}, "a tensor of"), (GOOD | {"a": {"dtype": "F32", "shape": [2**48]}}, "a tensor of"),
        (GOOD | {"a": {"dtype": "F32", "shape": [1] * 9}}, "a tensor of"), (GOOD | {"a": {"dtype": "F32", "shape": [6.0]}}, "a tensor of"),
        (GOOD | {"a": {"dtype": "F32"}}, "shape"), (GOOD | {"a": 5}, "damaged"), ([1], "damaged"), (b"{", "damaged"), (b"\xff", "damaged"),
        (b"[" * 10**5, "damaged"), (b"", "damaged"),
    ],
)  # fmt: skip
def test_headers_that_lie(tmp_path: Path, header: object, words: str):
    assert gate.header(write(tmp_path / "good", GOOD)) == {"a": ("F32", (2, 3))}
    assert gate.header(write(tmp_path / "eight", {"a": {"dtype": "U8", "shape": [24, *[1] * 7]}}))["a"][1][0] == 24
    with refuses(words):
        gate.header(write(tmp_path / "a", header))


@pytest.mark.parametrize("length", [0, 10**6, 2**63, 2**64 - 1])
def test_lengths_that_lie(tmp_path: Path, length: int):
    with refuses("damaged"):
        gate.header(write(tmp_path / "a", GOOD, length=length))
    (tmp_path / "short").write_bytes(b"1234")
    with refuses("damaged"):
        gate.header(tmp_path / "short")
    with refuses("damaged"):
        gate.header(tmp_path / "none")
