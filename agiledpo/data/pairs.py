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
from agiledpo.data.messages import ANSWERING_ROLES, check_messages, without_none
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
    """Two whole dialogues, whose prompt is the longest beginning of equal *messages* that answers can follow.

    It ends where each side goes on with an answer of its own. So calls of tools with their results that both sides
    begin with are part of the prompt, unless it is a call or a result that the sides differ in.

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
            found = forms.get(column, Form.CHAT)
            if found is Form.TEXT and self.prompt is None:
                raise DatasetError(
                    f"there is no prompt column, and {column!r} is text: nobody can tell where the prompt ends in it",
                    remedy="Put what both sides begin with into a column 'prompt', or write dialogues as lists of "
                    "{'role': ..., 'content': ...} messages.",
                    dataset=name,
                    column=column,
                )
            if found is not Form.CHAT:
                raise wrong_type("does not hold dialogues", column, name)
        if self.prompt is not None and forms.get(self.prompt, Form.TEXT) is not Form.TEXT:
            raise DatasetError(
                "the column does not hold texts, which repeat a user's message of the dialogues",
                remedy=f"Dialogues that begin with the prompt need none: dataset.remove_columns({self.prompt!r}).",
                dataset=name,
                column=self.prompt,
            )
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
        parting = common_prefix_length(without_none(chosen), without_none(rejected))
        border = _border(chosen, rejected, parting)

        def error(problem: str, remedy: str, column: str | None = None) -> DatasetError:
            return DatasetError(problem, remedy=remedy, dataset=name, row=row, column=column)

        if parting == len(chosen) == len(rejected):
            raise error(
                f"{self.chosen} and {self.rejected} are equal, so there is nothing to prefer",
                f'Drop such rows: dataset.filter(lambda row: row["{self.chosen}"] != row["{self.rejected}"]).',
            )
        sides = ((self.chosen, chosen, self.rejected, rejected), (self.rejected, rejected, self.chosen, chosen))
        for column, dialogue, other, longer in sides:
            if parting == len(dialogue) and (border == parting or not _is_answer(longer[border:])):
                raise error(
                    f"the dialogue is the beginning of {other}'s, so it has no completion of its own",
                    "End both dialogues with their answers to the same turn, or drop such rows.",
                    column,
                )
        if border == 0 and {chosen[0]["role"], rejected[0]["role"]} != {"assistant"}:
            raise error(
                f"{self.chosen} and {self.rejected} have no message in common that could be the prompt",
                "Begin both dialogues with the same turns, or drop such rows.",
            )
        if border == 0 and self.prompt is None:
            raise error(
                f"{self.chosen} and {self.rejected} begin with the answer, and there is no prompt column",
                "Begin both dialogues with the turns that they answer, or give the rows a column 'prompt'.",
            )
        for column, dialogue, *_ in sides:
            if border and not _is_answer(dialogue[border:]):
                raise error(
                    f"the dialogues part at message {parting}, and what follows is not only an answer: its roles are "
                    f"{', '.join(message['role'] for message in dialogue[border:])}",
                    "Only answers to the same turns can be compared: end both dialogues with them, or drop such rows.",
                    column,
                )
        return chosen[:border], (chosen[border:], rejected[border:])

    def _check_prompt(self, prompt: Any, shared: list[Message], chosen: list[Message], *, row: int, name: str) -> None:
        assert self.prompt is not None
        if not shared:
            forms = {self.prompt: Form.TEXT, self.chosen: Form.CHAT, self.rejected: Form.CHAT}
            raise mixed_forms(forms, self.prompt, name, row)
        if prompt is None:
            return
        asked = [message["content"].strip() for message in shared if message["role"] == "user"]
        if not isinstance(prompt, str) or prompt.strip() not in asked:
            raise DatasetError(
                f"the text is none of the user's messages that {self.chosen} and {self.rejected} have in common",
                remedy=f"If the dialogues are right, drop the column: dataset.remove_columns({self.prompt!r}).",
                dataset=name,
                row=row,
                column=self.prompt,
            )


def _border(chosen: list[Message], rejected: list[Message], parting: int) -> int:
    """Where the answers begin: at the parting of two dialogues, or before the turn of the assistant that it is in."""
    border = parting
    while border > 0 and chosen[border - 1]["role"] in ANSWERING_ROLES:
        # After a tool's result the assistant begins anew.
        begins = [dialogue[border]["role"] for dialogue in (chosen, rejected) if border < len(dialogue)]
        if chosen[border - 1]["role"] == "tool" and begins == ["assistant", "assistant"]:
            break
        border -= 1
    return border


def _is_answer(messages: list[Message]) -> bool:
    roles = [message["role"] for message in messages]
    return roles[:1] != ["tool"] and all(role in ANSWERING_ROLES for role in roles)


PAIRS = Pairs()
