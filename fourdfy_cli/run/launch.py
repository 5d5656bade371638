"""`--gpus N`: start the N processes of a run on this machine, pass signals on, and let none of them outlive the others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from fourdfy_cli.errors import FAILURE, FourdfyError
from fourdfy_cli.run.processors import allowed
from fourdfy_cli.run.signals import CODES

MODES = ("frames", "views")  # what the processes of a run share, see run/ranks.py
PATIENCE, GRACE = 10.0, 60.0  # seconds until the others are told that one has failed, and then until they are killed

Processes = list[subprocess.Popen[bytes]]


def is_rank() -> bool:
    """Whether this process is one of several already, by what `torchrun` or `launch` put in the environment."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is the one of its run that talks."""
    return not is_rank() or os.environ["RANK"] == "0"


def launch(args: list[str], count: int, again: str) -> int:
    """Run `fourdfy ARGS` in `count` processes; the exit code of the first, which tells what there is to tell. Raises FourdfyError (exit 1)
    with the command `again` if it was killed."""
    port, processes = _free_port(), []
    try:
        for rank in range(count):
            processes.append(_start(args, rank, count, port))
        with _forwarded(processes):
            failed = _watch(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if processes[0].returncode < 0:
        how = processes[failed].returncode
        ended = f"was killed by signal {-how}" if how < 0 else f"failed with exit code {how}"
        raise FourdfyError(f"process {failed} of this run {ended}; what was saved is kept", again, FAILURE)
    return processes[0].returncode


def _start(args: list[str], rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    """A process out of reach of the terminal's Ctrl-C, which comes through this one."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    env = {"OMP_NUM_THREADS": str(max(1, allowed() // count)), **os.environ}
    env |= {name: str(value) for name, value in {**place, "MASTER_PORT": port}.items()}
    return subprocess.Popen([sys.executable, "-m", "fourdfy_cli", *args], env=env, stdin=subprocess.DEVNULL, start_new_session=True)


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


def _watch(processes: Processes) -> int:
    """Wait until all have ended; the number of the one that failed first (0 if none did)."""
    failed, since = 0, 0.0
    while any(process.poll() is None for process in processes):
        bad = [rank for rank, process in enumerate(processes) if process.poll()]
        if bad and not since:
            failed, since = bad[0], time.monotonic()
        if since and time.monotonic() - since > PATIENCE:
            _send(processes, signal.SIGTERM if time.monotonic() - since < PATIENCE + GRACE else signal.SIGKILL)
        time.sleep(0.05)
    return failed


def _send(processes: Processes, number: int) -> None:
    for process in processes:
        process.send_signal(number)  # nothing to one that has ended


@contextlib.contextmanager
def _forwarded(processes: Processes) -> Iterator[None]:
    """Signals that stop a run go to its processes."""
    before = {number: signal.signal(number, lambda number, _: _send(processes, number)) for number in CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
