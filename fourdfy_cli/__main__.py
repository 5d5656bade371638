"""`fourdfy`, also as `python -m fourdfy_cli`."""

import os
import sys

from fourdfy_cli import __version__

SPINS = "10000"  # some hundredths of a millisecond


def main() -> None:
    """The console script; a bare --version is answered before anything is loaded.

    Torch's idle threads wait for work by spinning, a millisecond and more, on processors that those of kernels/threads.py could use.
    libgomp reads how long from the environment, when torch is first imported.
    """
    if sys.argv[1:] == ["--version"]:
        print(f"fourdfy {__version__}")
        return
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        from fourdfy_cli.cli.main import main as command

        command()
    except KeyboardInterrupt:  # while the program loads, or a second one on the way out
        os.write(2, b"error: stopped; what was saved is kept\n")
        os._exit(130)


if __name__ == "__main__":
    main()
