"""Mutation: changing one hyperparameter of an agent, as its ``hp_config`` allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator

from agiledpo.algorithms.core.evolvable import EvolvableAlgorithm
from agiledpo.losses.checks import check_number

Agent = TypeVar("Agent", bound=EvolvableAlgorithm)

# What AgileRL can do to the networks of classical agents, and what stands in the way here.
_NETWORK_MUTATIONS = {
    "architecture": "the architecture of a pretrained language model is fixed",
    "new_layer_prob": "a pretrained language model gets no new layers",
    "parameters": "noise on the weights of a language model undoes what it has learned",
    "activation": "the activation functions of a pretrained language model are fixed",
}


@dataclass(frozen=True)
class Mutation:
    """A change of one hyperparameter.

    Attributes:
        agent: Index of the agent.
        parameter: Name of the hyperparameter.
        old: Value before.
        new: Value after; never the same.
    """

    agent: int
    parameter: str
    old: Any
    new: Any


class Mutations:
    """Mutates the agents of a population, in place.

    The parameters and their order are AgileRL's. Other than there the elite is left alone by default, since an elite
    that is mutated is not the agent that was evaluated any more; and the generator is the object's own: nothing global
    is drawn from or seeded.

    Args:
        no_mutation: Relative weight of leaving an agent as it is.
        architecture: Must be 0, as the next three: only hyperparameters of language models mutate.
        new_layer_prob: Must be 0.
        parameters: Must be 0.
        activation: Must be 0.
        rl_hp: Relative weight of mutating one hyperparameter. With ``no_mutation=0.1`` and ``rl_hp=0.6`` six of seven
            agents are mutated on average.
        mutation_sd: Accepted for AgileRL's sake: the strength of ``parameters``.
        activation_selection: Accepted for AgileRL's sake: the choices of ``activation``.
        mutate_elite: Whether the first agent of a population, the elite, may be mutated too.
        rand_seed: Seed of the draws, at least 0; None takes fresh entropy.
        device: Accepted for AgileRL's sake.
        accelerator: Accepted for AgileRL's sake.

    Attributes:
        last: What the last call of :meth:`mutation` changed, in the order of the population.

    Raises:
        ValueError: A weight is negative or not finite, or ``rand_seed`` is no seed; or a kind of mutation is asked for
            that language models do not have.
    """

    def __init__(
        self,
        no_mutation: float,
        architecture: float = 0,
        new_layer_prob: float = 0,
        parameters: float = 0,
        activation: float = 0,
        rl_hp: float = 1.0,
        mutation_sd: float = 0.1,
        activation_selection: Sequence[str] | None = None,
        mutate_elite: bool = False,
        rand_seed: int | None = None,
        device: str | torch.device = "cpu",
        accelerator: Accelerator | None = None,
    ) -> None:
        asked = {
            "architecture": architecture,
            "new_layer_prob": new_layer_prob,
            "parameters": parameters,
            "activation": activation,
        }
        for name, weight in asked.items():
            if weight != 0:
                raise ValueError(f"{name}={weight}: {_NETWORK_MUTATIONS[name]}, so set {name}=0.")
        check_number("no_mutation", no_mutation, minimum=0.0)
        check_number("rl_hp", rl_hp, minimum=0.0)
        if rand_seed is not None and (not isinstance(rand_seed, int) or isinstance(rand_seed, bool) or rand_seed < 0):
            raise ValueError(f"rand_seed={rand_seed!r} must be a whole number of at least 0, or None.")
        self.no_mutation = no_mutation
        self.rl_hp = rl_hp
        self.mutation_sd = mutation_sd
        self.activation_selection = activation_selection
        self.mutate_elite = mutate_elite
        self.rand_seed = rand_seed
        self.device = device
        self.accelerator = accelerator
        self.last: list[Mutation] = []
        self._rng = np.random.default_rng(rand_seed)

    def mutation(self, population: Sequence[Agent], pre_training_mut: bool = False) -> list[Agent]:
        """Mutate at most one hyperparameter of each agent, and note which in its ``mut``.

        A hyperparameter is drawn from the agent's ``hp_config``, each with equal probability, and moved as it is told
        there. The optimizer follows and keeps its moments; then the agent's mutation hooks are called. A step that the
        border of a range does not let move counts as no mutation.

        Args:
            population: The agents, the elite first.
            pre_training_mut: The agents are founders that are to differ: each is mutated, the first too, whatever the
                weight of ``no_mutation``; none is, as ever, if ``rl_hp`` is 0.

        Returns:
            The same agents in a new list.

        Raises:
            ValueError: An agent has no ``hp_config`` to say what may mutate; nothing was changed or drawn.
        """
        self.check(population)
        spared = [] if self.mutate_elite or pre_training_mut else population[:1]
        for agent in spared:
            agent.mut = None
        self.explore(population[len(spared) :], always=pre_training_mut)
        return list(population)

    def explore(self, agents: Sequence[EvolvableAlgorithm], *, always: bool = False) -> list[Mutation]:
        """Offer each agent a mutation; see :meth:`mutation`, which spares the elite.

        Args:
            agents: The agents.
            always: Mutate each, whatever the weight of ``no_mutation``.

        Returns:
            What was changed, which is ``last`` too.

        Raises:
            ValueError: As in :meth:`mutation`.
        """
        self.check(agents)
        no_mutation = 0.0 if always else self.no_mutation
        probability = self.rl_hp / (self.rl_hp + no_mutation) if self.rl_hp > 0 else 0.0
        chosen = self._rng.random(len(agents)) < probability
        self.last = []
        for agent, drawn in zip(agents, chosen, strict=True):
            agent.mut = None
            if drawn:
                self._mutate(agent)
        return self.last

    def check(self, population: Sequence[EvolvableAlgorithm]) -> None:
        """Check that there is something to mutate; a training loop does it before it begins.

        Args:
            population: The agents.

        Raises:
            ValueError: An agent has no ``hp_config`` to say what may mutate.
        """
        for agent in population:
            if self.rl_hp > 0 and not agent.hp_config:
                raise ValueError(
                    f"rl_hp={self.rl_hp} mutates hyperparameters, but agent {agent.index} was made without hp_config, "
                    "which says what may mutate. Make it with "
                    "hp_config=HyperparameterConfig(lr=RLParameter(min=..., max=...)), or set rl_hp=0."
                )

    def state_dict(self) -> dict[str, Any]:
        """State of the generator, in values that JSON can hold."""
        return {"generator": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the draws where :meth:`state_dict` was taken.

        Args:
            state: What it returned.
        """
        self._rng.bit_generator.state = state["generator"]

    def _mutate(self, agent: EvolvableAlgorithm) -> None:
        assert agent.hp_config is not None
        name = agent.hp_config.sample(self._rng)
        old = agent.hyperparameters[name]
        new = agent.hp_config[name].mutate(old, self._rng, agent.HYPERPARAMETERS[name])
        if new == old:
            return
        setattr(agent, name, new)
        agent.mut = name
        self.last.append(Mutation(agent.index, name, old, new))
        agent.follow_hyperparameters()
        agent.mutation_hook()
