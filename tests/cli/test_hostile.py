"""Files, names, settings and folders from an enemy: nothing of theirs runs, nothing is written elsewhere, no secret is told, and memory
stays within bounds; every command line ends with a documented exit code and one line."""

from __future__ import annotations

import copy
import functools
import io
import json
import operator
import os
import random
import runpy
import shutil
import struct
import subprocess
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import NAME, PROMPT, called, cheap, go, recipe, rows
from safetensors.torch import save
from samples import isolated  # noqa: F401

from fourdfy_cli import config, presets
from fourdfy_cli.errors import DAMAGED, ENVIRONMENT, OK, USAGE, FourdfyError
from fourdfy_cli.evaluate import truth
from fourdfy_cli.output import render
from fourdfy_cli.run.progress import peak_memory
from fourdfy_cli.store import checkpoint, gate
from fourdfy_cli.store.folder import run_folder, slug

pytestmark = pytest.mark.long

CANARY = "ran"
MUCH = 500  # MB


@pytest.fixture(autouse=True)
def cheap_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap(monkeypatch.setattr)
    for name in ("nano", "paper"):
        monkeypatch.setitem(presets.PRESETS, name, recipe)


class Gadget:
    """What pickle turns into a call."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def gadgets(place: Path) -> dict[str, Gadget]:
    """Ten ways to leave the file `ran` where a pickle is loaded without care."""
    path = str(place / CANARY)
    code = f"open({path!r}, 'w').close()"
    (place / "evil_script.py").write_text(code)
    return {
        "system": Gadget(os.system, f"touch '{path}'"),
        "popen": Gadget(subprocess.Popen, ["touch", path]),
        "output": Gadget(subprocess.getoutput, f"touch '{path}'"),
        "eval": Gadget(eval, code),
        "exec": Gadget(exec, code),
        "mkdir": Gadget(os.mkdir, path),
        "runpy": Gadget(runpy.run_path, str(place / "evil_script.py")),
        "copy": Gadget(shutil.copyfile, str(place / "evil_script.py"), path),
        "method": Gadget(operator.methodcaller("touch"), Path(path)),
        "partial": Gadget(functools.partial(open, path, "w")),
    }


READERS = {
    "generate": ["generate", PROMPT, "--models", "nano", "--out", "."],
    "stage1": ["stage1", PROMPT, "--models", "nano", "--out", "."],
    "stage2": ["stage2", "--resume", f"{NAME}/last.pt"],
    "stage3": ["stage3", "--resume", NAME],
    "render": ["render", NAME],
    "info": ["info", f"{NAME}/last.pt"],
    "verify": ["info", NAME, "--verify"],
    "clip-score": ["clip-score", NAME, "--clip", "nano"],
    "nano score": ["nano", "score", NAME],
    "nano limits": ["nano", "limits", f"{NAME}/last.pt"],
    "nano renders": ["nano", "renders", NAME],
    "nano bench": ["nano", "bench", "prompts.txt", "--out", "."],
    "convert": ["models", "convert", f"{NAME}/last.pt"],
}


@pytest.mark.parametrize("inside", [True, False], ids=["beside good values", "alone"])
def test_pickles_that_run_code(inside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], isolated: Path):  # noqa: F811
    """10 gadgets x every command that takes a checkpoint: nothing runs. Read without care, each of them would."""
    Path("prompts.txt").write_text(PROMPT)
    run, careless = Path(NAME), 0
    state = {"format": "fourdfy", "version": 2, "prompt": PROMPT, "seed": 0, "stage": 1, "step": 0, "scene": {}, "digest": ""}
    for name, gadget in gadgets(tmp_path).items():
        torch.save(state | {"recipe": gadget} if inside else gadget, tmp_path / "evil.pt")
        for command, args in READERS.items():
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir()
            for file in ("last.pt", "stage2.pt", "stage3.pt"):
                shutil.copy(tmp_path / "evil.pt", run / file)
            code, _ = called(args, capsys)
            assert code in (USAGE, ENVIRONMENT, DAMAGED) and not (tmp_path / CANARY).exists(), (name, command)
        torch.load(tmp_path / "evil.pt", weights_only=False)
        until = time.monotonic() + 10  # what a process of its own does may come late
        while not (tmp_path / CANARY).exists() and time.monotonic() < until:
            time.sleep(0.01)
        careless += (tmp_path / CANARY).exists()
        shutil.rmtree(tmp_path / CANARY) if (tmp_path / CANARY).is_dir() else (tmp_path / CANARY).unlink(missing_ok=True)
    assert careless == 10


def crafted(path: Path, what: str) -> Path:
    """A checkpoint whose digest is right (unless that takes for ever) and whose contents are somebody else's."""
    state = {key: value for key, value in checkpoint.load(path).items() if key not in checkpoint.HEADER}
    CRAFTED[what](state)
    digest = "" if what in ENDLESS else checkpoint.digest(state)
    torch.save({"format": "fourdfy", "version": 2, "digest": digest, **state}, path)
    return path


