"""What a run does with the rows of its environment: how agents learn from them, and how agents are measured on them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

from typing_extensions import override

from agiledpo.algorithms.core.measured import Measured, check_fitness_name
from agiledpo.llm_envs.types import Split
from agiledpo.scoring import PromptBatch
from agiledpo.training.observer import Observer
from agiledpo.training.population import Agent


class Practice(ABC, Generic[Agent]):
    """The contract between a run and whatever makes lessons of an environment's rows.

    Attributes:
        algorithm: Class of the agents.
        batch: What rows become.
        unit: What a row is called.
        shown: What a progress bar shows: label, and the metric of :meth:`learn` with its format.
        fitness: What :meth:`measure` can compare agents by, the default first.
        metrics: What :meth:`measure` measures.
        accuracy: Which of them is the share of what the agent gets right.
        observer: Who is told of what agents answer; a run says who.
    """

    algorithm: type[Agent]
    batch: type[PromptBatch]
    unit: str
    shown: Mapping[str, tuple[str, str]]
    fitness: Sequence[str]
    metrics: Sequence[str]
    accuracy: str
    observer: Observer = Observer()

    @abstractmethod
    def check(self, agent: Agent, env: Any) -> None:
        """Check that an agent can learn from an environment.

        Raises:
            ValueError: It cannot.
        """

    def check_fitness(self, name: object) -> None:
        """Check the name of a fitness.

        Raises:
            ValueError: It is none of ``fitness``.
        """
        check_fitness_name(name, self.fitness)

    def check_comparable(self, agent: Agent, fitness: str) -> None:
        """Check that a fitness measures this agent and others by the same standard.

        Raises:
            ValueError: There is no such fitness, or it depends on what differs between agents.
        """
        self.check_fitness(fitness)

    @abstractmethod
    def describe(self, agent: Agent) -> str:
        """What the agent minimises, in words."""

    def rows_at_once(self, agent: Agent) -> int | None:
        """Rows that an agent learns from at a time; None for each batch of the environment as it comes."""
        return None

    def begin_batch(self, iteration: int, rows_done: int) -> None:
        """Note where the run is, before agents learn from a batch of the environment.

        Args:
            iteration: Batches so far, this one included.
            rows_done: Rows that each agent has been handed so far, likewise.
        """

    @abstractmethod
    def learn(self, agent: Agent, rows: Any, env: Any) -> dict[str, float]:
        """Let an agent learn from rows.

        Args:
            agent: Who learns.
            rows: A ``batch``.
            env: The environment that they are from.

        Raises:
            NonFiniteLossError: A loss or gradient is NaN or infinite; the step was not made.
        """

    def end_batch(self, agent: Agent, iteration: int) -> None:
        """Do what follows a batch of the environment.

        Args:
            agent: Who has learned from it.
            iteration: Batches so far, this one included.
        """

    @abstractmethod
    def measure(self, agent: Agent, env: Any, split: Split) -> Measured:
        """Measure an agent on a whole held-out split; nothing that training depends on changes."""

    @property
    def files(self) -> Mapping[str, Path]:
        """What is written while the run goes on, beside checkpoints, elite and lineage, by the name of its argument."""
        return {}

    def settings(self, agents: Sequence[Agent]) -> dict[str, Any]:
        """What may be changed when a run goes on, but makes it another run, by name; plain values.

        Args:
            agents: Who learns.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the next lessons depend on; JSON can hold it."""
        return {}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that :meth:`load_state_dict` would take a state; nothing is changed.

        Raises:
            FileExistsError: A file that is written while the run goes on holds another run's lines.
            ValueError: It lacks lines of this one.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""


class FromRows(Practice[Agent]):
    """Rows hold what is to be learned: SFT and DPO.

    Args:
        algorithm: Class of the agents.
    """

    def __init__(self, algorithm: type[Agent]) -> None:
        self.algorithm = algorithm
        self.batch = algorithm.BATCH
        self.unit = algorithm.UNIT
        self.shown = algorithm.PROGRESS
        self.fitness = algorithm.FITNESS
        self.metrics = algorithm.METRICS
        self.accuracy = algorithm.ACCURACY

    @override
    def check(self, agent: Agent, env: Any) -> None:
        agent.check_environment(env)

    @override
    def check_comparable(self, agent: Agent, fitness: str) -> None:
        agent.check_comparable(fitness)

    @override
    def describe(self, agent: Agent) -> str:
        return agent.describe_objective()

    @override
    def rows_at_once(self, agent: Agent) -> int | None:
        return agent.batch_size

    @override
    def learn(self, agent: Agent, rows: Any, env: Any) -> dict[str, float]:
        return agent.learn(rows)

    @override
    def measure(self, agent: Agent, env: Any, split: Split) -> Measured:
        return agent.measure(env, split)
