"""The contract of an agent in a population: identity, hyperparameters, fitness, clone, hooks."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from types import MethodType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from accelerate import Accelerator
from gymnasium import spaces
from torch import Tensor, nn
from torch.optim import Optimizer

from agiledpo.algorithms.core.registry import HyperparameterConfig, NetworkGroup, OptimizerConfig
from agiledpo.algorithms.core.state_checks import check_types
from agiledpo.llm_envs.spaces import TokenSpace

# What an agent has lived through.
HISTORY = ("parent", "fitness", "fitness_errors", "tie_break", "held_out", "diverged", "scores", "steps", "mut")


class EvolvableAlgorithm(ABC):
    """An agent that can be evaluated, cloned and mutated.

    Args:
        observation_space: Space of what the environment yields; checked, otherwise unused.
        action_space: Space of what the agent would answer; checked, otherwise unused.
        index: Identity of the agent in its population.
        hp_config: Hyperparameters that evolution may change; None for none.
        device: Where the agent computes.
        accelerator: Accelerate's handle; its device wins over ``device``.
        seed: Seed of everything random in the agent.

    Attributes:
        HYPERPARAMETERS: Type of each hyperparameter by name.
        parent: Index of the agent that this one was copied from by selection; None for a founder.
        fitness: Fitness at each evaluation so far; higher is better.
        fitness_errors: Their standard errors; NaN where none is known.
        tie_break: Decides between agents of equal fitness, higher is better; of the last evaluation.
        held_out: Metrics of the last evaluation.
        diverged: Why the agent has stopped learning; None while it is well.
        scores: Training score of each call of ``learn`` (the reward margin).
        steps: Pairs learned from; the last entry counts on (a list for AgileRL's sake).
        mut: What the last mutation changed; None if that was nothing, and before the first.
    """

    HYPERPARAMETERS: ClassVar[Mapping[str, type]] = {}

    def __init__(
        self,
        observation_space: spaces.Space | None,
        action_space: spaces.Space | None,
        *,
        index: int,
        hp_config: HyperparameterConfig | None,
        device: str | torch.device,
        accelerator: Accelerator | None,
        seed: int,
    ) -> None:
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            if space is not None and not isinstance(space, spaces.Space):
                raise ValueError(
                    f"{name} is a {type(space).__name__}, not a gymnasium space. Pass env.{name}, or leave it out."
                )
        self.observation_space = observation_space
        self.action_space = action_space
        self.index = index
        self.hp_config = hp_config
        self.accelerator = accelerator
        self.device = torch.device(device) if accelerator is None else accelerator.device
        self.seed = seed
        self.parent: int | None = None
        self.fitness: list[float] = []
        self.fitness_errors: list[float] = []
        self.tie_break = 0.0
        self.held_out: dict[str, float] = {}
        self.diverged: str | None = None
        self.scores: list[float] = []
        self.steps: list[int] = [0]
        self.mut: str | None = None
        self.training = True
        self.network_groups: list[NetworkGroup] = []
        self._mutation_hooks: list[Callable[[], None]] = []

    # What each algorithm provides -----------------------------------------------------------------------------------

    @abstractmethod
    def learn(self, experiences: Mapping[str, Any], training: bool = True) -> dict[str, float]:
        """Update the agent from experiences; without ``training`` only measure."""

    @abstractmethod
    def test(self, env: Any, loop: int = 1) -> np.ndarray:
        """Evaluate the agent, record its fitness and return it."""

    @abstractmethod
    def clone(self, index: int | None = None, wrap: bool = True) -> Self:
        """Return an independent copy of the agent."""

    @abstractmethod
    def inherit(self, parent: Self) -> None:
        """Become a copy of another agent that is built alike, in place; only the index stays."""

    @abstractmethod
    def clean_up(self) -> None:
        """Free what the agent holds; it cannot be used afterwards."""

    @abstractmethod
    def check_settings(self) -> None:
        """Check that the live hyperparameters make sense together.

        Raises:
            ValueError: They do not; the parameters are named, with the way out.
        """

    @abstractmethod
    def evolvable_attributes(self, networks_only: bool = False) -> dict[str, nn.Module | Optimizer]:
        """Networks, and unless ``networks_only`` optimizers, by attribute name."""

    # Hyperparameters ------------------------------------------------------------------------------------------------

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Live values of the hyperparameters by name."""
        return {name: vars(self)[name] for name in self.HYPERPARAMETERS}

    def check_values(self, values: Mapping[str, Any]) -> None:
        """Check values of hyperparameters as if they were the agent's, which stays as it is.

        Args:
            values: Values by name; those that are not named are the live ones.

        Raises:
            ValueError: One is of another type, or they do not make sense together; the parameters are named.
        """
        check_types(type(self), self.HYPERPARAMETERS, values)
        live = self.hyperparameters
        try:
            vars(self).update(values)
            self.check_settings()
        finally:
            vars(self).update(live)

    def check_hyperparameters(self) -> None:
        """Check ``hp_config`` against the live values; called once the algorithm has set them.

        Combinations of the ends of the ranges and of all choices are tried (:meth:`HyperparameterConfig.corners`), so
        that no mutation brings a setting that training would refuse.

        Raises:
            ValueError: A name is unknown, a value is outside its range, or a range reaches what makes no sense.
        """
        if self.hp_config is None:
            return
        live = self.hyperparameters
        self.hp_config.check(live, self.HYPERPARAMETERS)
        try:
            for values in self.hp_config.corners(self.HYPERPARAMETERS):
                vars(self).update(live | values)
                try:
                    self.check_settings()
                except ValueError as error:
                    reached = ", ".join(f"{name}={value!r}" for name, value in values.items())
                    raise ValueError(
                        f"hp_config lets evolution reach {reached}, which is refused: {error} Or narrow hp_config; "
                        "Choice(...) lists single values."
                    ) from error
        finally:
            vars(self).update(live)

    # Fitness --------------------------------------------------------------------------------------------------------

    def record_fitness(self, value: float, error: float = math.nan, tie_break: float = 0.0) -> None:
        """Note the outcome of an evaluation.

        Args:
            value: Fitness, higher is better.
            error: Its standard error.
            tie_break: Decides between agents of equal fitness.
        """
        self.fitness.append(value)
        self.fitness_errors.append(error)
        self.tie_break = tie_break

    # Copies ---------------------------------------------------------------------------------------------------------

    def built_like(self, other: "EvolvableAlgorithm") -> bool:
        """Whether the agents differ in nothing but hyperparameters, identity and what they have lived through.

        Args:
            other: Another agent.
        """
        own = {*self.HYPERPARAMETERS, "index", "seed", "hp_config"}
        mine, theirs = (self.inspect_attributes(agent, input_args_only=True) for agent in (self, other))
        return type(self) is type(other) and all(
            mine[name] is theirs[name] or mine[name] == theirs[name] for name in mine.keys() - own
        )

    def replaced_by(self, parent: Self, index: int) -> Self:
        """Give this agent's place in the population to a copy of another.

        Where both are built alike the copy is made in place: this agent becomes it, and no memory is taken. Otherwise
        this agent is cleaned up before the copy is made.

        Args:
            parent: What to copy.
            index: Identity of the copy.

        Returns:
            The copy, with ``parent.index`` as its parent.
        """
        if self.built_like(parent):
            self.inherit(parent)
            self.index = index
            child = self
        else:
            self.clean_up()
            child = parent.clone(index)
        child.parent = parent.index
        child.part_from_parent()
        return child

    def child(self, index: int) -> Self:
        """A new agent that is a copy of this one, for a place that nobody has.

        Args:
            index: Identity of the copy.

        Returns:
            The copy, with this agent's index as its parent.
        """
        child = self.clone(index)
        child.parent = self.index
        child.part_from_parent()
        return child

    def part_from_parent(self) -> None:  # noqa: B027 (nothing to do unless an algorithm draws)
        """Do what makes a copy explore on its own, beside mutation."""

    @staticmethod
    def inspect_attributes(agent: "EvolvableAlgorithm", input_args_only: bool = False) -> dict[str, Any]:
        """Attributes of an agent other than networks and optimizers.

        Args:
            agent: The agent.
            input_args_only: Only those that its constructor takes.
        """
        arguments = inspect.signature(type(agent).__init__).parameters
        return {
            name: value
            for name, value in vars(agent).items()
            if not name.startswith("_")
            and not isinstance(value, (nn.Module, Optimizer))
            and (name in arguments or not input_args_only)
        }

    @staticmethod
    def copy_attributes(agent: "EvolvableAlgorithm", clone: "EvolvableAlgorithm") -> "EvolvableAlgorithm":
        """Copy what an agent has lived through, and its hyperparameters, to a clone.

        Args:
            agent: Where from.
            clone: Where to; its index, adapters and optimizer are left alone.

        Returns:
            The clone.
        """
        for name in (*agent.HYPERPARAMETERS, *HISTORY):
            setattr(clone, name, deepcopy(vars(agent)[name]))
        clone.hp_config = agent.hp_config
        clone.network_groups = list(agent.network_groups)
        # A method of the agent becomes the same method of the clone.
        clone._mutation_hooks = [
            MethodType(hook.__func__, clone) if isinstance(hook, MethodType) and hook.__self__ is agent else hook
            for hook in agent._mutation_hooks
        ]
        return clone

    # Registries -----------------------------------------------------------------------------------------------------

    def register_network_group(self, group: NetworkGroup) -> None:
        """Declare a group of networks.

        Args:
            group: The group.

        Raises:
            ValueError: It names something that is not one of the agent's networks.
        """
        networks = self.evolvable_attributes(networks_only=True)
        unknown = [name for name in (group.eval_network, *group.shared_networks) if name not in networks]
        if unknown:
            raise ValueError(
                f"NetworkGroup names {', '.join(unknown)}; the agent's networks are {', '.join(networks)}."
            )
        self.network_groups.append(group)

    def register_mutation_hook(self, hook: Callable[[], None]) -> None:
        """Register a function to be called after each mutation and after cloning.

        Args:
            hook: Takes no arguments.
        """
        self._mutation_hooks.append(hook)

    def mutation_hook(self) -> None:
        """Call every registered mutation hook, in the order of registration."""
        for hook in self._mutation_hooks:
            hook()

    @abstractmethod
    def reinit_optimizers(self, optimizer: OptimizerConfig | None = None) -> None:
        """Bring optimizers in line with the live hyperparameters."""

    def follow_hyperparameters(self) -> None:
        """Bring optimizers in line with hyperparameters that changed."""
        self.reinit_optimizers()

    # Small things ---------------------------------------------------------------------------------------------------

    def to_device(self, *experiences: Any) -> tuple[Any, ...]:
        """Move tensors, and tensors in dictionaries, lists and tuples, to the agent's device.

        Args:
            *experiences: What to move; anything that is not a tensor or a container stays as it is.
        """
        return tuple(_to(item, self.device) for item in experiences)

    def preprocess_observation(self, observation: Any) -> Any:
        """Return the observation unchanged: the environment has tokenised it already.

        Args:
            observation: What the environment yielded.
        """
        return observation

    @staticmethod
    def get_state_dim(observation_space: spaces.Space | list[spaces.Space]) -> Any:
        """Size of an observation space as a network's input sees it.

        Args:
            observation_space: A space or a list of them.

        Returns:
            A tuple of integers; for dictionaries and tuples of spaces the same structure of tuples.
        """
        return _space_dim(observation_space)

    @staticmethod
    def get_action_dim(action_space: spaces.Space | list[spaces.Space]) -> Any:
        """Size of an action space as a network's output sees it.

        Args:
            action_space: A space or a list of them.

        Returns:
            As :meth:`get_state_dim`.
        """
        return _space_dim(action_space)


def _to(item: Any, device: torch.device) -> Any:
    match item:
        case Tensor():
            return item.to(device)
        case Mapping():
            return {key: _to(value, device) for key, value in item.items()}
        case list() | tuple():
            return type(item)(_to(value, device) for value in item)
    return item


def _space_dim(space: spaces.Space | list[spaces.Space]) -> Any:
    match space:
        case list() | spaces.Tuple():
            return tuple(_space_dim(part) for part in space)
        case spaces.Dict():
            return {key: _space_dim(part) for key, part in space.items()}
        case TokenSpace():
            return (space.size,)
        case spaces.Discrete() | spaces.MultiBinary():
            return (int(np.prod(space.n)),)
        case spaces.MultiDiscrete():
            return (int(np.sum(space.nvec)),)
        case spaces.Box():
            return tuple(space.shape)
    return ()
