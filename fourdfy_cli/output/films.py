"""Films that people hand in: which files are some, and the prompt of each.

The prompt of a film: prompts.tsv beside it (lines FILE<tab>PROMPT), else run.json beside it, else its name, with _ and - for spaces. The
names that this program itself gives (orbit.mp4, stage2-orbit-depth.mp4, a run folder's) and bare numbers say nothing of what is shown.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output.textfile import read_lines, typed
from fourdfy_cli.store.folder import read_json

PROMPTS = "prompts.tsv"
KINDS = frozenset(
    ".mp4 .m4v .mov .qt .webm .mkv .avi .gif .apng .mpg .mpeg .m2v .ts .mts .m2ts .ogv .flv .wmv .asf .3gp .3g2".split()
)  # what ffmpeg reads by `ffmpeg.CONTAINERS`
OWN = frozenset("orbit mav3d fixed depth stage1 stage2 stage3 last prev gt sample preview static video output render test val".split())
COPIES = frozenset("copy copied of kopie copie copia new final".split())
BESIDE = frozenset({PROMPTS, "clip.json", "clip-profile.png", "ablate.json", "ablate.md", "ablate.png", "key.json"})
LONGEST, MOST = 10_000, 10_000  # characters of a prompt, prompts of a file


def is_film(path: Path) -> bool:
    return path.suffix.lower() in KINDS


def films(folder: Path) -> list[Path]:
    """The films in a folder; hidden files are none."""
    return sorted(path for path in folder.iterdir() if is_film(path) and not path.name.startswith(".") and path.is_file())


def left_out(folder: Path) -> list[dict[str, str]]:
    """What else is in a folder of films and runs, and why it is passed over: [{file, why}]; our own tables and hidden files aside."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in BESIDE or path.suffix == ".pt":
            continue
        if path.is_dir() and not is_run(path):
            found.append({"file": str(path), "why": "a folder that is no run"})
        elif not path.is_dir() and not (is_film(path) and path.is_file()):
            found.append({"file": str(path), "why": f"no kind of video that is read ({path.suffix or 'no suffix'})"})
    return found


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, be its run.json lost."""
    return any((folder / name).is_file() for name in ("run.json", "last.pt", "last.prev.pt", "stage1.pt", "stage2.pt", "stage3.pt"))


def own_name(stem: str) -> bool:
    """Whether a file's name is one that this program gives, or none at all: orbit, stage3-orbit-depth, "mav3d (1)", 0001, a-red-dog-s0."""
    words = re.findall(r"[^\W_]+", stem.casefold())
    telling = [word for word in words if not (word.isdigit() or word in COPIES or re.fullmatch(r"it\d+", word))]
    return set(telling) <= OWN or re.fullmatch(r"[a-z0-9-]+-s\d+", stem) is not None


def spoken(name: str) -> str:
    """A file's name as a sentence."""
    return " ".join(re.split(r"[\s_-]+", name)).strip()


def prompt_of(path: Path) -> str:
    """The prompt of a film. Raises FourdfyError (exit 2) if prompts.tsv cannot be read or nothing says a word."""
    prompt = prompts_beside(path.parent).get(path.name) or (read_json(path.parent / "run.json") or {}).get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    if own_name(path.stem):
        line = typed("printf", r"%s\t%s\n", path.name, "A PROMPT")
        message = f"{path} has no prompt: its name says nothing of what it shows, and there is neither {PROMPTS} nor run.json beside it"
        raise FourdfyError(message, f"{line} >> {typed(path.parent / PROMPTS)}", USAGE)
    return spoken(path.stem)


def prompts_beside(folder: Path) -> dict[str, str]:
    """Prompts by file name from a folder's prompts.tsv, if it has one; a name may lack its suffix. Raises FourdfyError (exit 2) for a line
    that is none, and for a file that is listed with two prompts."""
    path, found = folder / PROMPTS, {}
    if not path.exists():
        return found
    by_stem: dict[str, list[str]] = {}
    for film in films(folder):
        by_stem.setdefault(film.stem, []).append(film.name)
    for number, name, prompt in _table(path):
        for file in [name] if is_film(Path(name)) else by_stem.get(name, [f"{name}.mp4"]):
            if found.setdefault(file, prompt) != prompt:
                raise FourdfyError(f"{path}: line {number} gives {file} a second prompt", typed("grep", "-n", name, path), USAGE)
    return found


def _table(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, file and prompt of each line of a prompts.tsv; its head line, empty ones and comments do not count."""
    for number, line in enumerate(read_lines(path), 1):
        columns = [_unquoted(part.strip()) for part in line.split("\t")]
        if not line or line.startswith("#") or (number, columns[-1].lower()) == (1, "prompt"):
            continue
        if len(columns) != 2 or not all(columns) or len(columns[1]) > LONGEST:
            raise FourdfyError(f"{path}: line {number} is not FILE<tab>PROMPT", typed("sed", "-n", f"{number}p", path), USAGE)
        yield number, columns[0], columns[1]


def _unquoted(text: str) -> str:
    """A cell without the quotation marks that spreadsheets put around those with a comma."""
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line; empty lines and those that start with # do not count. Raises FourdfyError (exit 2)."""
    return [prompt for _, prompt in numbered_prompts(path)]


def numbered_prompts(path: Path) -> list[tuple[int, str]]:
    """The same with the number of each one's line."""
    found = []
    for number, line in enumerate(read_lines(path), 1):
        if line and not line.startswith("#"):
            found.append((number, line))
        if len(line) > LONGEST:
            why = f"line {number} has {len(line)} characters, a prompt at most {LONGEST}"
            raise FourdfyError(f"{path}: {why}", typed("sed", "-n", f"{number}p", path), USAGE)
    if not found or len(found) > MOST:
        why = f"there are {len(found)} prompts in {path}, {MOST} are the most" if found else f"there is no prompt in {path}"
        raise FourdfyError(why, typed("head", path), USAGE)
    return found


def content(path: Path) -> str:
    """sha256 of a file, read piece by piece."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            total.update(piece)
    return total.hexdigest()
