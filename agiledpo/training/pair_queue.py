"""Turns the environment's batches into an agent's: ``batch_size`` pairs for each optimizer step."""

from collections.abc import Mapping
from typing import Any

from agiledpo.scoring import PreferenceBatch


class PairQueue:
    """Pairs that an agent has been shown and has not learned from yet.

    The environment's batch size and the agent's are independent, so agents of different ``batch_size`` see the same
    pairs in the same order.
    """

    def __init__(self) -> None:
        self._waiting: list[PreferenceBatch] = []

    def __len__(self) -> int:
        return sum(len(batch) for batch in self._waiting)

    def put(self, batch: PreferenceBatch) -> None:
        """Append pairs."""
        self._waiting.append(batch)

    def take(self, size: int) -> PreferenceBatch:
        """Remove and return the first ``size`` pairs, or all if there are fewer."""
        everything = PreferenceBatch.concat(self._waiting)
        self._waiting = [everything.slice(size, len(everything))] if size < len(everything) else []
        return everything.slice(0, size)

    def clear(self) -> None:
        """Forget the waiting pairs."""
        self._waiting = []

    def state_dict(self) -> dict[str, Any]:
        """The waiting pairs, as tensors and text."""
        waiting = PreferenceBatch.concat(self._waiting)
        return {name: list(values) for name, values in vars(waiting).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the pairs wait that waited where :meth:`state_dict` was taken."""
        waiting = PreferenceBatch(**state)
        self._waiting = [waiting] if len(waiting) else []
