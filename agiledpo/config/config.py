"""A whole configuration: a value for every parameter, and where it came from."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agiledpo.config.algorithms import ALGORITHMS, SEEDS, Algorithm, parameters_of_agent, schema_of
from agiledpo.config.errors import ConfigError
from agiledpo.config.files import read_file
from agiledpo.config.merging import Layer, check_alternatives, merged
from agiledpo.config.origins import Origins
from agiledpo.config.overrides import layer_of, read_override
from agiledpo.config.printing import to_yaml
from agiledpo.config.resolving import check_names, check_sections, checked, with_defaults
from agiledpo.config.schema import Section

# What suits the embedded model and data.
_EXAMPLES = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Config:
    """What a run goes by.

    Attributes:
        algorithm: ``"dpo"``, ``"sft"`` or ``"grpo"``.
        values: Of every parameter and section, plain data.
        schema: What the parameters are.
        is_example: Whether neither model nor data were given, so that it is the embedded example.
    """

    algorithm: str
    values: Mapping[str, Any]
    schema: Section
    is_example: bool = False

    @property
    def parts(self) -> Algorithm:
        """What the algorithm is made of."""
        return ALGORITHMS[self.algorithm]

    @property
    def parameters(self) -> dict[str, Any]:
        """The algorithm's own parameters."""
        return {name: deepcopy(self.values[name]) for name in parameters_of_agent(self.algorithm)}

    def section(self, name: str) -> dict[str, Any]:
        """The values of a section, to be changed at will.

        Args:
            name: Its name.
        """
        return deepcopy(dict(self.values[name]))

    def seeded(self, name: str) -> Any:
        """The values of a section, in which seeds that are null are the run's; None for a section that is null.

        Args:
            name: Its name.
        """
        return None if self.values[name] is None else self._seeded(self.section(name))

    def _seeded(self, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            name: self.values["seed"] if name in SEEDS and value is None else self._seeded(value)
            for name, value in values.items()
        }

    def to_yaml(self) -> str:
        """A file that says the same, with what each parameter is."""
        title = f"A configuration for `agiledpo train {self.algorithm}`: every parameter, and what it is."
        return to_yaml(self.values, self.schema, title=title)


def load_config(algorithm: str, files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Defaults are those of the signatures of what is configured. What files say comes over them, from left to right, and
    overrides over that. If none of them names a model or training data, it is the embedded example, whose values come
    below all that is given.

    Args:
        algorithm: ``"dpo"``, ``"sft"`` or ``"grpo"``.
        files: YAML files.
        overrides: ``KEY=VALUE``, such as ``lora.r=32``.

    Raises:
        ConfigError: A file cannot be read, a key is unknown, or a value is not of its kind.
    """
    schema = schema_of(algorithm)
    origins = Origins()
    layers = [read_file(Path(file), schema, origins) for file in files]
    typed = [read_override(override) for override in overrides]
    origins.add({override.path: "command line" for override in typed})
    layers.append(layer_of(typed, schema))
    check_alternatives(layers[-1], schema, "command line")
    given = _together(layers, schema)
    is_example = not _says(given, "model", "name") and not _says(given, "data", "train")
    if is_example:
        example = read_file(_EXAMPLES / f"{algorithm}.yaml", schema, Origins())
        given = _together([example, *layers], schema)
    check_sections(given, schema, origins)
    check_names(given, schema, origins)
    values = _resolved(with_defaults(given, schema))
    raw = {override.path: override.text for override in typed}
    return Config(algorithm, checked(values, schema, origins, raw), schema, is_example)


def _together(layers: Sequence[Layer], schema: Section) -> Layer:
    whole: Layer = {}
    for layer in layers:
        whole = merged(whole, layer, schema)
    return whole


def _says(given: Mapping[str, Any], section: str, name: str) -> bool:
    inside = given.get(section)
    return isinstance(inside, Mapping) and name in inside


def _resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with ``${...}`` replaced by what it names."""
    # Without flags that check types: our own schema does.
    whole = DictConfig(values, flags={"allow_objects": True})
    try:
        return OmegaConf.to_container(whole, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split()) + ".") from None
