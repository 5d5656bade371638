"""A recipe that runs all three stages in seconds on the models that ship, and tiny models on disk."""

import dataclasses
import os
import shutil
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from reference_guidance import save_models
from samples import tiny_recipe

from fourdfy_cli.config import Recipe
from fourdfy_cli.diffusion.models import ModelSpec
from fourdfy_cli.output import render

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what is to run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))  # a test run beside another job wants one


EXTRAS = {  # test files that want packages of an extra
    "skimage": ("output/test_mesh.py", "output/test_export.py", "output/test_gltf.py", "output/test_frames.py"),
    "trimesh": ("evaluate/test_geometry.py", "nano/test_solid.py"),
    "pxr": ("output/test_export.py",),
}
collect_ignore = [file for package, files in EXTRAS.items() if find_spec(package) is None for file in files]


@pytest.fixture(scope="session", autouse=True)
def short_orbits() -> Iterator[None]:
    """A run ends with a small orbit: the usual one takes longer than the tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        usual = render.orbit
        patch.setattr(render, "orbit", lambda scene, recipe, path, size=24, frames=4: usual(scene, recipe, path, size, frames))
        yield


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """A test leaves the number of threads as it was: the threads of two processes on two processors wait for each other."""
    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    yield
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == before


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: the few tests that take half of the suite's time; the fast half is -m 'not long'")
    config.addinivalue_line("markers", "slow: full-size networks, minutes and gigabytes; only run by -m slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="full size: run with -m slow"))


@pytest.fixture(scope="session")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    """A tiny random model of each role, on disk; not to be changed."""
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def copied(specs: dict[str, ModelSpec], tmp_path: Path) -> ModelSpec:
    """The image model in a folder of its own, to be damaged."""
    shutil.copytree(specs["image"].source, tmp_path / "models")
    return dataclasses.replace(specs["image"], source=str(tmp_path / "models"))


@pytest.fixture
def tiny() -> Recipe:
    return tiny_recipe()
