"""From what was given to a value for every parameter, each checked."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agiledpo.config.errors import ConfigError
from agiledpo.config.foreign import OTHER_NAMES, SECRETS
from agiledpo.config.kinds import KindError, coerce
from agiledpo.config.origins import Origins
from agiledpo.config.schema import Entry, Parameter, Required, Section, accepts_null, defaults_of

# How alike two names are: at least to be named, added for a name of the same section, and enough to be sure.
_ALIKE, _HERE, _SURE = 0.6, 0.1, 0.9

_MOST_NAMED = 10

# How OmegaConf writes that a value has to be given.
_MISSING = "???"


def check_names(given: Mapping[str, Any], schema: Section, origins: Origins) -> None:
    """Refuse keys that no parameter has.

    Args:
        given: What files and overrides set.
        schema: What there is.
        origins: Where it was set.

    Raises:
        ConfigError: Keys are unknown; for each the nearest valid one is named.
    """
    unknown = list(_unknown(given, schema, ""))
    lines = [
        f"{_at(origins.of(path))}{path} is no parameter{_nearest(path, section, name, schema, _leaves(value, path))}"
        for path, section, name, value in unknown
    ]
    if lines:
        more = [f"... and {len(lines) - _MOST_NAMED} more."] if len(lines) > _MOST_NAMED else []
        raise ConfigError("\n".join([*lines[:_MOST_NAMED], *more]))


def with_defaults(given: Mapping[str, Any], schema: Section) -> dict[str, Any]:
    """The defaults of everything that is not switched off, with what was given in their place.

    Args:
        given: What files and overrides set.
        schema: What there is.
    """
    return _filled(given, schema)


def checked(values: Mapping[str, Any], schema: Section, origins: Origins, raw: Mapping[str, str]) -> dict[str, Any]:
    """Values as their parameters want them.

    Args:
        values: Of every parameter.
        schema: What there is.
        origins: Where they were set.
        raw: By path, what was typed on the command line: where a text is wanted, a number is one.

    Raises:
        ConfigError: A value is not of its parameter's kind, or there is none; all of them are named.
    """
    wrong: list[str] = []

    def visit(values: Mapping[str, Any], entries: Mapping[str, Entry], prefix: str) -> dict[str, Any]:
        found = {}
        for name, entry in entries.items():
            path, value = f"{prefix}{name}", values[name]
            if isinstance(entry, Section):
                found[name] = None if value is None else visit(value, entry.chosen(value), f"{path}.")
                continue
            if value == _MISSING:
                wrong.append(
                    f"{_at(origins.of(path))}{path}=??? stands for a value that is still to be given; "
                    f"{name} must be {entry.allowed}."
                )
                continue
            if isinstance(value, Required):
                wrong.append(f"{path} is needed and has no default: {entry.help} Set {path}=... ({entry.allowed}).")
                continue
            if secrets := list(_secrets(value, path)):
                wrong.extend(
                    f"{_at(origins.of(secret))}{secret} is a secret, and a configuration is written to the run's "
                    f"directory and to trackers. Leave it out and set the environment variable {variable}."
                    for secret, variable in secrets
                )
                continue
            try:
                found[name] = _coerced(value, entry, raw.get(path))
            except KindError:
                wrong.append(
                    f"{_at(origins.of(path))}{path}={_shown(value)} is not allowed; {name} must be {entry.allowed}."
                )
        return found

    result = visit(values, schema.entries, "")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return result


def _secrets(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The paths of texts that are secrets by their names, and the environment variables to put them in."""
    for name, held in value.items() if isinstance(value, Mapping) else ():
        inside = f"{path}.{name}"
        if name in SECRETS and isinstance(held, str):
            yield inside, SECRETS[name] if not path.startswith("trackers.") else "of the tracker, such as WANDB_API_KEY"
        yield from _secrets(held, inside)


def _coerced(value: Any, entry: Parameter, typed: str | None) -> Any:
    try:
        return coerce(value, entry.hint)
    except KindError:
        if typed is None or isinstance(value, list | dict) or value is None:
            raise
        return coerce(typed, entry.hint)


# Names ------------------------------------------------------------------------------------------------------------


