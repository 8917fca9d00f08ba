"""Prompts with one completion to learn from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset
from typing_extensions import override

from agiledpo.data.checking import checked_example, require_values
from agiledpo.data.examples import Example, Form
from agiledpo.data.layout import Layout, column_forms, text_or_chat, wrong_type
from agiledpo.data.messages import split_dialogue

# Where a completion is looked for if nobody says; the second is AgileRL's name.
_COMPLETION_COLUMNS = ("completion", "target")


@dataclass(frozen=True)
class Demonstrations(Layout):
    """A prompt and its completion, both text or both chat messages.

    Args:
        prompt: Column of the prompt.
        completion: Column of the completion.
    """

    completions: ClassVar[tuple[str, ...]] = ("completion",)
    prompt: str = "prompt"
    completion: str = "completion"

    @property
    @override
    def columns(self) -> tuple[str, ...]:
        return self.prompt, self.completion

    @property
    @override
    def sources(self) -> tuple[str, ...]:
        return (self.completion,)

    @override
    def form(self, dataset: Dataset, *, name: str) -> Form:
        return text_or_chat(dataset, self.columns, prompt=self.prompt, name=name)

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        prompt, completion = require_values(values, self.columns, row=row, name=name)
        return [checked_example(form, prompt, [completion], values, sources=self.columns, row=row, name=name)]


@dataclass(frozen=True)
class Dialogues(Layout):
    """Whole dialogues, of which the last message is the completion.

    Args:
        messages: Their column.
    """

    completions: ClassVar[tuple[str, ...]] = ("completion",)
    messages: str = "messages"

    @property
    @override
    def columns(self) -> tuple[str, ...]:
        return (self.messages,)

    @property
    @override
    def sources(self) -> tuple[str, ...]:
        return (self.messages,)

    @override
    def form(self, dataset: Dataset, *, name: str) -> Form:
        forms = column_forms(dataset, self.columns, name=name)
        if forms.get(self.messages, Form.CHAT) is not Form.CHAT:
            raise wrong_type("holds text, not chat messages", self.messages, name)
        return Form.CHAT

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        (dialogue,) = require_values(values, self.columns, row=row, name=name)
        prompt, completion = split_dialogue(dialogue, row=row, column=self.messages, name=name)
        sources = (self.messages, self.messages)
        return [checked_example(form, prompt, [completion], values, sources=sources, row=row, name=name)]


def recognise_demonstrations(dataset: Dataset, response_column: str | None = None) -> Layout:
    """Find prompts with one completion.

    Args:
        dataset: The dataset.
        response_column: Column of the completion, beside "prompt"; None takes "completion" or "target" if it is there
            with "prompt", otherwise "messages".
    """
    names = dataset.column_names
    if response_column is not None:
        return Demonstrations(completion=response_column)
    present = [column for column in _COMPLETION_COLUMNS if column in names]
    if "messages" in names and not (present and "prompt" in names):
        return Dialogues()
    return Demonstrations(completion=present[0]) if present else Demonstrations()
