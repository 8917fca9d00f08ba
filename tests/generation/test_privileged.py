"""Prompts for a teacher who knows more than the question."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from agiledpo.generation.privileged import privileged_prompts
from agiledpo.scoring import QuestionBatch

TEMPLATE = (
    "{{ bos_token }} {% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    "{% if thinking %}w90 {% endif %}{% if add_generation_prompt %}w91{% endif %}"
)


@dataclass
class Gym:
    """Rows as a reasoning environment keeps them."""

    tokenizer: PreTrainedTokenizerBase
    data: dict[tuple[str, int], tuple[str, Any]]

    def questions_and_answers(self, questions: QuestionBatch) -> list[tuple[str, Any]]:
        return [self.data[key] for key in zip(questions.splits, questions.rows, strict=True)]


@pytest.fixture
def gym(tiny_tokenizer) -> Gym:
    tiny_tokenizer.chat_template = TEMPLATE
    return Gym(tiny_tokenizer, {("train", 3): ("w10 w11", 20), ("train", 5): ("w12", 21), ("test", 3): ("w13", 22)})


QUESTIONS = QuestionBatch(
    [torch.tensor([10, 11]), torch.tensor([12]), torch.tensor([13])],
    [3, 5, 3],
    ["train", "train", "test"],
    ["train row 3", "train row 5", "test row 3"],
)


def test_messages_are_rendered_with_the_header_of_the_answer(gym):
    # This tokenizer begins every text; the template has already done it.
    gym.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    write = privileged_prompts(lambda question, answer: [{"role": "w80", "content": f"{question} w{answer}"}])
    assert [prompt.tolist() for prompt in write(gym, QUESTIONS)] == [
        [1, 80, 10, 11, 20, 91],
        [1, 80, 12, 21, 91],
        [1, 80, 13, 22, 91],
    ]


def test_the_template_is_told_what_it_shall_be(gym):
    write = privileged_prompts(
        lambda question, answer: [{"role": "w80", "content": question}], chat_template_kwargs={"thinking": True}
    )
    assert write(gym, QUESTIONS)[1].tolist() == [1, 80, 12, 90, 91]


def test_a_text_is_taken_as_it_is(gym):
    write = privileged_prompts(lambda question, answer: f"w{answer} {question}")
    prompts = write(gym, QUESTIONS)
    assert [prompt.tolist() for prompt in prompts] == [[20, 10, 11], [21, 12], [22, 13]]
    assert all(prompt.dtype == torch.int64 for prompt in prompts)


def test_a_text_is_not_ended_before_its_completion(gym):
    gym.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert privileged_prompts(lambda question, answer: question)(gym, QUESTIONS)[1].tolist() == [1, 12]
    ended = privileged_prompts(lambda question, answer: f"{question} </s>")
    assert ended(gym, QUESTIONS)[1].tolist()[:3] == [1, 12, 2]
