"""Where the fittest agent of a run is saved."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.distributed.team import Team
from agiledpo.training.environments import Gym


@dataclass
class EliteKeeper:
    """Saves the fittest agent.

    Args:
        path: Its directory; None saves nothing.
        team: The processes of the run, all of which save together.

    Attributes:
        saved: The same, once something has been saved there.
    """

    path: Path | None = None  # absolute, as the working directory may change
    team: Team = field(default_factory=Team.alone)
    saved: Path | None = field(default=None, init=False)

    def save(self, elite: LLMAlgorithm | None, env: Gym) -> None:
        """Save the fittest agent as it is: before it is mutated.

        Args:
            elite: The agent; None where nobody is the fittest.
            env: Its tokenizer goes with it.

        Warns:
            UserWarning: It could not be written; the elite that was saved before is intact.
        """
        if self.path is None or elite is None:
            return
        try:
            elite.save_checkpoint(self.path, tokenizer=env.tokenizer, team=self.team)
        except OSError as error:
            said = f"The elite could not be written to {self.path}: {error}. The run goes on."
            # Where warnings are errors all processes have it.
            self.team.leader_does(lambda: warnings.warn(said, stacklevel=4))
        else:
            self.saved = self.path
