"""The gate that every file from outside passes: sizes, types and names are checked before anything is believed or takes memory.

Nothing of a file is ever run: JSON is data, options are taken from lists, weights are safetensors whose header is compared with what is
expected before the first tensor is read. Every refusal is a FourdfyError of one line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from fourdfy_cli.errors import ENVIRONMENT, FourdfyError

MB = 2**20
JSON_BYTES = 16 * MB  # of a JSON file; a tokenizer of 250,000 words has 12
HEADER_BYTES = 100 * MB  # of a safetensors file: the format's own limit
SIZES = re.compile("num_|size|dim|channels|heads")  # keys whose numbers are never negative
BUILDS, MODULES = re.compile("layer|depth|blocks"), 50_000  # keys of a config that say how often something is built; their product
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

Limits = Mapping[str, tuple[type, float, float]]
"""Allowed keys of an object: (bool, 0, 1), (int, least, most), (float, least, most) or (str, 0, longest)."""


def read_object(path: Path, most: int = JSON_BYTES, code: int = ENVIRONMENT, hint: str = "fourdfy models verify") -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes. Raises FourdfyError (exit `code`) for a file that cannot be read, is too large,
    no UTF-8 or JSON, too deep, or no object; NaN and Infinity are no JSON."""
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise FourdfyError(f"{path} cannot be read: {error.strerror}", hint, code) from error
    if len(data) > most:
        raise FourdfyError(f"{path} has more than {most // MB} MB", hint, code)
    try:
        values = json.loads(data.decode("utf-8-sig"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise FourdfyError(f"{path} is not JSON: {(str(error).splitlines() or ['too deep'])[0][:200]}", hint, code) from error
    if not isinstance(values, dict):
        raise FourdfyError(f"{path} is not a JSON object", hint, code)
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def fields(values: Any, limits: Limits, where: str) -> dict[str, Any]:
    """An object whose every key is allowed and every value of its kind and within its bounds. Raises FourdfyError (exit 3)."""
    if not isinstance(values, dict):
        raise FourdfyError(f"{where} is not a JSON object", "fourdfy models verify", ENVIRONMENT)
    for key, value in values.items():
        if key not in limits:
            raise FourdfyError(f"{where}: {str(key)[:80]!r} is not allowed", "fourdfy models verify", ENVIRONMENT)
        if not within(value, *limits[key]):
            raise FourdfyError(f"{where}: {key} cannot be {repr(value)[:80]}", "fourdfy models verify", ENVIRONMENT)
    return values


def bounded(config: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """A network's config in which no number, text or list is beyond reason, whatever its keys. Raises FourdfyError (exit 3)."""
    for key, value in config.items():
        if not _reasonable(str(key), value):
            raise FourdfyError(f"{where}: {str(key)[:80]} cannot be {repr(value)[:80]}", "fourdfy models verify", ENVIRONMENT)
    modules = math.prod(max(1, sum(_numbers(value))) for key, value in config.items() if BUILDS.search(str(key)))
    if modules > MODULES:
        raise FourdfyError(f"{where} describes a network of {modules:,} layers", "fourdfy models verify", ENVIRONMENT)
    return config


def _reasonable(key: str, value: Any, depth: int = 4) -> bool:
    if isinstance(value, (list, dict)):
        inside = value if isinstance(value, list) else value.values()
        return depth > 0 and len(value) <= (10_000 if "betas" in key else 64) and all(_reasonable(key, item, depth - 1) for item in inside)
    if isinstance(value, str):
        return len(value) <= 1000
    most = 128 if BUILDS.search(key) else 4096 if "sample" in key else 2**20
    least = 0 if SIZES.search(key) else -most
    return value is None or isinstance(value, bool) or (math.isfinite(value) and least <= value <= most)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def within(value: Any, kind: type, least: float, most: float) -> bool:
    """Whether a value is of a kind and between two bounds, a text's length for a text; an int counts as a float, a bool as neither."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and least <= len(value) <= most
    return isinstance(value, (int, float) if kind is float else int) and math.isfinite(value) and least <= value <= most


def safetensors(path: Path) -> tuple[Any, int]:
    """The header of a safetensors file as it stands, and how many bytes are behind it: 8 bytes of length, that much JSON, the tensors.
    Raises OSError, ValueError or RecursionError. The format: https://github.com/huggingface/safetensors#format."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER_BYTES, size - 8):
            raise ValueError("its header is longer than the file or than 100 MB")
        return json.loads(file.read(length).decode("utf-8")), size - 8 - length


def header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor of a safetensors file, from its header alone. Raises FourdfyError (exit 3) for a header that is
    damaged, or does not account for the file's size."""
    try:
        entries, behind = safetensors(path)
        found = {name: _entry(about) for name, about in entries.items() if name != "__metadata__"}
        data = sum(DTYPES[kind] * math.prod(shape) for kind, shape in found.values())
        if data != behind:
            raise ValueError(f"it has {behind} bytes of tensors, and its header accounts for {data}")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FourdfyError(f"{path} is damaged: {reason}", "fourdfy models verify", ENVIRONMENT) from error


def _entry(about: Any) -> tuple[str, tuple[int, ...]]:
    shape = tuple(about["shape"])
    if about["dtype"] not in DTYPES or not all(type(side) is int and 0 <= side < 2**48 for side in shape) or len(shape) > 8:
        raise ValueError(f"a tensor of {str(about['dtype'])[:20]} {str(shape)[:80]}")
    return about["dtype"], shape


def compare(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises FourdfyError (exit 3) unless the tensors of a file have exactly the names and shapes that are expected."""
    for name in sorted(set(found) ^ set(expected)):
        raise FourdfyError(
            f"{path} {'holds' if name in found else 'lacks'} {name[:120]}, which does not fit its config.json",
            "fourdfy models verify",
            ENVIRONMENT,
        )
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            message = f"{path}: {name} is {list(found[name])}, not {list(shape)}"
            raise FourdfyError(message, "fourdfy models verify", ENVIRONMENT)
