"""A prompt is on one side of a split only."""

import pytest
from datasets import Dataset, Features, Json, List
from hypothesis import given, settings
from hypothesis import strategies as st

from agiledpo.data import PAIRS, DatasetError
from agiledpo.data.splitting import split_rows_by_prompt


def rows(prompts: list[int]) -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"p{prompt}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i, prompt in enumerate(prompts)]
    )


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.integers(0, 6), min_size=2, max_size=30),
    test_size=st.floats(0.05, 0.6),
    seed=st.integers(0, 100),
)
def test_sides_share_no_prompt_and_lose_no_row(prompts: list[int], test_size: float, seed: int) -> None:
    dataset = rows(prompts)
    largest = max(prompts.count(prompt) for prompt in set(prompts))
    if len(prompts) - largest < test_size * len(prompts):  # a draw of all groups but one might not suffice
        return
    train, test = split_rows_by_prompt(dataset, PAIRS, test_size, seed=seed, name="train")
    assert sorted([*train, *test]) == list(range(len(prompts)))
    assert not {prompts[row] for row in train} & {prompts[row] for row in test}
    assert test_size * len(prompts) <= len(test) < test_size * len(prompts) + largest
    again = split_rows_by_prompt(dataset, PAIRS, test_size, seed=seed, name="train")
    assert [part.tolist() for part in again] == [train.tolist(), test.tolist()]


def test_seeds_make_other_splits() -> None:
    dataset = rows(list(range(100)))
    splits = {tuple(split_rows_by_prompt(dataset, PAIRS, 0.1, seed=seed, name="train")[1]) for seed in range(8)}
    assert len(splits) == 8
    assert {len(split) for split in splits} == {10}


def test_what_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"train dataset: its 3 rows have 1 different prompts, too few to hold out"):
        split_rows_by_prompt(rows([1, 1, 1]), PAIRS, 0.5, seed=0, name="train")
    with pytest.raises(ValueError, match=r"test_size must be between 0 and 1, got 1\.5"):
        split_rows_by_prompt(rows([1, 2]), PAIRS, 1.5, seed=0, name="train")
    bad = Dataset.from_list([*rows([1, 2]).to_list(), {"prompt": "p", "chosen": " ", "rejected": "no"}])
    with pytest.raises(DatasetError, match="train dataset, row 2, column 'chosen': the completion is empty"):
        split_rows_by_prompt(bad, PAIRS, 0.5, seed=0, name="train")


def test_seed_that_is_none() -> None:
    for seed in (-1, 1.5, True):
        with pytest.raises(ValueError, match=rf"^seed must be a whole number that is not negative, got {seed}\.$"):
            split_rows_by_prompt(rows([1, 2]), PAIRS, 0.5, seed=seed, name="train")  # type: ignore[arg-type]


def test_keys_that_are_none_are_of_the_same_prompt() -> None:
    """JSON columns keep them, and the template never sees them; the check for leakage counts as equal what is here."""
    prompts = [[{"role": "user", "content": "a"} | ({"name": None} if row % 2 else {})] for row in range(8)]
    prompts += [[{"role": "user", "content": "b"}]]
    answers = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    chat = Dataset.from_list(
        [{"prompt": prompt, "chosen": answers[0], "rejected": answers[1]} for prompt in prompts],
        features=Features({key: List(Json()) for key in ("prompt", "chosen", "rejected")}),
    )
    assert "name" not in chat[0]["prompt"][0]
    assert "name" in chat[1]["prompt"][0]
    sides = split_rows_by_prompt(chat, PAIRS, 0.1, seed=0, name="train")
    assert sorted(side.tolist() for side in sides) == [list(range(8)), [8]]
