"""`info --verify`: damage of every file of a run is found and told, and nothing is changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from samples import Watch, tiny_recipe

from fourdfy_cli.cli import main
from fourdfy_cli.errors import DAMAGED, OK, USAGE
from fourdfy_cli.memory import Machine
from fourdfy_cli.run import train
from fourdfy_cli.run.verify import examine
from fourdfy_cli.store import checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    return train.run("a red dog", tiny_recipe(), out, 0, (1, 2), None, Machine(), Watch()).run_dir


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_a_good_run_is_whole(folder: Path, capsys: pytest.CaptureFixture[str]):
    before = digests(folder)
    assert main.run(["info", str(folder), "--verify", "--json"]) == OK
    files = json.loads(capsys.readouterr().out)["data"]["files"]
    assert {"last.pt", "stage1.pt", "stage2.pt", "run.json", "metrics.jsonl"} <= set(files) and set(files.values()) == {"whole"}
    assert digests(folder) == before


def flipped(path: Path) -> None:
    """One bit of the largest record: between records there is room that nobody reads."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    data[data.index(largest) + len(largest) // 2] ^= 8
    path.write_bytes(data)


def replaced(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def without_a_line(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:1], *lines[2:]]))


def doubled(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines]))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def strangers(path: Path) -> None:
    state = checkpoint.load(path)
    checkpoint.save(path, state | {"prompt": "a blue cat"})


@pytest.mark.parametrize(
    "name, damage",
    [
        *[(name, damage) for name in ("last.pt", "stage1.pt", "stage2.pt") for damage in (flipped, emptied, a_folder)],
        ("stage1.pt", strangers),
        *[("run.json", damage) for damage in (emptied, a_folder, lambda path: replaced(path, "a red dog", "a blue cat"))],
        *[("metrics.jsonl", damage) for damage in (without_a_line, doubled, a_folder, lambda path: replaced(path, '{"stage": 2', '{"st'))],
    ],
)
def test_damage_is_found(folder: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]):
    damage(folder / name)
    assert main.run(["info", str(folder), "--verify"]) == DAMAGED
    told = capsys.readouterr().err
    assert f"1 of {len(examine(folder))} files" in told and name in told and "Traceback" not in told


def test_the_line_that_a_kill_cut_is_no_damage(folder: Path):
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert not any(examine(folder).values())


def test_numbers_that_are_not_finite(folder: Path, monkeypatch: pytest.MonkeyPatch):
    load = checkpoint.load

    def bad(path: Path) -> dict:
        state = load(path)
        next(iter(state["scene"].values())).view(-1)[:1] = torch.nan
        return state

    monkeypatch.setattr(checkpoint, "load", bad)
    assert "not finite" in examine(folder)["last.pt"]


def test_nothing_to_verify(tmp_path: Path):
    assert main.run(["info", str(tmp_path), "--verify"]) == USAGE
    assert main.run(["info", str(tmp_path / "gone.pt"), "--verify"]) == USAGE
