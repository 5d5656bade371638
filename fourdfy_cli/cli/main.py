"""The `fourdfy` command. Errors are caught here and nowhere else: one line, one hint, an exit code."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Annotated, cast

import typer

from fourdfy_cli import __version__
from fourdfy_cli.cli import (
    ablate,
    batch,
    bench,
    doctor,
    export,
    generate,
    inspect,
    models,
    nano,
    options,
    render,
    report,
    runs,
    slurm,
    study,
    view,
)
from fourdfy_cli.console import Output
from fourdfy_cli.errors import FAILURE, INTERRUPTED, MEMORY, OK, FourdfyError
from fourdfy_cli.run.launch import is_first
from fourdfy_cli.store.stream import Willing

app = typer.Typer(
    name="fourdfy",
    help="Turn a sentence into a moving 3D scene (4D-fy: hybrid score distillation sampling).",
    epilog='Start with:  fourdfy generate "a red dog jumping"',
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(generate.generate)
app.command()(generate.stage1)
app.command()(generate.stage2)
app.command()(generate.stage3)
app.command()(render.render)
app.command()(export.export)
app.command("clip-score")(inspect.clip_score)
app.command()(view.view)
app.command()(report.report)
app.command()(runs.runs)
app.command()(inspect.info)
app.command()(ablate.ablate)
app.command()(batch.batch)
app.command()(slurm.slurm)
app.command()(bench.bench)
app.command()(doctor.doctor)
app.add_typer(nano.app, name="nano")
app.add_typer(models.app, name="models")
app.add_typer(study.app, name="study")

UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[2])  # click's ClickException, wherever this Typer keeps its click


def _version(wanted: bool) -> bool:
    if wanted:
        sys.stdout.write(f"fourdfy {__version__}\n")
        raise typer.Exit()
    return wanted


@app.callback()
def fourdfy(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    args = sys.argv[1:]
    if "--debug" not in args:
        sys.excepthook = _unexpected(args)
        if not is_first():
            sys.stdout = sys.stderr = open(os.devnull, "w")  # of processes that share a run, one talks
    code = run(args)
    for stream in (Willing(sys.stdout), Willing(sys.stderr)):
        stream.flush()
        if stream.gone and stream.stream is not None:  # nor may Python complain about it on the way out
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def run(args: list[str]) -> int:
    """Run one command line; returns its exit code."""
    output = _output(args)
    command = typer.main.get_command(app)
    try:
        with _memory():
            code = command(args or ["--help"], "fourdfy", standalone_mode=False, default_map=options.defaults(), obj=output)
        if code == INTERRUPTED:  # some Typers turn Ctrl-C into this, others into Abort
            raise KeyboardInterrupt
        return code if isinstance(code, int) else OK
    except (FourdfyError, UsageError, typer.Abort, KeyboardInterrupt, MemoryError, OSError) as error:
        if "--debug" in args:
            traceback.print_exc()
        return output.fail(_as_ours(error, args))


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    """What torch raises where memory ends becomes a MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if "torch" in sys.modules:
            from fourdfy_cli.output.limits import out_of_memory

            if out_of_memory(error):
                raise MemoryError from error
        raise


def _output(args: list[str]) -> Output:
    """Where to write, known before the options are parsed so that a wrong option is reported there too."""
    typed = args[: args.index("--")] if "--" in args else args
    words = [word for word in typed if not word.startswith("-")]
    return Output(" ".join(words[: 2 if words[:1] in (["nano"], ["models"], ["study"]) else 1]), "--json" in typed, args)


def _as_ours(error: BaseException, args: list[str]) -> FourdfyError:
    """Any failure as message, hint and exit code."""
    again = shlex.join(["fourdfy", *args])
    if isinstance(error, FourdfyError):
        return error
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        return FourdfyError(error.format_message(), f"{context.command_path if context else 'fourdfy'} --help", error.exit_code)
    if isinstance(error, MemoryError):
        return FourdfyError("out of memory", "how much is free: free -m", MEMORY)
    if isinstance(error, OSError):
        return FourdfyError(f"{error.filename or 'input or output'}: {error.strerror or error}", f"{again} --debug", FAILURE)
    if isinstance(error, typer.Abort) and isinstance(error.__context__, EOFError):  # what click makes of one, as of Ctrl-C
        return FourdfyError(f"a file ended too early: {error.__context__ or 'no more input'}", f"{again} --debug", FAILURE)
    return FourdfyError("stopped; what was saved is kept", again, INTERRUPTED)


def _unexpected(args: list[str]) -> Callable[..., None]:
    """What to do about an exception that nobody foresaw: a mistake of this program, told in one line all the same."""

    def hook(kind: type[BaseException], error: BaseException, _: object) -> None:
        message = f"a mistake in fourdfy itself: {kind.__name__}: {error}"
        _output(args).fail(FourdfyError(message, shlex.join(["fourdfy", *args, "--debug"]), FAILURE))

    return hook


if __name__ == "__main__":
    main()
