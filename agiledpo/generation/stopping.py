"""Texts behind which a completion ends."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class StopTexts(StoppingCriteria):
    """Ends a row whose last tokens decode to something with a stop text in it.

    Transformers' ``StopStringCriteria`` looks up tokens instead, which takes a pass over the vocabulary in Python
    first, and fails for tokenizers that cannot spell "abcdef".

    Args:
        tokenizer: The model's.
        texts: The stop texts, none of them empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        # A token is at least a byte. Some more, because decoding may drop what a text begins with.
        self._tokens = max(len(text.encode()) for text in texts) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows end with their last token, bool (rows,).

        Args:
            input_ids: Completions so far, int64 (rows, tokens); none of them had a stop text in it before.
            scores: Ignored.
            **kwargs: Ignored.
        """
        tails = self._tokenizer.batch_decode(input_ids[:, -self._tokens :], clean_up_tokenization_spaces=False)
        return torch.tensor([any(text in tail for text in self._texts) for tail in tails], device=input_ids.device)
