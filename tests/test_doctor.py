"""The doctor: what it finds on this machine, and what it says where something is broken or missing."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import pytest
from huggingface_hub import constants

from fourdfy_cli import doctor
from fourdfy_cli.cli import main
from fourdfy_cli.diffusion.table import ROLES
from fourdfy_cli.errors import ENVIRONMENT, OK

TOKEN = "hf_canary0123456789"


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, no token, an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_this_machine_is_ready(capsys: pytest.CaptureFixture[str]):
    assert main.run(["doctor", "--json"]) == OK
    data = json.loads(capsys.readouterr().out)["data"]
    checks = {check["part"]: check for check in data["checks"]}
    assert data["ready"] is True and list(Path.cwd().iterdir()) == []
    assert {"python", "torch", "gpu", "processors", "disk", "ffmpeg", "hub cache", "hub token", *doctor.PARTS} <= set(checks)
    assert {f"models: {role}" for role in (*ROLES, "nano")} <= set(checks)
    assert all(check["mend"] for check in checks.values() if check["state"] == "missing")
    assert all(checks[f"models: {role}"]["mend"] == f"fourdfy models pull {role}" for role in ROLES)
    assert main.run(["doctor"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"python +ok: 3\..*", line) for line in lines)
    assert any(re.fullmatch(r"models: video +missing: cerspense/.*cc-by-nc.*-> fourdfy models pull video", line) for line in lines)


def test_the_token_is_never_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for args in (["doctor"], ["doctor", "--json"]):
        assert main.run(args) == OK
        shown = capsys.readouterr()
        assert TOKEN not in shown.out + shown.err and "present" in shown.out


def test_what_is_broken_and_required_ends_with_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # import fails
    assert main.run(["doctor"]) == ENVIRONMENT
    shown = capsys.readouterr()
    error, hint = shown.err.splitlines()
    assert error.startswith("error: ffmpeg: ") and hint == "hint:  pip install --force-reinstall imageio-ffmpeg"
    assert "ready  no" in shown.out
    assert main.run(["doctor", "--json"]) == ENVIRONMENT
    *events, envelope = map(json.loads, capsys.readouterr().out.splitlines())
    assert envelope["ok"] is False and envelope["error"]["code"] == ENVIRONMENT
    assert {event["part"] for event in events if event["required"] and event["state"] == "missing"} == {"ffmpeg"}


def test_a_package_that_is_absent_old_or_damaged(monkeypatch: pytest.MonkeyPatch):
    assert doctor.package("numpy").state == "ok"
    monkeypatch.setitem(doctor.PACKAGES, "numpy", ("numpy", "99.1"))
    old = doctor.package("numpy")
    assert (old.state, old.required, old.mend) == ("missing", True, "pip install --upgrade 'numpy>=99.1'") and "99.1" in old.detail
    monkeypatch.setitem(doctor.PACKAGES, "numpy", ("no-such-distribution", ""))
    assert doctor.package("numpy").detail == "not installed"
    monkeypatch.setitem(sys.modules, "peft", None)
    assert doctor.package("peft").detail.startswith("does not import")


@pytest.mark.parametrize("version, numbers", [("2.10.0+cu126", (2, 10, 0)), ("3.0", (3, 0)), ("", ()), ("5.3.0.dev0", (5, 3, 0))])
def test_versions_compare_as_numbers(version: str, numbers: tuple[int, ...]):
    assert doctor._numbers(version) == numbers


def test_a_package_newer_than_tried_is_a_note(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(doctor, "tried", lambda: {"numpy": "1.0", "pillow": "999.0", "no-such-distribution": "1.0"})
    note = doctor.untried()
    assert (note.state, note.required, note.mend) == ("note", False, "pip install numpy==1.0")
    assert "numpy" in note.detail and "pillow" not in note.detail and "no-such-distribution" not in note.detail
    assert main.run(["doctor"]) == OK
    assert any(re.fullmatch(r"versions +note: .*numpy.*-> pip install numpy==1.0", line) for line in capsys.readouterr().out.splitlines())
    monkeypatch.setattr(doctor, "tried", lambda: {"numpy": "999.0"})
    assert doctor.untried().state == "ok"


def test_the_versions_tried_come_from_the_package_or_the_repository(monkeypatch: pytest.MonkeyPatch, isolated: Path):
    assert doctor.tried()["torch"]
    monkeypatch.setattr(doctor, "__file__", str(isolated / "package" / "doctor.py"))
    assert doctor.tried() == {} and (doctor.untried().state, doctor.untried().required) == ("missing", False)
    for number, folder in enumerate((isolated / ".ci", isolated / "package"), 1):  # the package's own comes first
        folder.mkdir()
        (folder / "tried.txt").write_text(f"# a comment\nnumpy=={number}.0\n")
        assert doctor.tried() == {"numpy": f"{number}.0"}


def test_packages_are_those_that_are_installed_with_this_one():
    """The list here says what pyproject.toml says."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    wanted = dict(re.findall(r'^    "([\w-]+)([^"]*)",$', text[text.index("\ndependencies") :], re.MULTILINE))
    for name, least in doctor.PACKAGES.values():
        assert wanted[name] == (f">={least}" if least else ""), name


def test_a_card(monkeypatch: pytest.MonkeyPatch):
    def machine(available: bool, version: str | None) -> types.SimpleNamespace:
        card = types.SimpleNamespace(name="Card 9000", total_memory=80e9)
        cuda = types.SimpleNamespace(is_available=lambda: available, get_device_properties=lambda _: card)
        return types.SimpleNamespace(cuda=cuda, version=types.SimpleNamespace(cuda=version))

    monkeypatch.setitem(sys.modules, "torch", machine(True, "12.6"))
    assert str(doctor.gpu()) == "ok: Card 9000, 80.0 GB, CUDA 12.6"
    monkeypatch.setitem(sys.modules, "torch", machine(False, None))
    assert (doctor.gpu().state, doctor.gpu().required, doctor.gpu().mend) == ("missing", False, doctor.NANO)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor.gpu().mend == "pip install torch"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1e12))
    assert doctor.disk().state == "ok"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=3e9))
    assert doctor.disk().mend == "export HF_HOME=FOLDER"  # the models want more
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1e9))
    assert doctor.disk().mend == "export FOURDFY_OUT=FOLDER"


def test_weights_that_should_ship(monkeypatch: pytest.MonkeyPatch, isolated: Path):
    assert doctor.nano().state == "ok"
    monkeypatch.setattr(doctor, "__file__", str(isolated / "doctor.py"))
    assert doctor.nano().state == "missing" and doctor.nano().required
