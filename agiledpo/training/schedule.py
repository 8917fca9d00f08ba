"""How long a run is, and what happens after which of its batches."""

import warnings
from dataclasses import dataclass

from agiledpo.training.environments import Gym


@dataclass(frozen=True)
class Moment:
    """A place in a run: just after a batch of the environment.

    Attributes:
        iteration: Batches so far, this one included; from 1.
        rows_before: Rows that each agent had been handed before it.
        rows_done: Rows that each agent has been handed with it.
        ends_epoch: The training split is exhausted with it, and the run goes on.
        ends_run: It is the last one.
    """

    iteration: int
    rows_before: int
    rows_done: int
    ends_epoch: bool
    ends_run: bool


@dataclass(frozen=True)
class Schedule:
    """Length and rhythm of a run.

    Attributes:
        total_rows: Rows that each agent learns from.
        evaluation_interval: Batches between two evaluations; None for only at the end.
        checkpoint_steps: Rows between two checkpoints; None for one at the end.
        evo_steps: Batches in a generation; None for no evolution.
    """

    total_rows: int
    evaluation_interval: int | None
    checkpoint_steps: int | None
    evo_steps: int | None

    @staticmethod
    def make(
        env: Gym,
        *,
        num_epochs: int | None,
        max_steps: int | None,
        evaluation_interval: int | None,
        checkpoint_steps: int | None,
        evo_steps: int | None,
    ) -> "Schedule":
        """Resolve the arguments of a training loop.

        Raises:
            ValueError: A number is below 1.
        """
        numbers = {
            "num_epochs": num_epochs,
            "max_steps": max_steps,
            "evaluation_interval": evaluation_interval,
            "checkpoint_steps": checkpoint_steps,
            "evo_steps": evo_steps,
        }
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or None.")
        if num_epochs is not None and max_steps is not None:
            warnings.warn("num_epochs and max_steps are both given; num_epochs takes precedence.", stacklevel=3)
        total = max_steps if num_epochs is None and max_steps is not None else (num_epochs or 1) * len(env)
        return Schedule(total, evaluation_interval, checkpoint_steps, evo_steps)

    def evolves(self, moment: Moment) -> bool:
        """Whether a generation ends; the run's end is none, because what selection would make could not learn."""
        return self.evo_steps is not None and not moment.ends_run and moment.iteration % self.evo_steps == 0

    def evaluates(self, moment: Moment) -> bool:
        """Whether agents are evaluated; selection and the run's end need it."""
        interval = self.evaluation_interval
        due = interval is not None and moment.iteration % interval == 0
        return due or moment.ends_run or self.evolves(moment)

    def flushes(self, moment: Moment) -> bool:
        """Whether agents learn from what is waiting, however little: at the end of an epoch, generation and run."""
        return moment.ends_epoch or moment.ends_run or self.evolves(moment)

    def checkpoints(self, moment: Moment) -> bool:
        """Whether a checkpoint follows: a multiple of ``checkpoint_steps`` lies in this batch, or the run ends."""
        steps = self.checkpoint_steps
        passed = steps is not None and moment.rows_done // steps > moment.rows_before // steps
        return moment.ends_run or passed
