"""Where the agents of a run are saved."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agiledpo.algorithms import DPO
from agiledpo.checkpoint import check_destination
from agiledpo.training.population import Population


@dataclass(frozen=True)
class Keeper:
    """Saves agents of a run.

    Args:
        checkpoints: Directory of the periodic checkpoints; None for none.
        elite: Directory of the fittest agent; None for none.
        evolves: Agents come and go, so the periodic checkpoint is the fittest one alone.
        saved: Directories that this run has written to.
    """

    checkpoints: Path | None = None
    elite: Path | None = None
    evolves: bool = False
    saved: set[Path] = field(default_factory=set)

    def check(self, population: Sequence[DPO], lineage: Path | None = None) -> None:
        """Check that everything may be written, before anything is computed.

        Args:
            population: The agents.
            lineage: File that the lineage goes to.

        Raises:
            FileExistsError: Something is there that is not a checkpoint.
            ValueError: One thing would be written into a directory that another replaces.
        """
        replaced = {} if self.elite is None else {self.elite.resolve(): "elite_path"}
        if self.checkpoints is not None:
            for agent in population:
                replaced.setdefault(self._destination(agent, population).resolve(), "checkpoint_path")
            if self.elite is not None and self.elite.resolve() == self.checkpoints.resolve():
                raise ValueError(f"elite_path and checkpoint_path are both {self.elite}; choose two directories.")
        written = dict(replaced) if lineage is None else {**replaced, lineage.resolve(): "lineage_path"}
        for directory, name in replaced.items():
            check_destination(directory)
            for path, other in written.items():
                if directory in path.parents:
                    raise ValueError(
                        f"{other}={path} lies in {directory}, which each new checkpoint of {name} replaces as a whole. "
                        "Choose a place outside."
                    )

    def save_checkpoint(self, population: Population) -> None:
        """Save the agents that have not diverged; of an evolving population the fittest of the last evaluation."""
        if self.checkpoints is None:
            return
        agents = population.well
        if self.evolves:
            agents = [agent for agent in agents if agent is population.elite]
        for agent in agents:
            self._save(agent, self._destination(agent, population))

    def save_elite(self, elite: DPO | None) -> None:
        """Save the fittest agent as it is: before it is mutated."""
        if self.elite is not None and elite is not None:
            self._save(elite, self.elite)

    def describe(self) -> str:
        """What has been saved, for a message."""
        saved = ", ".join(sorted(map(str, self.saved)))
        return f"The last good state is in {saved}." if saved else "Nothing had been saved."

    def _save(self, agent: DPO, path: Path) -> None:
        agent.save_checkpoint(path)
        self.saved.add(path)

    def _destination(self, agent: DPO, population: Sequence[DPO]) -> Path:
        assert self.checkpoints is not None
        return self.checkpoints if self.evolves or len(population) == 1 else self.checkpoints / f"agent_{agent.index}"
