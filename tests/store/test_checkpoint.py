"""Checkpoints: equality of bytes, detection of every kind of damage, and death at any context of a save."""

from __future__ import annotations

import errno
import os
import random
import types
import zipfile
from pathlib import Path

import pytest
import torch

from fourdfy_cli import presets
from fourdfy_cli.config import to_dict
from fourdfy_cli.errors import DAMAGED, DIVERGED, FAILURE, USAGE, FourdfyError
from fourdfy_cli.store import checkpoint


def state(step: int = 3, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed + step)
    table = torch.rand(50, 2, generator=generator)
    return {
        "prompt": "a red dog", "seed": seed, "recipe": to_dict(presets.nano()), "stage": 1, "step": step,
        "scene": {"table": table, "half": table.half(), "on": table > 0.5, "blob_std": torch.tensor(0.5), "none": torch.zeros(0, 3)},
        "lora": {}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "param_groups": [{"betas": (0.9, 0.99), "lr": 1e-3}]},
        "models": "nano",
    }  # fmt: skip


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def refuse(path: Path, code: int) -> FourdfyError:
    with pytest.raises(FourdfyError) as caught:
        checkpoint.load(path)
    assert caught.value.code == code and caught.value.hint and "\n" not in caught.value.message
    return caught.value


def test_round_trip(tmp_path: Path):
    checkpoint.save(tmp_path / "a.pt", state())
    loaded = checkpoint.load(tmp_path / "a.pt")
    assert loaded["format"] == "fourdfy" and loaded["version"] == 2 and loaded["digest"] == checkpoint.digest(state())
    assert same({k: loaded[k] for k in state()}, state())
    assert os.listdir(tmp_path) == ["a.pt"]


def test_equal_states_give_equal_bytes(tmp_path: Path):
    checkpoint.save(tmp_path / "a.pt", state())
    shuffled = dict(reversed(checkpoint.load(tmp_path / "a.pt").items()))
    shuffled["scene"] = dict(reversed(shuffled["scene"].items()))
    shuffled["scene"]["table"] = torch.cat([shuffled["scene"]["table"], torch.ones(9, 2)])[:50]  # a view of a larger storage
    shuffled["prompt"] = "".join(["a red", " dog"])  # another string object
    checkpoint.save(tmp_path / "longer-name.pt", shuffled)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "longer-name.pt").read_bytes()


@pytest.mark.parametrize("change", ["prompt", "step", "tensor", "dtype", "shape", "key", "zero"])
def test_digest_sees_every_change(change: str):
    changed = state()
    scene = changed["scene"]
    if change in ("prompt", "step"):
        changed[change] = {"prompt": "a red cat", "step": 4}[change]
    elif change == "key":
        scene["other"] = scene.pop("table")
    elif change == "zero":
        scene["blob_std"] = scene["blob_std"] * -1
    else:
        table = scene["table"]
        scene["table"] = {"tensor": table + 1e-7, "dtype": table.view(torch.int32), "shape": table.reshape(25, 4)}[change]
    assert checkpoint.digest(changed) != checkpoint.digest(state())


def test_missing_and_foreign(tmp_path: Path):
    refuse(tmp_path / "none.pt", USAGE)
    refuse(tmp_path, USAGE)
    (tmp_path / "text.pt").write_text("hello")
    refuse(tmp_path / "text.pt", DAMAGED)
    (tmp_path / "empty.pt").touch()
    refuse(tmp_path / "empty.pt", DAMAGED)
    for name, content in {
        "list": [1],
        "dict": {"state_dict": {}},
        "ours": {"format": "fourdfy", "version": 2},
        "old": {"format": "fourdfy", "version": 0},
    }.items():
        torch.save(content, tmp_path / name)
        refuse(tmp_path / name, DAMAGED)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    refuse(tmp_path / "zip.pt", DAMAGED)


def test_newer_version_says_so(tmp_path: Path):
    torch.save({"format": "fourdfy", "version": 3}, tmp_path / "a.pt")
    assert "newer" in refuse(tmp_path / "a.pt", DAMAGED).message


