"""What the toy world understands: a prompt grammar, training captions, and the held-out combinations."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from fourdfy_cli.errors import FourdfyError, typed
from fourdfy_cli.nano.objects import COLOURS, OBJECTS

MOTIONS = ("spinning", "bouncing", "jumping", "swaying", "walking")

SYNONYMS = {
    "dog": "puppy pup doggy hound",
    "cat": "kitten kitty",
    "bird": "birdie sparrow parrot",
    "fish": "goldfish",
    "car": "automobile auto taxi",
    "rocket": "spaceship spacecraft",
    "cube": "box block",
    "ball": "sphere",
    "cone": "",
    "donut": "doughnut torus ring",
    "red": "crimson scarlet",
    "green": "emerald",
    "blue": "navy azure",
    "yellow": "golden lemon",
    "orange": "tangerine",
    "purple": "violet",
    "pink": "magenta rose",
    "white": "snowy",
    "spinning": "spin spins rotating rotates rotate turning turns turn twirling twirls",
    "bouncing": "bounce bounces",
    "jumping": "jump jumps hopping hops hop leaping leaps leap",
    "swaying": "sway sways rocking rocks swinging swings",
    "walking": "walk walks strolling strolls marching marches running runs run",
}
FILLERS = frozenset("a an the one some is are that which who this of it its".split())
DEFAULT_COLOUR = "white"

# 15 % of the 80 (object, colour) pairs, and with them 15 % of all combinations with a motion, are never trained on.
HELD_OUT = frozenset(
    {
        ("dog", "purple"), ("dog", "yellow"), ("cat", "blue"), ("bird", "orange"), ("fish", "green"), ("car", "pink"),
        ("car", "white"), ("rocket", "yellow"), ("cube", "red"), ("ball", "green"), ("cone", "purple"), ("donut", "white"),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """What a toy prompt means. `colour` and `motion` may be left open."""

    object: str
    colour: str | None = None
    motion: str | None = None

    def text(self) -> str:
        """The canonical prompt, e.g. "an orange cat jumping"."""
        words = [word for word in (self.colour, self.object, self.motion) if word]
        return " ".join([article(words[0]), *words])

    @property
    def held_out(self) -> bool:
        return (self.object, self.colour) in HELD_OUT


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def known_words() -> dict[str, str]:
    """Every content word (with synonyms and plurals) and the canonical word it stands for."""
    words = {}
    for canonical in (*OBJECTS, *COLOURS, *MOTIONS):
        for word in (canonical, *SYNONYMS[canonical].split()):
            words[word] = canonical
            if canonical in OBJECTS:
                words.update({plural: canonical for plural in plurals(word)})
    return words


def plurals(word: str) -> set[str]:
    if word.endswith("y"):
        return {word[:-1] + "ies"}
    return {word + "es"} if word.endswith(("x", "sh")) else {word + "s"}


def parse(prompt: str) -> Subject:
    """Read a prompt in any word order.

    Raises FourdfyError (exit 2) for an empty prompt, an unknown content word, no object, or two of a kind.
    """
    words = re.findall(r"[^\W_]+", prompt.lower())
    if not words:
        raise FourdfyError("the prompt is empty", 'fourdfy generate "a red dog jumping"', 2)
    known = known_words()
    found: dict[str, list[str]] = {"object": [], "colour": [], "motion": []}
    for word in words:
        if word in FILLERS:
            continue
        if word not in known:
            raise _unknown(word, known, prompt)
        canonical = known[word]
        kind = "object" if canonical in OBJECTS else "colour" if canonical in COLOURS else "motion"
        if canonical not in found[kind]:
            found[kind].append(canonical)
    for kind, names in found.items():
        if len(names) > 1:
            raise FourdfyError(
                f"the nano models know one {kind} at a time, not {' and '.join(names)}", f'fourdfy generate "{_example()}"', 2
            )
    if not found["object"]:
        raise FourdfyError(f"the prompt names no object; the nano models know: {', '.join(OBJECTS)}", f'fourdfy generate "{_example()}"', 2)
    colour, motion = (found[kind][0] if found[kind] else None for kind in ("colour", "motion"))
    return Subject(found["object"][0], colour, motion)


def _example() -> str:
    return "a red dog jumping"


def _unknown(word: str, known: dict[str, str], prompt: str) -> FourdfyError:
    near = difflib.get_close_matches(word, known, 1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    listed = "; ".join(", ".join(group) for group in (OBJECTS, COLOURS, MOTIONS))
    hint = "any words, by the paper's models on a CUDA GPU: " + typed("fourdfy", "generate", prompt, "--models", "paper")
    return FourdfyError(f"the nano models do not know the word {word!r}{guess}; they know: {listed}", hint, 2)
