"""Build a user study: a folder with one page and the videos of every pair under names that mean nothing, and a private key.

Names, the order of the two videos in a pair and the order of the pairs all come from a digest of the seed, the methods'
names and the original videos. So the same input gives the same site, and the site alone does not tell whose video is whose.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fourdfy_cli import __version__
from fourdfy_cli.errors import FAILURE, USAGE, FourdfyError
from fourdfy_cli.output.ffmpeg import named
from fourdfy_cli.output.films import content, is_run, left_out
from fourdfy_cli.output.textfile import read_object, typed
from fourdfy_cli.store.folder import write_json
from fourdfy_cli.study import questions
from fourdfy_cli.study.videos import copy_plain, find, probe

Counted = Callable[[list[Any], str], Iterable[Any]]
SECONDS_A_PAIR = 21  # 42 pairs in "approximately 15 minutes" (4D-fy's study)


@dataclass(frozen=True)
class Plan:
    """What a study compares and how: folders of videos, questions by id, pairs shown twice as a check, where answers go."""

    ours: Path
    baselines: dict[str, Path]
    questions: tuple[str, ...] = questions.USUAL
    tie: bool = False
    partial: bool = False
    checks: int = 3
    seed: int = 0
    mailto: str = ""
    post: str = ""


@dataclass(frozen=True)
class Pair:
    """One question's two videos: ours, the baseline's."""

    baseline: str
    prompt: str
    sources: tuple[Path, Path]
    codecs: tuple[str, str]


def build(plan: Plan, out: Path, key: Path, counted: Counted = lambda items, what: items) -> dict[str, Any]:
    """Write the site to `out` and the key to `key`; returns {site, page, key, study, pairs, trials, minutes}.

    Raises FourdfyError (exit 2), with nothing written: `out` in use, the key inside it or another study's, unknown
    questions, a missing pair, videos of one pair that differ in size, speed or length, damaged videos; exit 3 without ffmpeg.
    """
    _check_places(out, key)
    _check_plan(plan)
    pairs = [checked(*pair) for pair in counted(match(plan), "checking")]
    manifest, private, copies = describe(plan, pairs)
    _check_key(key, manifest["study"])
    with _new_folder(out) as folder:
        (folder / "videos").mkdir()
        for (source, codec), name in counted(copies, "copying"):
            copy_plain(source, folder / "videos" / name, codec)
        (folder / "index.html").write_text(page(manifest), encoding="utf-8")
        write_json(folder / "manifest.json", manifest)
        key.parent.mkdir(parents=True, exist_ok=True)
        write_json(key, private)
    told = {"site": out, "page": out / "index.html", "key": key, "study": manifest["study"], "pairs": len(pairs)}
    told |= {"left_out": [one for folder in (plan.ours, *plan.baselines.values()) for one in left_out(folder) if not is_run(folder)]}
    return told | {"trials": len(pairs) + manifest["checks"], "minutes": manifest["minutes"]}


def match(plan: Plan) -> list[tuple[str, str, tuple[Path, Path]]]:
    """(baseline, prompt, (our video, its video)) for every baseline and prompt; with `partial` a baseline may lack prompts.
    Raises FourdfyError (exit 2) for a video without its counterpart, and as `find`."""
    ours, pairs = find(plan.ours), []
    for name, folder in plan.baselines.items():
        theirs = find(folder)
        lacking = [] if plan.partial else [prompt for words, (prompt, _) in ours.items() if words not in theirs]
        extra = [prompt for words, (prompt, _) in theirs.items() if words not in ours]
        for prompts, where in ((lacking, folder), (extra, plan.ours)):
            if prompts:
                more = f" (and {len(prompts) - 1} more)" if len(prompts) > 1 else ""
                hint = "a baseline may lack prompts: --partial" if prompts is lacking else typed("ls", where)
                raise FourdfyError(f"{where} has no video for {prompts[0]!r}{more}", hint, USAGE)
        pairs += [(name, prompt, (path, theirs[words][1])) for words, (prompt, path) in ours.items() if words in theirs]
    return pairs


def checked(baseline: str, prompt: str, sources: tuple[Path, Path]) -> Pair:
    """Raises FourdfyError (exit 2) if the two videos are not of one size, speed and length, or are one file."""
    ours, theirs = map(probe, sources)
    if ours != theirs:
        size = f"{ours.width}:{ours.height}"
        form = ["-vf", f"scale={size}", "-r", f"{ours.fps:g}", "-aspect", size]
        new = sources[1].with_name(f"{sources[1].stem}-new.mp4")
        hint = f"the length must fit too: {typed('ffmpeg', '-i', named(sources[1]), *form, named(new))}"
        raise FourdfyError(f"{prompt!r}: ours has {ours}; {baseline} has {theirs}", hint, USAGE)
    if content(sources[0]) == content(sources[1]):
        raise FourdfyError(f"{prompt!r}: {sources[0]} and {sources[1]} are the same video", typed("ls", "-l", *sources), USAGE)
    return Pair(baseline, prompt, sources, (ours.codec, theirs.codec))


def describe(plan: Plan, pairs: list[Pair]) -> tuple[dict[str, Any], dict[str, Any], list[tuple[tuple[Path, str], str]]]:
    """The public manifest, the private key, and what to copy: ((video, codec), its name in the site)."""
    secret = _digest(plan.seed, *(f"{pair.baseline}|{pair.prompt}|{_content(pair)}" for pair in pairs))
    about = {"tie": plan.tie, "seed": plan.seed, "checks": min(plan.checks, (len(pairs) + 1) // 2)}
    identity = _digest("study", secret, plan.questions, sorted(about.items()))[:16]
    public, private, copies = [], [], []
    for number, pair in enumerate(pairs):
        names = [f"{_digest(secret, number, side)[:16]}.mp4" for side in (0, 1)]
        copies += zip(zip(pair.sources, pair.codecs, strict=True), names, strict=True)
        one = {"id": _digest(secret, number)[:12], "prompt": pair.prompt, "videos": sorted(names)}
        public.append(one)
        private.append(one | {"baseline": pair.baseline, "ours": one["videos"].index(names[0]), "sources": list(map(str, pair.sources))})
    head = {"version": questions.VERSION, "page": __version__, "study": identity, **about}
    asked = [dict(zip(("id", "title", "text"), (name, *questions.QUESTIONS[name]), strict=True)) for name in plan.questions]
    minutes = max(1, round((len(pairs) + about["checks"]) * SECONDS_A_PAIR / 60))
    manifest = {"format": questions.MANIFEST, **head, "minutes": minutes, "mailto": plan.mailto, "post": plan.post, "questions": asked}
    by_id = sorted(public, key=lambda pair: pair["id"])
    key = {"format": questions.KEY, **head, "questions": list(plan.questions), "pairs": sorted(private, key=lambda pair: pair["id"])}
    return manifest | {"pairs": by_id}, key, sorted(copies, key=lambda copy: copy[1])


def page(manifest: dict[str, Any]) -> str:
    """The page with its study in it, safe inside a script element."""
    template = resources.files("fourdfy_cli.study").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("{{STUDY}}", json.dumps(manifest).replace("<", "\\u003c"))


def _digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _content(pair: Pair) -> str:
    return "|".join(content(path) for path in pair.sources)


def _check_plan(plan: Plan) -> None:
    unknown = [name for name in plan.questions if name not in questions.QUESTIONS]
    if unknown or not plan.questions or len(set(plan.questions)) < len(plan.questions):
        what = f"there is no question {unknown[0]!r}" if unknown else "a study needs questions, each once"
        raise FourdfyError(what, f"all of them: --questions {','.join(questions.QUESTIONS)}", USAGE)
    if (plan.post and not plan.post.startswith(("http://", "https://"))) or (plan.mailto and "@" not in plan.mailto):
        raise FourdfyError("--post wants a web address, --mailto an e-mail address", "--post https://HOST/PATH --mailto NAME@HOST", USAGE)
    for name, where in ((name, where) for name in plan.baselines for where in (plan.mailto, plan.post) if where):
        if re.search(rf"\b{re.escape(name)}\b", where, re.I):
            raise FourdfyError(f"{where} would show the name {name!r} to the raters", "fourdfy study build --help", USAGE)


def _check_places(out: Path, key: Path) -> None:
    if key.resolve().is_relative_to(out.resolve()):
        hint = typed("--key", f"{out.resolve().name}-key.json")
        raise FourdfyError(f"the key {key} must not be in the site: it tells whose video is whose", hint, USAGE)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FourdfyError(f"{out} exists and is not empty", f"another one: {typed('--out', out.with_name(f'{out.name}-2'))}", USAGE)


def _check_key(key: Path, identity: str) -> None:
    if key.exists() and _study_of(key) != identity:
        raise FourdfyError(
            f"{key} belongs to another study; without it those answers mean nothing",
            typed("--key", key.with_name(f"{key.stem}-2.json")),
            USAGE,
        )


def _study_of(key: Path) -> Any:
    """Whose key a file is; nobody's if it cannot be read."""
    try:
        return read_object(key).get("study")
    except FourdfyError:
        return None


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well and disappears when it does not."""
    temporary = out.resolve().with_name(f".tmp-{os.getpid()}-{out.resolve().name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(out)
    except OSError as error:
        raise FourdfyError(f"cannot write {out}: {error.strerror or error}", typed("df", "-h", out.parent), FAILURE) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
