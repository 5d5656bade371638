"""Work that is done side by side comes in turn, and leaves torch's threads as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from fourdfy_cli.kernels.threads import side_by_side


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_two_at_once_with_one_thread_each_in_turn():
    both = threading.Barrier(2, timeout=60)

    def task(number: int) -> tuple[int, int]:
        both.wait()  # passes only while another one is being made
        return number, torch.get_num_threads()

    assert list(side_by_side(task, 8, 5)) == [(number, 1) for number in range(8)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("most", [0, 1])
def test_one_at_a_time_has_all_threads(most: int):
    assert list(side_by_side(lambda number: (number, torch.get_num_threads()), 3, most)) == [(0, 2), (1, 2), (2, 2)]
    assert list(side_by_side(str, 0, 2)) == []


def test_a_failure_comes_where_it_happened_and_the_rest_is_not_begun():
    begun = []

    def task(number: int) -> int:
        begun.append(number)
        return 1 // (number - 2)

    made = side_by_side(task, 100, 2)
    assert next(made) == -1 and next(made) == -1
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert max(begun) < 10 and torch.get_num_threads() == 2


def test_who_looks_no_further_ends_it():
    made = side_by_side(abs, 1000, 2)
    assert next(made) == 0
    made.close()
    assert torch.get_num_threads() == 2 and not [each for each in threading.enumerate() if each.name.startswith("pictures")]
