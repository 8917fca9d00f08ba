"""Handing an optimizer's state from one agent to another."""

from copy import deepcopy

import torch
from torch import Tensor
from torch.optim import Optimizer


@torch.no_grad()
def copy_optimizer_state(source: Optimizer, target: Optimizer) -> None:
    """Give an optimizer the state and settings of another, writing into the tensors that it has already.

    Args:
        source: Where from.
        target: Of the same kind, over parameters of the same shapes in the same order.
    """
    for theirs, ours in zip(source.param_groups, target.param_groups, strict=True):
        ours.update({name: deepcopy(value) for name, value in theirs.items() if name != "params"})
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
