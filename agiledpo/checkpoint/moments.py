"""An optimizer's state by the names of parameters, so that it finds its place when an adapter has grown."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.optim import Optimizer

# Moments by the power of the gradient that they are means of.
_POWERS = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}

Moments = dict[str, dict[str, Any]]


def moments_by_name(state: Mapping[str, Any], names: list[str]) -> Moments:
    """State of each parameter by its name.

    Args:
        state: What an optimizer's ``state_dict`` gave.
        names: Names of its parameters in their order.

    Raises:
        ValueError: They do not belong together.
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if len(numbers) != len(names) or not state["state"].keys() <= set(numbers):
        raise ValueError(f"the optimizer has {len(numbers)} parameters and {len(names)} names")
    return {
        name: dict(state["state"][number])
        for number, name in zip(numbers, names, strict=True)
        if number in state["state"]
    }


def check_moments(moments: Moments, shapes: Mapping[str, torch.Size]) -> None:
    """Check that moments are of the parameters of an adapter.

    Args:
        moments: By parameter name.
        shapes: Of the adapter's parameters, by name.

    Raises:
        ValueError: A moment is of no parameter there, or has another shape; it is named.
    """
    for name, state in moments.items():
        if name not in shapes:
            raise ValueError(f"the optimizer's state is of {name}, which the adapter does not have")
        for kind in _POWERS.keys() & state.keys():
            if not isinstance(state[kind], Tensor) or state[kind].shape != shapes[name]:
                raise ValueError(f"the optimizer's {kind} of {name} does not have its shape, {tuple(shapes[name])}")


def load_moments(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], moments: Moments, factors: Mapping[str, float]
) -> None:
    """Give an optimizer moments from elsewhere; its settings stay.

    A parameter that has grown gets zeros where it is new, and one that the moments do not know starts afresh. Where a
    parameter is ``c`` times what the moments were taken of, gradients are ``1 / c`` times what they were: so are first
    moments, and second ones ``1 / c ** 2``.

    Args:
        optimizer: Over the parameters, in their order.
        parameters: By name.
        moments: By name, of at most the shapes of the parameters.
        factors: ``c`` by name, where it is not 1.
    """
    state = optimizer.state_dict()
    state["state"] = {
        number: _moved(moments[name], parameter, factors.get(name, 1.0))
        for number, (name, parameter) in enumerate(parameters.items())
        if name in moments
    }
    optimizer.load_state_dict(state)


def scale_factors(parameters: Mapping[str, nn.Parameter], saved: LoraConfig, live: LoraConfig) -> dict[str, float]:
    """By what the B factors of a loaded adapter were multiplied because its scaling is another one.

    LoRA adds ``scale * B A`` with ``scale = alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA (Kalajdzievski 2023,
    https://arxiv.org/abs/2312.03732).

    Args:
        parameters: Of the live adapter, by name.
        saved: Configuration that the adapter was saved with.
        live: Configuration that it was loaded into.

    Returns:
        Factors by parameter name, where they are not 1.
    """
    factors = {}
    for name in parameters:
        module, found, _ = name.partition(".lora_B")
        if not found:
            module, found, _ = name.partition(".lora_embedding_B")
        if found and (factor := _scale(saved, module) / _scale(live, module)) != 1.0:
            factors[name] = factor
    return factors


def _scale(config: LoraConfig, module: str) -> float:
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), module), config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
    return float(alpha / rank**0.5 if config.use_rslora else alpha / rank)


def _moved(state: dict[str, Any], parameter: nn.Parameter, factor: float) -> dict[str, Any]:
    return {
        kind: _padded(value, parameter, factor ** -_POWERS[kind]) if kind in _POWERS else value
        for kind, value in state.items()
    }


def _padded(moment: Tensor, parameter: nn.Parameter, factor: float) -> Tensor:
    padded = torch.zeros(parameter.shape, dtype=moment.dtype)
    padded[tuple(slice(0, size) for size in moment.shape)] = moment if factor == 1.0 else moment * factor
    return padded
