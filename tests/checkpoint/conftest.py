"""Agents that have learned something, and what there is of them to compare."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from agiledpo.algorithms import DPO


@pytest.fixture
def make_agent(tiny_model, lora) -> Callable[..., DPO]:
    """Make an agent on a new tiny model: ``make_agent(**arguments)``."""

    def make(**arguments: Any) -> DPO:
        if "actor_network" not in arguments and "model_name" not in arguments:
            arguments["actor_network"] = tiny_model()
        return DPO(**{"lora_config": lora, "batch_size": 2, "lr": 1e-3, **arguments})

    return make


@pytest.fixture
def make_trained(make_agent, randomise, make_experiences) -> Callable[..., DPO]:
    """Make an agent whose actor, reference, optimizer, random stream and history are no beginner's."""

    def make(*, seed: int = 7, **arguments: Any) -> DPO:
        agent = make_agent(**{"index": 3, "beta": 0.25, **arguments})
        randomise(agent, seed=seed)
        if agent.use_separate_reference_adapter:
            randomise(agent, "reference", seed=seed + 1)
        agent.learn(make_experiences([(3, 4, 2), (2, 2, 5), (4, 1, 1)], seed=seed))
        with agent.random_stream.active():
            torch.rand(3)
        agent.record_fitness(0.75, 0.1, 0.5)
        return agent

    return make


def everything(agent: DPO) -> dict[str, Any]:
    """A copy of all that an agent is, to be compared by :func:`same`."""
    moments = {
        name: agent.optimizer.state[parameter]
        for name, parameter in agent.base.parameters(agent.adapters.owned["actor"]).items()
        if parameter in agent.optimizer.state
    }
    return deepcopy(
        {
            **agent.state_dict(),
            "seed": agent.seed,
            "moments": moments,
            "base": agent.base.base_state(),
            "adapter_names": agent.base.adapter_names,
            "lora_config": agent.lora_config.to_dict(),
        }
    )


def same(one: Any, other: Any) -> bool:
    """Whether two structures are equal, tensors to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other or (one != one and other != other))


def logits(agent: DPO, role: str = "actor") -> Tensor:
    """What the model says in a role."""
    with agent.select_adapter(role) as model, torch.no_grad():
        return model.eval()(torch.arange(1, 9)[None]).logits.clone()
