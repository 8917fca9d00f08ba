"""What docstrings say about parameters: Google's style as this library writes it, and as PEFT does."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

# "name: text" and "name (`type`):" begin an entry; what is indented more goes on with it.
_ENTRY = re.compile(r"(\*{0,2}\w+)(?: \(.*?\))?:(?: |$)(.*)|(\w+) \(`.*`\)$")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_STRESS = re.compile(r"(?<!\w)\*(\w+)\*(?!\w)")
_LINK = re.compile(r"<a [^>]*>(.*?)</a>|\[([^\]]+)\]\(https?://[^)]*\)")
# A sentence ends with a full stop and a space, though not after an abbreviation or inside parentheses.
_SENTENCE = re.compile(r"(?<!e\.g)(?<!i\.e)\.\s+(?=[^a-z])")


def parameter_help(documented: Callable[..., Any]) -> Mapping[str, str]:
    """What the ``Args:`` of a docstring say, by parameter, as one paragraph each.

    Args:
        documented: A function, or a class whose docstring describes its constructor.
    """
    lines = inspect.cleandoc(documented.__doc__ or "").splitlines()
    entries: dict[str, list[str]] = {}
    name, inside, depth = "", False, 0
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not inside:
            inside = line.strip() in ("Args:", "Attributes:") and not entries
            depth = 0
            continue
        if line.strip() and indent == 0:
            inside = False
            continue
        depth = depth or indent
        entry = _ENTRY.match(line.strip()) if indent == depth else None
        if entry is not None:
            name = (entry[1] or entry[3]).lstrip("*")
            entries[name] = [entry[2] or ""]
        elif name:
            entries[name].append(line.strip())
    return {name: plain_text(" ".join(part for part in parts if part)) for name, parts in entries.items()}


def summary(documented: Callable[..., Any]) -> str:
    """The first line of a docstring, without its full stop."""
    return plain_text(inspect.cleandoc(documented.__doc__ or "").split("\n", 1)[0]).removesuffix(".")


def first_sentence(text: str) -> str:
    """What comes before the first full stop, which is left out."""
    return _SENTENCE.split(text, maxsplit=1)[0].strip().removesuffix(".")


def plain_text(text: str) -> str:
    """A docstring's text without its mark-up."""
    text = _LINK.sub(lambda link: link[1] or link[2], _ROLE.sub(r"\1", text))
    return " ".join(_STRESS.sub(r"\1", text.replace("``", "`")).split())


def in_yaml(text: str) -> str:
    """A text about Python values in the words of a YAML file: null, true and false."""
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return text.replace("`", "")
