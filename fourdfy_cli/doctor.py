"""Is this machine ready? One check a line, each with the command that mends it.

Imports what it examines inside the checks, so that a broken installation is reported and not tripped over. Uses no network. Secrets are
looked for, never read out.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fourdfy_cli.diffusion import hub
from fourdfy_cli.diffusion.table import ROLES, row
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.output.ffmpeg import probe
from fourdfy_cli.run import processors as available

PYTHON = (3, 10)
PACKAGES = {  # module: (distribution, lowest version that works)
    "torch": ("torch", "2.10"), "torchvision": ("torchvision", "0.25"), "diffusers": ("diffusers", "0.36"),
    "transformers": ("transformers", "5.3"), "peft": ("peft", "0.18"), "safetensors": ("safetensors", "0.8"),
    "huggingface_hub": ("huggingface-hub", "1.20"), "open_clip": ("open-clip-torch", "3.0"), "numba": ("numba", "0.61"),
    "numpy": ("numpy", "1.26.4"), "scipy": ("scipy", "1.11.1"), "PIL": ("pillow", "10.0"), "jaxtyping": ("jaxtyping", "0.3.6"),
}  # fmt: skip
PARTS = {  # optional: (what for, how to get it)
    "tinycudann": ("--backend tcnn, hash grids", "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"),
    "triton": ("--backend triton, the inner loops on a GPU", "pip install triton"),
}
ROOM = 2e9  # bytes for runs, beside what is to be downloaded
NANO = 'fourdfy generate "a red dog jumping" --preset nano'


@dataclass(frozen=True)
class Check:
    """One finding: `state` is "ok", "note" or "missing"; what is required and missing stops fourdfy; `mend` is a command to type."""

    part: str
    state: str
    detail: str
    required: bool = False
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.detail}" + (f"   -> {self.mend}" if self.mend else "")


def examine() -> Iterator[Check]:
    """All checks, in the order they are shown."""
    yield python()
    yield from (package(module) for module in PACKAGES)
    yield untried()
    yield gpu()
    yield ffmpeg()
    yield kernels()
    yield nano()
    yield from hub_cache()
    yield from (model(role) for role in ROLES)
    yield processors()
    yield disk()
    yield from (optional(module) for module in PARTS)


def broken(checks: list[Check]) -> list[Check]:
    """The checks that stop fourdfy from working at all."""
    return [check for check in checks if check.required and check.state == "missing"]


def python() -> Check:
    wanted = ".".join(map(str, PYTHON))
    if sys.version_info < PYTHON:
        return Check("python", "missing", f"{platform.python_version()}, {wanted} is needed", True, "python3.12 -m venv venv")
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}", True)


def package(module: str) -> Check:
    """A required package: installed, new enough, and importable."""
    name, least = PACKAGES[module]
    mend = f"pip install --upgrade '{name}{'>=' + least if least else ''}'"
    try:
        version = importlib.metadata.version(name)
        importlib.import_module(module)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "missing", "not installed", True, mend)
    except (ImportError, OSError, RuntimeError) as error:
        return Check(name, "missing", f"does not import: {_line(error)}", True, f"pip install --force-reinstall {name}")
    if _numbers(version) < _numbers(least):
        return Check(name, "missing", f"{version}, {least} is needed", True, mend)
    return Check(name, "ok", version, True)


def untried() -> Check:
    """Packages newer than those that the tests have passed with. They may work all the same."""
    known = tried()
    if not known:
        return Check("versions", "missing", "tried.txt is not where it was installed", mend="pip install --force-reinstall .")
    newer = {name: here for name in known if _numbers(here := _version(name)) > _numbers(known[name])}
    if not newer:
        return Check("versions", "ok", "no package is newer than those that were tried")
    told = ", ".join(f"{name} {here} ({known[name]})" for name, here in newer.items())
    back = " ".join(f"{name}=={known[name]}" for name in newer)
    return Check("versions", "note", f"newer than tried: {told}", mend=f"pip install {back}")


def tried() -> dict[str, str]:
    """The newest version of each package that the tests have passed with: .ci/tried.txt, which an installed package holds a copy of."""
    here = Path(__file__).parent
    path = next((path for path in (here / "tried.txt", here.parent / ".ci" / "tried.txt") if path.is_file()), None)
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def gpu() -> Check:
    """Name and memory of the first CUDA card; the nano models do without."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError):
        return Check("gpu", "missing", "cannot tell without torch", mend="pip install torch")
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        return Check(
            "gpu", "missing", f"no CUDA card ({built}); the nano models need none", mend="nvidia-smi" if torch.version.cuda else NANO
        )
    card = torch.cuda.get_device_properties(0)
    return Check("gpu", "ok", f"{card.name}, {card.total_memory / 1e9:.1f} GB, CUDA {torch.version.cuda}")


