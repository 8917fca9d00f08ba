"""Overrides as they are typed: ``beta=0.05 lora.r=32 lora.target_modules='[q_proj,v_proj]'``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agiledpo.config.errors import ConfigError
from agiledpo.config.merging import Layer, at_path, expanded, merged
from agiledpo.config.schema import Section

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w/-]+)*")
# What YAML takes for the beginning of a comment.
_COMMENT = re.compile(r"(^|\s)#")


@dataclass(frozen=True)
class Override:
    """A value set on the command line.

    Attributes:
        path: Its keys, joined by dots.
        value: What YAML makes of it.
        text: As it was typed.
    """

    path: str
    value: Any
    text: str


def read_override(argument: str) -> Override:
    """Read ``KEY=VALUE``; Hydra's ``+KEY`` and ``++KEY`` are the same, since every key is known.

    Args:
        argument: As it was typed.

    Raises:
        ConfigError: It is something else.
    """
    if argument.startswith("-"):
        name, _, value = argument.lstrip("-").partition("=")
        raise ConfigError(
            f"There is no option {argument.partition('=')[0]}. Parameters are written without dashes: "
            f"{name.replace('-', '_')}={value or 'VALUE'}."
        )
    key, equals, text = argument.partition("=")
    if argument.startswith("~"):
        raise ConfigError(f"{argument}: nothing can be deleted. To leave something out, set {key.lstrip('~')}=null.")
    path = key.strip().removeprefix("+").removeprefix("+")
    if not equals:
        hint = f"Write {path}=VALUE" if _KEY.fullmatch(path) and not path.endswith((".yaml", ".yml")) else None
        hint = hint or (f"Read a file with --config {argument}" if path.endswith((".yaml", ".yml")) else None)
        raise ConfigError(f"{argument!r} sets nothing. {hint or 'Parameters are written as KEY=VALUE'}.")
    if not _KEY.fullmatch(path):
        raise ConfigError(f"{argument!r}: {path!r} is no name of a parameter. Write KEY=VALUE, without spaces.")
    return Override(path, _parsed(path, text), text)


def layer_of(overrides: Sequence[Override], schema: Section) -> Layer:
    """What several overrides set together; the last one wins.

    Args:
        overrides: The overrides.
        schema: What there is.
    """
    whole: Layer = {}
    for override in overrides:
        whole = merged(whole, expanded(at_path(override.path, override.value), schema), schema, is_one=True)
    return whole


def _parsed(path: str, text: str) -> Any:
    """A value as YAML reads it in a file."""
    if not text.strip():
        return "" if text else None
    if _COMMENT.search(text) and text.lstrip()[0] not in "'\"[{":
        return text  # the shell has no comments within a word
    try:
        # Inside a mapping, since OmegaConf reads a text alone as a configuration.
        found = OmegaConf.create(f"value: {text}")
        return OmegaConf.to_container(found, resolve=False)["value"]  # type: ignore[call-overload, index]
    except (yaml.YAMLError, OmegaConfBaseException):
        if text[0] in "[{":
            raise ConfigError(
                f"{path}={text} is no list or mapping that YAML can read; one is written {path}='[a, b]' or "
                f"{path}='{{a: 1}}', in quotes."
            ) from None
        return text
