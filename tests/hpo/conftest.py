"""Agents for the tests of evolution: real DPO agents on one tiny model, and weightless ones where only ranks count."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core import EvolvableAlgorithm
from agiledpo.algorithms.core.registry import HyperparameterConfig
from agiledpo.hpo.records import Born, Diverged, Evaluated, Final, Mutated, Record, Selected


class Weightless(EvolvableAlgorithm):
    """An agent that is nothing but a learning rate and a beta, evaluated by a function of itself."""

    HYPERPARAMETERS: ClassVar = {"lr": float, "beta": float}

    def __init__(
        self,
        index: int = 0,
        lr: float = 1.0,
        beta: float = 1.0,
        hp_config: HyperparameterConfig | None = None,
        kind="a",
    ) -> None:
        super().__init__(None, None, index=index, hp_config=hp_config, device="cpu", accelerator=None, seed=0)
        self.lr, self.beta, self.kind, self.freed = lr, beta, kind, False
        self.check_hyperparameters()

    def learn(self, experiences: Any, training: bool = True) -> dict[str, float]:
        self.steps[-1] += len(experiences)
        return {"loss": 0.0}

    def test(self, env: Callable[[Self], float], loop: int = 1) -> np.ndarray:
        value = float(np.mean([env(self) for _ in range(loop)]))
        self.record_fitness(value)
        return np.array(value)

    def clone(self, index: int | None = None, wrap: bool = True) -> Self:
        twin = type(self)(self.index if index is None else index, kind=self.kind)
        twin.inherit(self)
        return twin

    def inherit(self, parent: Self) -> None:
        self.copy_attributes(parent, self)
        self.mutation_hook()

    def clean_up(self) -> None:
        self.freed = True

    def check_settings(self) -> None:
        if self.lr <= 0 or self.beta <= 0:
            raise ValueError(f"lr={self.lr} and beta={self.beta} must be positive.")

    def evolvable_attributes(self, networks_only: bool = False) -> dict[str, Any]:
        return {}

    def reinit_optimizers(self, optimizer: Any = None) -> None:
        """There are none."""


@pytest.fixture(scope="session")
def weightless() -> type[Weightless]:
    return Weightless


@pytest.fixture
def herd() -> Callable[..., list[Weightless]]:
    """Make weightless agents 0, 1, ... of given fitness: ``herd([0.5, 0.7], tie_breaks=None)``."""

    def make(fitness: list[float], tie_breaks: list[float] | None = None, **arguments: Any) -> list[Weightless]:
        agents = [Weightless(index, **arguments) for index in range(len(fitness))]
        for agent, value, tie in zip(agents, fitness, tie_breaks or [0.0] * len(fitness), strict=True):
            agent.record_fitness(value, tie_break=tie)
        return agents

    return make


@pytest.fixture
def dpo_population(tiny_model, lora, make_experiences) -> Callable[..., list[DPO]]:
    """Make trained DPO agents 0, 1, ... on one tiny model, each of other weights: ``dpo_population([0.5, 0.7])``.

    The first fitness is agent 0's, and so on. ``lora_configs`` gives each agent a configuration of its own.
    """

    def make(fitness: list[float], *, lora_configs: list[Any] | None = None, **arguments: Any) -> list[DPO]:
        model = tiny_model()
        agents = []
        for index, value in enumerate(fitness):
            config = lora if lora_configs is None else lora_configs[index]
            settings = {"lr": 1e-2 * (index + 1), "beta": 0.1 * (index + 1), "nll_alpha": 0.0, **arguments}
            agent = DPO(actor_network=model, lora_config=config, index=index, batch_size=2, **settings)
            agent.learn(make_experiences([(3, 4, 2), (2, 3, 5)], seed=index))
            agent.record_fitness(value)
            agents.append(agent)
        return agents

    return make


@pytest.fixture
def family() -> list[Record]:
    """Three founders; 3 descends from 0 and 4 from 3; 2 diverges, and 1 gives way."""

    def hyperparameters(lr: float, loss_type: str = "sigmoid") -> dict[str, object]:
        return {"lr": lr, "beta": 0.1, "batch_size": 4, "loss_type": (loss_type,)}

    def evaluated(agent: int, generation: int, pairs: int, fitness: float, tie_break: float = 0.0) -> Evaluated:
        return Evaluated(
            agent=agent, generation=generation, pairs=pairs, fitness=fitness, error=0.02, tie_break=tie_break
        )

    return [
        Born(agent=0, parent=None, generation=0, pairs=0, hyperparameters=hyperparameters(1e-5)),
        Born(agent=1, parent=None, generation=0, pairs=0, hyperparameters=hyperparameters(1e-6)),
        Born(agent=2, parent=None, generation=0, pairs=0, hyperparameters=hyperparameters(1e-3)),
        Diverged(agent=2, generation=0, pairs=40, reason="The loss is nan."),
        evaluated(0, 0, 100, 0.6, 0.5),
        evaluated(1, 0, 100, 0.55),
        Selected(generation=1, pairs=100, elite=0, survivors=(0, 1), replaced=(2,)),
        Born(agent=3, parent=0, generation=1, pairs=100, hyperparameters=hyperparameters(1e-5)),
        Mutated(agent=0, generation=1, pairs=100, parameter="lr", old=1e-5, new=8e-6),
        Mutated(agent=3, generation=1, pairs=100, parameter="lr", old=1e-5, new=2e-5),
        evaluated(0, 1, 200, 0.65),
        evaluated(1, 1, 200, math.nan),
        evaluated(3, 1, 200, 0.7),
        Selected(generation=2, pairs=200, elite=3, survivors=(0, 3), replaced=(1,)),
        Born(agent=4, parent=3, generation=2, pairs=200, hyperparameters=hyperparameters(2e-5)),
        Mutated(agent=4, generation=2, pairs=200, parameter="loss_type", old=("sigmoid",), new=("hinge", "sft")),
        evaluated(0, 2, 300, 0.66),
        evaluated(3, 2, 300, 0.71),
        evaluated(4, 2, 300, 0.74),
        Final(agent=4, pairs=300, split="test", fitness=0.725, error=0.03),
    ]
