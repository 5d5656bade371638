"""`fourdfy`, also as `python -m fourdfy_cli`."""

import sys

from fourdfy_cli import __version__


def main() -> None:
    """The console script; a bare --version is answered before anything is loaded."""
    if sys.argv[1:] == ["--version"]:
        print(f"fourdfy {__version__}")
        return
    from fourdfy_cli.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
