"""What completions are worth: one function or several, weighted and added up."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, TypeAlias, cast

import numpy as np
import torch

# The greatest reward: rewards are kept as float32.
_LARGEST = torch.finfo(torch.float32).max


class RewardError(ValueError):
    """A reward function failed, or returned what is no reward."""


class BatchedReward:
    """A reward function that is called once for all completions of a batch: an LLM judge, or a reward model.

    Args:
        function: Gets the completions, their answers and their questions, three lists of the same length, and returns
            as many numbers; None in place of one does not count.

    Raises:
        TypeError: It cannot be called.
    """

    def __init__(self, function: Callable[[list[str], list[Any], list[str]], Sequence[Any]]) -> None:
        if not callable(function):
            raise TypeError(f"BatchedReward wraps a function of completions, answers and questions, got {function!r}.")
        self.function = function


RewardFunction: TypeAlias = Callable[[str, Any, str], Any] | BatchedReward
RewardFunctions: TypeAlias = RewardFunction | Sequence[RewardFunction] | Mapping[str, RewardFunction]


class Rewards:
    """One or several reward functions, whose rewards are weighted and added up.

    Args:
        functions: A function of a completion, its answer and its question that returns a number, or None where it does
            not apply, which counts 0; a :class:`BatchedReward`; or several of them, in order or by name.
        weights: What each one's rewards are multiplied by, in the same order; None for 1 each.

    Attributes:
        names: What the functions are called.
        weights: Of each.

    Raises:
        TypeError: A function cannot be called, or a weight is no number.
        ValueError: There is no function, not one weight for each, or a weight is not finite.
    """

    def __init__(self, functions: RewardFunctions, weights: Sequence[float] | None = None) -> None:
        if isinstance(functions, Mapping):
            named = dict(functions)
            if not all(isinstance(name, str) and name for name in named):
                raise TypeError(f"reward_fn names functions {list(named)}; names are texts that are not empty.")
        elif isinstance(functions, Sequence) and not isinstance(functions, str):
            named = _named(functions)
        else:
            named = _named([functions])
        if not named:
            raise ValueError("reward_fn has no function; give one of completion, answer and question.")
        for name, function in named.items():
            if not isinstance(function, BatchedReward) and not callable(function):
                raise TypeError(
                    f"reward_fn {name!r} cannot be called, it is {function!r}. Give a function of completion, answer "
                    "and question that returns a number."
                )
        self._functions = named
        self.names = tuple(named)
        self.weights = _checked_weights(weights, self.names)

    def judge(
        self, completions: Sequence[str], answers: Sequence[Any], questions: Sequence[str], labels: Sequence[str]
    ) -> dict[str, list[float | None]]:
        """What each function returns for N completions, before weights.

        Args:
            completions: N texts.
            answers: The answer to each one's question.
            questions: The question of each.
            labels: Where each comes from, for messages.

        Raises:
            RewardError: A function fails, or returns something else than a finite number or None.
        """
        judged = {}
        for name, function in self._functions.items():
            # Each call has its own: a function may change what it is given.
            told = [copy.deepcopy(answer) if isinstance(answer, list | dict) else answer for answer in answers]
            if isinstance(function, BatchedReward):
                values = _at_once(function, name, completions, told, questions, labels)
            else:
                values = [
                    _one(function, name, completion, answer, question, label)
                    for completion, answer, question, label in zip(completions, told, questions, labels, strict=True)
                ]
            judged[name] = [_number(value, name, label) for value, label in zip(values, labels, strict=True)]
        return judged

    def total(self, judged: Mapping[str, Sequence[float | None]], labels: Sequence[str]) -> list[float]:
        """The weighted sum of what the functions returned, for each of N completions.

        Args:
            judged: From `judge`.
            labels: Where each completion comes from, for messages.

        Raises:
            RewardError: A sum is beyond float32.
        """
        columns = [judged[name] for name in self.names]
        totals = [
            math.fsum(weight * (value or 0.0) for weight, value in zip(self.weights, values, strict=True))
            for values in zip(*columns, strict=True)
        ]
        for total, label in zip(totals, labels, strict=True):
            if abs(total) > _LARGEST:
                raise RewardError(
                    f"{label}: the weighted sum of rewards is {total}, beyond float32; lower the weights."
                )
        return totals


def _named(functions: Sequence[Any]) -> dict[str, Any]:
    names = [_name(function) for function in functions]
    seen: Counter[str] = Counter()
    named = {}
    for name, function in zip(names, functions, strict=True):
        seen[name] += 1
        named[name if names.count(name) == 1 else f"{name}_{seen[name]}"] = function
    return named


def _name(function: Any) -> str:
    if isinstance(function, BatchedReward):
        return _name(function.function)
    if isinstance(function, partial):
        return _name(function.func)
    if isinstance(function, FunctionType | BuiltinFunctionType | MethodType):
        return str(function.__name__)
    return type(function).__name__


def _checked_weights(weights: Sequence[float] | None, names: Sequence[str]) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * len(names)
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"reward_weights must be a list of numbers or None, got {weights!r}.")
    if len(weights) != len(names):
        raise ValueError(
            f"reward_weights has {len(weights)} numbers for {len(names)} reward functions ({', '.join(names)}); give "
            "one for each."
        )
    for name, weight in zip(names, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise TypeError(f"reward_weights: the weight of {name!r} must be a number, got {weight!r}.")
        if not abs(cast(float, weight)) <= _LARGEST:
            raise ValueError(f"reward_weights: the weight of {name!r} must be finite, got {weight!r}.")
    return tuple(map(float, weights))


def _one(function: Callable[..., Any], name: str, completion: str, answer: Any, question: str, label: str) -> Any:
    try:
        return function(completion, answer, question)
    except Exception as error:  # whatever the user's function raises
        raise RewardError(f"{label}: the reward function {name!r} failed ({type(error).__name__}: {error}).") from error


def _at_once(
    function: BatchedReward,
    name: str,
    completions: Sequence[str],
    answers: Sequence[Any],
    questions: Sequence[str],
    labels: Sequence[str],
) -> list[Any]:
    where = f"{labels[0]} and {len(labels) - 1} more" if len(labels) > 1 else labels[0]
    try:
        values = list(function.function(list(completions), list(answers), list(questions)))
    except Exception as error:  # whatever the user's function raises
        raise RewardError(f"{where}: the reward function {name!r} failed ({type(error).__name__}: {error}).") from error
    if len(values) != len(labels):
        raise RewardError(
            f"{where}: the reward function {name!r} returned {len(values)} rewards for {len(labels)} completions; one "
            "for each is needed, None where it does not apply."
        )
    return values


def _number(value: Any, name: str, label: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, torch.Tensor | np.ndarray | np.bool_) and value.shape in ((), (1,)):
        value = value.item()
    if not isinstance(value, Real):
        raise RewardError(
            f"{label}: the reward function {name!r} returned {value!r:.80}, which is no number; return a number, or "
            "None where it does not apply."
        )
    if not abs(cast(float, value)) <= _LARGEST:
        raise RewardError(f"{label}: the reward function {name!r} returned {value!r:.80}; rewards are finite float32.")
    return float(value)
