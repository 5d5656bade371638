"""`fourdfy runs`: what has been made, and how far it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fourdfy_cli.cli import options
from fourdfy_cli.cli.complete import folders
from fourdfy_cli.console import duration

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look, and below.", autocompletion=folders)]


@options.grouped
def runs(common: options.Common, folder: Folder = Path("outputs")) -> None:
    """List the runs under a folder: status, stage, score, age; the newest first."""
    from fourdfy_cli.run.runs import listed

    found = listed(folder.expanduser())
    if not found:
        common.output.note(f'there is no run under {folder}: fourdfy generate "a red dog jumping"')
    common.output.finish({"runs": found if common.json else [_short(folder, row) for row in found]})


def _short(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """A row that fits a terminal."""
    run = Path(row["run"])
    return {
        "run": str(run.relative_to(folder.expanduser())) if run != folder.expanduser() else run.name,
        "status": row["status"],
        "stage": row["stage"],
        "step": f"{'-' if row['step'] is None else row['step']}/{'-' if row['steps'] is None else row['steps']}",
        "clip": row["clip"],
        "iou": row["iou"],
        "age": duration(row["age"]),
    }
