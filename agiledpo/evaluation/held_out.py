"""The pairs to evaluate on, and their prompts, each once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agiledpo.data import DatasetError, Example, LoadedRows, PreparedRows, RowSource, load_preferences
from agiledpo.data.digests import digest, exact, prompt_parts
from agiledpo.data.examples import Form, Message, Turns
from agiledpo.data.layout import Layout
from agiledpo.data.messages import without_none
from agiledpo.data.tokenization import isolated_copy, tokenize_prompt
from agiledpo.evaluation.intervals import Groups

ANSWER = "answer"


@dataclass(frozen=True, eq=False)
class HeldOutPrompt:
    """A prompt to answer.

    Attributes:
        row: Number of the first row that has it.
        prompt: As the row has it: text, or chat messages.
        question: What was asked: of a text all of it, of a chat what the user said last.
        answer: What the row's column "answer" holds, for reward functions; None without one.
        tokens: int64 (tokens,).
    """

    row: int
    prompt: str | list[Message]
    question: str
    answer: Any
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class HeldOutPairs:
    """Pairs to evaluate on.

    Attributes:
        name: What they are called.
        rows: The pairs, tokenised.
        groups: (rows of the dataset,) the number of each row's prompt; equal prompts have equal numbers.
        loaded: Where they come from.
    """

    name: str
    rows: PreparedRows
    groups: Groups
    loaded: LoadedRows

    @staticmethod
    def load(
        name: str,
        source: RowSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_rows: int | None = None,
        max_context_length: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "HeldOutPairs":
        """Read, check and tokenise pairs.

        Args:
            name: What they are called.
            source: What ``load_preferences`` takes, or has returned.
            tokenizer: The model's.
            max_rows: Only the first so many.
            max_context_length: Pairs of more tokens are left out; None keeps all.
            chat_template_kwargs: What the chat template is told.

        Raises:
            DatasetError: They cannot be read, or are no pairs.
        """
        loaded = (
            _first(source.named(name), max_rows)
            if isinstance(source, LoadedRows)
            else load_preferences(source, dataset_name=name, max_rows=max_rows)
        ).expect(Layout.completions, remedy="Pass preference pairs.")
        rows = loaded.prepare(
            tokenizer, max_context_length=max_context_length, chat_template_kwargs=chat_template_kwargs
        )
        return HeldOutPairs(name, rows, _groups(loaded), loaded)

    @property
    def different_prompts(self) -> int:
        """How many different prompts the pairs have."""
        return len(np.unique(self.groups[self._numbers()]))

    def prompts(
        self,
        count: int,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[HeldOutPrompt]:
        """Some of the prompts, each once, drawn at random and in the order of the rows.

        Args:
            count: How many at most.
            tokenizer: The model's.
            seed: Of the draw.
            chat_template_kwargs: What the chat template is told.
        """
        numbers = self._numbers()
        _, first = np.unique(self.groups[numbers], return_index=True)
        chosen = np.random.default_rng(seed).permutation(first)[:count]
        lone = isolated_copy(tokenizer)
        return [self._prompt(int(row), lone, chat_template_kwargs or {}) for row in np.sort(numbers[chosen])]

    def _numbers(self) -> Groups:
        """(pairs,) the number of each one's row."""
        return np.asarray(self.rows.take(np.arange(len(self.rows)))["row"])

    def _prompt(self, row: int, tokenizer: PreTrainedTokenizerBase, told: Mapping[str, Any]) -> HeldOutPrompt:
        form = self.loaded.layout.form(self.loaded.dataset, name=self.name)
        values = self.loaded.dataset[row]
        example = self.loaded.layout.read(form, row, values, name=self.name)[0]
        if form is Form.TOKENS:
            ids = [int(token) for token in example.prompt]  # type: ignore[arg-type]
            written: Turns = str(tokenizer.decode(ids))
        else:
            ids = tokenize_prompt(replace(example, completions=()), tokenizer, form, told, row=row, name=self.name)
            written = example.prompt
        prompt: str | list[Message] = written if isinstance(written, str) else without_none(written)  # type: ignore[arg-type]
        return HeldOutPrompt(row, prompt, _asked(prompt), values.get(ANSWER), torch.tensor(ids, dtype=torch.int64))


def _first(loaded: LoadedRows, count: int | None) -> LoadedRows:
    return loaded if count is None else loaded.select(np.arange(min(count, len(loaded.dataset))))


def _asked(prompt: str | Sequence[Message]) -> str:
    if isinstance(prompt, str):
        return prompt
    said = [message for message in prompt if message["role"] == "user"] or list(prompt)
    return str(said[-1].get("content") or "")


def _groups(loaded: LoadedRows) -> Groups:
    form = loaded.layout.form(loaded.dataset, name=loaded.name)
    columns = loaded.layout.present(loaded.dataset)
    numbers: dict[int, int] = {}
    groups = np.empty(len(loaded.dataset), dtype=np.int64)
    for row, values in enumerate(loaded.dataset.select_columns(list(columns))):
        try:
            examples = loaded.layout.read(form, row, values, name=loaded.name)
        except DatasetError as error:
            raise loaded.locate(error) from None
        # A row without a preference is left out later.
        groups[row] = numbers.setdefault(_key(examples[0]), len(numbers)) if examples else -1
    return groups


def _key(example: Example) -> int:
    return digest(exact(example.prompt), prompt_parts(example))
