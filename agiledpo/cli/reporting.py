"""How commands speak: figures to stdout, warnings and what is wrong to stderr."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def user_errors() -> Iterator[None]:
    """Say in one sentence what is wrong with the user's files or options; anything else is a fault of ours.

    Raises:
        typer.BadParameter: An option has a value that is out of range (exit status 2).
        typer.Exit: A file cannot be used (exit status 1).
    """
    from agiledpo.data.errors import DatasetError

    try:
        yield
    except (DatasetError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings as sentences, without the line of code that they come from."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for warning in caught:
                print(f"Warning: {warning.message}", file=sys.stderr)
