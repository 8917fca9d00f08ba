"""From the user's dataset to tokenised rows that fit."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from agiledpo.cache import cache_directory
from agiledpo.data.checking import check_dataset
from agiledpo.data.examples import Form
from agiledpo.data.filtering import FilterCounts, LengthLimits, filter_by_length
from agiledpo.data.fingerprint import rows_fingerprint, tokenized_fingerprint
from agiledpo.data.layout import Layout
from agiledpo.data.lengths import token_lengths
from agiledpo.data.pairs import PAIRS
from agiledpo.data.tokenization import check_tokenizer, isolated_copy, tokenize_rows

# Below this, starting processes takes longer than tokenising.
_ROWS_WORTH_PROCESSES = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRows:
    """Tokenised prompts with their completions.

    Attributes:
        tokenized: All rows, memory-mapped from the cache: "row" (row number in the user's dataset), and of the prompt
            and each completion, such as "chosen", the text as rendered for chat ("prompt", "chosen"), the token ids
            ("prompt_ids", "chosen_ids") and their number ("prompt_length", "chosen_length").
        lengths: (1 + completions, rows of `tokenized`) int32, those numbers, prompt first, memory-mapped.
        kept: (rows,) int64, the rows of `tokenized` that are within the limits, in ascending order; None for all.
        form: Whether the user's rows were text or chat.
        filter_counts: What filtering by length left out.
        fingerprint: Name of the data, the tokenizer, the numbers of tokens and the limits: equal fingerprints mean
            equal rows. Versions of libraries are no part of it.
    """

    tokenized: Dataset
    lengths: NDArray[np.int32]
    kept: NDArray[np.int64] | None
    form: Form
    filter_counts: FilterCounts
    fingerprint: str

    def __len__(self) -> int:
        """Rows within the limits."""
        return self.filter_counts.kept

    @property
    def dataset(self) -> Dataset:
        """The rows within the limits. Selecting them takes datasets long where there are many: see `take`."""
        return self.tokenized if self.kept is None else self.tokenized.select(self.kept)

    def take(self, rows: NDArray[np.int64]) -> dict[str, list[Any]]:
        """The columns of some of the rows within the limits.

        Args:
            rows: Places in `dataset`.
        """
        return self.tokenized[(rows if self.kept is None else self.kept[rows]).tolist()]

    def longest_sides(self) -> NDArray[np.int32]:
        """Tokens of the prompt with its longest completion, (rows,), for each row within the limits."""
        longest = self.lengths[0] + self.lengths[1:].max(axis=0)
        return longest if self.kept is None else longest[self.kept]


def prepare_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout = PAIRS,
    *,
    name: str,
    max_context_length: int | None = None,
    min_completion_length: int | None = None,
    num_proc: int | None = None,
) -> PreparedRows:
    """Check, tokenise and filter a dataset of prompts with their completions.

    Tokens are kept on disk (see `cache_directory`) under a name made of the data, the tokenizer and its chat template,
    so each dataset is tokenised once, in whichever process and with whichever limits. `datasets.disable_caching()`
    turns the reuse off.

    Args:
        dataset: Has the layout's columns; others are ignored.
        tokenizer: The model's tokenizer; it is not changed.
        layout: Where the prompt and its completions are.
        name: What messages call the dataset, such as "train".
        max_context_length: Leave out rows whose prompt and longest completion have more tokens together.
        min_completion_length: Leave out rows with a completion of fewer tokens (its end-of-sequence token counts) or
            with a prompt that has no room for as many.
        num_proc: Processes to tokenise with; None takes one per CPU for large datasets and none for small ones.

    Raises:
        DatasetError: The dataset or one of its rows cannot be learned from, or no row is left.
        TypeError: `tokenizer` is not a tokenizer, or a number is not an integer.
        ValueError: The tokenizer has no end-of-sequence token or no chat template where it needs one, or a number is
            out of range.

    Warns:
        UserWarning: Rows were left out.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}.")
    limits = LengthLimits(max_context_length, min_completion_length)
    dataset = check_dataset(dataset, name=name)
    form = layout.form(dataset, name=name)
    check_tokenizer(tokenizer, form)
    tokenizer = isolated_copy(tokenizer)
    fingerprint = tokenized_fingerprint(dataset._fingerprint, tokenizer, layout)
    tokenized = _tokenize(dataset, tokenizer, layout, form, fingerprint, name, _processes(num_proc, len(dataset)))
    lengths = token_lengths(tokenized, [f"{part}_length" for part in ("prompt", *layout.completions)], fingerprint)
    kept, counts = filter_by_length(lengths, limits, name=name)
    rows = rows_fingerprint(dataset._fingerprint, tokenizer, lengths, layout)
    return PreparedRows(
        tokenized=tokenized,
        lengths=lengths,
        kept=kept,
        form=form,
        filter_counts=counts,
        fingerprint=f"{rows}-{limits.max_context_length}-{limits.min_completion_length}",
    )


def _processes(num_proc: int | None, rows: int) -> int | None:
    """Number of worker processes, or None to work in this one."""
    if num_proc is None:
        num_proc = (os.cpu_count() or 1) if rows > _ROWS_WORTH_PROCESSES else 1
    elif isinstance(num_proc, bool) or not isinstance(num_proc, int):
        raise TypeError(f"num_proc must be an int or None, got {num_proc!r}.")
    elif num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc}.")
    num_proc = min(num_proc, rows)
    return num_proc if num_proc > 1 else None


def _tokenize(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    form: Form,
    fingerprint: str,
    name: str,
    num_proc: int | None,
) -> Dataset:
    directory = cache_directory("tokenized")
    directory.mkdir(parents=True, exist_ok=True)
    columns = list(layout.present(dataset))
    return dataset.select_columns(columns).map(
        _tokenize_batch,
        batched=True,
        with_indices=True,
        remove_columns=columns,
        features=_features(layout),
        # datasets writes beside and renames, so a file that is there is complete.
        cache_file_name=str(directory / f"{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        fn_kwargs={"tokenizer": tokenizer, "layout": layout, "form": form, "name": name},
        num_proc=num_proc,
        desc=f"Tokenizing {name} dataset",
    )


def _tokenize_batch(
    batch: Mapping[str, list[Any]],
    rows: Sequence[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    form: Form,
    name: str,
) -> dict[str, list[Any]]:
    tokenized = tokenize_rows(batch, rows, tokenizer, form, layout, name=name)
    prepared: dict[str, list[Any]] = {"row": [row.row for row in tokenized]}
    texts = zip(*((row.prompt, *row.completions) for row in tokenized), strict=True)
    ids = zip(*((row.prompt_ids, *row.completion_ids) for row in tokenized), strict=True)
    for part, part_texts, part_ids in zip(("prompt", *layout.completions), texts, ids, strict=True):
        prepared[part] = list(part_texts)
        prepared[f"{part}_ids"] = list(part_ids)
        prepared[f"{part}_length"] = [len(tokens) for tokens in part_ids]
    return prepared


def _features(layout: Layout) -> Features:
    """Types of the columns of prepared rows."""
    types = {"": pa.string(), "_ids": pa.list_(pa.int32()), "_length": pa.int64()}
    parts = [
        (f"{part}{suffix}", column_type)
        for suffix, column_type in types.items()
        for part in ("prompt", *layout.completions)
    ]
    return Features.from_arrow_schema(pa.schema([("row", pa.int64()), *parts]))
