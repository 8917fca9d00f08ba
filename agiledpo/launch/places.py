"""Files that a configuration names, under paths that mean the same in every working directory."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agiledpo.config import Config

_SOURCES = {
    "data": ("train", "test", "final", "validation"),
    "model": ("name", "adapter", "tokenizer", "chat_template"),
}


def with_absolute_paths(config: Config) -> Config:
    """The same configuration, in which local files and directories that exist have absolute paths.

    Args:
        config: The configuration. Names on the Hub and of modules stay as they are.
    """
    values: dict[str, Any] = dict(config.values)
    for section, names in _SOURCES.items():
        values[section] = {
            name: _each(value, _absolute) if name in names else value for name, value in values[section].items()
        }
    if "reward" in values:
        values["reward"] = _each(values["reward"], _absolute_function)
    fitness = _each(values["train"]["fitness"], _absolute_function)
    values["train"] = {**values["train"], "fitness": fitness}
    return replace(config, values=values)


def _each(value: Any, change: Any) -> Any:
    """A text, or each of several in a list or by name, changed."""
    if isinstance(value, Mapping):
        return {name: _each(one, change) for name, one in value.items()}
    if isinstance(value, list):
        return [_each(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


def _absolute(place: str) -> str:
    path = Path(place).expanduser()
    # "embedded" is no path, whatever lies beside.
    return str(path.absolute()) if place != "embedded" and path.exists() else place


def _absolute_function(function: str) -> str:
    where, colon, name = function.rpartition(":")
    return f"{_absolute(where)}{colon}{name}" if where.endswith(".py") else function
