"""Where the agents of a run get their rows from: one environment for all, or one for each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from agiledpo.llm_envs.types import Split

# What the settings of a run call the rows of a split begins with it.
ROWS_OF = "rows of the "

# The settings that make a batch.
BATCH_SIZE, PROCESSES = "data_batch_size_per_gpu", "processes"


class Gym(Protocol):
    """What a training loop asks of an environment: batches of rows, and its place among them."""

    tokenizer: PreTrainedTokenizerBase
    data_batch_size_per_gpu: int
    validation_names: tuple[str, ...]

    @property
    def rows_per_batch(self) -> int:
        """Rows of a batch, ``data_batch_size_per_gpu`` for each process."""
        ...

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there are."""
        ...

    @property
    def at_epoch_end(self) -> bool:
        """Whether all rows of this pass over the training split have been handed out."""
        ...

    def __len__(self) -> int: ...

    def fingerprint(self, split: Split) -> str:
        """Name of the rows of a split: equal names mean equal rows."""
        ...

    def filter_table(self) -> str:
        """How many rows of each split were left out or cut and why; empty where all are kept whole."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """What may be changed when a run goes on, but makes it another run, by name; plain values."""
        ...

    def next_batch(self) -> Mapping[str, Any]:
        """The next batch of the training split."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place in the training split; JSON can hold it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place where ``state_dict`` was taken."""
        ...


class Environments:
    """The environments of a population; agents are always compared on the first one's held-out split.

    Args:
        envs: One environment, whose batches all agents learn from, or one for each agent, of the same size.
    """

    def __init__(self, envs: Sequence[Gym]) -> None:
        self._envs = list(envs)

    @staticmethod
    def make(env: Gym | None, env_fn: Callable[[], Gym] | None, agents: int) -> "Environments":
        """Resolve the arguments of a training loop.

        Args:
            env: The environment of all agents.
            env_fn: Makes an environment for an agent.
            agents: Number of agents.

        Raises:
            ValueError: Both or neither are given, or ``env_fn`` makes environments of different sizes or with different
                splits, or twice the same one.
        """
        if (env is None) == (env_fn is None):
            raise ValueError(
                "Pass exactly one of env (all agents learn from it) and env_fn (makes one for each agent)."
            )
        if env_fn is None:
            assert env is not None
            return Environments([env])
        envs = [env_fn() for _ in range(agents)]
        if len({id(made) for made in envs}) < len(envs):
            raise ValueError("env_fn returned the same environment twice; make a new one in each call, or pass env=.")
        sizes = {(len(made), made.data_batch_size_per_gpu) for made in envs}
        if len(sizes) > 1:
            raise ValueError(
                f"env_fn made environments of different sizes, (rows, batch) {sorted(sizes)}; agents are compared on "
                "equal work, so make them alike."
            )
        for number, made in enumerate(envs):
            if set(made.splits) != set(envs[0].splits):
                raise ValueError(
                    f"env_fn made environments with different splits, the first has {sorted(envs[0].splits)} and "
                    f"number {number} {sorted(made.splits)}; all agents are measured on the first one's held-out "
                    "splits, so give all the same validation_datasets and final_dataset."
                )
        return Environments(envs)

    @property
    def judge(self) -> Gym:
        """The environment on whose held-out split agents are compared."""
        return self._envs[0]

    @property
    def all(self) -> Sequence[Gym]:
        """The environments."""
        return self._envs

    def of(self, place: int) -> Gym:
        """The environment that the agent at a place of the population learns from."""
        return self._envs[0] if len(self._envs) == 1 else self._envs[place]

    @property
    def at_epoch_end(self) -> bool:
        """Whether the pass over the training split is complete; it is for all at the same time."""
        return self.judge.at_epoch_end

    def step(self) -> list[Mapping[str, Any]]:
        """The next batch of each environment."""
        return [env.next_batch() for env in self._envs]

    def settings(self) -> dict[str, Any]:
        """What makes another run of it, where the places among the rows are the same."""
        judge = self.judge
        return {
            BATCH_SIZE: judge.data_batch_size_per_gpu,
            PROCESSES: judge.rows_per_batch // judge.data_batch_size_per_gpu,
            **judge.settings(),
            **{f"{ROWS_OF}{split} split": judge.fingerprint(split) for split in judge.splits},
        }

    def state_dict(self) -> list[dict[str, Any]]:
        """The place in each environment."""
        return [env.state_dict() for env in self._envs]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go back to the places where :meth:`state_dict` was taken.

        Raises:
            ValueError: There are more or fewer environments than there were, or one is of other data.
        """
        if len(states) != len(self._envs):
            raise ValueError(f"The state is of {len(states)} environments; this run has {len(self._envs)}.")
        for env, state in zip(self._envs, states, strict=True):
            env.load_state_dict(dict(state))
