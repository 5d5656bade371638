"""README.md against reality: help text, commands, file tree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> set[str]:
    from fourdfy_cli.cli.main import app

    group = typer.main.get_command(app)
    names = set()
    for name, command in group.commands.items():
        names |= {f"{name} {sub}" for sub in command.commands} if hasattr(command, "commands") else {name}
    return names


def test_every_command_is_listed_and_every_listed_one_exists():
    listed = set()
    for line in re.findall(r"`fourdfy ([^`]*)`", "".join(re.findall(r"^\| (`fourdfy [^|]*)\|", README, re.M))):
        words = line.split()
        listed.add(" ".join(words[:2]) if words[0] in ("nano", "models", "study") else words[0])
    assert listed == commands()


def rows(text: str) -> dict[str, str]:
    """Names at the start of a line of help, and what is said of each command. How it is framed is the libraries' affair."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        plain = re.sub(r"[^\w\s.,;:()'-]", " ", line)
        row = re.match(r" {1,3}(\S+) {2,}(.*)", plain)
        name = row[1] if row else name if plain.startswith(" " * 6) else ""
        found[name] = " ".join([found.get(name, ""), row[2] if row else plain])
    return {name: "" if name.startswith("--") else " ".join(text.split()) for name, text in found.items()}


def test_the_help_block_is_the_real_one():
    block = re.search(r"```text\n\$ fourdfy --help\n(.*?)```", README, re.S)
    assert block, "README.md has no help block"
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "TERMINAL_WIDTH": "100"}
    done = subprocess.run([sys.executable, "-m", "fourdfy_cli", "--help"], capture_output=True, text=True, env=environment, timeout=120)

    ours, real = rows(block.group(1)), rows(done.stdout)
    names = {name.split()[0] for name in commands()}
    assert {name for name in ours if name[:1].islower()} == names and {"--version", "--help"} <= set(ours)
    assert {name: ours[name] for name in names} == {name: real[name] for name in names}
    for words in ("Turn a sentence into a moving 3D scene", 'Start with:  fourdfy generate "a red dog jumping"'):
        assert words in block.group(1) and words in done.stdout


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the tree is that of the repository")
def test_the_tree_names_every_room():
    block = re.search(r"```text\nfourdfy_cli/\n(.*?)```", README, re.S)
    assert block, "README.md has no tree"
    package = ROOT / "fourdfy_cli"
    rooms = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert set(re.findall(r"^\w+/", block.group(1), re.M)) == rooms
    assert set(re.findall(r"\b\w+\.py\b", block.group(1))) == {p.name for p in package.glob("*.py") if not p.name.startswith("__")}


def test_the_two_set_up_lines_stand_as_promised():
    assert 'pip install . && fourdfy generate "a red dog jumping"' in README
    assert 'pip install ".[test]" && pytest' in README
    ci = (ROOT / ".ci" / "run").read_text()
    assert 'pip install --quiet --no-cache-dir ".[test]"' in ci and "\npytest " in ci
