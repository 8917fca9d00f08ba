"""What all practices share whose agents answer prompts themselves: rollouts are made, checked, and logged."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from typing_extensions import override

from agiledpo.data.rollouts.log import RolloutLog
from agiledpo.generation import Rollout
from agiledpo.scoring import QuestionBatch, RolloutBatch
from agiledpo.training.population import Agent
from agiledpo.training.practice import Practice


class FromRollouts(Practice[Agent]):
    """All prompts of a batch are answered and judged before the agent learns from any of them.

    Args:
        rollout: Makes the rollouts of an agent, its prompts and their environment.
        log: Where they are noted; None for nowhere.
    """

    def __init__(self, rollout: Rollout, log: RolloutLog | None) -> None:
        self.rollout = rollout
        self.log = log
        self._iteration = 0
        self._rows_done = 0

    @override
    def rows_at_once(self, agent: Agent) -> int | None:
        return None

    @override
    def begin_batch(self, iteration: int, rows_done: int) -> None:
        self._iteration, self._rows_done = iteration, rows_done

    def answered(self, agent: Agent, questions: QuestionBatch, env: Any) -> RolloutBatch:
        """Let an agent answer prompts, and note what came of it.

        Args:
            agent: Whose actor answers.
            questions: The prompts.
            env: The environment that they are from.

        Raises:
            TypeError: ``rollout`` returned something else than a ``RolloutBatch``.
            ValueError: It returned other rollouts in another process.
        """
        rollouts = self.rollout(agent, questions, env)
        if not isinstance(rollouts, RolloutBatch):
            raise TypeError(
                f"rollout={self.rollout!r} returned a {type(rollouts).__name__}; an agiledpo.scoring.RolloutBatch is "
                "needed, as agent.roll_out(questions, env) returns it."
            )
        self._check_alike(agent, rollouts)
        if self.log is not None:
            self.log.write(
                questions,
                rollouts,
                env,
                agent=agent.index,
                iteration=self._iteration,
                rows_done=self._rows_done,
            )
        self.observer.answered(agent, questions, rollouts, env)
        return rollouts

    def _check_alike(self, agent: Agent, rollouts: RolloutBatch) -> None:
        """Check that all processes learn from the same: a rollout of the user's may draw, or ask a service."""
        if agent.team.is_alone:
            return
        digests = agent.team.gather(_digest(rollouts))
        if len(set(digests)) > 1:
            raise ValueError(
                f"rollout={self.rollout!r} returned other rollouts in rank {agent.team.rank} than in another, and all "
                "processes have to learn from the same. What agent.roll_out(questions, env) returns is; have anything "
                "else done by one process for all, agent.team.leader_does(lambda: ...)."
            )

    @property
    @override
    def files(self) -> Mapping[str, Path]:
        return {} if self.log is None else {"rollouts_path": self.log.path}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.log is None else {"log": self.log.state_dict()}

    @override
    def check_state(self, state: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.check_state(state.get("log", {"bytes": 0}))

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.log is not None and "log" in state:
            self.log.load_state_dict(state["log"])


def _digest(rollouts: RolloutBatch) -> str:
    """Equal for equal completions that are worth the same."""
    told = blake2b(digest_size=16)
    for place, ids in rollouts.numbered:
        told.update(f"{place} {ids.tolist()}".encode())
    told.update(repr([rollouts.rewards, rollouts.finished]).encode())
    for group in rollouts.advantages:
        told.update(repr(None if group is None else [values.tolist() for values in group]).encode())
    return told.hexdigest()
