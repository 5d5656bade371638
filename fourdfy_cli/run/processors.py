"""How many processors this process may really use: affinity, the CPU quota of its container, and what others are busy with.

Torch starts a thread for every processor of the host. Threads that wait for one that has no processor spin, so that two runs of two
threads on two processors take seven times as long as one alone.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def limit(threads: int | None) -> bool:
    """Before torch is loaded: the threads it computes with. None: OMP_NUM_THREADS as it stands, else all that are allowed.
    Returns whether the user told a number."""
    told = threads is not None or "OMP_NUM_THREADS" in os.environ
    if not told and allowed() < (os.cpu_count() or 1):
        threads = allowed()
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(threads)
    return told


def allowed() -> int:
    """Processors that affinity and quota leave this process, at least one."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(here, quota())))


def quota() -> float:
    """Processors that the control groups of this process (version 1 or 2) may use together; inf without a limit."""
    found = [math.inf]
    for group in _groups():
        for name in ("cpu.max", "cpu.cfs_quota_us"):
            words = _words(group / name)
            period = words[1:] or _words(group / "cpu.cfs_period_us")
            if words and period and words[0].isdigit() and period[0].isdigit() and int(period[0]):
                found.append(int(words[0]) / int(period[0]))
    return min(found)


def _groups() -> list[Path]:
    """The folders of this process's control groups and of those around them."""
    found = [CGROUPS, CGROUPS / "cpu"]
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        kinds, _, path = line.partition(":")[2].partition(":")
        if not kinds or "cpu" in kinds.split(","):
            inside = (CGROUPS / "cpu" if kinds else CGROUPS) / path.lstrip("/")
            found += [folder for folder in (inside, *inside.parents) if CGROUPS in folder.parents]
    return found


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


class Crowd:
    """What other processes, those at a lower priority left out, do with this machine's processors (/proc/stat; else the load average)."""

    def __init__(self):
        self.before = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """When, and the processor seconds so far of everybody and of this process and its children."""
        words = _words(Path("/proc/stat"))[:8]
        known = len(words) == 8 and words[0] == "cpu"
        # user, system, irq and softirq, without what is niced or idle
        everybody = sum(int(words[place]) for place in (1, 3, 6, 7)) / os.sysconf("SC_CLK_TCK") if known else math.nan
        counted = not hasattr(os, "getpriority") or os.getpriority(os.PRIO_PROCESS, 0) <= 0  # are we among everybody?
        return time.monotonic(), everybody, sum(os.times()[:4]) if counted else 0.0

    def others(self) -> float:
        """Processors that others kept busy, on average since the last call."""
        (began, everybody, own), self.before = self.before, self._now()
        seconds, busy, ours = (now - then for now, then in zip(self.before, (began, everybody, own), strict=True))
        if math.isnan(busy) or seconds <= 0:
            return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
        return max(0.0, (busy - ours) / seconds)

    def spare(self) -> int:
        """Threads to compute with beside the others, at least one."""
        return max(1, min(allowed(), (os.cpu_count() or 1) - round(self.others())))
