"""Prompts that say more than the question, such as its solution, for a teacher to read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agiledpo.data.examples import Message
from agiledpo.scoring import QuestionBatch

# Environment and prompts to the teacher's prompts, int64 (prompt tokens,) each.
Privileged = Callable[[Any, QuestionBatch], Sequence[Tensor]]


class AnsweringGym(Protocol):
    """What writing such prompts asks of an environment."""

    tokenizer: PreTrainedTokenizerBase

    def questions_and_answers(self, questions: QuestionBatch) -> Sequence[tuple[str, Any]]:
        """Question and answer of each row."""
        ...


def privileged_prompts(
    write: Callable[[str, Any], str | Sequence[Message]], *, chat_template_kwargs: Mapping[str, Any] | None = None
) -> Privileged:
    """Write the teacher's prompts from question and answer.

    Args:
        write: From question and answer of a row, the teacher's prompt: chat messages, which the tokenizer's chat
            template renders with the header of the answer; or a text, which is given to the model as it is.
        chat_template_kwargs: What the chat template is told beside the messages, such as
            ``{"enable_thinking": False}``; None for nothing.
    """
    kwargs = dict(chat_template_kwargs or {})

    def prompts(env: AnsweringGym, questions: QuestionBatch) -> list[Tensor]:
        return [
            _token_ids(env.tokenizer, write(question, answer), kwargs)
            for question, answer in env.questions_and_answers(questions)
        ]

    return prompts


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message], template_kwargs: Mapping[str, Any]
) -> Tensor:
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
        # Some tokenizers end every text, which the completion is to do.
        if ids[-1:] == [tokenizer.eos_token_id] and not prompt.endswith(str(tokenizer.eos_token)):
            ids = ids[:-1]
    else:
        text = tokenizer.apply_chat_template(
            list(prompt), add_generation_prompt=True, tokenize=False, **template_kwargs
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes them itself
    return torch.tensor(ids, dtype=torch.int64)
