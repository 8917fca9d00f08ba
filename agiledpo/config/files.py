"""Configuration files, which may go on from others."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agiledpo.config.errors import ConfigError
from agiledpo.config.merging import Layer, check_alternatives, expanded, merged
from agiledpo.config.origins import Origins, places_in
from agiledpo.config.schema import Section

# A file that lists others there goes on from them.
BASES = "defaults"


def read_file(file: Path, schema: Section, origins: Origins, _above: tuple[Path, ...] = ()) -> Layer:
    """What a YAML file sets, merged over the files that it names under ``defaults``.

    Args:
        file: The file; the others are relative to it, and may leave out ``.yaml``.
        schema: What there is.
        origins: Is told where each value was set.

    Raises:
        ConfigError: A file is not there, is not a mapping in YAML, or goes on from itself, or it sets parameters that
            exclude each other.
    """
    if file.resolve() in _above:
        raise ConfigError(f"{file} goes on from itself, by way of {_above[-1]}. Take it out of `defaults` there.")
    text = _read(file, named_by=_above[-1] if _above else None)
    try:
        found = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
        places = places_in(text, file)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} is not valid YAML: {_one_line(error)}.") from None
    if not isinstance(found, DictConfig):
        raise ConfigError(f"{file} holds no mapping. A configuration has lines such as `beta: 0.1`.")
    layer: Any = OmegaConf.to_container(found, resolve=False)
    whole: Layer = {}
    for base in _bases(layer.pop(BASES, None), file):
        whole = merged(whole, read_file(base, schema, origins, (*_above, file.resolve())), schema)
    origins.add({path: place for path, place in places.items() if path.split(".")[0] != BASES})
    layer = expanded(layer, schema)
    check_alternatives(layer, schema, str(file))
    return merged(whole, layer, schema)


def _read(file: Path, *, named_by: Path | None) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        where = "" if named_by is None else f", which {named_by} names under `{BASES}`"
        raise ConfigError(f"There is no configuration file {file}{where}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from None


def _bases(named: Any, file: Path) -> list[Path]:
    if named is None:
        return []
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{file}: `{BASES}` lists files, such as `{BASES}: [other.yaml]`, got {named}.")
    found = []
    for name in names:
        if name == "_self_":  # Hydra's word for the file itself, which always comes last here
            continue
        base = file.parent / name
        found.append(base if base.suffix in (".yaml", ".yml") else base.with_name(f"{base.name}.yaml"))
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
