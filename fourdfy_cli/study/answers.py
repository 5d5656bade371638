"""Read a user study's key and the raters' answers: every file is checked, then a rater's trials become votes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output.textfile import read_object, typed
from fourdfy_cli.store.folder import checked
from fourdfy_cli.study import questions

REBUILD = "fourdfy study build --help"


@dataclass(frozen=True)
class Key:
    """What only the makers know: for each pair its prompt, baseline, and which of its two videos (0 or 1) is ours."""

    study: str
    seed: int
    checks: int
    questions: tuple[str, ...]
    choices: tuple[str, ...]
    pairs: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Vote:
    """One answer: 1 for ours, 0 for the baseline, 0.5 for a tie. `rater` counts from 0."""

    rater: int
    baseline: str
    prompt: str
    question: str
    value: float


@dataclass(frozen=True)
class Rater:
    """One rater's sitting: its file, its own name (the id, or the sitting's), the trials in the order shown."""

    file: str
    name: str
    sitting: str
    started: str
    trials: tuple[dict[str, Any], ...]

    @property
    def answered(self) -> int:
        return sum(len(trial["answers"]) for trial in self.trials)

    @property
    def minutes(self) -> float:
        return sum(trial["seconds"] for trial in self.trials) / 60

    def agreements(self) -> list[tuple[str, float]]:
        """(question, agreement) for every question answered both times a pair was shown: 1 for the same choice, 0 for the
        opposite one, 0.5 if one of the two was a tie."""
        first = {trial["pair"]: _values(trial) for trial in self.trials if not trial["repeat"]}
        again = [(trial["pair"], _values(trial)) for trial in self.trials if trial["repeat"]]
        return [(q, 1 - abs(v - first[pair][q])) for pair, values in again for q, v in values.items() if q in first[pair]]

    def votes(self, number: int, key: Key) -> Iterator[Vote]:
        """The votes of the first showing of every pair; a question left blank gives none."""
        for trial in self.trials:
            pair = key.pairs[trial["pair"]]
            for question, second in () if trial["repeat"] else _values(trial).items():
                value = second if pair["ours"] == 1 else 1 - second
                yield Vote(number, pair["baseline"], pair["prompt"], question, value)


def _values(trial: dict[str, Any]) -> dict[str, float]:
    """By question: 0 for the pair's first video, 1 for its second, 0.5 for a tie."""
    first, second = ("right", "left") if trial["swapped"] else ("left", "right")
    return {question: {first: 0.0, second: 1.0, "tie": 0.5}[choice] for question, choice in trial["answers"].items()}


def read_key(path: Path) -> Key:
    """Raises FourdfyError (exit 2) for a file that is not a study's key, or a newer one."""
    values = _read(path, questions.KEY, "a study's key", REBUILD)
    rows, asked = (found if isinstance(found := values.get(name), list) else [] for name in ("pairs", "questions"))
    kinds = {"id": str, "prompt": str, "baseline": str, "ours": int}
    whole = rows and all(isinstance(row, dict) and _has(row, **kinds) and row["ours"] in (0, 1) for row in rows)
    known = asked and set(map(str, asked)) <= set(questions.QUESTIONS)
    if not (whole and known and _has(values, study=str, seed=int, checks=int, tie=bool)):
        raise FourdfyError(f"{path} is damaged: it does not hold a whole study", REBUILD, USAGE)
    choices = ("left", "right", "tie") if values["tie"] else ("left", "right")
    return Key(values["study"], values["seed"], values["checks"], tuple(asked), choices, {row["id"]: row for row in rows})


def read_raters(paths: list[Path], key: Key) -> tuple[list[Rater], list[dict[str, str]]]:
    """The raters, one sitting each, and what was left out: [{rater, file, reason}].

    Of one sitting's files the fullest counts, then of one rater's sittings the first. Raises FourdfyError (exit 2) for no
    file, and for a file that is no answer sheet, or one of another study.
    """
    files = [file for path in paths for file in (_sheets(path) if path.is_dir() else [path])]
    if not files:
        raise FourdfyError(f"there are no answers in {', '.join(map(str, paths))}", typed("ls", paths[0]), USAGE)
    raters = [read_rater(file, key) for file in dict.fromkeys(files)]
    raters, spare = _one_each(sorted(raters, key=lambda rater: -rater.answered), "sitting", "the same sitting as")
    raters, again = _one_each(sorted(raters, key=lambda rater: rater.started), "name", "the same rater as")
    return sorted(raters, key=lambda rater: rater.file), spare + again


