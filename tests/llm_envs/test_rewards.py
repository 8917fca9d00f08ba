"""What reward functions return, how it is added up, and how errors say which completion of which row it was."""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.llm_envs import BatchedReward, RewardError
from agiledpo.llm_envs.rewards import Rewards

FINITE = st.floats(-1e6, 1e6)
TEXTS = ["one", "two", "three"]
LABELS = [f"train row {row}, completion 1 of 1" for row in range(3)]


def length(completion: str, answer: Any, question: str) -> float:
    return float(len(completion))


def judged(rewards: Rewards) -> list[float]:
    parts = rewards.judge(TEXTS, [1, None, [2]], ["a?", "b?", "c?"], LABELS)
    return rewards.total(parts, LABELS)


def constant(value: Any) -> Callable[[str, Any, str], Any]:
    return lambda completion, answer, question: value


def test_the_order_of_the_arguments() -> None:
    """AgileRL's: completion, answer, question."""
    seen: list[Any] = []
    told: list[Any] = []
    rewards = Rewards(
        {
            "each": lambda *each: seen.append(each) or 0.0,
            "batch": BatchedReward(lambda *all_of_them: told.append(all_of_them) or [0.0] * 3),
        }
    )
    judged(rewards)
    assert seen == [("one", 1, "a?"), ("two", None, "b?"), ("three", [2], "c?")]
    assert told == [(TEXTS, [1, None, [2]], ["a?", "b?", "c?"])]


@given(
    table=st.lists(st.lists(st.none() | FINITE, min_size=3, max_size=3), min_size=1, max_size=4),
    weights=st.none() | st.lists(FINITE, min_size=4, max_size=4),
    batched=st.lists(st.booleans(), min_size=4, max_size=4),
    by_name=st.booleans(),
)
def test_weighted_sums(
    table: list[list[float | None]], weights: list[float] | None, batched: list[bool], by_name: bool
) -> None:
    """One function or several, in order or by name, one at a time or at once: None counts 0."""

    def function(values: list[float | None], at_once: bool) -> Any:
        if at_once:
            return BatchedReward(lambda completions, answers, questions: values)
        return lambda completion, answer, question: values[TEXTS.index(completion)]

    made = [function(values, at_once) for values, at_once in zip(table, batched, strict=False)]
    names = [f"reward {number}" for number in range(len(made))]
    chosen = None if weights is None else weights[: len(made)]
    rewards = Rewards(dict(zip(names, made, strict=True)) if by_name else made, chosen)
    parts = rewards.judge(TEXTS, [None] * 3, TEXTS, LABELS)
    assert list(parts.values()) == table
    for place, total in enumerate(rewards.total(parts, LABELS)):
        terms = [(chosen or [1.0] * 4)[n] * (values[place] or 0.0) for n, values in enumerate(table)]
        assert total == math.fsum(terms)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (True, 1.0),
        (3, 3.0),
        (Fraction(1, 4), 0.25),
        (np.float32(0.5), 0.5),
        (np.int64(2), 2.0),
        (np.bool_(False), 0.0),
        (np.array([1.5]), 1.5),
        (torch.tensor(0.25, dtype=torch.bfloat16), 0.25),
        (torch.tensor([2], requires_grad=False), 2.0),
    ],
)
def test_whatever_is_a_number(value: Any, number: float) -> None:
    assert judged(Rewards(constant(value))) == [number] * 3
    assert all(type(total) is float for total in judged(Rewards(constant(value))))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.nan, "returned nan; rewards are finite float32"),
        (-math.inf, "returned -inf; rewards are finite float32"),
        (1e39, r"returned 1e\+39; rewards are finite float32"),
        (10**400, "returned 1000.*; rewards are finite float32"),
        (torch.tensor(math.nan), "returned nan; rewards"),
        ("1.0", "returned '1.0', which is no number"),
        ([1.0], r"returned \[1.0\], which is no number"),
        (np.ones(2), r"returned array\(\[1., 1.\]\), which is no number"),
        (1j, "returned 1j, which is no number"),
    ],
)
@pytest.mark.parametrize("at_once", [False, True])
def test_what_is_no_reward(value: Any, problem: str, at_once: bool) -> None:
    def strict(completion: str, answer: Any, question: str) -> Any:
        return value if completion == "two" else 0.0

    function = (
        BatchedReward(lambda completions, *rest: [strict(text, None, "") for text in completions])
        if at_once
        else strict
    )
    with pytest.raises(RewardError, match=f"^train row 1, completion 1 of 1: the reward function 'mine' {problem}"):
        judged(Rewards({"ours": length, "mine": function}))


