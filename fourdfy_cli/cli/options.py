"""Options that commands share, and how they become a recipe: command line > FOURDFY_* > fourdfy.toml > preset."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import tempfile
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourdfy_cli.cli import complete
from fourdfy_cli.console import Output
from fourdfy_cli.errors import USAGE, FourdfyError
from fourdfy_cli.output.textfile import read_text
from fourdfy_cli.run.choice import check_device as check_device
from fourdfy_cli.run.choice import check_prompt as check_prompt
from fourdfy_cli.run.choice import device_for, fitting_preset
from fourdfy_cli.run.processors import Crowd, limit

if TYPE_CHECKING:  # the recipe's many classes take their time: not for --help
    from fourdfy_cli.config import Recipe
    from fourdfy_cli.memory import Machine

FILE = Path("fourdfy.toml")
FILE_KEYS = {"preset": str, "models": str, "out": str, "seed": int, "device": str, "set": dict}
MODELS = ("auto", "paper", "nano", "random")
SIZES = ("full", "tiny")
SPARE = "fourdfy: how many threads others leave free"

Source = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint or a run folder.", show_default=False, autocompletion=complete.sources)
]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to make, in words.", show_default=False)]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Every draw comes from this number.")]
Device = Annotated[str, typer.Option("--device", envvar="FOURDFY_DEVICE", help="cpu, cuda or cuda:N.")]
RunDevice = Annotated[
    str | None,
    typer.Option("--device", envvar="FOURDFY_DEVICE", help="cpu, cuda or cuda:N.", show_default="cuda if there is one, cpu for nano"),
]


@dataclass(frozen=True)
class Common:
    """Options of every command, and the command line's own context."""

    context: Any  # Typer asks for typer.Context and hands over click's, its base class
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False
    threads: Annotated[
        int | None,
        typer.Option("--threads", envvar="FOURDFY_THREADS", min=1, max=1024, help="Of the CPU.", show_default="what others leave free"),
    ] = None

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

    preset: Annotated[
        str | None,
        typer.Option("--preset", envvar="FOURDFY_PRESET", help="paper, official, fast, wan, hour or nano.", show_default="fits --models"),
    ] = None
    models: Annotated[
        str | None,
        typer.Option("--models", envvar="FOURDFY_MODELS", help="auto, paper, nano or random.", show_default="paper on a GPU, else nano"),
    ] = None
    size: Annotated[str, typer.Option("--size", help="Of the random models: full or tiny (the pictures shrink too).")] = "full"
    smoke: Annotated[bool, typer.Option("--smoke", help="Two steps a stage, each on the branch that the stage adds.")] = False
    commercial: Annotated[bool, typer.Option("--commercial", help="Only models that may be used for profit; Wan for video.")] = False
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe; may be repeated.", show_default=False)
    ] = field(default_factory=list)
    out: Annotated[Path, typer.Option("--out", envvar="FOURDFY_OUT", help="Folder that gets the run's folder.")] = Path("outputs")
    seed: Annotated[
        int | None,
        typer.Option("--seed", envvar="FOURDFY_SEED", min=0, max=2**63 - 1, help="Every draw comes from this number.", show_default="0"),
    ] = None
    device: RunDevice = None
    vram: Annotated[
        float | None,
        typer.Option("--vram", envvar="FOURDFY_VRAM", min=0.0, help="Memory to stay within, GB.", show_default="what the card has"),
    ] = None
    backend: Annotated[
        str, typer.Option("--backend", envvar="FOURDFY_BACKEND", help="Inner loops: auto, torch, numba, triton or tcnn.")
    ] = "auto"
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done: models, downloads, memory, time, changed settings; and stop.")
    ] = False
    full: Annotated[bool, typer.Option("--full", help="With --dry-run: every setting of the recipe with its source, too.")] = False

    def machine(self, device: str) -> Machine:
        from fourdfy_cli.memory import Machine

        return Machine(device, self.vram, self.backend, self.context.meta[SPARE])


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A Typer command from a function one of whose parameters is a dataclass of options: each field becomes an option."""
    hints = _hints(command)
    name = next(name for name, hint in hints.items() if dataclasses.is_dataclass(hint))
    group = hints[name]
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values() if p.name != name]
    kinds = _hints(group) | {"context": typer.Context}
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=kinds[f.name])
        for f in dataclasses.fields(group)
    ]

    @functools.wraps(command)
    def typed(**values: Any) -> None:
        options = group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group)})
        options.context.meta[SPARE] = None if limit(options.threads) else Crowd().spare  # watched from now on
        command(**values, **{name: options})

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    typed.__signature__ = inspect.Signature(keyword + shared)  # type: ignore[attr-defined]
    typed.__annotations__ = {p.name: p.annotation for p in keyword + shared}
    del typed.__wrapped__  # or Typer would read the dataclass's own annotation
    return typed


def _hints(thing: Any) -> dict[str, Any]:
    """Annotations by name; without the Optional that Python 3.10 puts around those of arguments whose default is None."""
    found = {}
    for name, hint in typing.get_type_hints(thing, include_extras=True).items():
        inner = [part for part in typing.get_args(hint) if typing.get_origin(part) is Annotated]
        found[name] = inner[0] if typing.get_origin(hint) is typing.Union and inner else hint
    return found


def _default(option: dataclasses.Field) -> Any:
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return inspect.Parameter.empty if option.default is dataclasses.MISSING else option.default


def recipe(options: Run, base: Recipe | None = None) -> Recipe:
    """The recipe that the options ask for; `base` (from a checkpoint) stands in for a preset that is not named.

    Raises FourdfyError (exit 2) for a preset, model set or setting that does not exist.
    """
    from fourdfy_cli import config, presets
    from fourdfy_cli.store.migrate import renamed

    chosen = base if base and options.preset is None and options.models is None else _preset(options, base)
    from_file = [f"{key}={value}" for key, value in config.leaves(file_settings().get("set", {})).items()]
    assignments = (*from_file, *os.environ.get("FOURDFY_SET", "").split(), *options.settings)
    if options.commercial and chosen.models.set == "paper" and not any(one.startswith("models.video=") for one in assignments):
        chosen = chosen if chosen.models.video else presets.with_wan(chosen)
    for assignment in assignments:
        chosen = config.override(chosen, assignment, renamed)
    return presets.smoke(chosen) if options.smoke else chosen


def _preset(options: Run, base: Recipe | None) -> Recipe:
    """The preset with the model set that the options name, or that fit each other and this machine.

    Raises FourdfyError (exit 2) for a set or a size that does not exist, or a size of another set than random.
    """
    from fourdfy_cli import presets

    models = options.models or "auto"
    if models not in MODELS:
        raise FourdfyError(f"there is no model set {models!r}", f"one of {', '.join(MODELS)}: --models nano", USAGE)
    if options.size not in SIZES or (options.size != "full" and models != "random"):
        raise FourdfyError(f"there is no size {options.size!r} of the {models} models", f"--models random --size {SIZES[1]}", USAGE)
    if models == "auto":
        chosen = base or presets.preset(options.preset or fitting_preset())
        return chosen if base is None or options.preset is None else replace(presets.preset(options.preset), models=base.models)
    chosen = presets.preset(options.preset) if options.preset else base or presets.preset("nano" if models == "nano" else "paper")
    chosen = replace(chosen, models=replace(chosen.models, set=models, size=options.size))
    return presets.tiny(chosen) if options.size == "tiny" else chosen


def device(options: Run, recipe: Recipe) -> str:
    """Where a recipe runs; raises FourdfyError as `check_device`."""
    return device_for(recipe, options.device)


def origins(options: Run, recipe: Recipe) -> dict[str, str]:
    """Where each setting of `recipe` that is not its preset's was set, by dotted key; the last place holds."""
    from fourdfy_cli import config, presets
    from fourdfy_cli.run.plan import differences

    places = {"ENVIRONMENT": "environment", "DEFAULT_MAP": str(FILE)}
    source = options.context.get_parameter_source("models")
    found = {} if options.models in (None, "auto") else {"models.set": places.get(source.name if source else "", "command line")}
    plain = presets.preset(recipe.name) if recipe.name in presets.PRESETS else recipe
    if options.size == "tiny":
        found |= {"models.size": "--size tiny"} | dict.fromkeys(differences(plain, presets.tiny(plain)), "--size tiny")
    if options.commercial and recipe.models.video == presets.with_wan(plain).models.video:
        found |= dict.fromkeys(differences(plain, presets.with_wan(plain)), "--commercial")
    keys, inherited = list(config.leaves(config.to_dict(recipe))), os.environ.get("FOURDFY_SET", "").split()
    written = config.leaves(file_settings().get("set", {}))
    for place, settings in {str(FILE): written, "environment": inherited, "command line": options.settings}.items():
        for name in (one.partition("=")[0] for one in settings):
            found |= {key: place for key in keys if f"{key}.".startswith(f"{name}.")}  # one key, or both of a pair
    return found | (dict.fromkeys(differences(plain, presets.smoke(plain)), "--smoke") if options.smoke else {})


