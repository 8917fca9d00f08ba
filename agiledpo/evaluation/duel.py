"""Win rate: two policies answer the same prompts, and a judge says whose answer is better."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agiledpo.evaluation.answers import PolicyAnswer
from agiledpo.evaluation.held_out import HeldOutPrompt
from agiledpo.evaluation.intervals import Figure, share_of
from agiledpo.evaluation.judges import Comparison, Judge, Verdict


@dataclass(frozen=True)
class Match:
    """One prompt, the two answers to it, and what was said of them.

    Attributes:
        row: Number of the prompt's row.
        prompt: The prompt.
        answer: The evaluated policy's.
        other: The other policy's.
        score: 1 for a win of the evaluated policy, 0 for a loss, one half for a tie; in both orders their mean; None
            where nothing was judged.
        verdicts: For each order in which the answers were shown, whether the evaluated policy's was first, and what was
            said: "win", "loss", "tie", or what went wrong.
    """

    row: int
    prompt: Any
    answer: str
    other: str
    score: float | None
    verdicts: tuple[tuple[bool, str], ...]


@dataclass(frozen=True)
class WinRate:
    """How often the evaluated policy's answer is better than the other's.

    Attributes:
        rate: Wins, and ties as one half, over the prompts that were judged.
        wins: Verdicts for the evaluated policy.
        ties: Ties.
        losses: Verdicts for the other.
        first_preferred: Share of the verdicts, ties as one half, that are for the answer that was shown first: 0.5 for
            a judge without position bias.
        consistent: Share of prompts on which both orders agree; NaN unless both were judged.
        failures: What went wrong, and how often; such comparisons count for neither.
        matches: Prompt by prompt.
    """

    rate: Figure
    wins: int
    ties: int
    losses: int
    first_preferred: Figure
    consistent: Figure
    failures: dict[str, int]
    matches: tuple[Match, ...]


def compare(
    judge: Judge,
    prompts: Sequence[HeldOutPrompt],
    answers: Sequence[PolicyAnswer],
    others: Sequence[PolicyAnswer],
    *,
    both_orders: bool,
    seed: int,
) -> WinRate:
    """Have answers judged in pairs.

    Whether an answer is shown first is drawn for each prompt, so that a judge who favours a position favours neither
    policy; in both orders it is shown first once and second once.

    Args:
        judge: Who judges.
        prompts: The prompts.
        answers: Of the evaluated policy.
        others: Of the other.
        both_orders: Judge each pair of answers twice.
        seed: Of the order.
    """
    draw = random.Random(seed)
    orders = [(first, not first) if both_orders else (first,) for first in (draw.random() < 0.5 for _ in prompts)]
    shown = [
        Comparison(prompt, *((answer.text, other.text) if first else (other.text, answer.text)))
        for prompt, answer, other, order in zip(prompts, answers, others, orders, strict=True)
        for first in order
    ]
    verdicts = iter(judge.judge(shown))
    said = [[(first, next(verdicts)) for first in order] for order in orders]
    matches = tuple(
        Match(
            row=prompt.row,
            prompt=prompt.prompt,
            answer=answer.text,
            other=other.text,
            score=_mean([_score(first, verdict) for first, verdict in heard if verdict.winner is not None]),
            verdicts=tuple((first, _word(first, verdict)) for first, verdict in heard),
        )
        for prompt, answer, other, heard in zip(prompts, answers, others, said, strict=True)
    )
    return _rate(matches, said)


def _rate(matches: tuple[Match, ...], said: Sequence[Sequence[tuple[bool, Verdict]]]) -> WinRate:
    words = [word for match in matches for _, word in match.verdicts]
    scores = [match.score for match in matches if match.score is not None]
    first = [
        (1.0 if verdict.winner == "a" else 0.5 if verdict.winner == "tie" else 0.0, number)
        for number, heard in enumerate(said)
        for _, verdict in heard
        if verdict.winner is not None
    ]
    whole = [heard for heard in said if len(heard) == 2 and all(verdict.winner for _, verdict in heard)]
    failures: dict[str, int] = {}
    for heard in said:
        for _, verdict in heard:
            if verdict.problem is not None:
                failures[verdict.problem] = failures.get(verdict.problem, 0) + 1
    return WinRate(
        rate=_share(scores),
        wins=words.count("win"),
        ties=words.count("tie"),
        losses=words.count("loss"),
        first_preferred=_share([value for value, _ in first], [number for _, number in first]),
        consistent=_share([float(_score(*heard[0]) == _score(*heard[1])) for heard in whole]),
        failures=failures,
        matches=matches,
    )


def _share(values: Sequence[float], groups: Sequence[int] | None = None) -> Figure:
    numbers = np.arange(len(values)) if groups is None else np.asarray(groups, dtype=np.int64)
    return share_of(np.asarray(values, dtype=np.float64), numbers)


def _score(first: bool, verdict: Verdict) -> float:
    if verdict.winner == "tie":
        return 0.5
    return float((verdict.winner == "a") is first)


def _word(first: bool, verdict: Verdict) -> str:
    if verdict.winner is None:
        return str(verdict.problem)
    return {0.0: "loss", 0.5: "tie", 1.0: "win"}[_score(first, verdict)]


def _mean(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None