@pytest.mark.parametrize("at_once", [False, True])
def test_who_changes_an_answer_changes_it_for_nobody_else(at_once: bool) -> None:
    def takes(completion: str, answer: Any, question: str) -> float:
        return float(answer["parts"].pop() + len(answer.pop("words", [])))

    def each(completions: list[str], answers: list[Any], questions: list[str]) -> list[float]:
        return [takes("", answer, "") for answer in answers]

    function: Any = BatchedReward(each) if at_once else takes
    answer = {"parts": [1.0, 2.0], "words": ["a", "b"]}
    rewards = Rewards({"one": function, "two": function})
    expected: list[float | None] = [4.0, 4.0, 4.0]
    for _ in range(2):
        assert rewards.judge(["", "", ""], [answer] * 3, [""] * 3, ["a", "b", "c"]) == {
            "one": expected,
            "two": expected,
        }
    assert answer == {"parts": [1.0, 2.0], "words": ["a", "b"]}


def test_a_function_that_fails() -> None:
    def fussy(completion: str, answer: Any, question: str) -> float:
        return 1 / (len(completion) - 5)

    with pytest.raises(RewardError) as caught:
        judged(Rewards([length, fussy]))
    assert str(caught.value) == (
        "train row 2, completion 1 of 1: the reward function 'fussy' failed (ZeroDivisionError: division by zero)."
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(RewardError, match=r"^train row 0, completion 1 of 1 and 2 more: the reward function 'fussy'"):
        judged(Rewards(BatchedReward(fussy)))  # of lists: three less than five
    for number in (2, 4):
        with pytest.raises(RewardError, match=f"'judge' returned {number} rewards for 3 completions"):
            judged(Rewards({"judge": BatchedReward(lambda *lists: [0.0] * number)}))  # noqa: B023


def test_a_sum_beyond_float32() -> None:
    with pytest.raises(RewardError, match=r"^train row 0, .*: the weighted sum of rewards is 6e\+38, beyond"):
        judged(Rewards(constant(3e38), [2.0]))


class Checker:
    def __call__(self, completion: str, answer: Any, question: str) -> float:
        return 0.0

    def method(self, completion: str, answer: Any, question: str) -> float:
        return 0.0


def test_names() -> None:
    checker = Checker()
    functions = [length, checker, checker.method, functools.partial(length), BatchedReward(checker)]
    assert Rewards(functions).names == ("length_1", "Checker_1", "method", "length_2", "Checker_2")
    assert Rewards(length).names == ("length",)
    assert Rewards({"a": length, "b": length}).names == ("a", "b")
    assert Rewards((length,), (2,)).weights == (2.0,)


@pytest.mark.parametrize(
    ("functions", "weights", "error", "problem"),
    [
        ([], None, ValueError, "reward_fn has no function"),
        ({}, None, ValueError, "reward_fn has no function"),
        (None, None, TypeError, "reward_fn 'NoneType' cannot be called, it is None"),
        ("length", None, TypeError, "reward_fn 'str' cannot be called, it is 'length'"),
        ([length, 3], None, TypeError, "reward_fn 'int' cannot be called, it is 3"),
        ({3: length}, None, TypeError, r"reward_fn names functions \[3\]"),
        (length, 2.0, TypeError, "reward_weights must be a list of numbers or None, got 2.0"),
        (length, [], ValueError, r"reward_weights has 0 numbers for 1 reward functions \(length\)"),
        ([length, length], [1.0], ValueError, r"has 1 numbers for 2 reward functions \(length_1, length_2\)"),
        (length, ["1"], TypeError, "the weight of 'length' must be a number, got '1'"),
        (length, [True], TypeError, "the weight of 'length' must be a number, got True"),
        (length, [math.inf], ValueError, "the weight of 'length' must be finite, got inf"),
        (length, [1e39], ValueError, r"the weight of 'length' must be finite, got 1e\+39"),
    ],
)
def test_bad_arguments(functions: Any, weights: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        Rewards(functions, weights)


def test_a_batched_reward_is_called() -> None:
    with pytest.raises(TypeError, match="BatchedReward wraps a function of completions, answers and questions, got 3"):
        BatchedReward(3)  # type: ignore[arg-type]
