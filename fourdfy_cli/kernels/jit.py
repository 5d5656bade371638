"""numba.njit with compiled code kept on disk, whatever the disk does: a cache that cannot be read or written costs compiling again."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.caching import FunctionCache, NullCache

from fourdfy_cli.store.checkpoint import UNREADABLE

DAMAGED = (*UNREADABLE, ImportError)  # what reading a pickle may raise


def cached_njit(**options: Any) -> Callable[[Callable], Any]:
    """Decorator: `numba.njit(**options)`, cached in NUMBA_CACHE_DIR, beside the source or in the user's cache folder, the first that can
    be written to; else in a folder that goes when the process ends; else not at all."""

    def decorate(function: Callable) -> Any:
        dispatcher: Any = njit(**options)(function)
        dispatcher._cache = cache(function)
        return dispatcher

    return decorate


def cache(function: Callable) -> Kept | NullCache:
    """Where the compiled code of a function is kept."""
    with contextlib.suppress(RuntimeError, OSError, KeyError):  # KeyError: a user without an entry in passwd
        return Kept(function)
    with contextlib.suppress(RuntimeError, OSError):
        config.CACHE_DIR = temporary().name  # type: ignore[attr-defined]
        return Kept(function)
    return NullCache()


@functools.cache
def temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fourdfy-kernels-")


class Kept(FunctionCache):
    """numba's cache of one function, a pickle: what is damaged is made again, what cannot be written is left."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except DAMAGED:
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(*DAMAGED):
            super().save_overload(sig, data)


def lasting(dispatcher: Any) -> Path | None:
    """The folder that keeps a function's compiled code for the next process; None if there is none."""
    path = getattr(dispatcher._cache, "cache_path", None)
    return None if path is None or (temporary.cache_info().currsize and Path(temporary().name) in Path(path).parents) else Path(path)
