"""How long a run is, and what happens when: all in pairs that each agent has learned from."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from agiledpo.llm_envs import PreferenceGym
from agiledpo.scoring import PreferenceBatch


@dataclass(frozen=True)
class Stretch:
    """One batch of the environment, and where in the run it stands.

    Attributes:
        batch: The pairs.
        iteration: Number of the batch, from 1.
        pairs_done: Pairs handed out up to and with this batch.
        ends_epoch: The training split is exhausted with it.
        ends_run: It is the last one.
    """

    batch: PreferenceBatch
    iteration: int
    pairs_done: int
    ends_epoch: bool
    ends_run: bool


@dataclass(frozen=True)
class Schedule:
    """Length and rhythm of a run.

    Attributes:
        total_pairs: Pairs that each agent learns from.
        evaluation_interval: Batches between two evaluations; None for only at the end.
        checkpoint_steps: Pairs between two checkpoints; None for none.
    """

    total_pairs: int
    evaluation_interval: int | None
    checkpoint_steps: int | None

    @staticmethod
    def make(
        env: PreferenceGym,
        *,
        num_epochs: int | None,
        max_steps: int | None,
        evaluation_interval: int | None,
        checkpoint_steps: int | None,
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
        }
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or None.")
        if num_epochs is not None and max_steps is not None:
            warnings.warn("num_epochs and max_steps are both given; num_epochs takes precedence.", stacklevel=3)
        total = max_steps if num_epochs is None and max_steps is not None else (num_epochs or 1) * len(env)
        return Schedule(total, evaluation_interval, checkpoint_steps)

    def stretches(self, env: PreferenceGym) -> Iterator[Stretch]:
        """Draw the run's batches from where the environment stands; the last one is cut to the run's length."""
        pairs_done = iteration = 0
        experiences = env.step()
        while True:
            epoch = env.num_epochs
            batch = PreferenceBatch.from_experiences(experiences)
            batch = batch.slice(0, self.total_pairs - pairs_done)
            pairs_done += len(batch)
            iteration += 1
            ends_run = pairs_done >= self.total_pairs
            if not ends_run:
                experiences = env.step()
            yield Stretch(batch, iteration, pairs_done, env.num_epochs > epoch, ends_run)
            if ends_run:
                return

    def evaluates(self, stretch: Stretch) -> bool:
        """Whether an evaluation follows; one always ends the run."""
        interval = self.evaluation_interval
        return stretch.ends_run or (interval is not None and stretch.iteration % interval == 0)

    def checkpoints(self, stretch: Stretch) -> bool:
        """Whether a checkpoint follows: a multiple of ``checkpoint_steps`` lies in this stretch, or the run ends."""
        if self.checkpoint_steps is None:
            return False
        before = stretch.pairs_done - len(stretch.batch)
        return stretch.ends_run or stretch.pairs_done // self.checkpoint_steps > before // self.checkpoint_steps
