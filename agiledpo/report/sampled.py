"""Sample answers, sorted by their prompts to be read side by side."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agiledpo.report.record import Answer
from agiledpo.report.seen import Seen
from agiledpo.report.summary import number

# Answers in between that are shown of a run to one prompt.
_BETWEEN = 12


@dataclass(frozen=True)
class Reply:
    """An answer with a line that says whose it is.

    Attributes:
        who: "Before training", "Agent 3 after 64 pairs".
        text: The answer.
        facts: Its length, whether it ended by itself, its KL.
    """

    who: str
    text: str
    facts: str


@dataclass(frozen=True)
class Replies:
    """What a run answers to a prompt.

    Attributes:
        seen: The run.
        before: Its first answer.
        after: Its last one; None if there is one only.
        between: Some of those in between.
        left_out: How many more there are.
    """

    seen: Seen
    before: Reply
    after: Reply | None
    between: Sequence[Reply]
    left_out: int


@dataclass(frozen=True)
class Question:
    """A held-out prompt with everybody's answers.

    Attributes:
        turns: Role and text of each message; one without a role for a text.
        chosen: What the dataset prefers; None if it does not say.
        replies: By run; only those that were asked.
    """

    turns: Sequence[tuple[str, str]]
    chosen: str | None
    replies: Sequence[Replies]


def questions(runs: Sequence[Seen]) -> Iterator[Question]:
    """The prompts of all runs; equal ones together, those of several runs first.

    Args:
        runs: The runs.
    """
    asked: dict[str, dict[int, list[Answer]]] = {}
    for seen in runs:
        for answer in seen.run.answers:
            asked.setdefault(json.dumps(answer.prompt, sort_keys=True), {}).setdefault(seen.number, []).append(answer)
    for answers in sorted(asked.values(), key=lambda by_run: -len(by_run)):
        first = next(iter(answers.values()))[0]
        yield Question(
            _turns(first.prompt), first.chosen, [_replies(runs[number], given) for number, given in answers.items()]
        )


def _replies(seen: Seen, answers: Sequence[Answer]) -> Replies:
    first, between, last = answers[0], answers[1:-1], answers[-1] if len(answers) > 1 else None
    chosen = between
    if len(between) > _BETWEEN:
        chosen = [between[place * len(between) // _BETWEEN] for place in range(_BETWEEN)]
    return Replies(
        seen,
        _reply(seen, first),
        None if last is None else _reply(seen, last),
        [_reply(seen, answer) for answer in chosen],
        len(between) - len(chosen),
    )


def _reply(seen: Seen, answer: Answer) -> Reply:
    who = "Before training" if answer.agent is None else f"Agent {answer.agent} after {answer.step:,} {seen.run.unit}"
    ending = "ended by itself" if answer.finished else "cut off at the limit"
    length = f"{answer.tokens} {'token' if answer.tokens == 1 else 'tokens'}"
    return Reply(
        who,
        answer.answer,
        f"{length}, {ending}, KL {number(answer.kl_per_token)} per token",
    )


def _turns(prompt: str | Sequence[Mapping[str, object]]) -> list[tuple[str, str]]:
    if isinstance(prompt, str):
        return [("", prompt)]
    return [(str(message.get("role", "")), _said(message)) for message in prompt]


def _said(message: Mapping[str, object]) -> str:
    content = message.get("content")
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    told = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return told if not rest else f"{told}\n{json.dumps(rest, ensure_ascii=False)}"
