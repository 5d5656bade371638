"""Work shared out over as many threads as torch computes with. What they call releases Python's lock (`nogil`).

Threads of our own, because numba's sit beside torch's and wait for work by spinning, which costs both of them a core; and
loops that numba is to parallelise take it three times as long to compile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TypeVar

import torch

T = TypeVar("T")


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


def side_by_side(task: Callable[[int], T], count: int, most: int) -> Generator[T]:
    """What the task makes of 0 to count - 1, in turn; up to `most` of them are made at once, with one of torch's threads each."""
    threads = torch.get_num_threads()
    workers = min(threads, count, most)
    if workers < 2:
        yield from map(task, range(count))
        return
    with ThreadPoolExecutor(workers, "pictures", partial(torch.set_num_threads, 1)) as pool:
        due = deque(pool.submit(task, number) for number in range(workers))
        try:
            for number in range(workers, workers + count):
                if number < count:
                    due.append(pool.submit(task, number))
                yield due.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # some of its libraries have one setting for all threads
