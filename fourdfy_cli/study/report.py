"""Analyze a user study: who counts, what they said, and the tables as JSON, Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.store.folder import write_json
from fourdfy_cli.study import questions, statistics
from fourdfy_cli.study.answers import Key, Rater, read_key, read_raters

NOTE = (
    "Share of votes for ours; a tie is half a vote, a blank is none, and the second showing of a pair is none. "
    "chi2 and p: votes pooled over raters and prompts, one degree of freedom, no continuity correction, "
    "every vote taken for independent. "
    "p (Holm): corrected over the questions of a baseline. Interval: 95 %, bootstrap over raters."
)


def analyze(key_path: Path, answers: list[Path], out: Path, least: float = 0.5, seed: int = 0) -> dict[str, Any]:
    """Tables of a study, also written to `out` as study.json, study.md and study.tex.

    A rater whose answers to the repeated pairs agree with the first ones less than `least` (0 to 1) is left out.
    Raises FourdfyError (exit 2): files that are not this study's, or no rater left.
    """
    key = read_key(key_path)
    raters, excluded = read_raters(answers, key)
    report = tables(key, raters, excluded, least, seed)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "study.json", report)
    (out / "study.md").write_text(markdown(report), encoding="utf-8")
    (out / "study.tex").write_text(latex(report), encoding="utf-8")
    return report


def tables(key: Key, raters: list[Rater], excluded: list[dict[str, str]], least: float, seed: int) -> dict[str, Any]:
    """Everything that `analyze` writes; raises FourdfyError (exit 2) if no answer is left."""
    kept = [rater for rater in raters if _agreement(rater, 1.0) >= least and rater.answered]
    for rater in raters:
        if not rater.answered:
            excluded.append({"rater": rater.name, "file": rater.file, "reason": "no answers"})
        elif rater not in kept:
            reason = f"attention checks: {100 * _agreement(rater, 1.0):.0f} % agreement, below {100 * least:.0f} %"
            excluded.append({"rater": rater.name, "file": rater.file, "reason": reason})
    votes = [vote for number, rater in enumerate(kept) for vote in rater.votes(number, key)]
    if not votes:
        raise FourdfyError(f"no votes are left of {len(raters)} raters", "every rater is kept by: --least-agreement 0", USAGE)
    return {
        "study": key.study, "raters": len(kept), "votes": len(votes), "questions": list(key.questions),
        "least_agreement": least, "bootstrap_seed": seed, "resamples": statistics.RESAMPLES,
        "table": statistics.table(votes, key, seed), "prompts": statistics.by_prompt(votes, key),
        "consistency": statistics.consistency(raters, key), "sittings": [_sitting(rater) for rater in raters], "excluded": excluded,
    }  # fmt: skip


def _agreement(rater: Rater, otherwise: float) -> float:
    found = [value for _, value in rater.agreements()]
    return sum(found) / len(found) if found else otherwise


def _sitting(rater: Rater) -> dict[str, Any]:
    agreement = None if not rater.agreements() else round(100 * _agreement(rater, 1.0), 1)
    return {"rater": rater.name, "answers": rater.answered, "minutes": round(rater.minutes, 1), "agree": agreement}


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    head = f"# User study {report['study']}\n\n{report['raters']} raters, {report['votes']} votes. {NOTE}\n"
    rows = [
        {"baseline": r["baseline"], "question": questions.QUESTIONS[r["question"]][0], "ours %": f"{r['ours']:.1f}", "95 %": _interval(r),
         "n": r["n"], "ties": r["ties"], "chi2": f"{r['chi2']:.2f}", "p": _p(r["p"]), "p (Holm)": _p(r["p_holm"])}
        for r in report["table"]
    ]  # fmt: skip
    parts = [head, _grid(rows), "## Prompts: ours %\n", _grid(report["prompts"])]
    parts += ["## Agreement on pairs shown twice, %\n", _grid(report["consistency"])]
    parts += ["## Sittings\n", _grid(report["sittings"]), "## Left out\n", _grid(report["excluded"]) if report["excluded"] else "Nobody.\n"]
    return "\n".join(parts)


def _interval(row: dict[str, Any]) -> str:
    return "-" if row["low"] is None else f"{row['low']:.1f} to {row['high']:.1f}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _grid(rows: list[dict[str, Any]]) -> str:
    """Rows of one shape as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(["-" if value is None else value for value in row.values()] for row in rows)]
    return "".join("| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in line) + " |\n" for line in lines)


def latex(report: dict[str, Any]) -> str:
    """A booktabs table like the paper's: a row a baseline, our share by question, its corrected p below."""
    asked = [q for q in report["questions"] if any(row["question"] == q for row in report["table"])]
    lines = [r"\begin{tabular}{l" + "c" * len(asked) + "}", r"\toprule"]
    lines += [" & ".join(["Ours against", *(_tex(questions.QUESTIONS[q][0]) for q in asked)]) + r" \\", r"\midrule"]
    for baseline in dict.fromkeys(row["baseline"] for row in report["table"]):
        cells = {row["question"]: row for row in report["table"] if row["baseline"] == baseline}
        lines.append(" & ".join([_tex(baseline), *(f"{cells[q]['ours']:.0f}\\%" if q in cells else "--" for q in asked)]) + r" \\")
        lines.append(" & ".join(["", *(_tex_p(cells[q]["p_holm"]) if q in cells else "" for q in asked)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex_p(p: float) -> str:
    return "($p < .001$)" if p < 0.001 else f"($p = {p:.3f}$)"


def _tex(text: str) -> str:
    special = {c: "\\" + c for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, c) for c in text)
