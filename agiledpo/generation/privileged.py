"""Prompts that say more than the question, such as its solution, for a teacher to read."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from agiledpo.data.examples import Message
from agiledpo.scoring import QuestionBatch

# Environment and prompts to the teacher's prompts, int64 (prompt tokens,) each.
Privileged = Callable[[Any, QuestionBatch], Sequence[Tensor]]


class AnsweringGym(Protocol):
    """What writing such prompts asks of an environment."""

    def questions_and_answers(self, questions: QuestionBatch) -> Sequence[tuple[str, Any]]:
        """Question and answer of each row."""
        ...

    def prompt_tokens(self, split: str, row: int, prompt: str | Sequence[Message]) -> Tensor:
        """Tokens of another prompt for a row, as those of its own are made."""
        ...


def privileged_prompts(write: Callable[[str, Any], str | Sequence[Message]]) -> Privileged:
    """Write the teacher's prompts from question and answer.

    Args:
        write: From question and answer of a row, the teacher's prompt: chat messages, which are rendered as the
            environment renders its own, with the row's tools and `chat_template_kwargs`; or a text, which is given to
            the model as it is.
    """

    def prompts(env: AnsweringGym, questions: QuestionBatch) -> list[Tensor]:
        asked = zip(questions.splits, questions.rows, env.questions_and_answers(questions), strict=True)
        return [env.prompt_tokens(split, row, write(question, answer)) for split, row, (question, answer) in asked]

    return prompts
