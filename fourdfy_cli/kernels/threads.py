"""Work shared out over as many threads as torch computes with. What they call releases Python's lock (`nogil`).

Threads of our own, because numba's sit beside torch's and wait for work by spinning, which costs both of them a core; and
loops that numba is to parallelise take it three times as long to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "kernels")


def share(task: Callable[[int], None], count: int) -> None:
    """Call the task with 0 to count - 1, side by side, the last one first: of a grid's levels that is the largest."""
    threads = torch.get_num_threads()
    if threads == 1 or count == 1:
        for number in reversed(range(count)):
            task(number)
    else:
        list(_pool(threads).map(task, reversed(range(count))))


def spread(task: Callable[[int, int], None], count: int, most: int) -> None:
    """Call the task with the beginning and end of runs of 0 to count, side by side: one for every thread, of at most `most`."""
    size = max(1, min(most, -(-count // torch.get_num_threads())))
    share(lambda run: task(run * size, min((run + 1) * size, count)), -(-count // size))
