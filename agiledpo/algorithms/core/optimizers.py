"""Handing an optimizer's state from one agent to another, or to other parameters."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@torch.no_grad()
def copy_optimizer_state(source: Optimizer, target: Optimizer) -> None:
    """Give an optimizer the state and settings of another, writing into the tensors that it has already.

    Args:
        source: Where from.
        target: Of the same kind, over parameters of the same shapes in the same order.
    """
    for theirs, ours in zip(source.param_groups, target.param_groups, strict=True):
        parameters = ours["params"]
        ours.clear()  # a setting that only the target had, such as a schedule's first rate, is not the source's
        ours.update({name: deepcopy(value) for name, value in theirs.items() if name != "params"}, params=parameters)
        for their_parameter, our_parameter in zip(theirs["params"], ours["params"], strict=True):
            if their_parameter not in source.state:
                target.state.pop(our_parameter, None)
                continue
            present = target.state[our_parameter]
            for name, value in source.state[their_parameter].items():
                if isinstance(value, Tensor) and isinstance(present.get(name), Tensor):
                    present[name].copy_(value)
                else:
                    present[name] = deepcopy(value)


# Power of the gradient that each of AdamW's and SGD's moments is a mean of.
_POWERS = {"exp_avg": 1, "momentum_buffer": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}


@torch.no_grad()
def move_optimizer(
    optimizer: Optimizer,
    old: Mapping[str, nn.Parameter],
    new: Mapping[str, nn.Parameter],
    factors: Mapping[str, float],
) -> None:
    """Make an optimizer step other parameters, which have the old ones in their first rows and columns.

    A parameter that became ``c`` times what it was has ``1 / c`` of the gradient, so the means of its gradients and of
    their squares are scaled by ``1 / c`` and ``1 / c^2``. Moments of new rows and columns are zero; a parameter without
    a predecessor starts without state.

    Args:
        optimizer: It is changed in place, so that schedules that hold it go on with it.
        old: The parameters that it steps, by name.
        new: The parameters to step, by the same names; more of them join the first group.
        factors: What the parameters were multiplied by, by name, where it is not 1.

    Raises:
        ValueError: The optimizer has a state whose scaling is unknown; nothing has changed.
    """
    moved = {
        name: moved_state(optimizer.state[parameter], parameter.shape, new[name], factors.get(name, 1.0))
        for name, parameter in old.items()
        if parameter in optimizer.state
    }
    names = {parameter: name for name, parameter in old.items()}
    for number, group in enumerate(optimizer.param_groups):
        stepped = {names[parameter] for parameter in group["params"]}
        group["params"] = [
            parameter for name, parameter in new.items() if name in stepped or (number == 0 and name not in old)
        ]
    optimizer.state.clear()
    optimizer.state.update({new[name]: state for name, state in moved.items()})


def check_scalable(states: Iterable[Mapping[str, Any]]) -> None:
    """Check that optimizer states can be taken along to parameters that become multiples of what they were, and larger.

    Args:
        states: The states of parameters, by name.

    Raises:
        ValueError: How a state scales with its parameter is unknown.
    """
    for state in states:
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() > 0 and name not in _POWERS:
                raise _unscalable(name)


def _unscalable(name: str) -> ValueError:
    return ValueError(f"The optimizer's state {name!r} cannot be scaled with its parameter; make a new optimizer.")


def moved_state(state: Mapping[str, Any], shape: torch.Size, new: Tensor, factor: float) -> dict[str, Any]:
    """One parameter's optimizer state for a larger parameter; see :func:`move_optimizer`.

    Args:
        state: The state by name; tensors of the parameter's shape are moments.
        shape: The parameter's shape before.
        new: The larger parameter; the state is put where it is.
        factor: What the parameter was multiplied by.

    Raises:
        ValueError: The parameter was scaled, and how a moment scales with it is unknown.
    """
    moved: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.shape != shape or value.dim() == 0:
            moved[name] = deepcopy(value)
            continue
        if factor != 1.0 and name not in _POWERS:
            raise _unscalable(name)
        padded = torch.zeros(new.shape, dtype=value.dtype, device=new.device)
        padded[tuple(map(slice, value.shape))] = value / factor ** _POWERS.get(name, 0)
        moved[name] = padded
    return moved