def nest(levels: int, fan: int) -> list[Any]:
    inner: list[Any] = [0] * fan
    for _ in range(levels):
        inner = [inner] * fan
    return inner


CRAFTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "shared lists": lambda s: s.update(models=nest(12, 8)),
    "one tensor in many places": lambda s: s.update(lora=dict.fromkeys(map(str, range(5000)), torch.zeros(50_000))),
    "deep": lambda s: s.update(models=functools.reduce(lambda inner, _: [inner], range(400), 0)),
    "a tensor without storage": lambda s: s["scene"].update(blob_std=torch.empty(2**34, device="meta")),
    "a parameter": lambda s: s["scene"].update(blob_std=torch.nn.Parameter(torch.tensor(0.5))),
    "complex": lambda s: s["scene"].update(blob_std=torch.tensor(0.5j).conj()),
    "sparse": lambda s: s["scene"].update(blob_std=torch.eye(3).to_sparse()),
    "no tensor": lambda s: s["scene"].update(blob_std="0.5"),
    "a number for a name": lambda s: s["scene"].update({5: torch.zeros(1)}),
    "a scene that is a list": lambda s: s.update(scene=[torch.zeros(1)]),
    "lora that is none": lambda s: s.update(lora=[1]),
    "retries": lambda s: s.update(retries=-5000),
    "retries by name": lambda s: s.update(retries={"a": 1}),
    "skipped": lambda s: s.update(skipped=0.5),
    "stage 9": lambda s: s.update(stage=9),
    "a step beyond all": lambda s: s.update(step=2**50),
    "steps below none": lambda s: s.update(step=-1),
    "a recipe of lists": lambda s: s.update(recipe={"stage1": [[1]] * 9}),
    "a recipe of nothing": lambda s: s.update(recipe={}),
    "many steps": lambda s: s["recipe"]["stage1"].update(steps=10**12),
    "a huge field": lambda s: s["recipe"]["field"]["static"].update(levels=32, log2_table=24, features=32),
    "optimizer by index": lambda s: s.update(optimizer={"state": {10**9: {}}}),
    "optimizer text": lambda s: s.update(optimizer="x"),
}


HARMLESS = ("deep", "optimizer by index", "optimizer text", "a huge field")  # to commands that have no use for it
ENDLESS = ("shared lists", "one tensor in many places", "a tensor without storage", "complex", "sparse")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        cheap(patch.setattr)
        return go(tmp_path_factory.mktemp("made"), stages=(1,)).run_dir


@pytest.mark.parametrize("what", CRAFTED)
def test_checkpoints_with_a_right_digest(what: str, made: Path, capsys: pytest.CaptureFixture[str], isolated: Path):  # noqa: F811
    shutil.copytree(made, NAME)
    for path in Path(NAME).glob("*.pt"):
        crafted(path, what)
    before = peak_memory()
    codes = {command: called(READERS[command], capsys)[0] for command in ("info", "verify", "render", "stage2", "generate")}
    allowed = {OK, USAGE, DAMAGED} if what in HARMLESS else {USAGE, DAMAGED}
    assert set(codes.values()) <= allowed and not (what == "a huge field" and codes["generate"] == OK), codes
    assert peak_memory() - before < MUCH


