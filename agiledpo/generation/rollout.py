"""From prompts to rollouts: sample a group of completions for each, and let the environment judge them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from transformers import PreTrainedTokenizerBase

from agiledpo.generation.sampling import Completions, Generator, SamplingSettings
from agiledpo.scoring import QuestionBatch, RolloutBatch

if TYPE_CHECKING:
    from agiledpo.algorithms.core.llm import LLMAlgorithm

# Agent, prompts and their environment to rollouts; what a user may replace or wrap.
Rollout = Callable[[Any, QuestionBatch, Any], RolloutBatch]


class JudgingGym(Protocol):
    """What a rollout asks of an environment."""

    tokenizer: PreTrainedTokenizerBase

    def judge(self, questions: QuestionBatch, completions: Completions) -> Sequence[Sequence[float]]:
        """The reward of each completion, prompt by prompt."""
        ...


def roll_out(
    agent: "LLMAlgorithm",
    questions: QuestionBatch,
    env: JudgingGym,
    *,
    group_size: int,
    settings: SamplingSettings,
    generator: Generator,
) -> RolloutBatch:
    """Sample a group of completions for each prompt and have them judged.

    Args:
        agent: Whose actor answers.
        questions: The prompts.
        env: The environment that they are from.
        group_size: Completions per prompt.
        settings: How tokens are drawn.
        generator: Who draws them.
    """
    completions = generator.generate(
        agent, questions.prompts, group_size=group_size, settings=settings, tokenizer=env.tokenizer
    )
    return RolloutBatch(
        prompts=questions.prompts,
        completions=completions.tokens,
        rewards=env.judge(questions, completions),
        advantages=[None] * len(questions),
        sampling_logps=completions.logps,
        finished=completions.finished,
        labels=questions.labels,
    )
