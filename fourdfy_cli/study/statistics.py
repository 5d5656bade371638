"""The statistics of a user study.

The paper's test (utils/query.js of the study's published code): votes pooled over raters and prompts, O for one side, E = n/2,
X2 = 2 (O - E)^2 / E with one degree of freedom and no continuity correction. It takes every vote for independent, which votes
of one rater are not; so each share also gets a bootstrap interval over raters, and the p values of a baseline's questions a
correction for their number (Holm).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from fourdfy_cli.study.answers import Key, Rater, Vote

RESAMPLES = 10_000


def chi_square(votes: float, n: int) -> tuple[float, float]:
    """X2 and p of `votes` of n for one side, against a half each; p is 1 - CDF of chi-square with one degree of freedom.
    A tie counts half a vote. n > 0."""
    x2, p = stats.chisquare([votes, n - votes])
    return float(x2), float(p)


def holm(p: list[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m times m - k + 1, never falling, at most 1; in the order given."""
    ranks = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate([(len(p) - k) * p[i] for k, i in enumerate(ranks)])
    corrected = np.empty(len(p))
    corrected[ranks] = np.minimum(steps, 1)
    return corrected.tolist()


def rater_interval(
    votes: Float[np.ndarray, " R"], n: Float[np.ndarray, " R"], seed: int, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """95 % interval of sum(votes) / sum(n) when whole raters are drawn anew (percentile bootstrap); None for fewer than two.
    `votes` and `n` (> 0) are each rater's."""
    if len(votes) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(len(votes), size=(resamples, len(votes)))
    low, high = np.quantile(votes[drawn].sum(1) / n[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def summary(votes: list[Vote], seed: int, resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """One cell: {ours (%), n, ties, raters, low, high (%), chi2, p}; None without votes."""
    if not votes:
        return None
    values = np.array([vote.value for vote in votes])
    _, of = np.unique([vote.rater for vote in votes], return_inverse=True)
    x2, p = chi_square(float(values.sum()), len(values))
    interval = rater_interval(np.bincount(of, values), np.bincount(of).astype(float), seed, resamples)
    low, high = (round(100 * end, 2) for end in interval) if interval else (None, None)
    cell = {"ours": round(100 * float(values.mean()), 2), "n": len(values), "ties": int((values == 0.5).sum())}
    return cell | {"raters": int(of.max()) + 1, "low": low, "high": high, "chi2": x2, "p": p}


def table(votes: list[Vote], key: Key, seed: int) -> list[dict[str, Any]]:
    """One row a baseline and question: `summary` and p_holm, corrected over the questions of the baseline."""
    rows = []
    for baseline in dict.fromkeys(pair["baseline"] for pair in key.pairs.values()):
        named = ((q, summary([v for v in votes if (v.baseline, v.question) == (baseline, q)], seed)) for q in key.questions)
        cells = [{"baseline": baseline, "question": q, **cell} for q, cell in named if cell]
        rows += [cell | {"p_holm": p} for cell, p in zip(cells, holm([cell["p"] for cell in cells]), strict=True)]
    return rows


def by_prompt(votes: list[Vote], key: Key) -> list[dict[str, Any]]:
    """One row a baseline and prompt: our share in % by question (None without votes), and how many raters voted."""
    rows = []
    for pair in sorted(key.pairs.values(), key=lambda pair: (pair["baseline"], pair["prompt"])):
        own = [v for v in votes if (v.baseline, v.prompt) == (pair["baseline"], pair["prompt"])]
        shares = {q: _percent(v.value for v in own if v.question == q) for q in key.questions}
        rows.append({"baseline": pair["baseline"], "prompt": pair["prompt"], **shares, "raters": len({v.rater for v in own})})
    return rows


def consistency(raters: list[Rater], key: Key) -> list[dict[str, Any]]:
    """One row a question, then all: {question, agree (%), n}, over the pairs that were shown twice."""
    found = [one for rater in raters for one in rater.agreements()]
    rows = [(q, [value for name, value in found if name == q]) for q in key.questions] + [("all", [value for _, value in found])]
    return [{"question": q, "agree": _percent(values), "n": len(values)} for q, values in rows]


def _percent(values: Iterable[float]) -> float | None:
    values = list(values)
    return round(100 * sum(values) / len(values), 1) if values else None
