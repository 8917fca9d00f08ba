"""Prompts alone, whose answers the model gives itself and a reward judges."""

import string
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from datasets import Dataset
from typing_extensions import override

from agiledpo.data.checking import check_text, checked_example, require_values
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Form, Message, Turns
from agiledpo.data.layout import Layout, column_forms, text_or_chat, wrong_type
from agiledpo.data.messages import ROLES

_PLACEHOLDERS = ("question", "answer")
_EXAMPLE = "[{'role': 'user', 'content': '{question}'}]"
_REMEDY = f"Write a list of messages such as {_EXAMPLE}."


class PromptLayout(Layout):
    """The contract of formats of prompts without completions. A last message of the assistant's begins the answer."""

    completions: ClassVar[tuple[str, ...]] = ()

    @property
    @override
    def sources(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def asked(self, values: Mapping[str, Any]) -> str:
        """What reward functions are told was asked.

        Args:
            values: The row's `columns`, of a row that `read` accepts.
        """


@dataclass(frozen=True)
class Questions(PromptLayout):
    """Questions as text, each put into the same messages.

    Args:
        question: Column of the question.
        template: Messages ``{"role": ..., "content": ...}`` with the placeholders ``{question}``, and where it is to be
            seen ``{answer}``; a brace that is none of a placeholder's is written twice, as for `str.format`. What is
            put in is never looked at for placeholders. A last message of the assistant's is what every answer begins
            with. None for the question as the user's message.
        answer: Column of the answer; read only if the template has it.

    Raises:
        TypeError: The template is no list of messages.
        ValueError: It has an unknown role, key or placeholder, ends with another turn than the user's, a tool's or the
            assistant's, or has no place for the question.
    """

    question: str = "question"
    template: Sequence[Mapping[str, str]] | None = None
    answer: str = "answer"

    def __post_init__(self) -> None:
        if self.template is not None:
            check_template(self.template)
            # Nobody shall change it from outside: it is part of the name of the tokens.
            object.__setattr__(self, "template", tuple(dict(message) for message in self.template))

    @property
    @override
    def columns(self) -> tuple[str, ...]:
        return (self.question, self.answer) if self.shows_answer else (self.question,)

    @property
    def shows_answer(self) -> bool:
        """Whether the answer is part of the prompt."""
        return any("answer" in placeholders(message["content"]) for message in self.template or ())

    @override
    def form(self, dataset: Dataset, *, name: str) -> Form:
        forms = column_forms(dataset, (self.question,), name=name)
        if forms.get(self.question, Form.TEXT) is not Form.TEXT:
            raise wrong_type("does not hold questions as text", self.question, name)
        if self.shows_answer and self.answer not in dataset.column_names:
            raise DatasetError(
                f"the template has '{{answer}}', and there is no column {self.answer!r}; the columns are "
                f"{dataset.column_names}",
                remedy=f"Rename the column that holds it to {self.answer!r}, or take it out of the template.",
                dataset=name,
            )
        return Form.CHAT

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        question, *_ = require_values(values, self.columns, row=row, name=name)
        check_text(question, row=row, column=self.question, name=name, may_be_empty=True)
        if not question.strip():
            raise DatasetError(
                "the question is empty or only whitespace",
                remedy=f"Drop such rows: dataset.filter(lambda row: row[{self.question!r}].strip()).",
                dataset=name,
                row=row,
                column=self.question,
            )
        # Whatever an answer is, a number for example: in a prompt it is text.
        parts = {"question": question, "answer": str(values[self.answer]) if self.shows_answer else ""}
        prompt: list[Message] = [
            {"role": message["role"], "content": filled(message["content"], parts)}
            for message in self.template or ({"role": "user", "content": "{question}"},)
        ]
        return [checked_example(form, prompt, [], values, sources=(self.question,), row=row, name=name)]

    @override
    def asked(self, values: Mapping[str, Any]) -> str:
        return str(values[self.question])

    @override
    def origin(self, example: Example, values: Mapping[str, Any]) -> str:
        """The question: with an answer in the template, prompts of one question differ."""
        return self.asked(values)


@dataclass(frozen=True)
class Prompts(PromptLayout):
    """Prompts as they are, text or chat messages: TRL's prompt-only format.

    Args:
        prompt: Column of the prompt.
    """

    prompt: str = "prompt"

    @property
    @override
    def columns(self) -> tuple[str, ...]:
        return (self.prompt,)

    @override
    def form(self, dataset: Dataset, *, name: str) -> Form:
        return text_or_chat(dataset, self.columns, prompt=self.prompt, name=name)

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        (prompt,) = require_values(values, self.columns, row=row, name=name)
        return [checked_example(form, prompt, [], values, sources=self.columns, row=row, name=name)]

    @override
    def asked(self, values: Mapping[str, Any]) -> str:
        """The prompt if it is text, otherwise what the user said last, or whoever did if the user said nothing."""
        prompt = cast(Turns, values[self.prompt])
        if isinstance(prompt, str):
            return prompt
        messages = cast(list[Message], prompt)
        said = [message for message in messages if message["role"] == "user"] or messages
        return str(said[-1].get("content") or "")


def recognise_questions(
    dataset: Dataset, template: Sequence[Mapping[str, str]] | None = None, *, answer: str = "answer", name: str
) -> PromptLayout:
    """Find prompts without completions.

    Args:
        dataset: The dataset.
        template: What questions are put into; see `Questions`.
        answer: Column of the answer.
        name: The dataset's name, for messages.

    Returns:
        `Questions` of a column "question"; or else `Prompts` of a column "prompt", if there is no template.

    Raises:
        DatasetError: There is neither.
    """
    present = dataset.column_names
    if "question" in present or (template is not None and "prompt" not in present):
        return Questions(template=template, answer=answer)
    if "prompt" not in present:
        # Text in a column "prompt" is no chat, so "question" is the one to be named.
        return Questions(answer=answer)
    if template is not None:
        raise DatasetError(
            "conversation_template is for a column 'question', and there is none but 'prompt'",
            remedy="If it holds whole prompts, leave conversation_template out; if it holds questions as text, rename "
            'it: dataset.rename_column("prompt", "question").',
            dataset=name,
        )
    return Prompts()


def check_template(template: Any) -> None:
    """Refuse what is no template of messages; see `Questions`.

    Raises:
        TypeError: It is no list of messages.
        ValueError: A message is malformed, or there is no place for the question.
    """
    if isinstance(template, str) or not isinstance(template, Sequence):
        raise TypeError(f"conversation_template must be a list of messages or None, got {template!r}. {_REMEDY}")
    for number, message in enumerate(template):
        where = f"Message {number} of conversation_template"
        if not isinstance(message, Mapping) or not all(isinstance(text, str) for text in message.values()):
            raise TypeError(f"{where} must have a role and a content, both text, got {message!r}. {_REMEDY}")
        if set(message) != {"role", "content"}:
            raise ValueError(f"{where} must have a role and a content and nothing else, got {message!r}. {_REMEDY}")
        if message["role"] not in ROLES:
            raise ValueError(f"{where} has the unknown role {message['role']!r}; use one of {', '.join(ROLES)}.")
        try:
            placeholders(message["content"])
        except ValueError as error:
            raise ValueError(f"{where}, {message['content']!r}: {error}") from None
    if not any("question" in placeholders(message["content"]) for message in template):
        raise ValueError(f"conversation_template has no '{{question}}', so all prompts would be the same. {_REMEDY}")
    last = template[-1]["role"]
    if last not in ("user", "tool", "assistant"):
        raise ValueError(
            f"conversation_template ends with a message of role {last!r}; end it with the user's turn, or with an "
            "assistant's that every answer begins with."
        )


def placeholders(text: str) -> set[str]:
    """The placeholders of a text: "question", "answer", both or none.

    Raises:
        ValueError: It has another one, or a lone brace.
    """
    return {field for _, field in _pieces(text) if field is not None}


def filled(text: str, parts: Mapping[str, str]) -> str:
    """A text with its placeholders filled in; what is put in stays as it is.

    Args:
        text: Passed `placeholders`.
        parts: By placeholder.
    """
    return "".join(literal + (parts[field] if field is not None else "") for literal, field in _pieces(text))


def _pieces(text: str) -> list[tuple[str, str | None]]:
    """Pieces of a text, each with the placeholder behind it. Not `str.format`, which would look into attributes."""
    way_out = "the placeholders are {question} and {answer}; write any other brace twice, as in \\boxed{{}}"
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{error}; {way_out}.") from None
    for _, field, specification, conversion in pieces:
        if field is not None and (field not in _PLACEHOLDERS or specification or conversion):
            written = (
                "{"
                + field
                + (f"!{conversion}" if conversion else "")
                + (f":{specification}" if specification else "")
                + "}"
            )
            raise ValueError(f"{written!r} is no placeholder; {way_out}.")
    return [(literal, field) for literal, field, _, _ in pieces]
