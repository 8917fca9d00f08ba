"""Turns the environment's batches into an agent's: ``batch_size`` rows for each optimizer step."""

from collections.abc import Mapping
from typing import Any

from agiledpo.scoring.prompt_batch import PromptBatch


class RowQueue:
    """Rows that an agent has been shown and has not learned from yet.

    The environment's batch size and the agent's are independent, so agents of different ``batch_size`` see the same
    rows in the same order.

    Args:
        kind: What the rows are.
    """

    def __init__(self, kind: type[PromptBatch]) -> None:
        self._kind = kind
        self._waiting: list[PromptBatch] = []

    def __len__(self) -> int:
        return sum(len(batch) for batch in self._waiting)

    def put(self, batch: PromptBatch) -> None:
        """Append rows."""
        self._waiting.append(batch)

    def take(self, size: int) -> Any:
        """Remove and return the first ``size`` rows, or all if there are fewer."""
        everything = self._kind.concat(self._waiting)
        self._waiting = [everything.slice(size, len(everything))] if size < len(everything) else []
        return everything.slice(0, size)

    def clear(self) -> None:
        """Forget the waiting rows."""
        self._waiting = []

    def state_dict(self) -> dict[str, Any]:
        """The waiting rows, as tensors and text."""
        return {name: list(values) for name, values in vars(self._kind.concat(self._waiting)).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the rows wait that waited where :meth:`state_dict` was taken."""
        waiting = self._kind(**state)
        self._waiting = [waiting] if len(waiting) else []
