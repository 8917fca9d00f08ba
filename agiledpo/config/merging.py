"""What layers say together, where each file and the command line is one.

Sections merge. The value of a parameter replaces the one below as a whole, also where it is a list or a mapping, since
half of a range or of a choice means nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from agiledpo.config.errors import ConfigError
from agiledpo.config.schema import Section

Layer = dict[str, Any]


class Items(dict[str, Any]):
    """A mapping that a path has gone through: it names the items that it sets, and says nothing about others."""


def at_path(path: str, value: Any) -> Layer:
    """A layer that sets one value.

    Args:
        path: Its keys, joined by dots.
        value: The value.
    """
    for key in reversed(path.split(".")):
        value = Items({key: value})
    found: Layer = value
    return found


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any], schema: Section, *, is_one: bool = False) -> Layer:
    """Two layers together.

    Where the upper one chooses another variant of a section, or another one of parameters that exclude each other,
    what the lower one says of those that are gone is left out.

    Args:
        lower: What is replaced.
        upper: What replaces it.
        schema: What there is.
        is_one: They are parts of one layer, in which nothing is left out, so that it can be refused.
    """
    found = dict(lower) if is_one else _without_excluded(lower, upper, schema)
    entries = schema.everything()
    for name, value in upper.items():
        entry, below = entries.get(name), found.get(name)
        if isinstance(entry, Section) and isinstance(value, Mapping):
            found[name] = merged(below if isinstance(below, Mapping) else {}, value, entry, is_one=is_one)
        else:
            found[name] = _replaced(below, value)
    return found


def expanded(layer: Mapping[str, Any], schema: Section) -> Layer:
    """A layer with sections for what stands for them: ``trackers: [wandb]`` is ``trackers.names``.

    Args:
        layer: What was given.
        schema: What there is.
    """
    found = dict(layer)
    for name, entry in schema.entries.items():
        value = found.get(name)
        if isinstance(entry, Section) and entry.shorthand and isinstance(value, str | list):
            found[name] = {entry.shorthand: [value] if isinstance(value, str) else value}
    return found


def check_alternatives(layer: Mapping[str, Any], schema: Section, where: str, prefix: str = "") -> None:
    """Refuse a layer that sets parameters that exclude each other.

    Args:
        layer: What was given.
        schema: What there is.
        where: The file, or the command line.
        prefix: Path of the section.

    Raises:
        ConfigError: It does.
    """
    for group in schema.alternatives:
        named = [name for name in group if layer.get(name) is not None]
        if len(named) > 1:
            both = " and ".join(f"{prefix}{name}={layer[name]}" for name in named)
            raise ConfigError(f"{where}: {both} exclude each other. Set one of them.")
    for name, entry in schema.everything().items():
        value = layer.get(name)
        if isinstance(entry, Section) and isinstance(value, Mapping):
            check_alternatives(value, entry, where, f"{prefix}{name}.")


def _replaced(lower: Any, upper: Any) -> Any:
    """The value of a parameter, or with items of it replaced that a path names."""
    if not isinstance(upper, Items) or not isinstance(lower, Mapping):
        return upper
    found = {**lower, **{name: _replaced(lower.get(name), value) for name, value in upper.items()}}
    return Items(found) if isinstance(lower, Items) else found


def _without_excluded(lower: Mapping[str, Any], upper: Mapping[str, Any], section: Section) -> Layer:
    gone = set(_excluded(upper, section))
    if section.variant in upper:
        chosen = section.chosen(upper)
        gone |= {name for name in section.everything() if name not in chosen}
    return {name: value for name, value in lower.items() if name not in gone}


def _excluded(upper: Mapping[str, Any], section: Section) -> Iterator[str]:
    for group in section.alternatives:
        if any(upper.get(name) is not None for name in group):
            yield from group