def file_settings() -> dict[str, Any]:
    """What fourdfy.toml in this folder says; raises FourdfyError (exit 2) if it cannot be understood."""
    if not FILE.is_file():
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(read_text(FILE))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FourdfyError(f"{FILE}: {error}", f"cat {FILE}", USAGE) from None
    for key, value in values.items():
        if key not in FILE_KEYS:
            raise FourdfyError(f"{FILE}: there is no setting {key!r}", f"it may hold {', '.join(FILE_KEYS)}: cat {FILE}", USAGE)
        if not isinstance(value, FILE_KEYS[key]) or isinstance(value, bool):
            raise FourdfyError(f"{FILE}: {key} wants a {FILE_KEYS[key].__name__}, not {value!r}", f"cat {FILE}", USAGE)
    return values


def defaults() -> dict[str, dict[str, Any]]:
    """fourdfy.toml as defaults of the commands' options (its [set] table is read by `recipe`)."""
    values = {key: value for key, value in file_settings().items() if key != "set"}
    device = {key: value for key, value in values.items() if key == "device"}
    return {command: values for command in ("generate", "stage1", "stage2", "stage3")} | {"render": device, "export": device}


def check_writable(folder: Path) -> None:
    """Raises FourdfyError (exit 2) unless files can be made in a folder that may not exist yet; leaves nothing behind."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return
    except OSError as error:
        raise FourdfyError(f"cannot write in {folder}: {error.strerror}", "a folder that you may write in: --out FOLDER", USAGE) from None


def check_free(folder: Path, what: str, again: Callable[[Path], str]) -> None:
    """Raises FourdfyError (exit 2) unless a folder for `what` is new or empty; `again` makes the hint of a name that is free."""
    if not folder.exists() or (folder.is_dir() and next(folder.iterdir(), None) is None):
        return
    why = f"holds other files; {what} want a folder of their own" if folder.is_dir() else f"is a file, not a folder for {what}"
    whole = folder.absolute()
    free = next(path for k in range(2, 10_000) if not (path := whole.with_name(f"{whole.name}-{k}")).exists())
    free = free if folder.is_absolute() or folder.name in ("", "..") else folder.with_name(free.name)
    raise FourdfyError(f"{folder} {why}", again(free), USAGE)
