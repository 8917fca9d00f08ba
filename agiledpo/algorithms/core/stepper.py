"""What moves the parameters of an agent's actor: from the gradients of micro-batches to an optimizer step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from typing_extensions import override

from agiledpo.algorithms.core.optimizers import copy_optimizer_state, move_optimizer
from agiledpo.distributed.team import Team
from agiledpo.distributed.zero_config import deepspeed_config, zero_stage


class Stepper(ABC):
    """The contract between an optimizer step and whatever holds gradients and moments.

    All processes of a team call the same methods in the same order.

    Attributes:
        optimizer: Whose settings (learning rate, weight decay) the step is made with.
    """

    optimizer: Optimizer

    @abstractmethod
    def begin(self) -> None:
        """Begin a step without gradients, on the parameters as they are, whoever wrote to them."""

    @abstractmethod
    def backward(self, share: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch.

        Args:
            share: Its share of the step's loss, a scalar. The loss is the sum of all shares of all processes.
            last: Whether it is this process's last one of the step.
        """

    @abstractmethod
    def finish(self, max_norm: float) -> float:
        """Add up the gradients of all processes and scale them down to a norm.

        Args:
            max_norm: Largest norm of the step's gradient.

        Returns:
            The norm before.
        """

    @abstractmethod
    def step(self) -> None:
        """Move the parameters."""

    @abstractmethod
    def clear(self) -> None:
        """Forget the gradients: memory that the next agent needs."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state as one process would have it: whole moments of each parameter."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, by however many processes; tensors are copied."""

    @abstractmethod
    def copy_from(self, other: Self) -> None:
        """Take over the state and the settings of a stepper over parameters of the same shapes."""

    @abstractmethod
    def move(
        self, old: Mapping[str, nn.Parameter], new: Mapping[str, nn.Parameter], factors: Mapping[str, float]
    ) -> None:
        """Step other parameters from here on; see :func:`agiledpo.algorithms.core.optimizers.move_optimizer`."""

    @abstractmethod
    def forget(self) -> None:
        """Free the moments; the stepper cannot be used until others are loaded."""


class LocalStepper(Stepper):
    """Every process holds all moments and makes the same step, on the sum of all processes' gradients.

    The gradients of LoRA factors are small, so they are summed once a step, in one message.

    Args:
        optimizer: The optimizer.
        parameters: What it steps.
        team: The processes.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], team: Team) -> None:
        self.optimizer = optimizer
        self._parameters = list(parameters)
        self._team = team

    @override
    def begin(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @override
    def backward(self, share: Tensor, *, last: bool) -> None:
        share.backward()

    @override
    def finish(self, max_norm: float) -> float:
        if not self._team.is_alone:
            self._sum_gradients()
        return float(clip_grad_norm_(self._parameters, max_norm))

    def _sum_gradients(self) -> None:
        """Add up the gradients of all processes; a parameter that none of them has reached stays without one."""
        reached = torch.tensor([float(p.grad is not None) for p in self._parameters], device=self._team.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        self._team.sum_([reached, *gradients])
        for parameter, gradient, count in zip(self._parameters, gradients, reached.tolist(), strict=True):
            parameter.grad = gradient if count else None

    @override
    def step(self) -> None:
        self.optimizer.step()

    @override
    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(deepcopy(dict(state)))

    @override
    def copy_from(self, other: Self) -> None:
        copy_optimizer_state(other.optimizer, self.optimizer)

    @override
    def move(
        self, old: Mapping[str, nn.Parameter], new: Mapping[str, nn.Parameter], factors: Mapping[str, float]
    ) -> None:
        move_optimizer(self.optimizer, old, new, factors)
        self._parameters = list(new.values())

    @override
    def forget(self) -> None:
        self.optimizer.state.clear()


def make_stepper(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], team: Team, accelerator: Accelerator | None
) -> Stepper:
    """What moves parameters as an accelerator would have it.

    Args:
        optimizer: Over the parameters.
        parameters: By name.
        team: The processes.
        accelerator: Accelerate's handle; None for a process of its own.
    """
    config = deepspeed_config(accelerator)
    if config is None or zero_stage(config) == 0 or team.is_alone:  # alone there is nobody to share with
        return LocalStepper(optimizer, list(parameters.values()), team)
    from agiledpo.distributed.zero_stepper import ZeroStepper  # it needs DeepSpeed, which is an extra

    return ZeroStepper(optimizer, parameters, team, config)
