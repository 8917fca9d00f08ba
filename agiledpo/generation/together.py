"""Prompts answered by several processes: each answers whole groups of its own share, and all get all answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from agiledpo.distributed.division import Division
from agiledpo.generation.sampling import Completions, Generator, PreparedGenerator
from agiledpo.scoring import QuestionBatch

if TYPE_CHECKING:
    from agiledpo.algorithms.core.llm import LLMAlgorithm


@dataclass(frozen=True)
class Answered:
    """What was sampled for a prompt, and what it was worth.

    Attributes:
        tokens: Of each completion, int64 (tokens,).
        logps: Of each completion the log-probabilities of its tokens, float32 (tokens,); None where nobody tells.
        finished: Whether each completion ended itself.
        rewards: Of each completion; none where nobody judged.
    """

    tokens: Sequence[Tensor]
    logps: Sequence[Tensor] | None
    finished: Sequence[bool]
    rewards: Sequence[float] = ()

    def compact(self) -> "Answered":
        """The same, with tensors that bring no larger storage along when they are sent."""
        logps = None if self.logps is None else [values.clone() for values in self.logps]
        return replace(self, tokens=[ids.clone() for ids in self.tokens], logps=logps)


def answered(completions: Completions, rewards: Sequence[Sequence[float]] | None = None) -> list[Answered]:
    """Completions prompt by prompt.

    Args:
        completions: Of P prompts.
        rewards: For each prompt of each completion; None where nobody judged.
    """
    judged = [()] * len(completions.tokens) if rewards is None else rewards
    columns = zip(completions.tokens, completions.logps, completions.finished, judged, strict=True)
    return [Answered(*values) for values in columns]


def completions_of(answers: Sequence[Answered]) -> Completions:
    """What :func:`answered` was made of, without rewards."""
    return Completions(
        tokens=[answer.tokens for answer in answers],
        logps=[answer.logps for answer in answers],
        finished=[answer.finished for answer in answers],
    )


def answer_together(
    agent: "LLMAlgorithm",
    questions: QuestionBatch,
    generator: Generator,
    answer: Callable[[QuestionBatch], list[Answered]],
) -> list[Answered]:
    """Let each of an agent's processes answer its share of the questions, and give all answers to all of them.

    Args:
        agent: Who answers. Each process draws from a branch of ``agent.sampling_stream``, which itself stays the same
            in all of them.
        questions: The same in every process.
        generator: What ``answer`` samples with.
        answer: Answers some of them, in their order; it is not called in a process that has none. Where it raises in
            one process, all raise.

    Returns:
        The answers, in the questions' order.
    """
    team = agent.team
    if team.is_alone or not len(questions):
        return answer(questions)
    division = Division(team, [len(prompt) for prompt in questions.prompts])
    own = questions.select(division.own)
    if isinstance(generator, PreparedGenerator):
        generator.prepare(agent)
    with _own_draws(agent):
        shares = team.all_do(lambda: [given.compact() for given in answer(own)] if len(own) else [])
    laid = [given for share in shares for given in share]
    return [laid[number] for number in division.order]


@contextmanager
def _own_draws(agent: "LLMAlgorithm") -> Iterator[None]:
    """Let an agent sample from a branch of its stream that only this process has."""
    stream = agent.sampling_stream
    agent.sampling_stream = stream.branch(agent.team.rank)
    try:
        yield
    finally:
        stream.advance()  # so that the next branches are others
        agent.sampling_stream = stream
