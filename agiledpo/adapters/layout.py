"""What an adapter's configuration comes to on a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import get_pattern_key
from torch import nn

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class AdapterLayout:
    """Where an adapter is and how its products are scaled, whatever way its configuration says so.

    Attributes:
        config: The configuration.
        ranks: Rank by the name of the module that has LoRA factors.
        scalings: Factor on the product of the factors by the same name.
        whole: Names of the modules that the adapter has its own copy of.
    """

    config: LoraConfig
    ranks: Mapping[str, int]
    scalings: Mapping[str, float]
    whole: frozenset[str]


def layout_of(model: nn.Module, name: str, config: LoraConfig) -> AdapterLayout:
    """Read the layout of an adapter off the model that carries it.

    Args:
        model: The model with PEFT's layers injected; its module names are those of the layout.
        name: PEFT's name of the adapter.
        config: Its configuration.
    """
    layers = {
        key: module for key, module in model.named_modules() if isinstance(module, LoraLayer) and name in module.r
    }
    wrappers = {key: module for key, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    return AdapterLayout(
        config=config,
        ranks={key: layer.r[name] for key, layer in layers.items()},
        scalings={key: float(layer.scaling[name]) for key, layer in layers.items()},
        whole=frozenset(key for key, wrapper in wrappers.items() if name in wrapper.modules_to_save),
    )


def targets(config: LoraConfig, key: str) -> bool:
    """Whether a configuration gives LoRA factors to the module of a name."""
    # PEFT answers "excluded" with an object that is false.
    return bool(check_target_module_exists(config, key))


def by_pattern(pattern: Mapping[str, Number] | None, key: str, otherwise: Number) -> Number:
    """A module's value of ``rank_pattern`` or ``alpha_pattern``, as PEFT looks it up.

    Args:
        pattern: Values by regular expression of module names.
        key: Name of the module.
        otherwise: The value where none matches.
    """
    return pattern.get(get_pattern_key(list(pattern), key), otherwise) if pattern else otherwise


def base_key(key: str) -> str:
    """Name of a base weight as it was before PEFT wrapped its module."""
    return key.replace(".base_layer.", ".").replace(".original_module.", ".")
