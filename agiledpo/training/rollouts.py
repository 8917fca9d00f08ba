"""Rollouts on their way from the current policy to what learns from them: made, checked, and logged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agiledpo.data.rollouts.log import RolloutLog
from agiledpo.generation import Rollout
from agiledpo.scoring import QuestionBatch, RolloutBatch


class Rollouts:
    """Has prompts answered and judged, and notes what came of it.

    Args:
        rollout: Makes the rollouts of an agent, its prompts and their environment.
        log: Where they are noted; None for nowhere.
    """

    def __init__(self, rollout: Rollout, log: RolloutLog | None) -> None:
        self.rollout = rollout
        self.log = log
        self._iteration = 0
        self._rows_done = 0

    def begin_batch(self, iteration: int, rows_done: int) -> None:
        """Note where the run is, for the log."""
        self._iteration, self._rows_done = iteration, rows_done

    def __call__(self, agent: Any, questions: QuestionBatch, env: Any) -> RolloutBatch:
        """Let an agent answer prompts.

        Args:
            agent: Whose actor answers.
            questions: The prompts.
            env: The environment that they are from.

        Raises:
            TypeError: ``rollout`` returned something else than a ``RolloutBatch``.
        """
        rollouts = self.rollout(agent, questions, env)
        if not isinstance(rollouts, RolloutBatch):
            raise TypeError(
                f"rollout={self.rollout!r} returned a {type(rollouts).__name__}; an agiledpo.scoring.RolloutBatch is "
                "needed, as agent.roll_out(questions, env) returns it."
            )
        if self.log is not None:
            self.log.write(
                questions,
                rollouts,
                env,
                agent=agent.index,
                iteration=self._iteration,
                rows_done=self._rows_done,
            )
        return rollouts

    @property
    def files(self) -> Mapping[str, Path]:
        """The file of the log, if there is one."""
        return {} if self.log is None else {"rollouts_path": self.log.path}

    def state_dict(self) -> dict[str, Any]:
        """How far the log is; JSON can hold it."""
        return {} if self.log is None else {"log": self.log.state_dict()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that :meth:`load_state_dict` would take a state; nothing is changed.

        Raises:
            FileExistsError: The file of the log holds another run's rollouts.
            ValueError: It lacks rollouts of this one.
        """
        if self.log is not None:
            self.log.check_state(state.get("log", {"bytes": 0}))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the log to where it was when :meth:`state_dict` was taken."""
        if self.log is not None and "log" in state:
            self.log.load_state_dict(state["log"])
