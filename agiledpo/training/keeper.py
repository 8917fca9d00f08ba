"""Where the agents of a run are saved."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    checkpoints: Path | None = None
    elite: Path | None = None
    evolves: bool = False

    def check(self, population: Sequence[DPO]) -> None:
        """Check that everything may be written, before anything is computed.

        Raises:
            FileExistsError: Something is there that is not a checkpoint.
            ValueError: Two things would be written to one directory.
        """
        if self.checkpoints is not None:
            for agent in population:
                check_destination(self._destination(agent, population))
        if self.elite is not None:
            check_destination(self.elite)
            if self.checkpoints is not None and self.elite.resolve() == self.checkpoints.resolve():
                raise ValueError(f"elite_path and checkpoint_path are both {self.elite}; choose two directories.")

    def save_checkpoint(self, population: Population) -> None:
        """Save the agents that have not diverged; of an evolving population the fittest of the last evaluation."""
        if self.checkpoints is None:
            return
        agents = population.well
        if self.evolves:
            agents = [agent for agent in agents if agent is population.elite]
        for agent in agents:
            agent.save_checkpoint(self._destination(agent, population))

    def save_elite(self, elite: DPO | None) -> None:
        """Save the fittest agent as it is: before it is mutated."""
        if self.elite is not None and elite is not None:
            elite.save_checkpoint(self.elite)

    def describe(self) -> str:
        """Where something may have been saved, for a message."""
        saved = [str(path) for path in (self.elite, self.checkpoints) if path is not None and path.exists()]
        return f"The last good state is in {', '.join(saved)}." if saved else "Nothing had been saved."

    def _destination(self, agent: DPO, population: Sequence[DPO]) -> Path:
        assert self.checkpoints is not None
        return self.checkpoints if self.evolves or len(population) == 1 else self.checkpoints / f"agent_{agent.index}"
