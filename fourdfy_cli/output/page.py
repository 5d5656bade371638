"""A report as one HTML file that needs nothing beside it: pictures and videos lie inside, no address is asked for anything.

Every text from outside is escaped, and a content security policy in the file lets nothing run but its own few lines.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from fourdfy_cli.output import inline

LARGEST = 64 * 2**20  # bytes of a video that is put into a page
SCRIPT = """
const slider = document.getElementById('step'), figures = [...document.querySelectorAll('#previews figure')];
const show = () => figures.forEach((figure, k) => { figure.hidden = k !== slider.valueAsNumber; });
if (slider) { slider.addEventListener('input', show); show(); }
"""


@dataclass(frozen=True)
class Page:
    """What a report shows: title, facts by name, films, previews (caption, file), charts (SVG of curves.py), a picture, tables by title."""

    title: str
    facts: Mapping[str, Any]
    films: Sequence[Path] = ()
    previews: Sequence[tuple[str, Path]] = ()
    charts: Sequence[str] = ()
    legend: str = ""
    picture: Path | None = None
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    settings: Sequence[Mapping[str, Any]] = ()


def html(page: Page) -> str:
    """The whole file."""
    template = Template(resources.files("fourdfy_cli.output").joinpath("page.html").read_text(encoding="utf-8"))
    parts = (_films(page.films), _previews(page.previews), _charts(page), _picture(page.picture))
    tables = "".join(_section(title, table(rows)) for title, rows in page.tables.items() if rows)
    settings = f"<details><summary>{len(page.settings)} settings</summary>{table(page.settings)}</details>"
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    body = "".join(parts) + tables + _section("Recipe", settings)
    return template.substitute(title=escape(page.title), facts=facts(page.facts), body=body, script=SCRIPT, digest=digest)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _films(films: Iterable[Path]) -> str:
    """Videos that browsers play and that are not huge; of the others the name."""
    shown = []
    for path in films:
        fits = path.suffix.lower() in inline.KINDS and path.stat().st_size <= LARGEST
        shown.append(inline.film(path, path.name) if fits else f"<p>{escape(path.name)} lies beside this file.</p>")
    return _section("Videos", f"<div class=row>{''.join(shown)}</div>" if shown else "")


def _previews(previews: Sequence[tuple[str, Path]]) -> str:
    """All of them one upon another, and a slider that says which one is seen."""
    if not previews:
        return ""
    last = len(previews) - 1
    slider = f'<input id=step type=range min=0 max={last} value={last} aria-label="which preview">'
    figures = "".join(_preview(path, caption, k == last) for k, (caption, path) in enumerate(previews))
    return _section("Previews", f"<div id=previews>{slider}{figures}</div>")


def _preview(path: Path, caption: str, seen: bool) -> str:
    picture = f'<img alt="" src="{inline.data_uri(path)}">'
    return f"<figure{'' if seen else ' hidden'}>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _charts(page: Page) -> str:
    return _section("Curves", f"{page.legend}<div class=row>{''.join(page.charts)}</div>" if any(page.charts) else "")


def _picture(path: Path | None) -> str:
    return _section("CLIP profile", f'<img class=wide alt="CLIP score by azimuth and time" src="{inline.data_uri(path)}">' if path else "")


def facts(values: Mapping[str, Any]) -> str:
    """Names and values one under another."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text(value))}</dd>' for name, value in values.items())}</dl>"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one shape; numbers to the right."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(_cell(row.get(name)) for name in rows[0])}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"<td{' class=number' if number else ''}>{escape(text(value))}</td>"


def text(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