def _sheets(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json" and not path.name.startswith("."))


def _one_each(raters: list[Rater], field: str, what: str) -> tuple[list[Rater], list[dict[str, str]]]:
    """The first rater of each value of a field, and notes on the others."""
    kept: dict[str, Rater] = {}
    for rater in raters:
        kept.setdefault(getattr(rater, field), rater)
    others = [rater for rater in raters if kept[getattr(rater, field)] is not rater]
    notes = [{"rater": r.name, "file": r.file, "reason": f"{what} {kept[getattr(r, field)].file}"} for r in others]
    return list(kept.values()), notes


def read_rater(path: Path, key: Key) -> Rater:
    """One answer sheet, held against the key: its study, and the order that its seed gives.

    Raises FourdfyError (exit 2) if it is another study's, edited, or no answer sheet.
    """
    values = _read(path, questions.ANSWERS, "a study's answer sheet", _aside(path))
    if values.get("study") != key.study:
        raise FourdfyError(
            f"{path} answers another study ({values.get('study')}, not {key.study})", "fourdfy study analyze OTHER-KEY ANSWERS", USAGE
        )
    trials = values.get("trials")
    if not _has(values, rater=str, sitting=str, started=str, seed=int) or not values["sitting"] or not isinstance(trials, list):
        raise FourdfyError(f"{path} is damaged: it is not a whole answer sheet", _aside(path), USAGE)
    name = values["rater"] or values["sitting"]
    shown = [(t["pair"], t["swapped"], t["repeat"]) for t in trials if isinstance(t, dict) and _has(t, pair=str, swapped=bool, repeat=bool)]
    wanted = questions.order(key.study, key.seed, name, sorted(key.pairs), key.checks)
    if values["seed"] != key.seed or shown != [(t.pair, t.swapped, t.repeat) for t in wanted] or len(shown) != len(trials):
        raise FourdfyError(f"{path} was changed: its pairs are not in the order that its seed gives", _aside(path), USAGE)
    return Rater(path.name, name, values["sitting"], values["started"], tuple(_checked(trial, key, path) for trial in trials))


def _checked(trial: dict[str, Any], key: Key, path: Path) -> dict[str, Any]:
    """The trial without its blanks; raises FourdfyError (exit 2) for an answer or a time that cannot be."""
    answers, seconds = trial.get("answers"), trial.get("seconds")
    given = {q: choice for q, choice in answers.items() if choice not in (None, "")} if isinstance(answers, dict) else {"": ""}
    timed = isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds >= 0
    if not timed or not set(given) <= set(key.questions) or not all(choice in key.choices for choice in given.values()):
        raise FourdfyError(f"{path} is damaged: pair {trial['pair']} has answers that cannot be", _aside(path), USAGE)
    return trial | {"answers": given}


def _read(path: Path, format: str, what: str, hint: str) -> dict[str, Any]:
    if not path.exists() or path.is_dir():
        raise FourdfyError(f"there is no file {path}", typed("ls", path.parent), USAGE)
    try:
        values = read_object(path)
    except FourdfyError as error:
        raise FourdfyError(f"{path} is not {what}: {error.message}", error.hint, USAGE) from None
    if values.get("format") != format:
        raise FourdfyError(f"{path} is not {what}", hint, USAGE)
    if (values := checked(values)) is None:
        raise FourdfyError(f"{path} is damaged: it is not what was written", hint, USAGE)
    if values.get("version") != questions.VERSION:
        raise FourdfyError(
            f"{path} has format version {values.get('version')}, not {questions.VERSION}", "pip install --upgrade fourdfy", USAGE
        )
    return values


def _aside(path: Path) -> str:
    return f"the others without it: {typed('mv', path, path.with_name(path.name + '.aside'))}"


def _has(values: dict[str, Any], **kinds: type) -> bool:
    """Whether every named value has exactly its type (True is no int)."""
    return all(type(values.get(name)) is kind for name, kind in kinds.items())
