"""One network from its folder: `config.json` describes it, `*.safetensors` fills it, and nothing else is read.

The config is filtered by the constructor of one of a few fixed classes, so no code from a folder runs; weights load strictly, key by key
and shape by shape. Everything wrong raises FourdfyError (exit 3). Instead of a file, weights can be drawn from a seed.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fourdfy_cli.diffusion import mvdream, shards
from fourdfy_cli.diffusion.limits import LIMITS, MOST_NUMBERS, bounded
from fourdfy_cli.errors import ENVIRONMENT, FourdfyError, typed
from fourdfy_cli.store import gate

UNETS = {kind.__name__: kind for kind in (UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel)}
VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderDC": AutoencoderDC}
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}  # AutoencoderKL files before 2023
STEM = "diffusion_pytorch_model"


def network(
    folder: Path,
    classes: Mapping[str, type[nn.Module]],
    device: torch.device | str,
    dtype: torch.dtype,
    seed: int | None = None,
    camera: Path | None = None,
    restore: Callable[[Any], None] | None = None,
) -> nn.Module:
    """A frozen network with the weights of its file, or with a `seed`, drawn on the device itself; `camera` is a folder that holds the
    camera embedding apart, `restore` what fills the tables that are in no file."""
    model = empty(folder, classes, camera is not None)
    if seed is not None:
        draw(model, seed, device, dtype)
    elif type(model).__name__ in LIMITS:
        load(model, folder, dtype)
    else:
        path = weights_file(folder, STEM, dtype)
        state = stock_names(model, read_weights(path, model), path)
        if camera is not None:
            state |= {f"class_embedding.{key}": value for key, value in read_weights(weights_file(camera, STEM, dtype), model).items()}
        fill(model, {key: value.to(dtype) for key, value in state.items()}, path)
    if restore is not None:
        restore(model)
    return model.to(device).eval().requires_grad_(False)


def load(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Give a network the weights of its file or shards, in float32 at least what its class says must be; names and shapes are compared
    before memory is taken."""
    path = shards.index(folder, STEM)
    paths = [weights_file(folder, STEM, dtype)] if path is None else shards.files(path)
    state = shards.read(paths, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    fill(model, {key: value.to(kept(model, key, dtype)) for key, value in state.items()}, paths[0])


def kept(model: nn.Module, key: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of one parameter of a network that is wanted in `dtype`."""
    wide = getattr(model, "_keep_in_fp32_modules", None) or ()
    return torch.promote_types(dtype, torch.float32) if set(key.split(".")) & set(wide) else dtype


def empty(folder: Path, classes: Mapping[str, type[nn.Module]], camera: bool = False) -> nn.Module:
    """The network that a folder's config.json describes, without storage (on the meta device); with `camera`, and a camera embedding."""
    path = folder / "config.json"
    return described(read_json(path) | (mvdream.CAMERA_EMBEDDING if camera else {}), classes, path)


def described(config: Mapping[str, Any], classes: Mapping[str, type[nn.Module]], path: Path | str) -> nn.Module:
    """The network that a config describes, without storage; `path` is where it is from. Raises FourdfyError (exit 3) if it asks for
    another class or for code of its own, or makes no sense."""
    if "auto_map" in config:
        raise broken(f"{path} asks for code from its folder (auto_map), which is never run")
    try:
        config = mvdream.stock_config(config)
        name = str(config.get("_class_name"))
        if name not in classes:
            raise broken(f"{path}: the class {name!r} is not one of {', '.join(classes)}")
        known = inspect.signature(classes[name].__init__).parameters
        chosen = bounded(name, config, path) if name in LIMITS else {key: value for key, value in config.items() if key in known}
        with torch.device("meta"):
            model = classes[name](**{key: value for key, value in chosen.items() if key != "self"})
        if (numbers := sum(parameter.numel() for parameter in model.parameters())) > MOST_NUMBERS:
            raise ValueError(f"{numbers} parameters are too many")
        return model
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise broken(f"{path} does not describe a {config.get('_class_name')}: {line(error)}") from error


def stock_names(model: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A file's weights under the names that diffusers uses today."""
    if isinstance(model, AutoencoderKL):
        return {rename(key): value for key, value in state.items()}
    if mvdream.is_ldm(state):
        try:
            return mvdream.stock_state(state, model.state_dict())
        except KeyError as error:
            raise broken(f"{path} does not fit its config.json: {error.args[0]}") from error
    return state


def rename(key: str) -> str:
    """A parameter's present name for one that old AutoencoderKL files use."""
    for old, name in OLD_NAMES.items():
        key = key.replace(old, name)
    return key


def old_name(key: str) -> str:
    """Inverse of `rename`, for what AutoencoderKL has attention in."""
    for old, name in OLD_NAMES.items():
        key = key.replace(name, old)
    return key


def fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Give a model its weights, every key and shape as it should be; raises FourdfyError (exit 3)."""
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[1:] or [str(error)]
        raise broken(f"{path} does not fit its config.json: {detail[0].strip()[:200]}") from error


def draw(model: nn.Module, seed: int, device: torch.device | str, dtype: torch.dtype) -> None:
    """Give a model weights ~ N(0, 1 / inputs), scales 1 and shifts 0, so that activations keep their size; drawn on the device itself."""
    generator = torch.Generator(device).manual_seed(seed)
    state = {}
    for name, parameter in model.state_dict().items():
        drawn = torch.empty(parameter.shape, device=device, dtype=kept(model, name, dtype))
        if parameter.dim() > 1:
            state[name] = drawn.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
        else:
            state[name] = drawn.fill_(1.0 if name.endswith("weight") else 0.0)
    model.load_state_dict(state, strict=True, assign=True)


def weights_file(folder: Path, stem: str, dtype: torch.dtype) -> Path:
    """The safetensors file of a network: the half-precision one first if half precision is asked for."""
    names = [f"{stem}.safetensors", f"{stem}.fp16.safetensors"]
    for name in names if dtype in (torch.float32, torch.float64) else names[::-1]:
        if (folder / name).is_file():
            return folder / name
    if pickled := next(iter(sorted([*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt")])), None):
        hint = typed("fourdfy", "models", "convert", pickled, "--trust")
        raise FourdfyError(f"{folder} holds no {names[0]}, only a pickle, which is not read", hint, ENVIRONMENT)
    raise broken(f"{folder} holds no {names[0]}")


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """A file's tensors, read if its header accounts for not many more numbers than the model has."""
    numbers = sum(math.prod(shape) for _, shape in gate.header(path).values())
    if numbers > 2 * sum(value.numel() for value in model.state_dict().values()) + gate.MB:
        raise broken(f"{path} does not fit its config.json: it holds {numbers:,} numbers")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise broken(f"{path} is damaged: {line(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A part's config: an object of bounded size, with bounded numbers in it."""
    return gate.bounded(gate.read_object(path), path)


def broken(message: str) -> FourdfyError:
    return FourdfyError(message, "fourdfy models verify", ENVIRONMENT)


@contextlib.contextmanager
def reading_tokenizer(path: Path) -> Iterator[None]:
    """What goes wrong in the block is the file's fault: raises FourdfyError (exit 3)."""
    try:
        yield
    except BaseException as error:  # tokenizers' Rust part raises a bare Exception, or panics
        known = isinstance(error, (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError))
        if not (known or type(error) is Exception or type(error).__name__ == "PanicException"):
            raise
        raise broken(f"{path} is not a tokenizer: {line(error)}") from error


def line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
