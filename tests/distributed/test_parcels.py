"""What is handed from process to process arrives as it was."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.distributed import parcels
from agiledpo.distributed.team import Team
from tests.distributed import work
from tests.distributed.ranks import run_ranks


def state(rank: int) -> dict[str, Any]:
    """Tensors of many kinds between plain values."""
    generator = torch.Generator().manual_seed(rank)
    return {
        "rank": rank,
        "numbers": [torch.randn(3, 5, generator=generator), {"half": torch.randn(7, generator=generator).bfloat16()}],
        "transposed": torch.randn(4, 6, generator=generator).t(),
        "counts": (torch.tensor(rank), torch.tensor([True, False]), torch.arange(3, dtype=torch.uint8)),
        "nothing": (torch.empty(0, 4), None, "text", float("inf")),
        "nan": torch.tensor([float("nan"), -0.0]),
    }


def handed() -> dict[str, Any]:
    """What three processes have after rank 1 has given to all, to rank 2, and each tensor by itself."""
    team = Team.of(work.accelerator())
    own = state(team.rank)
    found = {
        "all": parcels.hand_over(own, team, giver=1),
        "one": parcels.hand_over(own, team, giver=1, receiver=2),
        "itself": parcels.hand_over(own, team, giver=1, receiver=1),
    }
    parcels._MESSAGE_BYTES = 40
    return {**found, "small": parcels.hand_over(own, team, giver=1, receiver=0)}


def bits(value: Any) -> Any:
    """A state as it can be compared, NaN included."""
    match value:
        case torch.Tensor():
            return value.dtype, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).tolist()
        case dict():
            return {name: bits(part) for name, part in value.items()}
        case list() | tuple():
            return type(value), [bits(part) for part in value]
    return value


def test_a_state_arrives_where_it_is_sent_and_nowhere_else():
    ranks = run_ranks(handed, ranks=3)
    givers = {"all": [1, 1, 1], "one": [0, 1, 1], "itself": [0, 1, 2], "small": [1, 1, 2]}
    for way, expected in givers.items():
        assert [bits(found[way]) for found in ranks] == [bits(state(rank)) for rank in expected], way


def test_alone_a_state_stays():
    own = state(0)
    assert parcels.hand_over(own, Team.alone(), giver=0) is own


@given(st.lists(st.integers(0, 30)), st.integers(1, 40))
def test_messages_cover_all_tensors_and_are_no_larger_than_need_be(sizes: list[int], limit: int) -> None:
    slots = [parcels._Slot(torch.Size([size]), torch.uint8, True) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parcels, "_MESSAGE_BYTES", limit)
        spans = list(parcels._messages(slots))
    assert [place for start, stop in spans for place in range(start, stop)] == list(range(len(sizes)))
    for number, (start, stop) in enumerate(spans):
        assert stop - start == 1 or sum(sizes[start:stop]) <= limit
        if number:  # the first of a message had no room in the one before
            before = spans[number - 1][0]
            assert sum(sizes[before : start + 1]) > limit
