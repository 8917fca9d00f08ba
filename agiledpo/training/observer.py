"""What a run tells those who follow it: a display, a log, trackers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from typing_extensions import override

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.distributed.team import Team
from agiledpo.training.population import Population

if TYPE_CHECKING:
    from agiledpo.scoring import QuestionBatch, RolloutBatch


@dataclass(frozen=True)
class Outline:
    """What is known of a run before it begins.

    Attributes:
        algorithm: Name of the agents' class: ``"DPO"``.
        unit: What a row is called: ``"pair"``.
        total_rows: Rows that each agent will learn from.
        shown: For each figure of a line, the metric of ``learn`` that it is and its format.
        fitness: How agents are compared, in a word.
        validation_names: Names of the validation sets.
        settings: What the run goes by, plain values by name.
        resumes: Whether it goes on from a checkpoint, which ``resumed`` will tell more about.
    """

    algorithm: str
    unit: str
    total_rows: int
    shown: Mapping[str, tuple[str, str]]
    fitness: str = ""
    validation_names: Sequence[str] = ()
    settings: Mapping[str, Any] | None = None
    resumes: bool = False


class Observer:
    """Somebody who follows a run while it goes on. Each method does nothing unless it is overridden.

    A run calls ``begins`` once, then ``resumed`` if it was taken up again. For each batch of its environment it calls
    ``answered`` and ``learned`` as often as agents answer prompts and make optimizer steps, then ``advanced`` once, and
    after that ``evaluated``, ``evolved`` where they fall due. ``ended`` is called if the run reaches its end. What
    agents and populations an observer is shown are the live ones: look, and leave them as they are.

    As a context manager an observer holds what it needs while the run goes on; it is left at the end, also after an
    error.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    @property
    def files(self) -> Sequence[Path]:
        """Files that it writes: a new run finds them empty or absent."""
        return ()

    @property
    def resume_command(self) -> str | None:
        """What a person types to go on with the run after it was stopped, if more than the Python call makes it."""
        return None

    def begins(self, outline: Outline, agents: Sequence[LLMAlgorithm]) -> None:
        """A run of these agents begins, or goes on."""

    def resumed(self, rows_done: int) -> None:
        """The run was taken up again after so many rows."""

    def said(self, text: str) -> None:
        """Something happened that a person should read."""

    def answered(self, agent: LLMAlgorithm, questions: "QuestionBatch", rollouts: "RolloutBatch", env: Any) -> None:
        """An agent answered prompts, and the environment judged the answers."""

    def learned(self, agent: LLMAlgorithm, metrics: Mapping[str, float]) -> None:
        """An agent made an optimizer step, with what its ``learn`` returned.

        With ``parallel="population"`` only the last step before processes hear of each other is told of agents that are
        at home elsewhere.
        """

    def advanced(self, rows_done: int) -> None:
        """All agents have been handed so many rows by now."""

    def evaluated(self, population: Population[Any], rows_done: int) -> None:
        """All agents that are well were measured on the test split, and the fittest on the validation sets."""

    def evolved(self, generation: int, population: Population[Any], rows_done: int) -> None:
        """A selection and its mutations made the next generation."""

    def ended(self, population: Population[Any], rows_done: int) -> None:
        """The run has reached its end, and its elite was measured on the final split, if there is one."""

    def state_dict(self) -> dict[str, Any]:
        """What this observer needs to go on where it is; JSON can hold it."""
        return {}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that :meth:`load_state_dict` would take a state; nothing is changed.

        Raises:
            FileExistsError: A file holds what another run wrote.
            ValueError: A file is another run's, or lacks something of this one.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; what is empty was saved by a run without this observer."""


class Observers(Observer):
    """Several observers as one. Of a team's processes only the leader's are told anything.

    Args:
        observers: By a name that a checkpoint knows each by.
        team: The processes that make the run together; None for one.
    """

    def __init__(self, observers: Mapping[str, Observer], team: Team | None = None) -> None:
        self._team = Team.alone() if team is None else team
        self._observers = dict(observers)
        self._told = tuple(observers.values()) if self._team.leads else ()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for observer in self._told:
                stack.enter_context(observer)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    @property
    @override
    def resume_command(self) -> str | None:
        commands = (observer.resume_command for observer in self._observers.values())
        return next((command for command in commands if command is not None), None)

    @override
    def begins(self, outline: Outline, agents: Sequence[LLMAlgorithm]) -> None:
        for observer in self._told:
            observer.begins(outline, agents)

    @override
    def resumed(self, rows_done: int) -> None:
        for observer in self._told:
            observer.resumed(rows_done)

    @override
    def said(self, text: str) -> None:
        for observer in self._told:
            observer.said(text)

    @override
    def answered(self, agent: LLMAlgorithm, questions: "QuestionBatch", rollouts: "RolloutBatch", env: Any) -> None:
        for observer in self._told:
            observer.answered(agent, questions, rollouts, env)

    @override
    def learned(self, agent: LLMAlgorithm, metrics: Mapping[str, float]) -> None:
        for observer in self._told:
            observer.learned(agent, metrics)

    @override
    def advanced(self, rows_done: int) -> None:
        for observer in self._told:
            observer.advanced(rows_done)

    @override
    def evaluated(self, population: Population[Any], rows_done: int) -> None:
        for observer in self._told:
            observer.evaluated(population, rows_done)

    @override
    def evolved(self, generation: int, population: Population[Any], rows_done: int) -> None:
        for observer in self._told:
            observer.evolved(generation, population, rows_done)

    @override
    def ended(self, population: Population[Any], rows_done: int) -> None:
        for observer in self._told:
            observer.ended(population, rows_done)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._together(lambda: {name: observer.state_dict() for name, observer in self._observers.items()})

    @override
    def check_state(self, state: Mapping[str, Any]) -> None:
        def check() -> None:
            for name, observer in self._observers.items():
                observer.check_state(state.get(name, {}))

        self._together(check)

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        def load() -> None:
            for name, observer in self._observers.items():
                observer.load_state_dict(state.get(name, {}))

        self._together(load)

    def _together(self, do: Callable[[], Any]) -> Any:
        """What the leader does; its error is everybody's."""
        return self._team.leader_does(do)
