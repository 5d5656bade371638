"""Keys and answer sheets: what counts as a vote, who counts once, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reference_study import PROMPTS, key_file, sheet, write

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.store.folder import read_json
from fourdfy_cli.study import answers

BASELINES = {"x": list(PROMPTS), "y": list(PROMPTS)}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return key_file(tmp_path / "key.json", BASELINES, tie=True)


def key_of(tmp_path: Path) -> answers.Key:
    return answers.read_key(tmp_path / "key.json")


def refused(call, *args: object) -> str:
    with pytest.raises(FourdfyError) as caught:
        call(*args)
    assert caught.value.code == 2 and caught.value.hint
    return caught.value.message


def test_a_key_is_read(tmp_path: Path, values: dict[str, Any]):
    key = key_of(tmp_path)
    assert (key.study, key.seed, key.checks, key.questions) == ("cafe", 4, 2, ("aq", "sq", "mq", "ta", "overall"))
    assert key.choices == ("left", "right", "tie") and len(key.pairs) == 6 and key.pairs["p001"]["ours"] == 1


def test_votes_find_our_side_whatever_was_swapped(tmp_path: Path, values: dict[str, Any]):
    wanted = {"aq": "ours", "sq": "theirs", "mq": "tie", "ta": "", "overall": "ours"}
    path = write(tmp_path / "a.json", sheet(values, "anna", lambda pair, question, repeat: wanted[question]))
    rater = answers.read_rater(path, key_of(tmp_path))
    votes = list(rater.votes(3, key_of(tmp_path)))
    assert len({(trial["swapped"], values["pairs"][int(trial["pair"][1:])]["ours"]) for trial in rater.trials}) == 4
    assert {(v.question, v.value, v.rater) for v in votes} == {("aq", 1.0, 3), ("sq", 0.0, 3), ("mq", 0.5, 3), ("overall", 1.0, 3)}
    assert len(votes) == 6 * 4 and {(v.baseline, v.prompt) for v in votes} == {(b, p) for b in "xy" for p in PROMPTS}
    assert rater.answered == 8 * 4 and rater.minutes == pytest.approx(8 * 20 / 60)


@pytest.mark.parametrize("blank", [None, ""])
def test_blanks_in_any_spelling_are_no_votes(tmp_path: Path, values: dict[str, Any], blank: object):
    given = sheet(values, "anna", lambda *_: "ours")
    for trial in given["trials"]:
        trial["answers"]["mq"] = blank
    rater = answers.read_rater(write(tmp_path / "a.json", given), key_of(tmp_path))
    assert "mq" not in {vote.question for vote in rater.votes(0, key_of(tmp_path))} and rater.answered == 8 * 4


def test_the_second_showing_gives_no_vote(tmp_path: Path, values: dict[str, Any]):
    path = write(tmp_path / "a.json", sheet(values, "anna", lambda pair, question, repeat: "theirs" if repeat else "ours"))
    rater = answers.read_rater(path, key_of(tmp_path))
    assert {vote.value for vote in rater.votes(0, key_of(tmp_path))} == {1.0}
    assert rater.agreements() == [(question, 0.0) for _ in range(2) for question in values["questions"]]


def test_one_sitting_and_one_rater_count_once(tmp_path: Path, values: dict[str, Any]):
    folder = tmp_path / "answers"
    part = sheet(values, "anna", lambda pair, *_: "ours" if pair < "p003" else "", sitting="s1", started="2025-01-01")
    write(folder / "1-part.json", part)
    write(folder / "2-whole.json", sheet(values, "anna", lambda *_: "ours", sitting="s1", started="2025-01-01"))
    write(folder / "3-later.json", sheet(values, "anna", lambda *_: "theirs", sitting="s2", started="2025-01-02"))
    write(folder / "4-no-id.json", sheet(values, "", lambda *_: "ours", sitting="s3"))
    write(folder / "5-no-id.json", sheet(values, "", lambda *_: "ours", sitting="s4"))
    raters, spare = answers.read_raters([folder, folder / "5-no-id.json"], key_of(tmp_path))
    assert [rater.file for rater in raters] == ["2-whole.json", "4-no-id.json", "5-no-id.json"]
    assert spare == [
        {"rater": "anna", "file": "1-part.json", "reason": "the same sitting as 2-whole.json"},
        {"rater": "anna", "file": "3-later.json", "reason": "the same rater as 2-whole.json"},
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"format": "other"}', "\x00\xff", "[" * 100_000])
def test_files_that_are_something_else(tmp_path: Path, values: dict[str, Any], text: str):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    assert "a.json is not a study's answer sheet" in refused(answers.read_rater, tmp_path / "a.json", key_of(tmp_path))
    assert "a.json is not a study's key" in refused(answers.read_key, tmp_path / "a.json")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"study": "beef"}, "answers another study (beef, not cafe)"),
        ({"version": 2}, "format version 2"),
        ({"rater": 5}, "not a whole answer sheet"),
        ({"sitting": ""}, "not a whole answer sheet"),
        ({"trials": "none"}, "not a whole answer sheet"),
        ({"trials": []}, "was changed"),
        ({"trials": [None] * 8}, "was changed"),
        ({"seed": 5}, "was changed"),
        ({"rater": "bert"}, "was changed"),
    ],
)
def test_sheets_that_do_not_belong(tmp_path: Path, values: dict[str, Any], change: dict, words: str):
    path = write(tmp_path / "a.json", sheet(values, "anna", lambda *_: "ours") | change)
    assert words in refused(answers.read_rater, path, key_of(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"answers": {"aq": "up"}},
        {"answers": {"zq": "left"}},
        {"answers": {"aq": ["left"]}},
        {"answers": None},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": "20"},
    ],
)
def test_answers_that_cannot_be(tmp_path: Path, values: dict[str, Any], change: dict):
    given = sheet(values, "anna", lambda *_: "ours")
    given["trials"][3] |= change
    assert "has answers that cannot be" in refused(answers.read_rater, write(tmp_path / "a.json", given), key_of(tmp_path))


def test_a_tie_needs_a_study_that_offers_it(tmp_path: Path):
    values = key_file(tmp_path / "key.json", BASELINES, tie=False)
    path = write(tmp_path / "a.json", sheet(values, "anna", lambda *_: "tie"))
    assert "cannot be" in refused(answers.read_rater, path, key_of(tmp_path))


def test_a_swapped_side_is_noticed(tmp_path: Path, values: dict[str, Any]):
    given = sheet(values, "anna", lambda *_: "ours")
    given["trials"][0]["swapped"] ^= True
    assert "was changed" in refused(answers.read_rater, write(tmp_path / "a.json", given), key_of(tmp_path))


@pytest.mark.parametrize(
    "change", [{"pairs": []}, {"pairs": [{"id": "p"}]}, {"pairs": 3}, {"questions": ["zq"]}, {"seed": "4"}, {"tie": None}]
)
def test_damaged_keys(tmp_path: Path, values: dict[str, Any], change: dict):
    assert "does not hold a whole study" in refused(answers.read_key, write(tmp_path / "k.json", values | change))


def test_missing_files(tmp_path: Path, values: dict[str, Any]):
    (tmp_path / "empty").mkdir()
    assert "no answers in" in refused(answers.read_raters, [tmp_path / "empty"], key_of(tmp_path))
    assert "there is no file" in refused(answers.read_key, tmp_path / "none.json")
    assert read_json(tmp_path / "key.json") == values


def test_sheets_that_went_through_windows(tmp_path: Path, values: dict[str, Any]):
    given = json.dumps(sheet(values, "änne", lambda *_: "ours"), ensure_ascii=False)
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "A (1).JSON").write_bytes(given.encode("utf-8-sig"))
    raters, _ = answers.read_raters([tmp_path / "answers"], key_of(tmp_path))
    assert [rater.name for rater in raters] == ["änne"]
    (tmp_path / "wide.json").write_bytes(given.encode("utf-16"))
    assert "UTF-16" in refused(answers.read_rater, tmp_path / "wide.json", key_of(tmp_path))
    with (tmp_path / "hole.json").open("wb") as file:
        file.truncate(2**40)
    assert "larger" in refused(answers.read_rater, tmp_path / "hole.json", key_of(tmp_path))
