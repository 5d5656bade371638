"""A batch script for Slurm that saves before the time limit and queues itself again.

Slurm sends USR1 to the script some time before the limit (`--signal=B:`, to the batch shell alone, which is otherwise waiting and never
hears it: so the work is in the background and the shell waits for it), the script hands it on, fourdfy saves and leaves with exit code 75.
Source: Slurm's manual pages of sbatch, srun and scontrol.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from dataclasses import dataclass

from fourdfy_cli.errors import REQUEUE, USAGE, FourdfyError, typed

WARNING = 120  # seconds before the time limit
FORMS = {  # what Slurm takes, and an example
    "partition": (r"[\w.,@+-]+", "gpu"),
    "account": (r"[\w.,@+-]+", "my-project"),
    "time": (r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}", "24:00:00"),
    "gpus": (r"([a-zA-Z][\w.-]*:)?\d+", "1"),
    "mem": (r"\d+[KMGT]?", "32G"),
}
TURNING = {chr(code) for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # a line that reads otherwise


@dataclass(frozen=True)
class Resources:
    """What Slurm is asked for, in its own words; an array of `scenes` jobs if that is not None."""

    partition: str | None = None
    time: str | None = None
    gpus: str | None = None
    mem: str | None = None
    account: str | None = None
    scenes: int | None = None


def script(words: list[str], wanted: Resources) -> str:
    """The script that runs a fourdfy command line; of an array, each job has its number behind --only.

    Every word stands quoted on one line. Raises FourdfyError (exit 2) for a word with control characters and a wish that Slurm has no
    word for.
    """
    for word in words:
        check_text(word)
    only = ' --only "$SLURM_ARRAY_TASK_ID"' if wanted.scenes is not None else ""
    return TEMPLATE.format(
        directives="".join(f"#SBATCH --{name}={value}\n" for name, value in directives(wanted)),
        command=shlex.join(words) + only,
        warning=WARNING,
        requeue=REQUEUE,
    )


def directives(wanted: Resources) -> list[tuple[str, str]]:
    """Name and value of the lines that depend on wishes."""
    found = [("job-name", "fourdfy"), ("output", "fourdfy-%j.log" if wanted.scenes is None else "fourdfy-%A_%a.log")]
    if wanted.scenes is not None:
        found.append(("array", f"0-{wanted.scenes - 1}"))
    for name, (form, example) in FORMS.items():
        value = getattr(wanted, name)
        if value is None:
            continue
        if not re.fullmatch(form, value, re.ASCII):
            raise FourdfyError(f"--{name} of Slurm cannot be {value!r}", typed(f"--{name}", example), USAGE)
        found.append((name, value))
    return found


def check_text(word: str) -> None:
    """Raises FourdfyError (exit 2) for what does not stand on one line as it is read: line ends, control characters, bytes that are no
    text, and marks that turn the direction of writing."""
    for character in word:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in TURNING:
            name = f"U+{ord(character):04X}"
            raise FourdfyError(f"a script cannot hold the control character {name} of {word[:40]!r}", 'fourdfy slurm "a red dog"', USAGE)


TEMPLATE = """\
#!/bin/bash
{directives}#SBATCH --signal=B:USR1@{warning}
#SBATCH --requeue
#SBATCH --open-mode=append

# {warning} seconds before the time limit, and when it is to make room, this script gets USR1 and hands it on: fourdfy finishes its step,
# saves and leaves with exit code {requeue}; then the job is queued again, and goes on where it stopped.
child=
asked=
trap 'asked=1; if [ -n "$child" ]; then kill -USR1 "$child" 2>/dev/null; fi' USR1

srun --ntasks=1 {command} &
child=$!
if [ -n "$asked" ]; then kill -USR1 "$child" 2>/dev/null; fi

# A signal ends `wait` early: as long as it did, wait again for how the command itself ended.
asked=1
while [ -n "$asked" ]; do
    asked=
    wait "$child"
    code=$?
done

if [ "$code" -eq {requeue} ]; then
    if [[ "${{SLURM_JOB_ID:-}}" =~ ^[0-9_-]+$ ]]; then
        scontrol requeue "$SLURM_JOB_ID"
        exit
    fi
    echo "saved, but this is no job of Slurm that could be queued again" >&2
fi
exit "$code"
"""
