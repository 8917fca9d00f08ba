"""Builders of small batches, shared by the tests of the losses."""

from collections.abc import Callable, Sequence

import pytest
import torch

from agiledpo.losses import PairLogProbs, TokenLogProbs

MakePairs = Callable[..., PairLogProbs]
MakeTokens = Callable[..., TokenLogProbs]


@pytest.fixture(scope="session")
def make_pairs() -> MakePairs:
    """Pairs from lists of numbers, in float64 unless asked otherwise."""

    def build(
        policy_chosen: Sequence[float],
        policy_rejected: Sequence[float],
        reference_chosen: Sequence[float],
        reference_rejected: Sequence[float],
        chosen_tokens: Sequence[int],
        rejected_tokens: Sequence[int],
        *,
        dtype: torch.dtype = torch.float64,
        requires_grad: bool = False,
    ) -> PairLogProbs:
        return PairLogProbs(
            policy_chosen=torch.tensor(policy_chosen, dtype=dtype, requires_grad=requires_grad),
            policy_rejected=torch.tensor(policy_rejected, dtype=dtype, requires_grad=requires_grad),
            reference_chosen=torch.tensor(reference_chosen, dtype=dtype),
            reference_rejected=torch.tensor(reference_rejected, dtype=dtype),
            chosen_tokens=torch.tensor(chosen_tokens),
            rejected_tokens=torch.tensor(rejected_tokens),
        )

    return build


@pytest.fixture(scope="session")
def make_tokens() -> MakeTokens:
    """Right-padded token log-probabilities from rows of different length, in float64 unless asked otherwise."""

    def build(
        rows: Sequence[Sequence[float]],
        collision_rows: Sequence[Sequence[float]] | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        width: int | None = None,
    ) -> TokenLogProbs:
        columns = max(len(row) for row in rows) if width is None else width

        def pad(values: Sequence[Sequence[float]]) -> torch.Tensor:
            return torch.tensor([[*row, *[0.0] * (columns - len(row))] for row in values], dtype=dtype)

        lengths = torch.tensor([len(row) for row in rows])
        return TokenLogProbs(
            logps=pad(rows),
            mask=torch.arange(columns) < lengths.unsqueeze(1),
            log_collision=None if collision_rows is None else pad(collision_rows),
        )

    return build


@pytest.fixture(scope="session")
def random_tokens() -> MakeTokens:
    """Plausible token log-probabilities of given lengths, drawn from a seeded generator."""

    def build(
        lengths: Sequence[int],
        *,
        seed: int,
        collision: bool = False,
        requires_grad: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> TokenLogProbs:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(lengths), max(lengths))
        mask = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(1)
        draws = torch.rand((2, *shape), generator=generator, dtype=torch.float64)
        logps = (-2.0 * draws[0] - 0.05).masked_fill(~mask, 0.0).to(dtype)
        log_collision = (-1.5 * draws[1]).masked_fill(~mask, 0.0).to(dtype) if collision else None
        return TokenLogProbs(logps=logps.requires_grad_(requires_grad), mask=mask, log_collision=log_collision)

    return build
