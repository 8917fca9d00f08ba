"""A configuration as a YAML file that explains itself."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from agiledpo.config.schema import Entry, Required, Section

_WIDTH = 120


class _Dumper(yaml.SafeDumper):
    """Puts text into quotes that OmegaConf, other than YAML 1.1, reads as a number."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)


def to_yaml(values: Mapping[str, Any], schema: Section, *, title: str = "") -> str:
    """A file that sets every parameter, with what it is behind each.

    Args:
        values: Of all parameters.
        schema: What they are.
        title: A comment above everything.
    """
    head = [f"# {title}", ""] if title else []
    return "\n".join([*head, *_lines(values, schema.entries, "")]) + "\n"


def _lines(values: Mapping[str, Any], entries: Mapping[str, Entry], indent: str) -> Iterator[str]:
    for name, entry in entries.items():
        value = values[name]
        if isinstance(entry, Section) and value is not None:
            if not indent:
                yield ""
            yield from _commented(f"{indent}{name}:", entry.help, indent)
            yield from _lines(value, entry.chosen(value), f"{indent}  ")
        else:
            if isinstance(entry, Section) and not indent:
                yield ""
            text = entry.help if isinstance(entry, Section) else entry.line
            yield from _commented(f"{indent}{name}: {plain_yaml(value)}", text, indent)


def _commented(line: str, text: str, indent: str) -> Iterator[str]:
    if len(line) + len(text) + 4 <= _WIDTH:
        yield f"{line}  # {text}" if text else line
        return
    yield from textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    yield line


def plain_yaml(value: Any) -> str:
    """A value on one line, such that YAML reads it back.

    Args:
        value: Plain data.
    """
    if isinstance(value, Required):
        return "???"
    text = yaml.dump(
        _escaped(value),
        Dumper=_Dumper,
        default_flow_style=True,
        width=float("inf"),
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _escaped(value: Any) -> Any:
    """A value in which no text is taken for the name of another parameter."""
    if isinstance(value, str):
        # Backslashes before an escape would escape it.
        return re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", value)
    if isinstance(value, dict):
        return {name: _escaped(held) for name, held in value.items()}
    return [_escaped(held) for held in value] if isinstance(value, list) else value
