"""Each rater's order: the generator's published values, and what an order must be like."""

from __future__ import annotations

from collections import Counter

import pytest

from fourdfy_cli.study import questions

PAIRS = [f"p{k}" for k in range(9)]


@pytest.mark.parametrize("text, value", [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_fnv1a_has_its_published_values(text: str, value: int):
    assert questions.fnv1a(text) == value


def test_draws_are_mulberry32_and_spread_evenly():
    def mulberry32(a: int):  # the published four lines, in exact arithmetic modulo 2^32
        while True:
            a = (a + 0x6D2B79F5) % 2**32
            t = ((a ^ (a >> 15)) * (a | 1)) % 2**32
            t = (t ^ (t + ((t ^ (t >> 7)) * (t | 61)) % 2**32)) % 2**32
            yield t ^ (t >> 14)

    numbers, wanted = questions.draws("a"), mulberry32(0xE40C292C)
    drawn = [next(numbers) for _ in range(4000)]
    assert drawn == [next(wanted) for _ in range(4000)]
    assert drawn[:3] == [2670119670, 1323809741, 1575654966]  # as a browser computes them
    assert abs(sum(n >> 31 for n in drawn) - 2000) < 4 * 1000**0.5


def test_shuffles_reach_every_order_about_equally_often():
    numbers = questions.draws("shuffle")
    seen = Counter(tuple(questions.shuffled([1, 2, 3], numbers)) for _ in range(6000))
    assert len(seen) == 6 and all(abs(count - 1000) < 130 for count in seen.values())


@pytest.mark.parametrize("checks, repeats", [(0, 0), (3, 3), (50, 5)])
def test_an_order_shows_every_pair_once_and_repeats_swapped_later(checks: int, repeats: int):
    shown = questions.order("abc", 0, "anna", PAIRS, checks)
    first = {trial.pair: k for k, trial in enumerate(shown) if not trial.repeat}
    again = {trial.pair: k for k, trial in enumerate(shown) if trial.repeat}
    assert sorted(first) == PAIRS and len(again) == repeats == len(shown) - len(PAIRS)
    for pair, k in again.items():
        assert k >= 5 > first[pair] and shown[k].swapped != shown[first[pair]].swapped


def test_an_order_depends_on_rater_seed_and_study_and_sides_are_even():
    assert questions.order("abc", 0, "anna", PAIRS, 3) == questions.order("abc", 0, "anna", PAIRS, 3)
    others = [("abc", 0, "bert"), ("abc", 1, "anna"), ("abd", 0, "anna")]
    assert len({tuple(questions.order(*who, PAIRS, 3)) for who in [("abc", 0, "anna"), *others]}) == 4
    swapped = Counter(t.pair for k in range(400) for t in questions.order("abc", 0, str(k), PAIRS, 0) if t.swapped)
    assert all(abs(swapped[pair] - 200) < 50 for pair in PAIRS)
    where = Counter(questions.order("abc", 0, str(k), PAIRS, 0)[0].pair for k in range(900))
    assert all(abs(where[pair] - 100) < 45 for pair in PAIRS)


def test_one_pair_can_be_repeated_and_none_is_no_study():
    assert [(t.pair, t.repeat) for t in questions.order("abc", 0, "anna", ["p"], 3)] == [("p", False), ("p", True)]
    assert questions.order("abc", 0, "anna", [], 3) == []


def test_the_usual_questions_are_the_papers_five():
    assert questions.USUAL == tuple(questions.QUESTIONS)[:5] and list(questions.QUESTIONS)[5:] == ["amount"]
