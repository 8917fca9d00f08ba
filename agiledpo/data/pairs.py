"""Preference pairs with a column for each side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from typing_extensions import override

from agiledpo.data.checking import checked_example, require_values
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Form, Message
from agiledpo.data.layout import Layout, column_forms, mixed_forms, text_or_chat, wrong_type
from agiledpo.data.messages import check_messages, without_none
from agiledpo.data.prefixes import common_prefix_length


@dataclass(frozen=True)
class Pairs(Layout):
    """A prompt, the completion that was chosen and the one that was rejected; all text, or all chat messages.

    Args:
        prompt: Column of the prompt.
        chosen: Column of the preferred completion.
        rejected: Column of the other one.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"

    @property
    @override
    def columns(self) -> tuple[str, ...]:
        return self.prompt, self.chosen, self.rejected

    @property
    @override
    def sources(self) -> tuple[str, ...]:
        return self.chosen, self.rejected

    @override
    def form(self, dataset: Dataset, *, name: str) -> Form:
        return text_or_chat(dataset, self.columns, prompt=self.prompt, name=name)

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        prompt, *completions = require_values(values, self.columns, row=row, name=name)
        return [checked_example(form, prompt, completions, values, sources=self.columns, row=row, name=name)]


@dataclass(frozen=True)
class ImplicitPairs(Layout):
    """Two whole dialogues. The prompt is what they have in common: the longest prefix of equal *messages*.

    Args:
        chosen: Column of the preferred dialogue.
        rejected: Column of the other one.
        prompt: Column that repeats a user's message of the common part as text; None if there is none.
    """

    chosen: str = "chosen"
    rejected: str = "rejected"
    prompt: str | None = None

    @property
    @override
    def columns(self) -> tuple[str, ...]:
        return (self.chosen, self.rejected) if self.prompt is None else (self.prompt, self.chosen, self.rejected)

    @property
    @override
    def sources(self) -> tuple[str, ...]:
        return self.chosen, self.rejected

    @override
    def form(self, dataset: Dataset, *, name: str) -> Form:
        forms = column_forms(dataset, self.columns, name=name)
        for column in (self.chosen, self.rejected):
            if forms.get(column, Form.CHAT) is Form.TEXT and self.prompt is None:
                raise DatasetError(
                    f"there is no prompt column, and {column!r} is text: nobody can tell where the prompt ends in it",
                    remedy="Put what both sides begin with into a column 'prompt', or write dialogues as lists of "
                    "{'role': ..., 'content': ...} messages.",
                    dataset=name,
                    column=column,
                )
            if forms.get(column, Form.CHAT) is not Form.CHAT:
                raise wrong_type("does not hold dialogues", column, name)
        return Form.CHAT

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        chosen, rejected = require_values(values, (self.chosen, self.rejected), row=row, name=name)
        prompt, completions = self._divide(chosen, rejected, row=row, name=name)
        if self.prompt is not None:
            self._check_prompt(values[self.prompt], prompt, chosen, row=row, name=name)
        sources = (self.chosen, self.chosen, self.rejected)
        return [checked_example(form, prompt, completions, values, sources=sources, row=row, name=name)]

    def _divide(
        self, chosen: Any, rejected: Any, *, row: int, name: str
    ) -> tuple[list[Message], tuple[list[Message], list[Message]]]:
        for column, dialogue in ((self.chosen, chosen), (self.rejected, rejected)):
            check_messages(dialogue, row=row, column=column, name=name)
        chosen, rejected = without_none(chosen), without_none(rejected)
        shared = common_prefix_length(chosen, rejected)

        def error(problem: str, remedy: str, column: str | None = None) -> DatasetError:
            return DatasetError(problem, remedy=remedy, dataset=name, row=row, column=column)

        if shared == len(chosen) == len(rejected):
            raise error(
                f"{self.chosen} and {self.rejected} are equal, so there is nothing to prefer",
                f'Drop such rows: dataset.filter(lambda row: row["{self.chosen}"] != row["{self.rejected}"]).',
            )
        for column, other, dialogue in ((self.chosen, self.rejected, chosen), (self.rejected, self.chosen, rejected)):
            if shared == len(dialogue):
                raise error(
                    f"the dialogue is the beginning of {other}'s, so it has no completion of its own",
                    "End both dialogues with their answers to the same turn, or drop such rows.",
                    column,
                )
        if shared == 0 and chosen[0].get("role") != "assistant":
            raise error(
                f"{self.chosen} and {self.rejected} have no message in common that could be the prompt",
                "Begin both dialogues with the same turns, or give the rows a column 'prompt'.",
            )
        if shared == 0 and self.prompt is None:
            raise error(
                f"{self.chosen} and {self.rejected} begin with the answer, and there is no prompt column",
                "Begin both dialogues with the turns that they answer, or give the rows a column 'prompt'.",
            )
        if shared and "assistant" not in (chosen[shared]["role"], rejected[shared]["role"]):
            raise error(
                f"the dialogues part at message {shared}, which is not an answer but of role "
                f"{chosen[shared]['role']!r}",
                "Only answers to the same turns can be compared: drop such rows.",
            )
        return chosen[:shared], (chosen[shared:], rejected[shared:])

    def _check_prompt(self, prompt: Any, shared: list[Message], chosen: list[Message], *, row: int, name: str) -> None:
        assert self.prompt is not None
        if not shared:
            forms = {self.prompt: Form.TEXT, self.chosen: Form.CHAT, self.rejected: Form.CHAT}
            raise mixed_forms(forms, self.prompt, name, row)
        asked = [message["content"] for message in shared if message["role"] == "user"]
        if prompt is not None and prompt not in asked:
            raise DatasetError(
                f"the text is none of the user's messages that {self.chosen} and {self.rejected} have in common",
                remedy=f"If the dialogues are right, drop the column: dataset.remove_columns({self.prompt!r}).",
                dataset=name,
                row=row,
                column=self.prompt,
            )


PAIRS = Pairs()
