"""`python -m agiledpo` is the command `agiledpo`."""

from agiledpo.cli import main

if __name__ == "__main__":
    main()
