"""Completions cut into a piece for each process."""

from collections.abc import Sequence
from itertools import combinations_with_replacement, pairwise

from hypothesis import given
from hypothesis import strategies as st

from agiledpo.distributed.consecutive import consecutive_shares

GROUPS = st.lists(
    st.tuples(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=3)), min_size=1, max_size=3
)


def weight(piece: range, completions: Sequence[int], owners: Sequence[int], prompts: Sequence[int]) -> int:
    return sum(completions[i] for i in piece) + sum(prompts[owner] for owner in {owners[i] for i in piece})


@given(GROUPS, st.integers(1, 4))
def test_no_cut_has_a_lighter_heaviest_piece(groups: Sequence[tuple[int, Sequence[int]]], size: int) -> None:
    prompts = [prompt for prompt, _ in groups]
    completions = [tokens for _, group in groups for tokens in group]
    owners = [place for place, (_, group) in enumerate(groups) for _ in group]
    shares = consecutive_shares(completions, owners, prompts, size)
    assert [i for share in shares for i in range(*share)] == list(range(len(completions)))
    assert len(shares) == size

    def heaviest(borders: Sequence[int]) -> int:
        return max(weight(range(*piece), completions, owners, prompts) for piece in pairwise(borders))

    borders = [0, *(stop for _, stop in shares)]
    every = combinations_with_replacement(range(len(completions) + 1), size - 1)
    assert heaviest(borders) == min(heaviest([0, *inner, len(completions)]) for inner in every)


def test_completions_of_a_prompt_stay_together_where_nobody_gains_by_parting_them() -> None:
    three = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert consecutive_shares([2] * 12, three, [5] * 4, 2) == [(0, 6), (6, 12)]
    assert consecutive_shares([2] * 12, three, [5] * 4, 4) == [(0, 3), (3, 6), (6, 9), (9, 12)]
    # Three groups for two processes: a part of the second one for each.
    assert consecutive_shares([2] * 9, three[:9], [1] * 3, 2) == [(0, 5), (5, 9)]
    # Two groups for three processes: whoever had a part of one would leave somebody else with all of the other.
    assert consecutive_shares([2] * 6, three[:6], [50] * 2, 3) == [(0, 3), (3, 6), (6, 6)]
    assert consecutive_shares([2] * 6, three[:6], [0] * 2, 3) == [(0, 2), (2, 4), (4, 6)]
