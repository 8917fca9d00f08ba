"""Environments whose rows hold what is to be learned, so that nothing depends on what an agent does."""

from typing import Any

from agiledpo.llm_envs.dataset_gym import DatasetGym, Experiences


class OfflineGym(DatasetGym[Experiences]):
    """A :class:`DatasetGym` whose `step` has nothing to judge."""

    def step(self, completions: Any = None) -> Experiences:
        """Return the next batch of the current split, beginning a new pass when the split is exhausted.

        Args:
            completions: Ignored; the rows are what they are.
        """
        return self.next_batch()
