"""The order of an epoch as a pure function, grouped by length and not."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agiledpo.llm_envs.batching import epoch_permutation, length_grouped_order

WINDOW_BATCHES = 50
LENGTHS = st.lists(st.integers(0, 60), max_size=330).map(lambda lengths: np.array(lengths, dtype=np.int32))


def padded_tokens(lengths: NDArray[np.int32], order: NDArray[np.int64], batch_size: int) -> int:
    """Tokens of the batches with their padding."""
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    return sum(int(batch.max()) * len(batch) for batch in batches)


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (42, 0, [3, 8, 1, 5, 2, 6, 7, 9, 4, 10, 0, 11]),
        (42, 3, [3, 7, 1, 9, 4, 6, 0, 11, 5, 2, 8, 10]),
        (2**40, 1, [5, 1, 7, 3, 6, 11, 0, 2, 10, 4, 9, 8]),
    ],
)
def test_permutations_stay_what_they_were(seed: int, epoch: int, expected: list[int]) -> None:
    """Resumed runs rely on it."""
    assert epoch_permutation(12, seed, epoch).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 4), seed=st.integers(0, 2**40), epoch=st.integers(0, 3))
def test_grouped_order_is_the_permutation_with_least_padding_in_each_window(
    lengths: NDArray[np.int32], batch_size: int, seed: int, epoch: int
) -> None:
    order = length_grouped_order(lengths, batch_size, seed, epoch)
    mixed = epoch_permutation(len(lengths), seed, epoch).numpy()
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(lengths)))
    full = len(lengths) // batch_size * batch_size
    # The last, smaller batch is left alone.
    assert order[full:].tolist() == mixed[full:].tolist()
    window = WINDOW_BATCHES * batch_size
    for start in range(0, full, window):
        stop = min(start + window, full)
        ours, theirs = order[start:stop], mixed[start:stop]
        assert sorted(ours.tolist()) == sorted(theirs.tolist())
        best = batch_size * int(np.sort(lengths[ours])[batch_size - 1 :: batch_size].sum())
        assert padded_tokens(lengths, ours, batch_size) == best <= padded_tokens(lengths, theirs, batch_size)


@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 4), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_grouped_order_depends_on_its_arguments_alone(
    lengths: NDArray[np.int32], batch_size: int, seed: int, epoch: int
) -> None:
    first = length_grouped_order(lengths, batch_size, seed, epoch)
    before = torch.get_rng_state(), lengths.copy()
    np.random.seed(epoch)  # noqa: NPY002
    random.seed(epoch)
    assert np.array_equal(length_grouped_order(lengths.astype(np.int64), batch_size, seed, epoch), first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(lengths, before[1])


def test_batches_of_a_window_are_shuffled_differently_in_every_epoch() -> None:
    lengths = np.arange(200, dtype=np.int32)
    places = []
    for seed, epoch in ((42, 0), (42, 1), (43, 0)):
        order = length_grouped_order(lengths, 4, seed, epoch)
        # 200 rows are one window, so that batches are the same and only their turns differ.
        turns = order.reshape(-1, 4)[:, 0] // 4
        assert order.tolist() == [4 * turn + place for turn in turns for place in range(4)]
        ups = int((np.diff(turns) > 0).sum())
        assert 12 < ups < 37
        places.append(turns.tolist())
    assert places[0] != places[1] != places[2] != places[0]


def test_rows_of_a_batch_are_others_in_the_next_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 1000)
    batches = [
        {frozenset(batch) for batch in length_grouped_order(lengths, 4, 42, epoch).reshape(-1, 4).tolist()}
        for epoch in (0, 1)
    ]
    assert len(batches[0] & batches[1]) < 5
