"""What a user study asks, and who sees what when: the questions, the formats of its files, each rater's order.

The page draws the order from the study's seed and the rater's id. The generator is small enough to be written twice, in the
page and here, so that an analysis can replay it: FNV-1a of the text (Fowler, Noll and Vo) starts mulberry32 (Ettinger),
both in the public domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

VERSION = 1
MANIFEST, KEY, ANSWERS = "video-study", "video-study-key", "video-study-answers"
T = TypeVar("T")

QUESTIONS = {
    "aq": ("Appearance", "Which one looks clearer and nicer? Leave out the background, and whether its sides agree."),
    "sq": ("3D shape", "Which one has the more believable and detailed shape, over all the sides shown?"),
    "mq": ("Motion", "Which one moves more believably? Too little motion is a fault, and so is unnatural motion."),
    "ta": ("Text match", "Which one shows better what the sentence says, with all its main parts?"),
    "overall": ("Overall", "Taking everything together, which one do you prefer?"),
    "amount": ("Motion amount", "In which one does the object itself move more? The camera's turning does not count."),
}
"""Id, title, text. The first five are the criteria of 4D-fy's study (supplement S2), in words of our own; `amount` is TC4D's."""

USUAL = ("aq", "sq", "mq", "ta", "overall")


@dataclass(frozen=True)
class Trial:
    """One showing of a pair. Its first video is on the left, or on the right if `swapped`; a `repeat` is an attention check."""

    pair: str
    swapped: bool
    repeat: bool


def order(study: str, seed: int, rater: str, pairs: list[str], checks: int) -> list[Trial]:
    """What one rater sees: every pair once, sides by coin, and up to `checks` of the pairs once more with sides swapped.

    The repeated pairs come from the first half; the repeats are shuffled into the second. `rater` is the rater's id, or the
    sitting's where none was given.
    """
    numbers = draws(f"{study}:{seed}:{rater}")
    first = [Trial(pair, next(numbers) >> 31 == 1, False) for pair in shuffled(pairs, numbers)]
    half = (len(first) + 1) // 2
    again = [Trial(trial.pair, not trial.swapped, True) for trial in first[: min(checks, half)]]
    return first[:half] + shuffled(first[half:] + again, numbers)


def shuffled(items: list[T], numbers: Iterator[int]) -> list[T]:
    """The items in an order drawn from 32-bit numbers (Fisher and Yates, from the end)."""
    items = list(items)
    for last in range(len(items) - 1, 0, -1):
        other = next(numbers) % (last + 1)
        items[last], items[other] = items[other], items[last]
    return items


def draws(text: str) -> Iterator[int]:
    """Endless uniform 32-bit numbers that depend on a text alone: mulberry32."""
    state = fnv1a(text)
    while True:
        state = _u32(state + 0x6D2B79F5)
        mixed = _u32((state ^ state >> 15) * (state | 1))
        mixed ^= _u32(mixed + (mixed ^ mixed >> 7) * (mixed | 61))
        yield mixed ^ mixed >> 14


def fnv1a(text: str) -> int:
    """The 32-bit FNV-1a hash of a text's UTF-8 bytes."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = _u32((value ^ byte) * 0x01000193)
    return value


def _u32(number: int) -> int:
    return number & 0xFFFFFFFF
