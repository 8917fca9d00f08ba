"""The history of a population: who descends from whom, what changed, and how fit each agent was."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from agiledpo.disk import append
from agiledpo.distributed.team import Team
from agiledpo.hpo.records import (
    Born,
    Diverged,
    Evaluated,
    Final,
    Mutated,
    Record,
    Selected,
    Validated,
    Value,
    record_from_json,
    record_from_line,
)

Kind = TypeVar("Kind", bound=Record)


@dataclass(frozen=True)
class AgentHistory:
    """What a lineage knows of one agent.

    Attributes:
        birth: How it came into being.
        children: Indices of the agents copied from it, in order of birth.
        mutations: Its own, in order.
        evaluations: Its own, in order.
        diverged: When and why it stopped learning; None while it is well.
        replaced: The selection that gave its place away; None if none did.
    """

    birth: Born
    children: tuple[int, ...]
    mutations: tuple[Mutated, ...]
    evaluations: tuple[Evaluated, ...]
    diverged: Diverged | None
    replaced: Selected | None

    @property
    def index(self) -> int:
        """Its index."""
        return self.birth.agent

    @property
    def parent(self) -> int | None:
        """Index of the agent it was copied from; None for a founder."""
        return self.birth.parent

    @property
    def alive(self) -> bool:
        """Whether it still learns: neither diverged nor replaced."""
        return self.diverged is None and self.replaced is None

    @property
    def died(self) -> int | None:
        """Pairs seen when it diverged or was replaced, whichever came first; None while alive."""
        return min((end.pairs for end in (self.diverged, self.replaced) if end is not None), default=None)

    def values(self, parameter: str) -> list[tuple[int, Value]]:
        """Return the values of a hyperparameter and since how many pairs it had them, from birth on.

        Args:
            parameter: Its name. The list is empty for a name that the agent has not.
        """
        changes = [mutation for mutation in self.mutations if mutation.parameter == parameter]
        values: list[tuple[int, Value]] = []
        if parameter in self.birth.hyperparameters:
            values.append((self.birth.pairs, self.birth.hyperparameters[parameter]))
        elif changes:
            values.append((self.birth.pairs, changes[0].old))
        return values + [(change.pairs, change.new) for change in changes]

    def hyperparameters(self, pairs: int | None = None) -> dict[str, Value]:
        """Return the values of all hyperparameters, mutations at that very moment included.

        Args:
            pairs: After so many pairs; None for the latest.

        Raises:
            ValueError: The agent was not born by then.
        """
        if pairs is not None and pairs < self.birth.pairs:
            raise ValueError(f"Agent {self.index} was born after {self.birth.pairs} pairs, not by pairs={pairs}.")
        values = dict(self.birth.hyperparameters)
        for mutation in self.mutations:
            if pairs is None or mutation.pairs <= pairs:
                values[mutation.parameter] = mutation.new
            else:
                values.setdefault(mutation.parameter, mutation.old)
        return values


class Lineage:
    """The records of a population in the order in which things happened, in memory and on request in a file.

    The file holds one JSON object per line and grows while the run goes on. Each line is handed to the operating system
    in one piece, so a run that is killed leaves whole lines. Two runs of one seed write the same file, byte for byte.

    Args:
        path: File to append to; None keeps the records in memory only. Nothing is written before the first record.
        overwrite: Replace what an earlier run left in the file; otherwise the first record is refused where there is
            something.
        team: Processes that all record the same, with the same arguments; the leader writes. None for one.
    """

    def __init__(self, path: str | Path | None = None, *, overwrite: bool = False, team: Team | None = None) -> None:
        self.path = None if path is None else Path(path).absolute()
        self.overwrite = overwrite
        self._team = Team.alone() if team is None else team
        self._records: list[Record] = []
        self._indices: set[int] = set()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    # Writing --------------------------------------------------------------------------------------------------------

    def record(self, event: Record) -> None:
        """Add what happened, to the file as well if there is one.

        Args:
            event: The record.

        Raises:
            ValueError: It speaks of an agent that was never born, or bears one a second time.
            FileExistsError: It is the first one, and the file belongs to an earlier run.
        """
        self._check(event)
        if self.path is not None:
            self._team.leader_does(partial(self._write, self.path, event))
        self._add(event)

    def _write(self, path: Path, event: Record) -> None:
        if not self._records:
            self._begin(path)
        append(path, event.line())

    def _add(self, event: Record) -> None:
        self._records.append(event)
        if isinstance(event, Born):
            self._indices.add(event.agent)

    def _check(self, event: Record) -> None:
        match event:
            case Born():
                if event.agent in self._indices:
                    raise ValueError(f"Born: agent={event.agent} was born before; a child needs a new index.")
                mentioned: Sequence[int] = () if event.parent is None else (event.parent,)
            case Selected():
                mentioned = (event.elite, *event.survivors, *event.replaced)
            case Evaluated() | Validated() | Mutated() | Diverged() | Final():
                mentioned = (event.agent,)
            case _:
                raise ValueError(f"A {type(event).__name__} is no event that a lineage records.")
        unknown = [agent for agent in mentioned if agent not in self._indices]
        if unknown:
            raise ValueError(
                f"{type(event).__name__}: no agent {unknown[0]} was born; there are {sorted(self._indices)}. Record "
                "its Born first."
            )

    def _begin(self, path: Path) -> None:
        if path.exists() and path.stat().st_size:
            if not self.overwrite:
                raise FileExistsError(
                    f"{path} holds the lineage of an earlier run; move it away, choose another path, or resume that "
                    "run."
                )
            path.write_bytes(b"")
        path.parent.mkdir(parents=True, exist_ok=True)

    # Reading --------------------------------------------------------------------------------------------------------

    def of(self, kind: type[Kind]) -> list[Kind]:
        """Return the records of one kind, in order.

        Args:
            kind: ``Born``, ``Evaluated``, ``Validated``, ``Mutated``, ``Diverged``, ``Selected`` or ``Final``.
        """
        return [event for event in self._records if isinstance(event, kind)]

    @property
    def pairs(self) -> int:
        """Pairs seen by the latest record; 0 before the first."""
        return max((event.pairs for event in self._records), default=0)

    @property
    def agents(self) -> dict[int, AgentHistory]:
        """What is known of each agent by its index, in order of birth."""
        children: defaultdict[int, list[int]] = defaultdict(list)
        for birth in self.of(Born):
            if birth.parent is not None:
                children[birth.parent].append(birth.agent)
        mutations = _by_agent(self.of(Mutated))
        evaluations = _by_agent(self.of(Evaluated))
        diverged = _by_agent(self.of(Diverged))
        replaced: dict[int, Selected] = {}
        for selection in self.of(Selected):
            for agent in selection.replaced:
                replaced.setdefault(agent, selection)
        return {
            birth.agent: AgentHistory(
                birth=birth,
                children=tuple(children[birth.agent]),
                mutations=tuple(mutations[birth.agent]),
                evaluations=tuple(evaluations[birth.agent]),
                diverged=next(iter(diverged[birth.agent]), None),
                replaced=replaced.get(birth.agent),
            )
            for birth in self.of(Born)
        }

    def agent(self, index: int) -> AgentHistory:
        """Return what is known of one agent.

        Args:
            index: Its index.

        Raises:
            ValueError: There is no such agent.
        """
        agents = self.agents
        if index not in agents:
            raise ValueError(f"No agent {index} in this lineage; there are {sorted(agents)}.")
        return agents[index]

    @property
    def elite(self) -> int | None:
        """Index of the best agent; None where nobody has been evaluated.

        It is the one whose final figure is reported. Where none or several are, it is the fittest by its last
        evaluation: agents that are alive go before others, and equal fitness is decided by the tie break, then by age.
        """
        reported = {final.agent for final in self.of(Final)}
        if len(reported) == 1:
            return next(iter(reported))
        ranked = [
            (agent.alive, *_nan_last(agent.evaluations[-1]), -agent.index)
            for agent in self.agents.values()
            if agent.evaluations
        ]
        return -max(ranked)[-1] if ranked else None

    def ancestry(self, agent: int) -> list[int]:
        """Return the indices from the founder down to the agent itself.

        Args:
            agent: Its index.

        Raises:
            ValueError: There is no such agent.
        """
        parents = {birth.agent: birth.parent for birth in self.of(Born)}
        line = [self.agent(agent).index]
        while (parent := parents[line[-1]]) is not None:
            line.append(parent)
        return line[::-1]

    def hyperparameters(self, agent: int, pairs: int | None = None) -> dict[str, Value]:
        """Return the hyperparameters that an agent had, mutations at that very moment included.

        Args:
            agent: Its index.
            pairs: After so many pairs; None for the latest.

        Raises:
            ValueError: There is no such agent, or it was not born by then.
        """
        return self.agent(agent).hyperparameters(pairs)

    def plot(self, path: str | Path, *, parameters: Sequence[str] | None = None) -> None:
        """Draw the family tree with fitness and hyperparameters over time; see :func:`plot_lineage`.

        Args:
            path: File to write, ``.svg`` or ``.png``.
            parameters: Hyperparameters to show; None for those that evolved.

        Raises:
            ImportError: Matplotlib is not installed.
            ValueError: Nothing is recorded, or ``path`` or a name in ``parameters`` makes no sense.
        """
        from agiledpo.hpo.family_tree import plot_lineage

        plot_lineage(self, path, parameters=parameters)

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all records as a dictionary that JSON can hold."""
        return {"records": [event.as_json() for event in self._records]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        The file, if there is one, is brought to exactly this state: what the run wrote after saving is cut off, what is
        missing is added.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            ValueError: The state is malformed, or the file belongs to another run; then nothing is changed.
        """
        restored = Lineage()
        for number, entry in enumerate(state["records"]):
            try:
                restored.record(record_from_json(entry))
            except ValueError as error:
                raise ValueError(f"Record {number} of the lineage's state: {error}") from None
        if self.path is not None:
            lines = [event.line() for event in restored]
            self._team.leader_does(partial(_bring_to, self.path, lines, overwrite=self.overwrite))
        self._records, self._indices = restored._records, restored._indices

    @classmethod
    def read(cls, path: str | Path) -> "Lineage":
        """Load a file into a lineage that is in memory only.

        A last line that was not finished is left out with a warning: the run was killed, or is writing it now.

        Args:
            path: The file.

        Raises:
            ValueError: Any other line is malformed; file and line are named.
        """
        lineage = cls()
        *lines, rest = Path(path).read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                lineage.record(record_from_line(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
        if rest:
            warnings.warn(f"{path}: line {len(lines) + 1} was not finished and is left out.", stacklevel=2)
        return lineage


Told = TypeVar("Told", Mutated, Evaluated, Diverged)


def _by_agent(events: Iterable[Told]) -> defaultdict[int, list[Told]]:
    grouped: defaultdict[int, list[Told]] = defaultdict(list)
    for event in events:
        grouped[event.agent].append(event)
    return grouped


def _nan_last(evaluation: Evaluated) -> tuple[bool, float, bool, float]:
    """A sorting key: by fitness, then by tie break, where a number goes before NaN."""
    fitness, tie_break = evaluation.fitness, evaluation.tie_break
    known, decided = not math.isnan(fitness), not math.isnan(tie_break)
    return known, fitness if known else 0.0, decided, tie_break if decided else 0.0


def _bring_to(path: Path, lines: Sequence[bytes], *, overwrite: bool) -> None:
    wanted = b"".join(lines)
    present = path.read_bytes() if path.exists() else b""
    kept = min(len(wanted), len(present))
    if wanted[:kept] != present[:kept]:
        if not overwrite:
            differing = next(
                number
                for number, (ours, theirs) in enumerate(zip(lines, present.split(b"\n"), strict=False), start=1)
                if ours != theirs + b"\n"
            )
            raise ValueError(
                f"{path} belongs to another run: line {differing} differs from the state that is loaded. Move the file "
                "away, or choose another path."
            )
        kept = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(kept)
    append(path, wanted[kept:])
