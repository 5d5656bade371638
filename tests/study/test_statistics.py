"""The statistics against the paper's numbers, closed forms and hand-counted cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fourdfy_cli.study import statistics
from fourdfy_cli.study.answers import Key, Rater, Vote

PAIRS = {
    "p0": {"id": "p0", "prompt": "a dog", "baseline": "x", "ours": 0},
    "p1": {"id": "p1", "prompt": "a cat", "baseline": "x", "ours": 1},
    "p2": {"id": "p2", "prompt": "a dog", "baseline": "y", "ours": 0},
}
KEY = Key("abc", 0, 1, ("aq", "mq"), ("left", "right", "tie"), PAIRS)


@pytest.mark.parametrize("votes, p", [(230, 0.3919), (196, 0.0174)])
def test_the_papers_p_values(votes: int, p: float):
    """4D-fy arXiv v1: 26 raters, 17 prompts."""
    x2, found = statistics.chi_square(votes, 442)
    assert round(found, 4) == p and x2 == pytest.approx(2 * (votes - 221) ** 2 / 221)
    assert found == pytest.approx(math.erfc(math.sqrt(x2 / 2)))  # one degree of freedom
    assert statistics.chi_square(442 - votes, 442)[1] == pytest.approx(found)


def test_even_votes_and_half_votes():
    assert statistics.chi_square(221, 442) == (0, 1)
    assert statistics.chi_square(2.5, 4)[0] == pytest.approx(2 * 0.5**2 / 2)


def test_holm_by_hand():
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert statistics.holm([0.5, 0.6]) == [1, 1] and statistics.holm([0.2]) == [0.2] and statistics.holm([]) == []
    assert statistics.holm([0.012, 0.012, 0.2, 0.001]) == pytest.approx([0.036, 0.036, 0.2, 0.004])


def test_interval_of_raters_with_one_vote_each_is_that_of_the_binomial():
    votes = np.repeat([1.0, 0.0], [24, 16])
    found = statistics.rater_interval(votes, np.ones(40), seed=0, resamples=40_000)
    assert found == pytest.approx(stats.binom.ppf([0.025, 0.975], 40, 0.6) / 40, abs=0.0251)


def test_interval_knows_that_votes_of_one_rater_go_together():
    """20 raters of 30 votes: unanimous raters leave the uncertainty of 20 votes, even ones none."""
    n = np.full(20, 30.0)
    low, high = statistics.rater_interval(np.repeat([30.0, 0.0], 10), n, seed=1)
    assert (low, high) == pytest.approx(stats.binom.ppf([0.025, 0.975], 20, 0.5) / 20, abs=0.051)
    assert statistics.rater_interval(n / 2, n, seed=1) == (0.5, 0.5)
    assert statistics.rater_interval(n[:1], n[:1], seed=1) is None
    few = [statistics.rater_interval(np.arange(20.0) ** 0.5, n, seed, resamples=50) for seed in (3, 3, 4)]
    assert few[0] == few[1] != few[2]


def test_summary_counts_ties_as_half():
    votes = [Vote(rater, "x", "a dog", "aq", value) for rater, value in ((0, 1.0), (0, 0.5), (7, 0.5), (7, 1.0), (7, 0.0))]
    found = statistics.summary(votes, 0)
    assert (found["ours"], found["n"], found["ties"], found["raters"]) == (60.0, 5, 2, 2)
    assert found["p"] == statistics.chi_square(3, 5)[1] and found["low"] == 50 and found["high"] == 75  # 3/6 and 3/4 of a rater
    assert statistics.summary([], 0) is None


def test_table_corrects_within_a_baseline_and_skips_what_nobody_answered():
    votes = [Vote(r, "x", "a dog", "aq", 1.0) for r in range(10)] + [Vote(r, "x", "a dog", "mq", float(r < 7)) for r in range(10)]
    votes += [Vote(0, "y", "a dog", "aq", 0.0)]
    rows = statistics.table(votes, KEY, 0)
    assert [(row["baseline"], row["question"], row["ours"], row["n"]) for row in rows] == [
        ("x", "aq", 100, 10),
        ("x", "mq", 70, 10),
        ("y", "aq", 0, 1),
    ]
    assert rows[0]["p_holm"] == pytest.approx(2 * rows[0]["p"]) and rows[1]["p_holm"] == rows[1]["p"] and rows[2]["p_holm"] == rows[2]["p"]
    assert (rows[0]["low"], rows[0]["high"], rows[2]["low"]) == (100, 100, None)


def test_prompts_by_hand():
    votes = [
        Vote(0, "x", "a dog", "aq", 1.0),
        Vote(1, "x", "a dog", "aq", 0.5),
        Vote(1, "x", "a dog", "mq", 0.0),
        Vote(1, "y", "a dog", "aq", 0.0),
    ]
    assert statistics.by_prompt(votes, KEY) == [
        {"baseline": "x", "prompt": "a cat", "aq": None, "mq": None, "raters": 0},
        {"baseline": "x", "prompt": "a dog", "aq": 75.0, "mq": 0.0, "raters": 2},
        {"baseline": "y", "prompt": "a dog", "aq": 0.0, "mq": None, "raters": 1},
    ]


def test_consistency_by_hand():
    def trial(swapped: bool, repeat: bool, **answers: str) -> dict:
        return {"pair": "p0", "swapped": swapped, "repeat": repeat, "answers": answers, "seconds": 1.0}

    same = Rater("a.json", "a", "1", "", (trial(False, False, aq="left", mq="left"), trial(True, True, aq="right", mq="tie")))
    side = Rater("b.json", "b", "2", "", (trial(True, False, aq="left"), trial(False, True, aq="left", mq="left")))
    assert same.agreements() == [("aq", 1.0), ("mq", 0.5)] and side.agreements() == [("aq", 0.0)]
    assert statistics.consistency([same, side], KEY) == [
        {"question": "aq", "agree": 50.0, "n": 2},
        {"question": "mq", "agree": 50.0, "n": 1},
        {"question": "all", "agree": 50.0, "n": 3},
    ]
