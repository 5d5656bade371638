"""What a shell offers where a run folder or a checkpoint is wanted (`fourdfy --install-completion` switches it on)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

OUTPUTS = Path("outputs")


def folders(incomplete: str) -> list[str]:
    """Folders that begin with what was typed; of nothing, the runs in outputs/ first."""
    return [name for name, path in _offered(incomplete) if path.is_dir()]


def sources(incomplete: str) -> list[str]:
    """Run folders and checkpoints that begin with what was typed, and folders on the way to them."""
    return [name for name, path in _offered(incomplete) if path.is_dir() or path.suffix == ".pt"]


def _offered(incomplete: str) -> Iterator[tuple[str, Path]]:
    """Each name as it is to be typed, and what it is; nothing hidden, nothing that cannot be read."""
    if not incomplete:
        yield from ((str(path), path) for path in _inside(OUTPUTS))
    parent, _, start = incomplete.rpartition(os.sep)
    lead = f"{parent}{os.sep}" if os.sep in incomplete else ""
    for path in _inside(Path(lead).expanduser() if lead else Path()):
        if path.name.startswith(start):
            yield f"{lead}{path.name}", path


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
