"""The Slurm script as bash reads and runs it: hostile prompts, the signal, the requeue; and what the command refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from samples import fails, isolated  # noqa: F401

from fourdfy_cli.cli import main
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.run import sbatch

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
HOSTILE = [
    "$(touch x)", "`touch x`", '"; touch x; "', "'; touch x; '", "'\"'$(touch x)'\"'", "a & touch x", "a | tee x", "a > x",
    "${IFS}touch${IFS}x", "!!", "\\", "a \\' ; touch x #", "# a",
    "-- --out /", "--help", "-rf", "*", "~", "{a,b}", "$((1+1))", "%j %A", "{directives}", "%",
    "#SBATCH --uid=0", "$SLURM_JOB_ID", "un chien qui saute, é", "\U0001f436" * 2500, FAMILY * 200, "a" * 9000,
]  # fmt: skip
FAKE_SRUN = """#!/usr/bin/env python3
import os, sys
os.execvp(sys.argv[2], sys.argv[2:]) if sys.argv[1] == "--ntasks=1" else sys.exit(99)
"""
FAKE_FOURDFY = """#!/usr/bin/env python3
import json, os, pathlib, signal, sys, time
pathlib.Path("argv.json").write_text(json.dumps(sys.argv[1:]))
code = int(os.environ.get("LEAVE", "0"))
if "WAIT" in os.environ:
    signal.signal(signal.SIGUSR1, lambda *_: (time.sleep(0.5), os._exit(75)))  # a step, and the saving, take their time
    pathlib.Path("ready").touch()
    time.sleep(60)
