"""Agents and experiences for the algorithm tests."""

from collections.abc import Callable
from typing import Any

import pytest

from agiledpo.algorithms import DPO

LENGTHS = [(7, 5, 9), (1, 1, 1), (3, 8, 1), (12, 1, 6), (4, 4, 4), (2, 9, 3)]


@pytest.fixture
def experiences(make_experiences) -> dict[str, Any]:
    """Six pairs of different lengths, one-token prompts and completions among them."""
    return make_experiences(LENGTHS)


@pytest.fixture
def make_agent(tiny_model, lora, randomise) -> Callable[..., DPO]:
    """Make an agent on a tiny model: ``make_agent(moved=True, architecture="llama", **arguments)``.

    ``moved`` gives the actor weights of its own, so that it differs from the reference.
    """

    def make(*, moved: bool = False, architecture: str = "llama", **arguments: Any) -> DPO:
        if "actor_network" not in arguments and "model_name" not in arguments:
            arguments["actor_network"] = tiny_model(architecture)
        agent = DPO(**{"lora_config": lora, "batch_size": 6, "lr": 1e-3, "nll_alpha": 0.0, **arguments})
        if moved:
            randomise(agent)
        return agent

    return make
