"""Completion of `KEY=VALUE` in the shell.

What parameters there are is read off signatures, which takes importing torch: too slow for a key press. So the names
are kept in a file of the cache, which is written the first time.
"""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from agiledpo import __version__
from agiledpo.cache import cache_directory


def complete_parameter(context: typer.Context, incomplete: str) -> list[str]:
    """What a word may become: a parameter's path with an equals sign, or one of its values.

    Args:
        context: Says which command it is of.
        incomplete: The word so far.
    """
    algorithm = context.info_name if context.info_name in ("dpo", "sft", "grpo") else "dpo"
    names = _names(str(algorithm))
    path, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{path}={value}" for value in names.get(path, []) if f"{path}={value}".startswith(incomplete)]
    return [f"{name}=" for name in names if name.startswith(incomplete)]


def _names(algorithm: str) -> dict[str, list[str]]:
    """Values that can be listed, by parameter."""
    file = cache_directory("completion") / f"{__version__}-{algorithm}.json"
    try:
        found: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = _read_names(algorithm)
        _write(file, found)
    return found


def _read_names(algorithm: str) -> dict[str, list[str]]:
    from agiledpo.config.algorithms import schema_of
    from agiledpo.config.schema import Parameter

    entries = schema_of(algorithm).walk()
    return {path: list(_values(entry.hint)) for path, entry in entries if isinstance(entry, Parameter)}


def _values(hint: Any) -> list[str]:
    if hint is bool:
        return ["true", "false"]
    if hint is type(None):
        return ["null"]
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [value for part in get_args(hint) for value in _values(part)] if get_origin(hint) is not list else []


def _write(file: Path, names: dict[str, list[str]]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(names), encoding="utf-8")
        draft.replace(file)
    except OSError:
        return  # next time it takes as long again
