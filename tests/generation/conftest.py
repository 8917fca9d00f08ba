"""Prompts and agents to sample from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from agiledpo.algorithms import DPO


@pytest.fixture
def prompts() -> list[Tensor]:
    """Five prompts of different lengths, a one-token one and two of one length among them."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 97, (length,), generator=generator) for length in (4, 9, 1, 7, 4)]


@pytest.fixture
def make_agent(tiny_model, lora, randomise) -> Callable[..., DPO]:
    """Make an agent whose actor differs from the base: ``make_agent("mistral", seed=1, **arguments)``."""

    def make(architecture: str = "llama", *, seed: int = 7, **arguments: Any) -> DPO:
        if "actor_network" not in arguments:
            arguments["actor_network"] = tiny_model(architecture)
        agent = DPO(**{"lora_config": lora, "batch_size": 4, "lr": 1e-3, "nll_alpha": 0.0, **arguments})
        randomise(agent, seed=seed)
        return agent

    return make
