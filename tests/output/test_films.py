"""Files that people hand in: text in any encoding, tables of prompts, names that say nothing, kinds of film, bounds."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from samples import film

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.output import films, limits
from fourdfy_cli.output.textfile import read_lines, read_object, read_text, typed


def refused(call, *args: object) -> FourdfyError:
    with pytest.raises(FourdfyError) as caught:
        call(*args)
    assert caught.value.code == 2 and caught.value.hint and "\n" not in caught.value.message
    return caught.value


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa cat\r\nzwei Hünde\r\ufeffa dog\n".encode())
    assert read_lines(path)[:3] == films.read_prompts(path) == ["a cat", "zwei Hünde", "a dog"]
    path.write_bytes('\ufeff{"a": "ü"}'.encode())
    assert read_object(path) == {"a": "ü"}


def test_only_line_ends_end_lines(tmp_path: Path):
    path = tmp_path / "p.txt"
    path.write_text("a\u2028b\x85c\x0bd\ne", encoding="utf-8")
    assert read_lines(path) == ["a\u2028b\x85c\x0bd", "e"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"])
def test_other_encodings_are_refused_with_the_command_that_mends_them(tmp_path: Path, encoding: str):
    path = tmp_path / "my prompts.txt"
    path.write_bytes("ein Kätzchen und ein Hündchen".encode(encoding))
    error = refused(read_text, path)
    assert "UTF-8" in error.message
    subprocess.run(["bash", "-c", error.hint], check=True)
    assert read_text(tmp_path / "my prompts.txt.utf8") == "ein Kätzchen und ein Hündchen"


def test_text_has_bounds(tmp_path: Path):
    path = tmp_path / "p.txt"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole, a terabyte long
    assert "larger" in refused(films.read_prompts, path).message
    path.write_text("x" * 10_001)
    assert "10001 characters" in refused(films.read_prompts, path).message
    path.write_text("cat\n" * 10_001)
    assert "10001 prompts" in refused(films.read_prompts, path).message
    path.write_text("[" * 100_000)
    assert "nested" in refused(read_object, path).message
    assert "not JSON" in refused(read_object, Path("/dev/null")).message
    refused(read_text, tmp_path)
    refused(read_text, Path("/dev/zero"))


def test_a_table_of_prompts(tmp_path: Path):
    for name in ("a.MP4", "b.mov", "c.webm", "c.gif"):
        (tmp_path / name).touch()
    table = tmp_path / "prompts.tsv"
    table.write_bytes('\ufeffFile\tPrompt\r\na.MP4\ta cat\r\nb\t"a dog, ""old"""\t\r\nc\ta fish\r\n'.encode())
    assert films.prompts_beside(tmp_path) == {"a.MP4": "a cat", "b.mov": 'a dog, "old"', "c.webm": "a fish", "c.gif": "a fish"}
    for wrong in ("a.MP4\n", "a.MP4\ta cat\tand more\n", "\ta cat\n", "a.MP4\ta cat\na.MP4\ta dog\n"):
        table.write_text("# mine\n" + wrong)
        assert "line" in refused(films.prompts_beside, tmp_path).message


@pytest.mark.parametrize(
    "stem",
    ["orbit", "Orbit", "mav3d", "fixed", "orbit-depth", "stage3-orbit", "stage2-mav3d-depth", "last-fixed", "last.prev-orbit", "orbit (1)"]
    + ["orbit copy", "Copy of orbit", "mav3d_2", "0001", "gt", "a-red-dog-jumping-s0", "it10000-test", "_", "output"],
)
def test_names_that_are_no_prompts(tmp_path: Path, stem: str):
    path = tmp_path / f"{stem}.mp4"
    error = refused(films.prompt_of, path)
    assert "no prompt" in error.message
    subprocess.run(["bash", "-c", error.hint.replace("A PROMPT", "a cat")], check=True)
    path.touch()
    assert films.prompt_of(path) == "a cat"


@pytest.mark.parametrize("stem", ["a_satellite_in_orbit", "a-fixed-star", "x1", "orbiting moon", "a stage", "R2-D2", "the last dog"])
def test_names_that_are_prompts(tmp_path: Path, stem: str):
    assert films.prompt_of(tmp_path / f"{stem}.mp4") == stem.replace("_", " ").replace("-", " ")


def test_what_is_in_a_folder(tmp_path: Path):
    for name in ("a.MP4", "b.mov", "c.webm", "d.gif", "e.Mkv", "f.avi", "g.webp", "h.txt", "i", ".j.mp4", "prompts.tsv", "clip.json"):
        (tmp_path / name).touch()
    (tmp_path / "k.mp4").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").touch()
    assert [path.name for path in films.films(tmp_path)] == ["a.MP4", "b.mov", "c.webm", "d.gif", "e.Mkv", "f.avi"]
    assert [Path(one["file"]).name for one in films.left_out(tmp_path)] == ["g.webp", "h.txt", "i", "k.mp4"]


def test_bounds_of_a_film():
    limits.check_film("a", 7680, 4320, 0, "x")
    limits.check_film("a", 256, 256, 20_000, "x")
    for form in ((8192, 8192, 0), (256, 256, 10**6), (3840, 2160, 20_000), (10_000, 100, 1)):
        assert "too large" in refused(limits.check_film, "a", *form, "smaller").message


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_lack_of_memory_is_one_line(error: Exception):
    with pytest.raises(FourdfyError) as caught, limits.within_memory("film.mp4", "free -m"):
        raise error
    assert caught.value.code == 4 and "film.mp4" in caught.value.message
    with pytest.raises(RuntimeError, match="shape"), limits.within_memory("film.mp4", "free -m"):
        raise RuntimeError("shape")


def test_torch_says_so_when_memory_ends():
    with pytest.raises(FourdfyError), limits.within_memory("x", "free -m"):
        torch.empty(2**50)


def test_hints_can_be_pasted(tmp_path: Path):
    name = tmp_path / "a b" / 'it\'s $HOME; `x` "q".mp4'
    assert shlex.split(typed("ls", name)) == ["ls", str(name)]
    assert typed("ls", Path("-l")) == "ls ./-l" and typed("ls", "-l") == "ls -l"


def test_content_is_read_piece_by_piece(tmp_path: Path):
    path = film(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes() + bytes(2**20))
    assert films.content(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pipe_is_read_too(tmp_path: Path):
    reader, writer = os.pipe()
    os.write(writer, b"a cat\n")
    os.close(writer)
    assert films.read_prompts(Path(f"/dev/fd/{reader}")) == ["a cat"]
    os.close(reader)
