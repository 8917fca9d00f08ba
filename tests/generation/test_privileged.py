"""Prompts for a teacher who knows more than the question."""

import json

import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from agiledpo.data import DatasetError
from agiledpo.generation.privileged import privileged_prompts
from agiledpo.llm_envs import ReasoningGym
from agiledpo.scoring import QuestionBatch

TEMPLATE = (
    "{{ bos_token }} {% for tool in tools or [] %}{{ tool['function']['name'] }} {% endfor %}"
    "{% for message in messages %}{{ 'w80' if message['role'] == 'user' else 'w81' }} {{ message['content'] }} "
    "{% endfor %}{% if thinking %}w90 {% endif %}{% if date_string %}{{ date_string }} {% endif %}"
    "{% if add_generation_prompt %}w91{% endif %}"
)
TOOLS = json.dumps([{"type": "function", "function": {"name": "w70", "parameters": {"type": "object"}}}])


@pytest.fixture
def make_gym(tiny_tokenizer):
    tiny_tokenizer.chat_template = TEMPLATE

    def make(**options):
        rows = [{"question": "w10 w11", "answer": 20}, {"question": "w12", "answer": 21}]
        for name in ("tools", "chat_template_kwargs"):
            column = options.pop(name, None)
            if column is not None:
                rows = [{**row, name: value} for row, value in zip(rows, column, strict=True)]
        test = Dataset.from_list([{"question": "w13", "answer": 22}])
        return ReasoningGym(Dataset.from_list(rows), test, tiny_tokenizer, lambda *rest: 0.0, **options)

    return make


QUESTIONS = QuestionBatch(
    [torch.tensor([10, 11]), torch.tensor([12]), torch.tensor([13])],
    [0, 1, 0],
    ["train", "train", "test"],
    ["train row 0", "train row 1", "test row 0"],
)


def shown(question, answer):
    return [{"role": "user", "content": f"{question} w{answer}"}]


def tokens(write, gym, questions=QUESTIONS):
    return [prompt.tolist() for prompt in privileged_prompts(write)(gym, questions)]


def test_messages_are_rendered_with_the_header_of_the_answer(make_gym, tiny_tokenizer):
    # This tokenizer begins every text; the template has already done it.
    tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert tokens(shown, make_gym()) == [[1, 80, 10, 11, 20, 91], [1, 80, 12, 21, 91], [1, 80, 13, 22, 91]]


def test_the_template_is_told_what_it_is_told_of_the_rows(make_gym):
    """With the question alone, the teacher's prompt is the row's own, to the token."""
    gyms = [
        make_gym(chat_template_kwargs=None),
        make_gym(tools=[TOOLS, None]),
        make_gym(chat_template_kwargs=[json.dumps({"thinking": True}), None]),
    ]
    for gym in gyms:
        (batch,) = [QuestionBatch.from_experiences(rows) for rows in gym.longest_first("train", 2)]
        own = [prompt.tolist() for prompt in batch.prompts]
        assert tokens(lambda question, answer: [{"role": "user", "content": question}], gym, batch) == own
    assert tokens(shown, gyms[1])[0] == [1, 70, 80, 10, 11, 20, 91]
    assert tokens(shown, gyms[2])[:2] == [[1, 80, 10, 11, 20, 90, 91], [1, 80, 12, 21, 91]]


def test_what_all_rows_are_told(tiny_tokenizer):
    tiny_tokenizer.chat_template = TEMPLATE
    rows = Dataset.from_list([{"question": "w10", "answer": 20}])
    told = {"thinking": True, "date_string": "w60"}
    gym = ReasoningGym(rows, rows, tiny_tokenizer, lambda *rest: 0.0, chat_template_kwargs=told)
    (batch,) = [QuestionBatch.from_experiences(each) for each in gym.test_batches()]
    assert batch.prompts[0].tolist() == [1, 80, 10, 90, 60, 91]
    assert tokens(shown, gym, batch) == [[1, 80, 10, 20, 90, 60, 91]]


def test_a_text_is_taken_as_it_is(make_gym):
    write = privileged_prompts(lambda question, answer: f"w{answer} {question}")
    prompts = write(make_gym(tools=[TOOLS, None]), QUESTIONS)
    assert [prompt.tolist() for prompt in prompts] == [[20, 10, 11], [21, 12], [22, 13]]
    assert all(prompt.dtype == torch.int64 for prompt in prompts)


def test_a_text_is_not_ended_before_its_completion(make_gym, tiny_tokenizer):
    tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    gym = make_gym()
    assert tokens(lambda question, answer: question, gym)[1] == [1, 12]
    assert tokens(lambda question, answer: f"{question} </s>", gym)[1][:3] == [1, 12, 2]


def test_a_prompt_that_cannot_be_asked_names_the_row(make_gym):
    with pytest.raises(DatasetError, match=r"prompt for the train dataset, row 0, column 'prompt'.*'nobody'"):
        tokens(lambda question, answer: [{"role": "nobody", "content": question}], make_gym())
