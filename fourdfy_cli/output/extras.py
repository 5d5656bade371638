"""Packages that only some commands want."""

from __future__ import annotations

import importlib.util

from fourdfy_cli.errors import ENVIRONMENT, FourdfyError


def require(extra: str, *modules: str) -> None:
    """Raises FourdfyError (exit 3) unless every module, all of which the extra brings, is installed; nothing is imported."""
    lacking = [module for module in modules if importlib.util.find_spec(module) is None]
    if lacking:
        raise FourdfyError(f"this wants {', '.join(lacking)}, which is not installed", f"pip install 'fourdfy[{extra}]'", ENVIRONMENT)
