"""From prompts to rollouts: sample a group of completions for each, and let the environment judge them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from transformers import PreTrainedTokenizerBase

from agiledpo.generation.sampling import Completions, Generator, SamplingSettings
from agiledpo.generation.together import Answered, answer_together, answered, completions_of
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

    Where the agent has several processes, each answers and judges its share, and all get everything.

    Args:
        agent: Whose actor answers.
        questions: The prompts; the same in every process.
        env: The environment that they are from.
        group_size: Completions per prompt.
        settings: How tokens are drawn.
        generator: Who draws them.
    """

    def answer(share: QuestionBatch) -> list[Answered]:
        completions = generator.generate(
            agent, share.prompts, group_size=group_size, settings=settings, tokenizer=env.tokenizer
        )
        return answered(completions, env.judge(share, completions))

    answers = answer_together(agent, questions, generator, answer)
    completions = completions_of(answers)
    return RolloutBatch(
        prompts=questions.prompts,
        completions=completions.tokens,
        rewards=[given.rewards for given in answers],
        advantages=[None] * len(questions),
        sampling_logps=completions.logps,
        finished=completions.finished,
        labels=questions.labels,
    )


def sample(
    agent: "LLMAlgorithm",
    questions: QuestionBatch,
    *,
    group_size: int,
    settings: SamplingSettings,
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Completions:
    """Sample a group of completions for each prompt, as :func:`roll_out` does, for somebody else to judge.

    Args:
        agent: Whose actor answers.
        questions: The prompts; the same in every process.
        group_size: Completions per prompt.
        settings: How tokens are drawn.
        generator: Who draws them.
        tokenizer: Its end-of-sequence token ends completions beside the model's own; stop texts need it.
    """

    def answer(share: QuestionBatch) -> list[Answered]:
        return answered(
            generator.generate(agent, share.prompts, group_size=group_size, settings=settings, tokenizer=tokenizer)
        )

    return completions_of(answer_together(agent, questions, generator, answer))