def ffmpeg() -> Check:
    try:
        binary = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except (ImportError, RuntimeError, OSError) as error:
        return Check("ffmpeg", "missing", _line(error), True, "pip install --force-reinstall imageio-ffmpeg")
    if failure := probe():
        return Check("ffmpeg", "missing", failure.message, True, failure.hint)
    return Check("ffmpeg", "ok", f"{binary}, makes and reads videos", True)


def kernels() -> Check:
    """Where what numba compiles is kept for the next process."""
    try:
        from fourdfy_cli.kernels import jit, numba_volume
    except (ImportError, OSError, RuntimeError) as error:
        return Check("kernels", "missing", f"do not load: {_line(error)}", True, "pip install --force-reinstall numba")
    if folder := jit.lasting(numba_volume._count):
        return Check("kernels", "ok", f"compiled once, kept in {folder}")
    return Check("kernels", "note", "compiled anew by every command: no folder can be written to", mend="export NUMBA_CACHE_DIR=FOLDER")


def nano() -> Check:
    """The models that ship inside this package."""
    folder = Path(__file__).parent / "nano" / "weights"
    found = sorted(folder.rglob("*.safetensors"))
    if not found:
        return Check("models: nano", "missing", f"no weights in {folder}", True, "pip install --force-reinstall .")
    return Check("models: nano", "ok", f"{sum(path.stat().st_size for path in found) / 1e6:.0f} MB, ship with this package", True)


def hub_cache() -> Iterator[Check]:
    """Where the Hub's models are kept, and whether there is a token (the models of the table need none)."""
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        yield Check("hub cache", "missing", _line(error), True, "pip install huggingface_hub")
        return
    folder = Path(constants.HF_HUB_CACHE)
    offline = ", HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    yield Check("hub cache", "ok", f"{folder}{'' if folder.is_dir() else ' (made when needed)'}{offline}")
    if get_token():
        yield Check("hub token", "ok", "present")
    else:
        yield Check("hub token", "missing", "none; only gated models ask for one", mend="hf auth login")


def model(role: str) -> Check:
    """The model that the set "paper" uses for a role."""
    about = row(role)
    part, name = f"models: {role}", f"{about.id} ({about.licence})"
    try:
        folder = hub.cached(role)
        if folder is not None:
            return Check(part, "ok", name)
        return Check(part, "missing", f"{name}, {hub.missing_bytes(role) / 1e9:.1f} GB to download", mend=f"fourdfy models pull {role}")
    except (FourdfyError, ImportError) as error:
        return Check(part, "missing", _line(error), mend=f"fourdfy models pull {role}")


def processors() -> Check:
    """How many this process may use, and whether others are busy on them."""
    count, load = available.allowed(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    told = f"{count} of {os.cpu_count()} may be used, load {load:.1f}"
    if load < 1:
        return Check("processors", "ok", told)
    return Check("processors", "note", f"{told}: others compute here, everything takes longer", mend=f"{NANO} --threads 1")


def disk() -> Check:
    """Room for runs here and, where the Hub's cache is, for the models that are missing."""
    free = shutil.disk_usage(Path.cwd()).free
    if free < ROOM:
        return Check(
            "disk", "missing", f"{free / 1e9:.1f} GB free in {Path.cwd()}, {ROOM / 1e9:.0f} GB wanted", mend="export FOURDFY_OUT=FOLDER"
        )
    try:
        from huggingface_hub import constants

        cache = Path(constants.HF_HUB_CACHE)
        there = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.is_dir())).free
        wanted = sum(hub.missing_bytes(role) for role in ROLES)
    except ImportError:
        there, wanted = free, 0
    if there < wanted:
        return Check(
            "disk", "missing", f"{there / 1e9:.1f} GB free in {cache}, {wanted / 1e9:.1f} GB to download", mend="export HF_HOME=FOLDER"
        )
    return Check("disk", "ok", f"{free / 1e9:.1f} GB free here, {there / 1e9:.1f} GB for the Hub's cache")


def optional(module: str) -> Check:
    """A part that fourdfy works without."""
    what, mend = PARTS[module]
    if importlib.util.find_spec(module) is None:
        return Check(module, "missing", f"optional, for {what}", mend=mend)
    return Check(module, "ok", f"optional, for {what}")


def _numbers(version: str) -> tuple[int, ...]:
    """A version's leading numbers, "2.10.0+cu126" as (2, 10, 0)."""
    return tuple(map(int, re.findall(r"\d+", re.sub(r"[^\d.].*", "", version))))


def _version(name: str) -> str:
    """The version of an installed package, "" if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