class Canary:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_hostile_pickle_does_not_run(tmp_path: Path):
    canary = Canary()
    canary.path = str(tmp_path / "canary")
    torch.save({"format": "fourdfy", "version": 1, "prompt": canary}, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", DAMAGED)
    assert not (tmp_path / "canary").exists()


def test_changed_contents_are_detected(tmp_path: Path):
    """A well-formed file whose tensors are not those that were digested."""
    checkpoint.save(tmp_path / "a.pt", state())
    loaded = checkpoint.load(tmp_path / "a.pt")
    loaded["scene"]["table"][0, 0] += 1
    torch.save(loaded, tmp_path / "b.pt")
    assert "digest" in refuse(tmp_path / "b.pt", DAMAGED).message


def test_truncation_and_bit_flips(tmp_path: Path):
    """Every truncation is refused; a flipped bit is refused, or (in padding) changes nothing."""
    path = tmp_path / "a.pt"
    checkpoint.save(path, state())
    whole, good, rng = path.read_bytes(), checkpoint.load(path), random.Random(0)
    for length in [rng.randrange(len(whole)) for _ in range(60)]:
        path.write_bytes(whole[:length])
        refuse(path, DAMAGED)
    refused = 0
    for place in [rng.randrange(8 * len(whole)) for _ in range(200)]:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert same(checkpoint.load(path), good)
        except FourdfyError as error:
            assert error.code == DAMAGED
            refused += 1
    assert refused > 40  # most of the small file is the archive's alignment padding


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_is_not_saved(tmp_path: Path, bad: float):
    checkpoint.save(tmp_path / "a.pt", state())
    before = (tmp_path / "a.pt").read_bytes()
    wrong = state()
    wrong["scene"]["table"][3, 1] = bad
    with pytest.raises(FourdfyError) as caught:
        checkpoint.save(tmp_path / "a.pt", wrong)
    assert caught.value.code == DIVERGED and "scene.table" in caught.value.message
    assert (tmp_path / "a.pt").read_bytes() == before and os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("foreign", [Path("x"), {1, 2}, object()])
def test_only_builtins_and_tensors(tmp_path: Path, foreign: object):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "a.pt", state() | {"extra": foreign})
    with pytest.raises(TypeError, match="scene"):
        checkpoint.save(tmp_path / "a.pt", {k: v for k, v in state().items() if k != "scene"})
    assert os.listdir(tmp_path) == []


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint.save(tmp_path / "a.pt", state())
    before = (tmp_path / "a.pt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FourdfyError) as caught:
        checkpoint.save(tmp_path / "a.pt", state(4))
    assert caught.value.code == FAILURE and "No space" in caught.value.message
    assert (tmp_path / "a.pt").read_bytes() == before and os.listdir(tmp_path) == ["a.pt"]


def test_write_that_fails_half_way(tmp_path: Path):
    """A full device for real: /dev/full accepts nothing."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(FourdfyError) as caught, checkpoint.replacing(tmp_path / "a.pt") as temporary:
        temporary.symlink_to("/dev/full")
        with open(temporary, "wb") as file:
            torch.save(state(), file)
    assert caught.value.code == FAILURE and os.listdir(tmp_path) == []


def test_fsync_of_file_before_rename_and_of_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))) or sync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("rename") or rename(a, b))
    checkpoint.save(tmp_path / "a.pt", state())
    assert calls[0].startswith(f".tmp-{os.getpid()}-") and calls[1:] == ["rename", tmp_path.name]


def test_last_two_are_kept(tmp_path: Path):
    assert checkpoint.recover(tmp_path) is None
    for step in (1, 2, 3):
        checkpoint.save_last(tmp_path, state(step))
    assert sorted(os.listdir(tmp_path)) == ["last.prev.pt", "last.pt"]
    assert checkpoint.recover(tmp_path)["step"] == 3
    assert checkpoint.load(tmp_path / "last.prev.pt")["step"] == 2


def test_recover_falls_back_and_never_starts_again(tmp_path: Path):
    notes: list[str] = []
    for step in (1, 2):
        checkpoint.save_last(tmp_path, state(step))
    (tmp_path / "last.pt").write_bytes(b"damaged")
    assert checkpoint.recover(tmp_path, notes.append)["step"] == 1 and len(notes) == 1
    (tmp_path / "last.prev.pt").write_bytes(b"")
    with pytest.raises(FourdfyError) as caught:
        checkpoint.recover(tmp_path)
    assert caught.value.code == DAMAGED


def test_recover_sweeps_what_the_dead_left(tmp_path: Path):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    (tmp_path / f".tmp-{child}-last.pt").touch()
    (tmp_path / f".tmp-{os.getpid()}-last.pt").touch()
    checkpoint.recover(tmp_path)
    assert os.listdir(tmp_path) == [f".tmp-{os.getpid()}-last.pt"]


def die_at(call: int, folder: Path) -> bool:
    """Save step 3 in a child that is killed at its n-th system call of interest; False if it lived."""
    child = os.fork()
    if child == 0:
        count = [0]

        def deadly(function):
            def call_or_die(*args, **kwargs):
                count[0] += 1
                if count[0] == call:
                    os._exit(9)
                return function(*args, **kwargs)

            return call_or_die

        for name in ("fsync", "replace", "open", "unlink"):
            setattr(os, name, deadly(getattr(os, name)))
        torch.save = deadly(torch.save)
        checkpoint.save_last(folder, state(3))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_kill_at_every_call_of_a_save(tmp_path: Path):
    """Whenever the process dies, what is recovered is the old state or the new one, whole."""
    found = []
    for call in range(1, 20):
        folder = tmp_path / str(call)
        folder.mkdir()
        for step in (1, 2):
            checkpoint.save_last(folder, state(step))
        died = die_at(call, folder)
        recovered = checkpoint.recover(folder)
        found.append(recovered["step"])
        assert same({k: recovered[k] for k in state()}, state(recovered["step"]))
        assert not list(folder.glob(".tmp-*"))
        if not died:
            break
    assert not died and found == sorted(found) and found[0] == 2 and found[-1] == 3 and len(found) > 5


class Full:
    """A file on a disk with room for so many writes."""

    def __init__(self, file, writes: int):
        self.file, self.writes, self.flush = file, writes, file.flush

    def write(self, data) -> int:
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("writes", [0, 1, 20])
def test_a_disk_that_fills_up_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int):
    """What the disk says is told, not what torch makes of it."""
    checkpoint.save(tmp_path / "a.pt", state())
    before = (tmp_path / "a.pt").read_bytes()
    begin = checkpoint._Sink.__init__
    monkeypatch.setattr(checkpoint._Sink, "__init__", lambda self, file: begin(self, Full(file, writes)))
    with pytest.raises(FourdfyError, match="cannot write .*a.pt: No space left") as caught:
        checkpoint.save(tmp_path / "a.pt", state(4))
    assert caught.value.code == FAILURE and (tmp_path / "a.pt").read_bytes() == before and os.listdir(tmp_path) == ["a.pt"]


def test_a_mistake_of_torch_is_not_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def wrong(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", wrong)
    with pytest.raises(RuntimeError, match="something else"):
        checkpoint.save(tmp_path / "a.pt", state())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("free, enough", [(0, False), (16e6, False), (17e6, True), (1e12, True)])
def test_room_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, enough: bool):
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=free))
    if enough:
        checkpoint.save(tmp_path / "a.pt", state())
    else:
        with pytest.raises(FourdfyError, match=r"it wants 16 MB, and \d+ are free") as caught:
            checkpoint.save(tmp_path / "a.pt", state())
        assert caught.value.code == FAILURE and not list(tmp_path.iterdir())


def test_a_newer_version_is_neither_used_nor_moved(tmp_path: Path):
    checkpoint.save(tmp_path / "stage1.pt", state())
    torch.save({"format": "fourdfy", "version": 3}, tmp_path / "last.pt")
    with pytest.raises(checkpoint.NewerFormat) as caught:
        checkpoint.recover(tmp_path)
    assert caught.value.code == DAMAGED and sorted(os.listdir(tmp_path)) == ["last.pt", "stage1.pt"]


def test_the_furthest_is_recovered(tmp_path: Path):
    notes: list[str] = []
    assert checkpoint.recover(tmp_path, notes.append) is None
    for name, stage, step in (("last.pt", 2, 1), ("last.prev.pt", 1, 9), ("stage1.pt", 2, 5), ("stage2.pt", 1, 20)):
        checkpoint.save(tmp_path / name, state(step) | {"stage": stage})
    found = checkpoint.recover(tmp_path, notes.append)
    assert found and (found["stage"], found["step"], notes) == (2, 5, [])
    for name in ("stage1.pt", "last.pt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "last.damaged-1").touch()
    found = checkpoint.recover(tmp_path, notes.append)
    assert found and (found["stage"], found["step"]) == (1, 20) and len(notes) == 2
    assert "set aside as last.damaged-2" in notes[0] and (tmp_path / "last.damaged-2").read_bytes() == b"x"


def test_a_pid_file_in_previews_is_swept(tmp_path: Path):
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / ".tmp-999999999-aa-p.png").touch()
    checkpoint.recover(tmp_path)
    assert not list((tmp_path / "previews").iterdir())


def test_who_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint.save(tmp_path / "a.pt", state())

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", forbidden)
    assert "cannot be read: Permission denied" in refuse(tmp_path / "a.pt", USAGE).message


@pytest.mark.parametrize(
    "change",
    [
        {"stage": 0}, {"stage": 4}, {"stage": True}, {"step": -1}, {"step": 2**40}, {"seed": -1}, {"seed": 2**64}, {"retries": -1},
        {"retries": True}, {"skipped": 2**40}, {"skipped_in_a_row": 0.5}, {"scene": {"a": 1}}, {"scene": {1: torch.zeros(1)}},
        {"lora": [1]}, {"lora": {"a": "b"}}, {"prompt": 5}, {"recipe": None}, {"version": True}, {"version": 0}, {"version": "2"},
    ],
    ids=str,
)  # fmt: skip
def test_fields_out_of_bounds(tmp_path: Path, change: dict):
    values = state() | change
    values = {key: value for key, value in values.items() if key != "version"}
    torch.save({"format": "fourdfy", "version": change.get("version", 2), "digest": checkpoint.digest(values), **values}, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", DAMAGED)


def test_room_for_a_fifth_more_than_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    large = state() | {"scene": {"a": torch.zeros(2_500_000)}}  # 10 MB: 12 and the 16 that stay free
    for free, enough in ((27.9e6, False), (28.1e6, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: types.SimpleNamespace(free=free))
        if not enough:
            with pytest.raises(FourdfyError, match="it wants 28 MB, and 28 are free"):
                checkpoint.save(tmp_path / "a.pt", large)
    checkpoint.save(tmp_path / "a.pt", large)


def test_the_first_that_is_set_aside(tmp_path: Path):
    (tmp_path / "last.pt").touch()
    assert checkpoint.set_aside(tmp_path / "last.pt") == tmp_path / "last.damaged-1" and os.listdir(tmp_path) == ["last.damaged-1"]


def test_the_smallest_and_the_largest_that_are_read(tmp_path: Path):
    checkpoint.save(tmp_path / "a.pt", state() | {"step": 0, "seed": 0, "stage": 1, "retries": 0})
    assert checkpoint.load(tmp_path / "a.pt")["step"] == 0
    edge = {"step": 2**40 - 1, "seed": 2**64 - 1, "retries": 2**40 - 1, "stage": 3}
    checkpoint.save(tmp_path / "a.pt", state() | edge)
    assert checkpoint.load(tmp_path / "a.pt")["step"] == 2**40 - 1


TENSORS = [
    torch.zeros(2, 3).t(), torch.zeros(9)[:4], torch.zeros(1).expand(5), torch.zeros(2, dtype=torch.complex64),
    torch.nn.Parameter(torch.zeros(2)), torch.empty(3, device="meta"), torch.zeros(3).to_sparse(),
]  # fmt: skip


@pytest.mark.parametrize("tensor", TENSORS)
def test_tensors_that_save_would_not_write(tmp_path: Path, tensor: torch.Tensor):
    assert not checkpoint._own(tensor) and checkpoint._own(torch.zeros(2, 3)) and checkpoint._own(torch.zeros(0))
    torch.save(state() | {"scene": {"a": tensor}}, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", DAMAGED)


def test_more_than_it_has_bytes(tmp_path: Path):
    shared = torch.zeros(1000)
    torch.save(state() | {"lora": dict.fromkeys(map(str, range(100)), shared)}, tmp_path / "a.pt")
    assert "more than it has bytes" in refuse(tmp_path / "a.pt", DAMAGED).message
    inner: list = [0] * 8
    for _ in range(9):
        inner = [inner] * 8
    torch.save(state() | {"more": inner}, tmp_path / "b.pt")
    assert "more than it has bytes" in refuse(tmp_path / "b.pt", DAMAGED).message


def test_what_fits_a_recipe(tmp_path: Path):
    expected = {"a": torch.empty(2, 3, device="meta"), "b": torch.empty((), device="meta")}
    good = {"a": torch.zeros(2, 3), "b": torch.tensor(0.5)}
    checkpoint.check_tensors(tmp_path, "scene", good, expected)
    for found, words in (
        ([1], "something else than tensors"), (good | {"a": 5}, "something else than tensors"), ({"a": good["a"]}, "scene.b is missing"),
        (good | {"c": good["b"]}, "scene.c is unknown"), (good | {"a": torch.zeros(3, 2)}, r"scene.a is torch.float32 \[3, 2\], not"),
        (good | {"a": good["a"].double()}, "scene.a is torch.float64"),
    ):  # fmt: skip
        with pytest.raises(FourdfyError, match=words) as caught:
            checkpoint.check_tensors(tmp_path, "scene", found, expected)
        assert caught.value.code == DAMAGED


def test_hints_name_the_spare(tmp_path: Path):
    (tmp_path / "last.pt").write_bytes(b"x")
    assert "ls" in refuse(tmp_path / "last.pt", DAMAGED).hint
    checkpoint.save(tmp_path / "last.prev.pt", state())
    assert "last.prev.pt" in refuse(tmp_path / "last.pt", DAMAGED).hint


def test_what_is_plain(tmp_path: Path):
    values = state() | {"models": ("a", [1, 2.5, None, True], {"b": torch.zeros(1)}), "text": str.__new__(type("S", (str,), {}), "x")}
    plain = checkpoint._complete(values)
    assert type(plain["text"]) is str and type(plain["models"]) is tuple and set(checkpoint.HEADER) < set(plain)
    with pytest.raises(FourdfyError, match="state.x is not finite") as caught:
        checkpoint._complete(state() | {"x": float("inf")})
    assert caught.value.code == DIVERGED
    tensor = plain["scene"]["table"]
    assert tensor.data_ptr() != state()["scene"]["table"].data_ptr() and tensor.is_contiguous()
