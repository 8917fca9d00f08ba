"""The spaces contain what they say, sample from it, and refuse the rest."""

from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces

from agiledpo.llm_envs.spaces import ChoiceSpace, CountSpace, TextListSpace, TokenSpace

SPACES = [
    TokenSpace(7),
    TokenSpace(2, sample_rows=3),
    CountSpace(),
    CountSpace(low=1),
    TextListSpace(),
    ChoiceSpace("ab"),
]


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_samples_are_seeded_members(space: gymnasium.Space[Any]) -> None:
    space.seed(3)
    drawn = [space.sample() for _ in range(20)]
    assert all(sample in space for sample in drawn)
    space.seed(3)
    again = [space.sample() for _ in range(20)]
    assert space.to_jsonable(drawn) == space.to_jsonable(again)
    space.seed(4)
    assert space.to_jsonable([space.sample() for _ in range(20)]) != space.to_jsonable(drawn)
    assert space.to_jsonable(space.from_jsonable(space.to_jsonable(drawn))) == space.to_jsonable(drawn)
    assert not space.is_np_flattenable


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_sampling_leaves_the_global_generators_alone(space: gymnasium.Space[Any]) -> None:
    before = torch.get_rng_state()
    space.sample()
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="neither with a mask"):
        space.sample(mask=[1])


@pytest.mark.parametrize(
    ("space", "inside", "outside"),
    [
        (
            TokenSpace(7),
            [torch.tensor([[0, 6]]), torch.zeros(5, 1, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64)],
            [
                torch.tensor([[0, 7]]),
                torch.tensor([[-1]]),
                torch.tensor([0, 6]),
                torch.tensor([[1.0]]),
                torch.tensor([[1]], dtype=torch.int32),
                [[1, 2]],
                None,
            ],
        ),
        (
            CountSpace(low=1),
            [torch.tensor([1, 10**9]), torch.tensor([], dtype=torch.int64)],
            [torch.tensor([0]), torch.tensor([[1]]), torch.tensor([1.0]), torch.tensor(1), [1]],
        ),
        (TextListSpace(), [[], [""], ["a", "b"]], ["a", ("a",), ["a", 1], [None]]),
        (ChoiceSpace(("train", "test")), ["train", "test"], ["valid", None, ["train"], 0]),
    ],
)
def test_membership(space: gymnasium.Space[Any], inside: list[Any], outside: list[Any]) -> None:
    assert all(value in space for value in inside)
    assert not any(value in space for value in outside)


def test_equality() -> None:
    assert TokenSpace(7) == TokenSpace(7, sample_rows=9, seed=1)
    assert TokenSpace(7) != TokenSpace(8)
    assert CountSpace(low=1) != CountSpace(low=0)
    assert ChoiceSpace("ab") != ChoiceSpace("abc")
    assert TextListSpace() == TextListSpace()
    assert TokenSpace(7) != CountSpace()
    with pytest.raises(ValueError, match="size must be at least 1"):
        TokenSpace(0)


def test_they_compose() -> None:
    space = spaces.Dict({"ids": TokenSpace(7, sample_rows=3, sample_tokens=5), "length": CountSpace(sample_rows=3)})
    space.seed(0)
    sample = space.sample()
    assert sample in space
    assert sample["ids"].shape == (3, 5)
    assert sample["length"].shape == (3,)
    assert {**sample, "more": 1} not in space
    assert {"ids": sample["ids"]} not in space
