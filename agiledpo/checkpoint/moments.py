"""An optimizer's state by the names of parameters, so that it finds its place when an adapter has grown."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agiledpo.algorithms.core.optimizers import moved_state
from agiledpo.algorithms.core.stepper import Stepper

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
        for kind, value in state.items():
            if not isinstance(value, (Tensor, int, float)):
                raise ValueError(f"the optimizer's {kind} of {name} is a {type(value).__name__}")
            if _is_moment(value) and value.shape != shapes[name]:
                raise ValueError(f"the optimizer's {kind} of {name} does not have its shape, {tuple(shapes[name])}")


def check_groups(saved: object, live: list[dict[str, Any]]) -> None:
    """Check that an optimizer's saved settings are of the types that its settings have.

    Args:
        saved: The saved groups of parameters.
        live: The optimizer's own.

    Raises:
        ValueError: A setting is of another type or no finite number; it is named.
    """
    if not isinstance(saved, list) or len(saved) != len(live):
        raise ValueError("the optimizer's groups of parameters are others")
    for theirs, mine in zip(saved, live, strict=True):
        for name in mine.keys() & theirs.keys() - {"params"}:
            if not _is_like(theirs[name], mine[name]):
                raise ValueError(f"the optimizer's {name} is {theirs[name]!r}")


def _is_like(value: object, like: object) -> bool:
    if isinstance(like, (tuple, list)):
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(like)
            and all(_is_like(a, b) for a, b in zip(value, like, strict=True))
        )
    if isinstance(like, bool) or like is None:
        return value is None or isinstance(value, bool)
    if isinstance(like, (int, float)):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, type(like))


def load_moments(
    optimizer: Optimizer | Stepper,
    parameters: Mapping[str, nn.Parameter],
    moments: Moments,
    factors: Mapping[str, float],
) -> None:
    """Give an optimizer moments from elsewhere; its settings stay.

    A parameter that has grown gets zeros where it is new, and one that the moments do not know starts afresh.

    Args:
        optimizer: Over the parameters, in their order; a stepper where processes share its state.
        parameters: By name.
        moments: By name, of at most the shapes of the parameters.
        factors: How many times what the moments were taken of a parameter is, by name, where that is not 1.
    """
    state = optimizer.state_dict()
    state["state"] = {
        number: moved_state(moments[name], _shape(moments[name]), parameter, factors.get(name, 1.0))
        for number, (name, parameter) in enumerate(parameters.items())
        if name in moments
    }
    optimizer.load_state_dict(state)


def _shape(state: Mapping[str, Any]) -> torch.Size:
    """The shape that a parameter had when its moments were taken."""
    return next((value.shape for value in state.values() if _is_moment(value)), torch.Size())


def _is_moment(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() > 0
