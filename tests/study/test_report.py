"""`study analyze`: numbers that were put in come out, in JSON, Markdown and LaTeX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reference_study import key_file, sheet, write

from fourdfy_cli.cli import main
from fourdfy_cli.study import report

PROMPTS = [f"prompt {k}" for k in range(17)]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 raters and 17 prompts, as in 4D-fy's first study: 212 of 442 votes for ours in motion, 246 in text alignment."""
    root = tmp_path_factory.mktemp("paper")
    values = key_file(root / "key.json", {"mav3d": PROMPTS})
    pairs = [pair["id"] for pair in values["pairs"]]
    for_ours = {"mq": 442 - 230, "ta": 442 - 196}
    for k in range(26):

        def prefer(pair: str, question: str, repeat: bool, k: int = k) -> str:
            place = pairs.index(pair) * 26 + k
            return "ours" if place < for_ours.get(question, 442) else "theirs"

        write(root / "answers" / f"{k:02}.json", sheet(values, f"r{k}", prefer))
    return root


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main.run(["study", "analyze", *map(str, args), "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_papers_numbers_come_out(paper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, told = run(capsys, paper / "key.json", paper / "answers", "--out", tmp_path)
    assert code == 0 and told["command"] == "study analyze" and told["data"]["raters"] == 26
    report = json.loads((tmp_path / "study.json").read_text())
    rows = {row["question"]: row for row in report["table"]}
    assert (rows["mq"]["n"], round(rows["mq"]["ours"], 1), round(rows["mq"]["p"], 4)) == (442, 48.0, 0.3919)
    assert (rows["ta"]["n"], round(rows["ta"]["ours"], 1), round(rows["ta"]["p"], 4)) == (442, 55.7, 0.0174)
    assert rows["mq"]["p_holm"] == rows["mq"]["p"] and rows["ta"]["p_holm"] == pytest.approx(2 * rows["ta"]["p"])
    assert rows["mq"]["low"] < 48 < rows["mq"]["high"] and rows["aq"]["low"] == rows["aq"]["high"] == 100
    assert len(report["prompts"]) == 17 and report["prompts"][0]["aq"] == 100
    assert report["consistency"][-1] == {"question": "all", "agree": 100.0, "n": 26 * 2 * 5} and report["excluded"] == []
    text = (tmp_path / "study.md").read_text()
    assert (
        "| mav3d | Motion | 48.0 |" in text
        and "| 0.3919 | 0.3919 |" in text
        and "| < 0.0001 |" in text
        and "| 0.0174 | 0.0348 |" in text
        and "Nobody." in text
    )
    tex = (tmp_path / "study.tex").read_text().splitlines()
    assert tex[0] == r"\begin{tabular}{lccccc}" and tex[-1] == r"\end{tabular}"
    assert tex[4] == r"mav3d & 100\% & 100\% & 48\% & 56\% & 100\% \\"
    assert tex[5] == r" & ($p < .001$) & ($p < .001$) & ($p = 0.392$) & ($p = 0.035$) & ($p < .001$) \\"


def test_raters_who_fail_the_checks_are_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    values = key_file(tmp_path / "key.json", {"x": PROMPTS[:6]}, ("aq", "mq"))
    answers = tmp_path / "answers"
    write(answers / "good.json", sheet(values, "good", lambda *_: "ours"))
    write(answers / "left.json", sheet(values, "left", lambda pair, question, repeat: "theirs" if repeat else "ours"))
    write(answers / "half.json", sheet(values, "half", lambda pair, question, repeat: "theirs" if repeat and question == "aq" else "ours"))
    write(answers / "none.json", sheet(values, "none", lambda *_: ""))
    write(answers / "part.json", sheet(values, "part", lambda pair, question, repeat: "" if repeat else "theirs"))
    code, told = run(capsys, tmp_path / "key.json", answers)
    assert code == 0 and told["data"]["raters"] == 3 and {row["ours"] for row in told["data"]["table"]} == {round(200 / 3, 2)}
    assert {(row["rater"], row["reason"]) for row in told["data"]["excluded"]} == {
        ("left", "attention checks: 0 % agreement, below 50 %"),
        ("none", "no answers"),
    }
    assert [row["agree"] for row in told["data"]["consistency"]] == [33.3, 66.7, 50.0]  # of everybody, also of those left out
    assert "| left | left.json | attention checks: 0 % agreement, below 50 % |" in (tmp_path / "study.md").read_text()
    assert run(capsys, tmp_path / "key.json", answers, "--least-agreement", 0.6)[1]["data"]["raters"] == 2
    assert run(capsys, tmp_path / "key.json", answers, "--least-agreement", 0)[1]["data"]["raters"] == 4


def test_what_stops_an_analysis(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    values = key_file(tmp_path / "key.json", {"x": PROMPTS[:3]})
    write(tmp_path / "other.json", values | {"study": "beef"})
    (tmp_path / "flipped.json").write_text((tmp_path / "key.json").read_text().replace('"ours": 1', '"ours": 0'))
    good = write(tmp_path / "answers" / "a.json", sheet(values, "anna", lambda *_: "ours"))
    blank = write(tmp_path / "blank.json", sheet(values, "anna", lambda *_: ""))
    (tmp_path / "answers" / "b.json").write_text(good.read_text()[:-40])
    before = sorted(tmp_path.rglob("*"))
    for args, words in (
        ((tmp_path / "none.json", good), "does not exist"),
        ((tmp_path / "key.json", tmp_path / "none"), "does not exist"),
        ((good, good), "is not a study's key"),
        ((tmp_path / "key.json", tmp_path / "answers"), "b.json is not a study's answer sheet"),
        ((tmp_path / "key.json", tmp_path / "key.json"), "key.json is not a study's answer sheet"),
        ((tmp_path / "flipped.json", good), "flipped.json is damaged"),
        ((tmp_path / "other.json", good), "another study (cafe, not beef)"),
        ((tmp_path / "key.json", blank), "no votes are left of 1 raters"),
        ((tmp_path / "key.json", good, "--least-agreement", 2), "--least-agreement"),
    ):
        code, told = run(capsys, *args)
        assert code == 2 and words in told["error"]["message"] and told["error"]["hint"], told
    assert sorted(tmp_path.rglob("*")) == before


def test_names_are_safe_in_tables():
    assert report._tex(r"w/o 3D & IMG_50% {\x}~^") == r"w/o 3D \& IMG\_50\% \{\textbackslash{}x\}\textasciitilde{}\textasciicircum{}"
    assert report._grid([{"a": "x|y\nz", "b": None}]) == "| a | b |\n| --- | --- |\n| x\\|y z | - |\n"


def test_one_rater_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    values = key_file(tmp_path / "key.json", {"x": PROMPTS[:3], "y": PROMPTS[:3]})
    path = write(tmp_path / "a.json", sheet(values, "anna", lambda pair, *_: "ours" if pair < "p003" else ""))
    code, told = run(capsys, tmp_path / "key.json", path, "--out", tmp_path / "new" / "folder")
    assert code == 0 and {row["baseline"] for row in told["data"]["table"]} == {"x"} and told["data"]["table"][0]["low"] is None
    assert "| - |" in (tmp_path / "new/folder/study.md").read_text()
    assert main.run(["study", "analyze", str(tmp_path / "key.json"), str(path)]) == 0 and "prompt 0" in capsys.readouterr().out
