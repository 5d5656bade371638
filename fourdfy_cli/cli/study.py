"""`fourdfy study build|analyze`: which of two methods' videos do people prefer?"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from fourdfy_cli.cli import options
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output.textfile import typed

app = typer.Typer(help="Ask people which of two methods' videos they prefer.", rich_markup_mode="rich")

KeyFile = Annotated[Path, typer.Argument(metavar="KEY", help="The key.json that the build wrote.", show_default=False)]
Answers = Annotated[list[Path], typer.Argument(metavar="ANSWERS...", help="Answer sheets, or folders of them.", show_default=False)]
Tables = Annotated[Path | None, typer.Option("--out", help="Folder of study.md, .json and .tex.", show_default="beside the key")]
Least = Annotated[
    float, typer.Option("--least-agreement", min=0, max=1, help="Leave out raters who agree less with themselves when a pair returns.")
]


@dataclass(frozen=True)
class Build(options.Common):
    """Options of `study build`."""

    ours: Annotated[
        Path | None, typer.Option("--ours", metavar="DIR", help="Our videos: PROMPT.mp4 files, or run folders.", show_default=False)
    ] = None
    baseline: Annotated[
        list[str], typer.Option("--baseline", metavar="NAME=DIR", help="Another method's videos; may be repeated.", show_default=False)
    ] = field(default_factory=list)
    out: Annotated[Path, typer.Option("--out", help="Folder that gets the page and its videos.")] = Path("site")
    key: Annotated[Path | None, typer.Option("--key", help="The private key.", show_default="key.json beside the site")] = None
    questions: Annotated[str, typer.Option("--questions", help="Of aq, sq, mq, ta, overall, amount.")] = "aq,sq,mq,ta,overall"
    tie: Annotated[bool, typer.Option("--tie", help="Offer 'about the same' as an answer.")] = False
    partial: Annotated[bool, typer.Option("--partial", help="A baseline may lack some of our prompts.")] = False
    checks: Annotated[int, typer.Option("--checks", min=0, help="Pairs that return with sides swapped.")] = 3
    seed: options.Seed = 0
    mailto: Annotated[str, typer.Option("--mailto", metavar="ADDRESS", help="Raters may mail their answers here.", show_default=False)] = ""
    post: Annotated[str, typer.Option("--post", metavar="URL", help="Raters may send their answers here.", show_default=False)] = ""


@app.command()
@options.grouped
def build(asked: Build) -> None:
    """Make a page that shows pairs of videos and asks which is better. It needs no server and names no method."""
    if asked.ours is None or not asked.baseline:
        raise FourdfyError("a study compares --ours with a --baseline", "fourdfy study build --ours DIR --baseline NAME=DIR", USAGE)
    baselines = _baselines(asked.baseline)
    key = asked.key or Path(os.path.normpath(asked.out / ".." / "key.json"))
    for folder in (asked.out.absolute().parent, key.absolute().parent):
        options.check_writable(folder)
    from fourdfy_cli.study import build as site

    questions = tuple(name.strip() for name in asked.questions.split(","))
    limits = {"tie": asked.tie, "partial": asked.partial, "checks": asked.checks, "seed": asked.seed}
    plan = site.Plan(asked.ours, baselines, questions, **limits, mailto=asked.mailto, post=asked.post)
    told = site.build(plan, asked.out, key, lambda items, what: asked.output.counted(items, len(items), what))
    for one in told.pop("left_out") if not asked.json else told["left_out"]:
        asked.output.note(f"left out: {one['file']}: {one['why']}")
    asked.output.note(f"{key} is private: it alone tells whose video is whose. Give people {asked.out} only.")
    asked.output.finish(told)


def _baselines(typed: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in typed:
        name, equals, folder = text.partition("=")
        if not (name.strip() and equals and folder) or name in found:
            raise FourdfyError(f"--baseline {text!r} is not NAME=DIR with a name of its own", "--baseline mav3d=videos/mav3d", USAGE)
        found[name] = Path(folder).expanduser()
    return found


@app.command()
@options.grouped
def analyze(key: KeyFile, answers: Answers, common: options.Common, out: Tables = None, least: Least = 0.5, seed: options.Seed = 0) -> None:
    """Count the answers: shares, intervals, tests, prompts, raters; as Markdown, JSON and LaTeX."""
    for path in (key, *answers):
        if not path.exists():
            raise FourdfyError(f"{path} does not exist", typed("ls", path.parent), USAGE)
    folder = out or key.parent
    options.check_writable(folder)
    from fourdfy_cli.study.report import analyze as count

    report = count(key, answers, folder, least, seed)
    told = {name: report[name] for name in ("study", "raters", "votes", "table", "prompts", "consistency", "excluded")}
    common.output.finish(told | {"files": [str(folder / f"study.{suffix}") for suffix in ("md", "json", "tex")]})
