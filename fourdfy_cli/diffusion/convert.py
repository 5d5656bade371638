"""Pickled weights to safetensors: the only place that opens a .pt, .ckpt, .pth or .bin, and only if the user says --trust.

The pickle is read in a child process that knows no tokens, by torch.load(weights_only=True), and there is no other way in. Known layouts:
MVDream's `sd-v2.1-base-4view.pt` (a whole LDM checkpoint: the UNet is taken, its names kept, and its config.json written), a folder in
the diffusers layout with .bin files (Zeroscope's main branch), and a single .bin of such a folder; names stay as they are.

    python -m fourdfy_cli.diffusion.convert SOURCE FOLDER      (the child; FOLDER exists and is empty)
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from fourdfy_cli.diffusion import sizes
from fourdfy_cli.diffusion.table import CAMERA_PROJECTION, LDM_PREFIXES, PARTS
from fourdfy_cli.diffusion.verify import write_lock
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError, typed

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".pt", ".ckpt", ".pth", ".bin")
RENAMED = {"pytorch_model": "model"}  # transformers' name of its safetensors file; diffusers keeps the stem
KEPT = (".json", ".txt", ".safetensors")  # what a converted folder takes over as it is
FOLDERS = (*PARTS["multiview"], CAMERA_PROJECTION)
LDM_FIRST = "input_blocks.0.0.weight"
ENVIRONMENT_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "OMP_NUM_THREADS", "LANG")


def convert(source: Path, out: Path, trust: bool, base: Path | None = None) -> Path:
    """Write the safetensors folder `out` (new or empty) for a pickled file or a folder with such; returns `out`.

    `base` is a model of the same family: a lone UNet gets its autoencoder and text encoder from there. Raises FourdfyError: exit 2
    without `trust`, or for paths that will not do; exit 3 for a pickle that holds more than tensors, or a layout that is not known.
    """
    again = typed("fourdfy", "models", "convert", source, "--trust", "--out", out)
    if not source.exists():
        raise FourdfyError(f"{source} does not exist", "fourdfy models convert FILE --trust", USAGE)
    if not (pickles(source) if source.is_dir() else source.suffix in PICKLES):
        raise FourdfyError(f"{source} is not a {', '.join(PICKLES)} file or a model folder with .bin files", "fourdfy models list", USAGE)
    if not trust:
        raise FourdfyError(f"{source} is a pickle, which may hold code; convert only what you trust", again, USAGE)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FourdfyError(
            f"{out} exists already",
            typed("fourdfy", "models", "convert", source, "--trust", "--out", out.with_name(f"{out.name}-2")),
            USAGE,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=out.parent) as scratch:
        folder = Path(scratch, "model")
        folder.mkdir()
        _in_child(source, folder)
        if base and (folder / "unet").is_dir():
            for part in ("vae", "text_encoder", "tokenizer"):
                if not (folder / part).exists():
                    shutil.copytree(base / part, folder / part)
        write_lock(folder)
        if out.is_dir():
            out.rmdir()
        os.replace(folder, out)
    return out


def _in_child(source: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "fourdfy_cli.diffusion.convert", str(source.absolute()), str(folder.absolute())]
    environment = {name: value for name, value in os.environ.items() if name in ENVIRONMENT_KEPT}
    home = Path(__file__).parents[2]  # wherever this package is imported from, the child finds it there
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(home), environment.get("PYTHONPATH"))))
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip()[:200] if lines else f"the converter ended with {done.returncode}"
        raise FourdfyError(f"{source} was not converted: {reason}", "models that need no conversion: fourdfy models list", ENVIRONMENT)


def pickles(folder: Path) -> list[Path]:
    """The .bin files of a folder in the diffusers layout."""
    return [path for part in FOLDERS for path in sorted((folder / part).glob("*.bin"))]


def convert_folder(source: Path, folder: Path) -> None:
    """Every pickle of a folder in the diffusers layout for which there is no safetensors file, and what needs no conversion."""
    for path in (path for part in FOLDERS for path in (source / part).glob("*") if path.suffix in KEPT):
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    for path in pickles(source):
        safe = folder / path.relative_to(source).with_name(safe_name(path))
        if not safe.exists():
            write(tensors(path), safe)


def safe_name(path: Path) -> str:
    """What diffusers and transformers call the safetensors file that stands for a pickle."""
    stem, _, variant = path.stem.partition(".")
    return ".".join(filter(None, (RENAMED.get(stem, stem), variant, "safetensors")))


def convert_file(source: Path, folder: Path) -> None:
    """One pickle: an LDM checkpoint with a camera embedding becomes MVDream's folder, else a safetensors file beside its config."""
    state = tensors(source)
    prefix = next((prefix for prefix in (*LDM_PREFIXES, "") if prefix + LDM_FIRST in state), None)
    if prefix is None:
        write(state, folder / safe_name(source))
        if (source.parent / "config.json").is_file():
            shutil.copyfile(source.parent / "config.json", folder / "config.json")
        return
    unet = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if "camera_embed.0.weight" not in unet:
        raise SystemExit("a checkpoint of Stable Diffusion's, but without MVDream's camera embedding")
    write(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "unet" / "config.json").write_text(json.dumps(sizes.unet("multiview", "full"), indent=1), encoding="utf-8")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(sizes.scheduler("multiview"), indent=1), encoding="utf-8")


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled dictionary, or of the "state_dict" in it, on the CPU and mapped from the file where that is possible."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise SystemExit(f"a {type(state).__name__}, not a dictionary of tensors")
    found = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if not found:
        raise SystemExit("no tensors in it")
    return found


def write(state: dict[str, Tensor], path: Path) -> None:
    """Tensors as safetensors, each with memory of its own (pickles may share it)."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)


def main(source: Path, folder: Path) -> None:
    """What the child does; SystemExit with one line if it cannot be done."""
    try:
        (convert_folder if source.is_dir() else convert_file)(source, folder)
    except pickle.UnpicklingError as error:  # torch's own words advise to read the file the careless way
        wish = re.search(r"GLOBAL (\S+)", str(error))
        raise SystemExit(f"it wants {wish[1]}, and only tensors are read" if wish else "it is no pickle of tensors") from error
    except (EOFError, RuntimeError, OSError) as error:
        raise SystemExit((str(error).splitlines() or [repr(error)])[0][:200]) from error


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
