"""Where a value was set: a line of a file, or the command line."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass
class Origins:
    """Where values come from, the last place that set each.

    Attributes:
        places: A description by path of keys.
    """

    places: dict[str, str] = field(default_factory=dict)

    def add(self, places: Mapping[str, str]) -> None:
        """Note places that come after those that are known."""
        self.places.update(places)

    def of(self, path: str) -> str:
        """Where a value was set; empty for a default.

        Args:
            path: Its keys, joined by dots.
        """
        while path:
            if path in self.places:
                return self.places[path]
            path = path.rpartition(".")[0]
        return ""


def places_in(text: str, file: Path) -> dict[str, str]:
    """The line of each key of a YAML file.

    Args:
        text: What is in the file.
        file: Its name.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return {} if root is None else {path: f"{file}, line {line}" for path, line in _lines(root, "")}


def _lines(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        yield path, key.start_mark.line + 1
        yield from _lines(value, f"{path}.")
