"""Options that commands share, and how they become a recipe: command line > FOURDFY_* > fourdfy.toml > preset."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import sys
import tempfile
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fourdfy_cli import config, presets
from fourdfy_cli.console import Output
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError

FILE = Path("fourdfy.toml")
FILE_KEYS = {"preset": str, "models": str, "out": str, "seed": int, "device": str, "set": dict}
MODELS = ("auto", "nano")

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to make, in words.", show_default=False)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Every draw comes from this number.")]
Device = Annotated[str, typer.Option("--device", envvar="FOURDFY_DEVICE", help="cpu, cuda or cuda:N.")]


@dataclass(frozen=True)
class Common:
    """Options of every command, and the command line's own context."""

    context: Any  # Typer asks for typer.Context and hands over click's, its base class
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False

    @property
    def output(self) -> Output:
        return self.context.obj

    def given(self, name: str) -> bool:
        """Whether an option was typed, or set in the environment."""
        source = self.context.get_parameter_source(name)
        return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


@dataclass(frozen=True)
class Run(Common):
    """Options of the commands that train."""

    preset: Annotated[str | None, typer.Option("--preset", envvar="FOURDFY_PRESET", help="nano (the default).", show_default=False)] = None
    models: Annotated[str | None, typer.Option("--models", envvar="FOURDFY_MODELS", help="auto or nano.", show_default=False)] = None
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe; may be repeated.", show_default=False)
    ] = field(default_factory=list)
    out: Annotated[Path, typer.Option("--out", envvar="FOURDFY_OUT", help="Folder that gets the run's folder.")] = Path("outputs")
    seed: Annotated[
        int | None, typer.Option("--seed", envvar="FOURDFY_SEED", min=0, help="Every draw comes from this number.", show_default="0")
    ] = None
    device: Device = "cpu"
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A Typer command from a function one of whose parameters is a dataclass of options: each field becomes an option."""
    hints = typing.get_type_hints(command, include_extras=True)
    name, group = next((name, hint) for name, hint in hints.items() if dataclasses.is_dataclass(hint))
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values() if p.name != name]
    kinds = typing.get_type_hints(group, include_extras=True) | {"context": typer.Context}
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=kinds[f.name])
        for f in dataclasses.fields(group)
    ]

    @functools.wraps(command)
    def typed(**values: Any) -> None:
        options = group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group)})
        command(**values, **{name: options})

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    typed.__signature__ = inspect.Signature(keyword + shared)  # type: ignore[attr-defined]
    typed.__annotations__ = {p.name: p.annotation for p in keyword + shared}
    del typed.__wrapped__  # or Typer would read the dataclass's own annotation
    return typed


def _default(option: dataclasses.Field) -> Any:
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return inspect.Parameter.empty if option.default is dataclasses.MISSING else option.default


def recipe(options: Run, base: config.Recipe | None = None) -> config.Recipe:
    """The recipe that the options ask for; `base` (from a checkpoint) stands in for a preset that is not named.

    Raises FourdfyError (exit 2) for a preset, model set or setting that does not exist.
    """
    chosen = base if base and options.preset is None else presets.preset(options.preset or "nano")
    if options.models is not None:
        if options.models not in MODELS:
            raise FourdfyError(f"there is no model set {options.models!r}", f"--models nano   ({', '.join(MODELS)})", USAGE)
        chosen = chosen if options.models == "auto" else replace(chosen, models=config.Models(options.models))
    from_file = [f"{key}={value}" for key, value in config.leaves(file_settings().get("set", {})).items()]
    for assignment in (*from_file, *os.environ.get("FOURDFY_SET", "").split(), *options.settings):
        chosen = config.override(chosen, assignment)
    return chosen


def file_settings() -> dict[str, Any]:
    """What fourdfy.toml in this folder says; raises FourdfyError (exit 2) if it cannot be understood."""
    if not FILE.is_file():
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(FILE.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FourdfyError(f"{FILE}: {error}", f"cat {FILE}", USAGE) from None
    for key, value in values.items():
        if key not in FILE_KEYS:
            raise FourdfyError(f"{FILE}: there is no setting {key!r}", f"cat {FILE}   (it may hold {', '.join(FILE_KEYS)})", USAGE)
        if not isinstance(value, FILE_KEYS[key]) or isinstance(value, bool):
            raise FourdfyError(f"{FILE}: {key} wants a {FILE_KEYS[key].__name__}, not {value!r}", f"cat {FILE}", USAGE)
    return values


def defaults() -> dict[str, dict[str, Any]]:
    """fourdfy.toml as defaults of the commands' options (its [set] table is read by `recipe`)."""
    values = {key: value for key, value in file_settings().items() if key != "set"}
    device = {key: value for key, value in values.items() if key == "device"}
    return {command: values for command in ("generate", "stage1", "stage2", "stage3")} | {"render": device}


def check_device(device: str) -> None:
    """Raises FourdfyError: exit 2 for a name that is none, exit 3 for a GPU that is not there."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise FourdfyError(f"there is no device {device!r}", "--device cpu   (cpu, cuda, cuda:N)", USAGE)
    if device != "cpu":
        import torch

        if not torch.cuda.is_available() or int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise FourdfyError(f"this machine has no {device} that torch can use", "--device cpu", ENVIRONMENT)


def check_writable(folder: Path) -> None:
    """Raises FourdfyError (exit 2) unless files can be made in a folder that may not exist yet; leaves nothing behind."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return
    except OSError as error:
        raise FourdfyError(f"cannot write in {folder}: {error.strerror}", "--out FOLDER   (one that you may write in)", USAGE) from None


def check_prompt(prompt: str, models: str) -> None:
    """Raises FourdfyError (exit 2) for an empty prompt, or one that the nano models do not understand."""
    if not prompt.strip():
        raise FourdfyError("the prompt is empty", 'fourdfy generate "a red dog jumping"', USAGE)
    if models == "nano":
        from fourdfy_cli.nano import prompts

        prompts.parse(prompt)
