"""`python -m fourdfy_cli` is `fourdfy`."""

from fourdfy_cli.cli.main import main

if __name__ == "__main__":
    main()
