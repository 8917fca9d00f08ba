"""What makes one agent fitter than another on held-out completions.

Both measures are means over tokens, ratios of two sums over rows of different length. Tokens of a row are not
independent, so the standard error is that of a ratio of sums over independent rows (Cochran, Sampling Techniques, 3rd
edition 1977, eq. 6.13 without the finite-population correction).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from agiledpo.algorithms.fitness import Estimate
from agiledpo.losses.completions import CompletionTerms

FITNESS: dict[str, Callable[[CompletionTerms], Tensor]] = {
    "loss": lambda terms: -terms.nll,  # minus the negative log-likelihood per token, nats
    "accuracy": lambda terms: terms.hits,  # share of tokens that the model would have chosen itself
}

METRICS = ("loss", "mean_loss", "perplexity", "mean_token_accuracy", "num_tokens", "rows")


def ratio_estimate(sums: Tensor, counts: Tensor) -> Estimate:
    """Estimate a mean over tokens from rows of several tokens.

    With the ratio R = sum(y) / sum(t) over n rows its standard error is ``sqrt(n / (n - 1) * sum((y - R t)^2)) /
    sum(t)``.

    Args:
        sums: Sum over the tokens of each row, y, (rows,).
        counts: Tokens of each row, t, (rows,).

    Returns:
        R and its standard error; NaN for one row.
    """
    sums, counts = sums.double(), counts.double()
    rows, total = len(sums), float(counts.sum())
    ratio = float(sums.sum()) / total
    if rows < 2:
        return Estimate(ratio)
    residuals = sums - ratio * counts
    return Estimate(ratio, math.sqrt(rows / (rows - 1) * float(residuals.square().sum())) / total)


@dataclass(frozen=True)
class HeldOutCompletions:
    """What an agent does with the rows of a held-out split.

    Attributes:
        terms: Sums over the tokens of each row.
    """

    terms: CompletionTerms

    def __len__(self) -> int:
        return len(self.terms.tokens)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of ``SFT.learn``, over all rows."""
        return completion_metrics(self.terms)

    def fitness(self, name: str) -> Estimate:
        """A measure of ``FITNESS``, higher is better."""
        return ratio_estimate(FITNESS[name](self.terms), self.terms.tokens)

    @property
    def tie_break(self) -> float:
        """Log-likelihood per token, nats; it decides between agents that choose equally many tokens correctly."""
        return self.fitness("loss").value


def completion_metrics(terms: CompletionTerms) -> dict[str, float]:
    """Metrics over all tokens of some rows.

    Args:
        terms: Sums over the tokens of each row.

    Returns:
        ``loss`` and ``mean_loss`` (negative log-likelihood per completion token, nats), ``perplexity`` (its
        exponential), ``mean_token_accuracy`` (share of completion tokens than which the model finds none more likely),
        ``num_tokens`` (completion tokens) and ``rows``.
    """
    tokens = int(terms.tokens.sum())
    loss = terms.nll.double().sum() / tokens
    return {
        "loss": float(loss),
        "mean_loss": float(loss),
        "perplexity": float(loss.exp()),
        "mean_token_accuracy": int(terms.hits.sum()) / tokens,
        "num_tokens": float(tokens),
        "rows": float(len(terms.tokens)),
    }
