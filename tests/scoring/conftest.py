"""The slow, plain way to score a completion: one forward per sequence, full logits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def plain_logps() -> Callable[[torch.nn.Module, Tensor, Tensor], Tensor]:
    """Log-probabilities of a completion's tokens: ``plain_logps(model, prompt, completion)``, (tokens,)."""

    def score(model: torch.nn.Module, prompt: Tensor, completion: Tensor) -> Tensor:
        ids = torch.cat([prompt, completion])[None]
        logits = model(input_ids=ids).logits[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        log_probs = torch.log_softmax(logits, dim=-1)
        return log_probs[len(prompt) - 1 : -1].gather(1, completion[:, None])[:, 0]

    return score
