"""Moving an adapter's function into another adapter that has room for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn


@dataclass(frozen=True)
class Move:
    """How an adapter's parameters went into larger ones.

    Attributes:
        parameters: The parameters as they were, by name; in the new ones each is the first rows and columns.
        factors: What they were multiplied by, for those where it is not 1.
    """

    parameters: Mapping[str, nn.Parameter]
    factors: Mapping[str, float]


@torch.no_grad()
def transplant(model: nn.Module, source: str, target: str) -> dict[str, float]:
    """Make an adapter that adds nothing compute what another does.

    With ``s`` for LoRA's scaling (alpha / r, or alpha / sqrt(r) with rsLoRA) and ``c = s_source / s_target``, the
    target's first rows of A are the source's and its first columns of B are ``c`` times the source's. The other columns
    of B stay zero, so that the other rows of A, which keep their fresh values, add nothing; were they zero too, neither
    would ever get a gradient. With embeddings it is the other way round: fresh are columns of B, zero are rows of A.

    Args:
        model: The model that carries both.
        source: Name of the adapter to copy.
        target: Name of an adapter that adds nothing, with LoRA factors of at least the source's rank wherever that has
            some, and a copy of every module that it has a copy of.

    Returns:
        The factors by which parameters were multiplied, other than 1, by the parameters' names without the adapter's.

    Raises:
        ValueError: As :func:`check_transplantable`.
    """
    check_transplantable(model, source)
    factors: dict[str, float] = {}
    for key, module in model.named_modules():
        if isinstance(module, LoraLayer) and source in module.r:
            factor = module.scaling[source] / module.scaling[target]
            for name in _move(module, source, target, factor):
                if factor != 1.0:
                    factors[f"{key}.{name}"] = factor
        elif isinstance(module, ModulesToSaveWrapper) and source in module.modules_to_save:
            module.modules_to_save[target].load_state_dict(module.modules_to_save[source].state_dict())
    return factors


def check_transplantable(model: nn.Module, name: str) -> None:
    """Check that an adapter is nothing but products of two factors, DoRA's magnitudes and whole modules.

    Args:
        model: The model that carries it.
        name: Its name.

    Raises:
        ValueError: A layer is of another kind.
    """
    for key, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or name not in layer.r:
            continue
        variant = layer.lora_variant.get(name)
        odd = layer if isinstance(layer, (MultiheadAttention, ParamWrapper)) else variant
        if not isinstance(odd, (type(None), DoraLinearVariant)):
            raise ValueError(
                f"{key} has LoRA of the kind {type(odd).__name__}, which cannot be reconciled with another LoRA "
                "configuration. Make the agent with the lora_config of the saved adapter."
            )


def _move(layer: LoraLayer, source: str, target: str, factor: float) -> list[str]:
    """Copy one layer's factors; return the names of the parameters that the factor went into."""
    rank = layer.r[source]
    if source in layer.lora_embedding_A:
        layer.lora_embedding_A[target][:rank] = layer.lora_embedding_A[source]
        _scaled(layer.lora_embedding_B[target][:, :rank], layer.lora_embedding_B[source], factor)
        return ["lora_embedding_B"]
    (down, new_down), (up, new_up) = (
        (cast(nn.Linear, factors[source]), cast(nn.Linear, factors[target])) for factors in (layer.lora_A, layer.lora_B)
    )
    new_down.weight[:rank] = down.weight
    _scaled(new_up.weight[:, :rank], up.weight, factor)
    if source in layer.lora_magnitude_vector:
        magnitudes = layer.lora_magnitude_vector
        cast(nn.Linear, magnitudes[target]).weight.copy_(cast(nn.Linear, magnitudes[source]).weight)
    if up.bias is None:
        return ["lora_B.weight"]
    _scaled(new_up.bias, up.bias, factor)
    return ["lora_B.weight", "lora_B.bias"]


def _scaled(target: Tensor, values: Tensor, factor: float) -> None:
    target.copy_(values * factor)