sys.exit(code)
"""
FAKE_SCONTROL = """#!/usr/bin/env python3
import json, pathlib, sys
pathlib.Path("scontrol.json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run scripts in, with Slurm's commands and ours as fakes on PATH that leave their arguments there."""
    for name, text in (("srun", FAKE_SRUN), ("fourdfy", FAKE_FOURDFY), ("scontrol", FAKE_SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "s.sbatch"], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("prompt", HOSTILE, ids=range(len(HOSTILE)))
def test_a_prompt_is_data(cluster: Path, prompt: str):
    assert main.run(["slurm", "--models", "paper", "--out-script", "s.sbatch", "--", prompt]) == 0
    assert subprocess.run(["bash", "-n", "s.sbatch"], capture_output=True).stderr == b""
    assert run().returncode == 0
    assert json.loads((cluster / "argv.json").read_text()) == ["generate", "--models", "paper", "--", prompt]
    assert sorted(path.name for path in cluster.iterdir()) == ["argv.json", "s.sbatch"]
    lines = (cluster / "s.sbatch").read_text(encoding="utf-8").split("\n")
    assert [line for line in lines if "srun " in line and not line.startswith("#")] == [line for line in lines if line.startswith("srun ")]
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert {"#SBATCH --signal=B:USR1@120", "#SBATCH --requeue", "#SBATCH --open-mode=append"} < set(directives)
    assert len(directives) == 5 and lines[0] == "#!/bin/bash"


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\t", "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\u2066", "\udc80"])
def test_what_does_not_stand_on_one_line_is_refused(character: str, capsys):
    fails(capsys, ["slurm", "--models", "paper", f"a dog{character}touch x"], USAGE, "control character")


@pytest.mark.parametrize("setting", ["models.image=a\nb", "x\x1b=1"])
def test_nor_may_other_words(setting: str):
    with pytest.raises(FourdfyError) as error:
        sbatch.script(["fourdfy", "generate", "--set", setting, "--", "a dog"], sbatch.Resources())
    assert error.value.code == USAGE


@pytest.mark.parametrize(
    "option",
    [
        "--partition=a b",
        "--partition=a\n#SBATCH --uid=0",
        "--time=soon",
        "--time=1:2",
        "--gpus=many",
        "--mem=1 G",
        "--account=$(x)",
        "--mem=",
    ],
)
def test_wishes_that_slurm_has_no_word_for(option: str, capsys):
    fails(capsys, ["slurm", "--models", "nano", option, "a red dog"], USAGE, option[2:].partition("=")[0])


def test_wishes_and_options_behind(cluster: Path):
    wishes = ["--partition", "gpu,long", "--time", "2-00:00:00", "--gpus", "a100:1", "--mem", "32G", "--account", "lab"]
    behind = ["--set", "stage1.steps=6", "--set", "stage2.steps=7", "--seed", "3", "--commercial", "--out", "my runs", "--preset", "nano"]
    assert main.run(["slurm", *wishes, *behind, "a red dog", "--out-script", "s.sbatch"]) == 0
    text = (cluster / "s.sbatch").read_text()
    for name, value in zip(wishes[::2], wishes[1::2], strict=True):
        assert f"\n#SBATCH {name}={value}\n" in text
    assert run().returncode == 0
    argv = json.loads((cluster / "argv.json").read_text())
    assert argv[0] == "generate" and argv[-2:] == ["--", "a red dog"] and sorted(argv[1:-2]) == sorted(behind)


def test_saved_after_the_signal_it_is_queued_again(cluster: Path):
    """USR1 to the script alone, as Slurm's B: sends it, while fourdfy works."""
    assert main.run(["slurm", "--models", "nano", "a red dog", "--out-script", "s.sbatch"]) == 0
    job = subprocess.Popen(["bash", "s.sbatch"], env={**os.environ, "WAIT": "1", "SLURM_JOB_ID": "4711"})
    while not (cluster / "ready").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)  # a second one changes nothing
    assert job.wait(30) == 0
    assert json.loads((cluster / "scontrol.json").read_text()) == ["requeue", "4711"]


@pytest.mark.parametrize("code", [0, 1, 5, 75, 130, 143])
@pytest.mark.parametrize("job", ["12", "12_3", "", "12; touch x", "$(touch x)", "12 13", "12\n13", None])
def test_only_what_was_saved_is_queued_and_only_by_a_number(cluster: Path, code: int, job: str | None):
    assert main.run(["slurm", "--models", "nano", "a red dog", "--out-script", "s.sbatch"]) == 0
    ended = run(LEAVE=str(code), **({} if job is None else {"SLURM_JOB_ID": job}))
    queued = code == 75 and bool(re.fullmatch("[0-9_-]+", job or ""))
    assert (cluster / "scontrol.json").exists() == queued and not (cluster / "x").exists()
    assert ended.returncode == (0 if queued else code)
    if queued:
        assert json.loads((cluster / "scontrol.json").read_text()) == ["requeue", job]


def test_an_array_of_a_file_of_prompts(cluster: Path, capsys):
    (cluster / "my prompts.txt").write_text("a red dog\n# no\n\na blue cat\n")
    assert main.run(["slurm", "--batch", "my prompts.txt", "--seeds", "0,1,2", "--models", "nano", "--out-script", "s.sbatch"]) == 0
    assert "\n#SBATCH --array=0-5\n" in (cluster / "s.sbatch").read_text()
    assert run(SLURM_ARRAY_TASK_ID="4").returncode == 0
    argv = json.loads((cluster / "argv.json").read_text())
    assert argv[:2] == ["batch", str(cluster / "my prompts.txt")] and argv[-2:] == ["--only", "4"]
    capsys.readouterr()
    assert main.run([*argv, "--dry-run", "--json"]) == 0  # the line is one that we understand
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["scenes"] == 1


def test_stdout_and_neither_nor(capsys):
    assert main.run(["slurm", "--models", "nano", "a red dog", "--out-script", "-"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#!/bin/bash\n#SBATCH") and "'a red dog'" in out and not list(Path.cwd().iterdir())
    fails(capsys, ["slurm"], USAGE, "--batch")
    fails(capsys, ["slurm", "--models", "nano", "a red dgo"], USAGE, "dgo")
    fails(capsys, ["slurm", "--models", "nano", "--batch", "none.txt"], USAGE, "none.txt")
