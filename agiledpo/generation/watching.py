"""What is noted of each token while Transformers generates: its log-probability, and whether it ends a completion."""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


class RawLogits(LogitsProcessor):
    """Keeps the logits of the step that is under way, as the model gave them; to be the first of all processors."""

    def __init__(self) -> None:
        self.logits = torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep ``scores``, float32 (rows, V), and hand on what can be drawn from even where they are not finite."""
        self.logits = scores
        return scores.nan_to_num()


class TokenWatch(StoppingCriteria):
    """Notes the log-probability of each token that was drawn, and at which one each row ended.

    Args:
        raw: What keeps the logits that a token was drawn from.
        rows: Number of rows.
        eos: Tokens that end a completion, int64 (E,).
        stop: Also ends a completion; it sees the rows from ``start`` on. None for nothing.
        start: Where completions begin, or the first token that such an end may lie in.
        temperature: What logits are divided by.
    """

    def __init__(
        self, raw: RawLogits, rows: int, *, eos: Tensor, stop: StoppingCriteria | None, start: int, temperature: float
    ) -> None:
        self._raw = raw
        self._eos = eos
        self._stop = stop
        self._start = start
        self._temperature = temperature
        self._logps: list[Tensor] = []
        self._length = torch.zeros(rows, dtype=torch.long, device=eos.device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=eos.device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Look at the last token of each row, (rows, tokens so far); return which rows end there, bool (rows,)."""
        last = input_ids[:, -1]
        logits = self._raw.logits / self._temperature
        self._logps.append(logits.gather(1, last[:, None])[:, 0] - logits.logsumexp(1))
        ends = torch.isin(last, self._eos)
        if self._stop is not None:
            ends |= self._stop(input_ids[:, self._start :], scores)
        self._length += ~self._ended
        self._ended |= ends
        return ends

    @property
    def logps(self) -> Tensor:
        """Log-probabilities, float32 (rows, tokens); those behind a row's end mean nothing."""
        return torch.stack(self._logps, dim=1)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row up to its end, or all there are, int64 (rows,)."""
        return self._length

    @property
    def ended(self) -> Tensor:
        """Which rows ended, bool (rows,)."""
        return self._ended