def _unknown(given: Mapping[str, Any], section: Section, prefix: str) -> Iterator[tuple[str, Section, str, Any]]:
    entries = section.chosen(given)
    for name, value in given.items():
        path = f"{prefix}{name}"
        entry = entries.get(str(name))
        if entry is None:
            yield path, section, str(name), value
        elif isinstance(entry, Section) and isinstance(value, Mapping):
            yield from _unknown(value, entry, f"{path}.")


def _leaves(value: Any, path: str) -> list[str]:
    """The paths below a key, or its own."""
    if not isinstance(value, Mapping) or not value:
        return [path]
    return [leaf for name, held in value.items() for leaf in _leaves(held, f"{path}.{name}")]


def _nearest(path: str, section: Section, name: str, schema: Section, leaves: Sequence[str]) -> str:
    """What may have been meant."""
    prefix = path[: len(path) - len(name)]
    if name in SECRETS:
        return (
            ", since a configuration is written to the run's directory and to trackers. Set the environment variable "
            f"{SECRETS[name]}."
        )
    of_variants = [value for value, entries in section.variants.items() if name in entries]
    if of_variants:
        choice = f"{prefix}{section.variant}"
        return f" here: it goes with {' and '.join(f'{choice}={value}' for value in of_variants)}."
    known = [(leaf, OTHER_NAMES.get(leaf) or OTHER_NAMES.get(leaf.rpartition(".")[2])) for leaf in leaves]
    there = dict(schema.walk())
    translated = [(leaf, ours) for leaf, ours in known if ours is not None and (ours in there or ours == "--run")]
    if leaves != [path] and translated:
        return f"; {', '.join(f'{leaf} is {ours}' for leaf, ours in translated)} here."
    found = _most_alike(name, prefix, there)
    if translated and (found is None or found[0] < _SURE):
        return f"; it is {translated[0][1]} here."
    if found is not None:
        return f"; did you mean {found[1]}?"
    names = list(section.everything())
    if len(names) > _MOST_NAMED:
        return ". --print-config shows what there is."
    return f". {prefix[:-1]} has {', '.join(names)}."


def _most_alike(name: str, prefix: str, there: Mapping[str, Entry]) -> tuple[float, str] | None:
    """The path of the parameter whose name, here or elsewhere, is most like a name, and how much that is so."""
    names = [(path, path.rpartition(".")[2]) for path in there]
    names += [(path, other.rpartition(".")[2]) for other, path in OTHER_NAMES.items() if path in there]
    best: tuple[float, str] | None = None
    for path, known in names:
        score = _likeness(name, known) + (_HERE if path.rpartition(".")[0] == prefix.removesuffix(".") else 0.0)
        if score >= _ALIKE and (best is None or score > best[0]):
            best = score, path
    return best


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()


# Values -----------------------------------------------------------------------------------------------------------


def _filled(given: Mapping[str, Any], section: Section) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, entry in section.chosen(given).items():
        if isinstance(entry, Parameter):
            found[name] = given.get(name, entry.default)
        elif name not in given:
            found[name] = None if entry.is_optional else defaults_of(entry.chosen({}))
        elif given[name] is None and not entry.is_optional:
            found[name] = defaults_of(entry.chosen({}))  # `lora:` with nothing below it
        else:
            found[name] = None if given[name] is None else _filled(given[name], entry)
    return found


def check_sections(given: Mapping[str, Any], schema: Section, origins: Origins, prefix: str = "") -> None:
    """Refuse a single value where a section is.

    Args:
        given: What files and overrides set.
        schema: What there is.
        origins: Where it was set.
        prefix: Path of the section.

    Raises:
        ConfigError: There is one.
    """
    for name, entry in schema.chosen(given).items():
        value = given.get(name)
        if not isinstance(entry, Section) or value is None:
            continue
        path = f"{prefix}{name}"
        if not isinstance(value, Mapping):
            null = " or null" if accepts_null(entry) else ""
            first = next(iter(entry.entries))
            raise ConfigError(
                f"{_at(origins.of(path))}{path}={_shown(value)}: {path} is a section{null}. Set what is in it, such as "
                f"{path}.{first}=..."
            )
        check_sections(value, entry, origins, f"{path}.")


def _at(origin: str) -> str:
    return f"{origin}: " if origin else ""


def _shown(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, repr(value)) if _is_flag(value) else repr(value)


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)
