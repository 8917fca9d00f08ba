"""Ranked completions: which are compared, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from agiledpo.data import DatasetError, Example, FilterCounts, Form, Ranked, prepare_rows

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
CONTEXT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And that of Germany?"},
]


def answer(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def ranked(*ranks: Any) -> dict[str, Any]:
    """A row whose completions say their place."""
    completions = [{"rank": rank, "completion": answer(str(place))} for place, rank in enumerate(ranks)]
    return {"context": CONTEXT, "completions": completions}


def read(values: dict[str, Any], pairing: Any = "best_worst") -> list[Example]:
    return Ranked(pairing=pairing).read(Form.CHAT, 7, values, name="train")


def places(values: dict[str, Any], pairing: str) -> list[tuple[int, int]]:
    return [
        tuple(int(completion[0]["content"]) for completion in example.completions) for example in read(values, pairing)
    ]


@pytest.mark.parametrize(
    ("ranks", "best_worst", "adjacent", "everything"),
    [
        ((0, 1), [(0, 1)], [(0, 1)], [(0, 1)]),
        ((2, 1), [(1, 0)], [(1, 0)], [(1, 0)]),
        ((5, -3, 1), [(1, 0)], [(1, 2), (2, 0)], [(1, 2), (1, 0), (2, 0)]),
        # Of several of a rank the first stands for it where one is asked for.
        ((1, 0, 0, 1), [(1, 0)], [(1, 0), (1, 3), (2, 0), (2, 3)], [(1, 0), (1, 3), (2, 0), (2, 3)]),
        ((0, 1, 1, 2), [(0, 3)], [(0, 1), (0, 2), (1, 3), (2, 3)], [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]),
        ((4, 4, 4), [], [], []),
    ],
)
def test_which_completions_are_compared(
    ranks: tuple[int, ...], best_worst: list[Any], adjacent: list[Any], everything: list[Any]
) -> None:
    assert places(ranked(*ranks), "best_worst") == best_worst
    assert places(ranked(*ranks), "adjacent") == adjacent
    assert places(ranked(*ranks), "all") == everything


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=7))
def test_pairings_of_any_ranks(ranks: list[int]) -> None:
    row = ranked(*ranks)
    strict = {(a, b) for a, better in enumerate(ranks) for b, worse in enumerate(ranks) if better < worse}
    between = {(a, b) for a, b in strict if not any(ranks[a] < rank < ranks[b] for rank in ranks)}
    everything, adjacent, extremes = (places(row, pairing) for pairing in ("all", "adjacent", "best_worst"))
    assert (set(everything), len(everything)) == (strict, len(strict))
    assert (set(adjacent), len(adjacent)) == (between, len(between))
    assert extremes == ([(ranks.index(min(ranks)), ranks.index(max(ranks)))] if strict else [])


def test_example() -> None:
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    (example,) = read(ranked(1, 0) | {"tools": tools, "chat_template_kwargs": '{"enable_thinking": false}'})
    assert example == Example(
        CONTEXT, (answer("1"), answer("0")), tools=tools, chat_template_kwargs={"enable_thinking": False}
    )


@pytest.mark.parametrize("whole", [0.0, np.float64(0), np.int64(0), np.int8(0)])
def test_whole_numbers_of_any_type_are_ranks(whole: Any) -> None:
    assert places(ranked(1.0, whole), "best_worst") == [(1, 0)]


def completion(**change: Any) -> dict[str, Any]:
    """A row whose second completion is changed."""
    row = ranked(0, 1)
    row["completions"][1] = {key: value for key, value in (row["completions"][1] | change).items() if value is not ...}
    return row


@pytest.mark.parametrize(
    ("values", "column", "problem"),
    [
        (ranked(0, 1) | {"context": None}, "context", "the value is None"),
        (ranked(0, 1) | {"completions": None}, "completions", "the value is None"),
        (ranked(0), "completions", "there is 1 completion, and a preference is between two"),
        (ranked(), "completions", "there are 0 completions, and a preference is between two"),
        (ranked(0, 1) | {"completions": "a"}, "completions", "expected a list of completions, got str"),
        (ranked(0, 1) | {"completions": ["a", "b"]}, "completions", "completion 0 is str, not a mapping"),
        (completion(rank=...), "completions", "completion 1 has no rank"),
        (completion(rank=None), "completions", "completion 1 has no rank"),
        (completion(rank=True), "completions", "the rank of completion 1 is True, not a whole number"),
        (completion(rank=0.5), "completions", "the rank of completion 1 is 0.5, not a whole number"),
        (completion(rank=float("nan")), "completions", "the rank of completion 1 is nan, not a whole number"),
        (completion(rank=float("inf")), "completions", "the rank of completion 1 is inf, not a whole number"),
        (completion(rank="1"), "completions", "the rank of completion 1 is '1', not a whole number"),
        (completion(completion=...), "completions", "completion 1 has no 'completion'"),
        (completion(completion="1"), "completions", "in completion 1, expected a list of chat messages, got str"),
        (completion(completion=[]), "completions", "in completion 1, the list of messages is empty"),
        (
            completion(completion=[{"role": "user", "content": "a"}]),
            "completions",
            "in completion 1, the completion begins with a message of role 'user'",
        ),
        (
            completion(completion=answer("  ")),
            "completions",
            "in completion 1, the completion is empty or only whitespace",
        ),
        (
            ranked(0, 1) | {"context": answer("a")},
            "context",
            "the prompt ends with a message of role 'assistant'",
        ),
        (
            completion(completion=answer("0")),
            None,
            "two of completions are equal, so there is nothing to prefer",
        ),
    ],
)
def test_rows_that_are_refused(values: dict[str, Any], column: str | None, problem: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read(values)
    error = caught.value
    assert (error.row, error.column, error.problem) == (7, column, problem)
    if column == "completions" and "None" not in problem:
        assert str(error) == (
            f"train dataset, row 7, column 'completions': {problem}. Write the completions as "
            "[{'rank': 0, 'completion': [messages]}, ...]; the lower rank is preferred."
        )


@pytest.mark.parametrize(
    ("change", "column", "problem"),
    [
        ({"context": "hello"}, "context", "the column does not hold lists of chat messages"),
        ({"context": [1, 2]}, "context", "the column does not hold lists of chat messages"),
        ({"completions": "yes"}, "completions", "the column does not hold lists of completions with their ranks"),
        (
            {"completions": [{"score": 1, "completion": answer("a")}]},
            "completions",
            "its completions have no 'rank', only ['score', 'completion']",
        ),
        (
            {"completions": [{"rank": 1, "response": answer("a")}]},
            "completions",
            "its completions have no 'completion', only ['rank', 'response']",
        ),
    ],
)
def test_columns_that_are_refused(change: dict[str, Any], column: str, problem: str) -> None:
    dataset = Dataset.from_list([ranked(0, 1) | change])
    with pytest.raises(DatasetError) as caught:
        Ranked().form(dataset, name="train")
    assert (caught.value.row, caught.value.column, caught.value.problem) == (None, column, problem)


def test_unknown_pairing() -> None:
    message = "pairing must be one of 'best_worst', 'adjacent', 'all', got 'best'."
    with pytest.raises(ValueError, match=message):
        Ranked(pairing="best")  # type: ignore[arg-type]


def test_rows_of_files_are_tokenised(make_tokenizer: MakeTokenizer) -> None:
    """Arrow gives every completion the keys of all of them, and ranks are floats once one is missing."""
    tokenizer = make_tokenizer(template="chatml")
    rows = [ranked(0, 2, 1), ranked(1, 1), ranked(3.0, -1)]
    rows[0]["completions"][0]["judge"] = "a"
    with pytest.warns(UserWarning, match="1 of 5: no preference between the completions"):
        prepared = prepare_rows(Dataset.from_list(rows), tokenizer, Ranked(pairing="all"), name="train")
    chosen, rejected = ([*prepared.dataset[side]] for side in ("chosen", "rejected"))
    assert [text.split("<")[0] for text in chosen] == ["0", "0", "2", "1"]
    assert [text.split("<")[0] for text in rejected] == ["2", "1", "1", "0"]
    assert list(prepared.dataset["row"]) == [0, 0, 0, 2]
    assert prepared.filter_counts == FilterCounts(total=5, without_preference=1)
    header = tokenizer.apply_chat_template(CONTEXT, add_generation_prompt=True, tokenize=False)
    assert set(prepared.dataset["prompt"]) == {header}
