"""Preference pairs of random token ids, whose lengths are drawn from a seeded distribution."""

from dataclasses import dataclass

import numpy as np
import torch

from agiledpo.scoring import PreferenceBatch

PAD, END = 0, 1
_FIRST_WORD = 2


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths, tokens.

    Attributes:
        prompt: Mean length of prompts.
        completion: Mean length of completions.
        spread: Standard deviation of the logarithm.
        longest: Prompts and completions are cut to this many times their mean.
    """

    prompt: int
    completion: int
    spread: float = 0.5
    longest: float = 3.0


def make_batches(
    batches: int, batch_size: int, lengths: Lengths, vocabulary: int, seed: int = 0
) -> list[PreferenceBatch]:
    """Draw batches of pairs; every completion ends in the token ``END``.

    Args:
        batches: Number of batches.
        batch_size: Pairs in each.
        lengths: Distribution of the lengths.
        vocabulary: Ids are below it.
        seed: Seed of lengths and tokens.
    """
    generator = np.random.default_rng(seed)

    def words(mean: int, shortest: int) -> torch.Tensor:
        # The mean of exp(N(mu, s^2)) is exp(mu + s^2 / 2).
        drawn = mean * generator.lognormal(-(lengths.spread**2) / 2, lengths.spread)
        length = int(min(max(round(drawn), shortest), lengths.longest * mean))
        return torch.from_numpy(generator.integers(_FIRST_WORD, vocabulary, length))

    def completion() -> torch.Tensor:
        tokens = words(lengths.completion, 2)
        tokens[-1] = END
        return tokens

    return [
        PreferenceBatch(
            prompts=[words(lengths.prompt, 1) for _ in range(batch_size)],
            chosen=[completion() for _ in range(batch_size)],
            rejected=[completion() for _ in range(batch_size)],
            labels=[f"pair {number * batch_size + i}" for i in range(batch_size)],
        )
        for number in range(batches)
    ]
