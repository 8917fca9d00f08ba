"""Maximum likelihood of completions: what SFT minimises, and what it is measured by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agiledpo.losses.inputs import TokenLogProbs
from agiledpo.losses.sequence import nll


@dataclass(frozen=True, kw_only=True, eq=False)
class CompletionTerms:
    """Sums over the tokens of each completion of a batch.

    Attributes:
        nll: (B,) floating point. Negative log-likelihood, nats; the only one with a gradient.
        hits: (B,) int64. Tokens than which the model finds none more likely.
        tokens: (B,) int64. Tokens.
    """

    nll: Tensor
    hits: Tensor
    tokens: Tensor

    @staticmethod
    def of(tokens: TokenLogProbs) -> "CompletionTerms":
        """Add up the tokens of each completion.

        Args:
            tokens: Log-probabilities of shape (B, T), with ``hits``.

        Raises:
            ValueError: ``hits`` is missing.
        """
        if tokens.hits is None:
            raise ValueError("Token accuracy needs hits, and they are None; score with Scorer(..., hits=True).")
        return CompletionTerms(nll=nll(tokens), hits=(tokens.hits & tokens.mask).sum(dim=1), tokens=tokens.lengths)

    @staticmethod
    def concat(parts: Sequence["CompletionTerms"]) -> "CompletionTerms":
        """Put the terms of several batches one after the other, on the CPU and without gradient."""
        columns = zip(*((part.nll, part.hits, part.tokens) for part in parts), strict=True)
        nlls, hits, tokens = (torch.cat([part.detach().cpu() for part in column]) for column in columns)
        return CompletionTerms(nll=nlls, hits=hits, tokens=tokens)

    def select(self, places: Sequence[int]) -> "CompletionTerms":
        """The terms of the completions at some places, in that order."""
        chosen = list(places)
        return CompletionTerms(nll=self.nll[chosen], hits=self.hits[chosen], tokens=self.tokens[chosen])
