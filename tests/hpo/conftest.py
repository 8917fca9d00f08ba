"""A small family whose tree is known."""

import math

import pytest

from agiledpo.hpo.records import Born, Diverged, Evaluated, Final, Mutated, Record, Selected


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
