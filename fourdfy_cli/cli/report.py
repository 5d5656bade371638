"""`fourdfy report`: a run on one page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fourdfy_cli.cli import complete, options
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output.textfile import typed

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False, autocompletion=complete.folders)]
Out = Annotated[Path | None, typer.Option("--out", help="The page, .html.", show_default="report.html in the run folder")]


@options.grouped
def report(run: Run, common: options.Common, out: Out = None) -> None:
    """Put a run on one page: videos, previews, curves, times, scores, recipe, licences.

    The file needs nothing beside it."""
    out = out or run / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        again = typed("fourdfy", "report", run, "--out", out.with_name(f"{out.name}.html"))
        raise FourdfyError(f"a report's name ends in .html, unlike {out}", again, USAGE)
    from fourdfy_cli.run.report import write

    options.check_writable(out.parent)
    common.output.finish(asdict(write(run, out)))
