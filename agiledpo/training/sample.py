"""A prompt and what an agent answered, for those who show a run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from agiledpo.algorithms.core.llm import LLMAlgorithm

if TYPE_CHECKING:
    from agiledpo.scoring import QuestionBatch, RolloutBatch


@dataclass(frozen=True)
class Sample:
    """One answer.

    Attributes:
        agent: Index of the agent.
        prompt: What it was asked, without special tokens.
        answer: What it answered, likewise.
        reward: What that was worth; NaN where nobody judged.
    """

    agent: int
    prompt: str
    answer: str
    reward: float

    @classmethod
    def first_of(cls, agent: LLMAlgorithm, questions: "QuestionBatch", rollouts: "RolloutBatch", env: Any) -> Self:
        """The first answer of a batch.

        Args:
            agent: Who answered.
            questions: The prompts.
            rollouts: The answers.
            env: The environment that they are from, with its tokenizer.
        """

        def text(tokens: Any) -> str:
            return str(env.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))

        return cls(
            agent=agent.index,
            prompt=text(questions.prompts[0]),
            answer=text(rollouts.completions[0][0]),
            reward=rollouts.rewards[0][0],
        )