def test_a_record_shorter_than_its_tensor_says(made: Path, tmp_path: Path):
    """A tensor that claims more than its record holds would be read beyond its end."""
    with zipfile.ZipFile(made / "last.pt") as old, zipfile.ZipFile(tmp_path / "last.pt", "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry, data[: len(data) // 2] if "/data/" in entry.filename else data)
    with pytest.raises(FourdfyError) as caught:
        checkpoint.load(tmp_path / "last.pt")
    assert caught.value.code == DAMAGED


@pytest.mark.parametrize("bomb", ["deflated", "overlapping"])
def test_archives_that_unpack_to_more_than_they_are(bomb: str, tmp_path: Path):
    path = tmp_path / "last.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if bomb == "deflated" else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))
        if bomb == "overlapping":
            archive.infolist().extend(archive.infolist() * 400)
    before = peak_memory()
    with pytest.raises(FourdfyError) as caught:
        checkpoint.load(path)
    assert caught.value.code == DAMAGED and peak_memory() - before < MUCH


NAMES = [
    "../up", "../../up", "/abs", "//net/share", "C:\\x", "\\\\host\\share", "~/home", "~root", "a/../../b", "./.", ".", "..", "...",
    ".hidden", "-rf", "--out", "-", "CON", "NUL", "aux.txt", "com1", "a\nb", "a\rb", "a\tb", "a\x00b", "\x1b[31mred", "\u202egod",
    "\u200b", "\ufeff", "e\u0301", "$(touch ran)", "`touch ran`", "; touch ran", "| touch ran", "&& touch ran", "> ran", "'", '"', "\\",
    "%s%n", "{0}", "${HOME}", "*", "?", "[a]", "<script>", "x" * 300, "x" * 5000, "犬" * 100, "\U0001f436" * 50, " ", "  lead", "trail  ",
    "a b", "a,b", "a=b", "a:b", "#", "@", "\udc80",
]  # fmt: skip


@pytest.mark.parametrize("part", [0, pytest.param(slice(None), marks=pytest.mark.slow)], ids=["some", "all"])
def test_names_that_want_out(part: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], isolated: Path):  # noqa: F811
    """60 names as prompts, folders, files and settings: nothing appears outside of the folder that was asked for."""
    assert len(NAMES) == 60
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    os.chdir(here)
    outside = {path for path in tmp_path.rglob("*") if here not in path.parents}
    for name in NAMES[part] if part else NAMES[::8]:
        assert set(slug(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and run_folder(here, name, 0).parent == here
        if "\0" in name or "\udc80" in name:
            continue  # no command line can hold them
        for args in (
            ["generate", name, "--models", "random", "--size", "tiny", "--out", "out"],
            ["generate", name, "--models", "nano", "--out", "out"],
            ["render", f"./{name}"],
            ["info", f"./{name}"],
            ["clip-score", "--clip", "nano", "--", f"./{name}"],
            ["generate", PROMPT, "--dry-run", "--set", name],
            ["generate", PROMPT, "--dry-run", "--preset", name],
            ["study", "build", "--ours", f"./{name}", "--baseline", f"{name}=x"],
        ):
            try:
                code, _ = called(args, capsys)
            except (OSError, AssertionError) as error:
                raise AssertionError((name, args)) from error
        assert {path for path in tmp_path.rglob("*") if here not in path.parents} == outside and not (here / "ran").exists(), name
    assert {path.name for path in here.iterdir()} <= {"out"}


JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e-300, 1e300, 10**9, 10**18, 10**400, -(10**9), "", "x", "nan", "[red]", [], [1], [1, 2],
    [1e9, 1e9], [[1]], {}, {"a": 1}, {"start": 1, "end": 2}, "hashgrid", "hexplane", "deformation", "sectors", "../../x", 4096, 0.5,
]  # fmt: skip


def mutated(values: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A recipe with one to three settings replaced, removed or added."""
    values = json.loads(json.dumps(values))
    for _ in range(rng.randrange(1, 4)):
        at: Any = values
        while True:
            key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not (isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.85):
                break
            at = at[key]
        kind = rng.random()
        if kind < 0.1 and isinstance(at, dict):
            del at[key]
        elif kind < 0.2 and isinstance(at, dict):
            at[f"more{key}"] = copy.deepcopy(rng.choice(JUNK))
        elif type(at[key]) in (int, float) and kind < 0.7:
            at[key] = type(at[key])(min(max(at[key], -1e12), 1e12) * 10.0 ** rng.uniform(-3, 3))
        else:
            at[key] = copy.deepcopy(rng.choice(JUNK))
        if not values:
            break
    return values


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_recipes(count: int, made: Path, capsys: pytest.CaptureFixture[str], isolated: Path):  # noqa: F811
    """In a checkpoint with a right digest, and as settings of a dry run: accepted or refused in one line."""
    rng, counts, before = random.Random(count), Counter(), peak_memory()
    shutil.copytree(made, NAME)
    state = checkpoint.load(made / "last.pt")
    keys = list(config.leaves(config.to_dict(recipe())))
    for number in range(count):
        values = mutated(state["recipe"], rng)
        checkpoint.save(Path(NAME) / "last.pt", state | {"recipe": values} if _savable(values) else state)
        args = [READERS["info"], READERS["verify"], ["render", f"{NAME}/last.pt", "--size", "3000"]][number % 3]
        counts[called(args, capsys)[0]] += 1
        settings = [
            f"{rng.choice(keys)}={rng.choice(['1e9', '-1', '0', 'x', 'none', 'true', '0.5', '1e-9', '4096', ''])}" for _ in range(2)
        ]
        code = called(["generate", PROMPT, "--dry-run", *(w for s in settings for w in ("--set", s))], capsys)[0] if number % 4 == 0 else OK
        counts[code] += number % 4 == 0
    assert set(counts) <= {OK, USAGE, DAMAGED} and peak_memory() - before < MUCH
    with capsys.disabled():
        print(f"\n{count} recipes: exit codes {dict(counts)}")


def _savable(values: Any) -> bool:
    try:
        return bool(checkpoint.digest({"recipe": values})) and "e+" not in json.dumps(values) and len(json.dumps(values)) < 50_000
    except ValueError:
        return False


def rezipped(data: bytes, rng: random.Random) -> bytes:
    """A checkpoint one of whose records is changed, with the checksum that belongs to the change."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(new, "w") as changed:
        entries = archive.infolist()
        chosen = rng.choice([entry for entry in entries if entry.file_size and (rng.random() < 0.3 or entry.filename.endswith("data.pkl"))])
        for entry in entries:
            record = bytearray(archive.read(entry))
            if entry is chosen:
                for _ in range(rng.choice([1, 1, 3])):
                    record[rng.randrange(len(record))] = rng.choice([0, 255, rng.randrange(256)])
            changed.writestr(entry.filename, bytes(record))
    return new.getvalue()


def remade(data: bytes, rng: random.Random) -> bytes:
    """Safetensors with a header that lies: other shapes, offsets, dtypes, names, lengths."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    about = header[rng.choice(list(header))]
    kind = rng.randrange(6)
    if kind == 0:
        about["shape"] = rng.choice([[2**40], [-1], [2**31, 2**31], [], "x", [1.5], [0] * 5000, None])
    elif kind == 1:
        about["data_offsets"] = rng.choice([[0, 2**50], [5, 1], [0], None, ["a", "b"], [0, 0]])
    elif kind == 2:
        about["dtype"] = rng.choice(["F64", "F8", "", None, 5, "x" * 10**5])
    elif kind == 3:
        header[rng.choice(["", "\x00", "../x", "x" * 10**5])] = about
    text = json.dumps(header).encode()
    told = rng.choice([len(text), len(text) + 1, 0, 2**63, 2**64 - 1, 10**8 + 1]) if kind == 4 else len(text)
    body = bytearray(struct.pack("<Q", told) + text + data[8 + length :])
    if kind == 5:
        for _ in range(3):
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return bytes(body)


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutated_files(count: int, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Half of them checkpoints whose checksums are right, half safetensors: read as they were, or refused with a documented code."""
    rng, counts, before = random.Random(count), Counter(), peak_memory()
    pt, good = (made / "last.pt").read_bytes(), checkpoint.load(made / "last.pt")["digest"]
    weights = {f"layer{k}.weight": torch.rand(3, k + 1) for k in range(4)}
    tensors, path = save(weights), tmp_path / "mutated"
    for number in range(count):
        path.write_bytes(rezipped(pt, rng) if number % 2 else remade(tensors, rng))
        try:
            if number % 2:
                assert checkpoint.load(path)["digest"] == good
            else:
                gate.compare(
                    path, {name: shape for name, (_, shape) in gate.header(path).items()}, {n: w.shape for n, w in weights.items()}
                )
            counts["as it was"] += 1
        except FourdfyError as error:
            assert error.code == (DAMAGED if number % 2 else ENVIRONMENT) and "\n" not in error.message
            counts[f"exit {error.code}"] += 1
    assert counts["exit 6"] > 0.3 * count and peak_memory() - before < MUCH
    with capsys.disabled():
        print(f"\n{count} mutated files: {dict(counts)}, {peak_memory() - before:.0f} MB more memory")


SECRETS = {
    "HF_TOKEN": "hf_canaryA1b2", "WANDB_API_KEY": "canaryW4x5", "AWS_SECRET_ACCESS_KEY": "canaryZ6y7",
    "HTTPS_PROXY": "http://u:canaryP8@127.0.0.1:9",
}  # fmt: skip


def test_secrets_are_told_nowhere(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], isolated: Path):  # noqa: F811
    """In no file that is written and in nothing that is printed, by commands that work and commands that fail."""
    from fourdfy_cli.cli import main

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(truth, "score", lambda run: {})
    monkeypatch.setattr(render, "views", lambda scene, recipe, shot, *_: (np.zeros((*shot.size, 3), np.uint8) for _ in range(len(shot))))
    readers = [args for name, args in READERS.items() if name not in ("nano bench", "nano limits", "nano renders", "clip-score")]
    lines = [
        *readers, ["models", "list"], ["doctor"], ["generate", PROMPT, "--dry-run", "--full"], ["generate", PROMPT, "--dry-run", "--json"],
        ["generate", PROMPT, "--models", "nano", "--set", "x=1", "--debug"], ["info", "none.pt", "--debug"],
    ]  # fmt: skip
    for args in lines:
        main.run(args)
    said = "".join(capfd.readouterr())
    files = [path for path in isolated.rglob("*") if path.is_file()]
    assert len(files) > 5 and len(rows(Path(NAME))) > 5
    for value in ("canaryA1b2", "canaryW4x5", "canaryZ6y7", "canaryP8"):
        assert value not in said and not any(value.encode() in path.read_bytes() for path in files), value
