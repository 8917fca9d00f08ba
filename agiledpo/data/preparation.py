"""From the user's dataset to tokenised rows that fit."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from agiledpo.cache import cache_directory
from agiledpo.data.checking import check_dataset
from agiledpo.data.examples import Form
from agiledpo.data.filtering import FilterCounts, filter_rows
from agiledpo.data.fingerprint import rows_fingerprint, tokenized_fingerprint
from agiledpo.data.layout import Layout
from agiledpo.data.lengths import token_lengths
from agiledpo.data.limits import LengthLimits, Truncation
from agiledpo.data.pairs import PAIRS
from agiledpo.data.rendering import chat_of
from agiledpo.data.rewriting import header_switch
from agiledpo.data.template_kwargs import PINNED_DATE, check_template_kwargs, mentions, written_date
from agiledpo.data.tokenization import check_tokenizer, isolated_copy, tokenize_rows
from agiledpo.data.truncation import cut_columns, fit_lengths

# Below this, starting processes takes longer than tokenising.
_ROWS_WORTH_PROCESSES = 20_000
# Characters before a place that a message shows.
_EXCERPT = 40


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRows:
    """Tokenised prompts with their completions.

    Attributes:
        tokenized: All rows, memory-mapped from the cache: "row" (row number in the user's dataset), and of the prompt
            and each completion, such as "chosen", the text as rendered for chat ("prompt", "chosen"), the token ids
            ("prompt_ids", "chosen_ids") and their number ("prompt_length", "chosen_length"); and "lost_header", the end
            of the assistant's header that the chat template leaves away where an answer follows, mostly empty.
        parts: What the prompt and the completions are called, in order: "prompt", "chosen", "rejected".
        lengths: (1 + completions, rows of `tokenized`) int32, those numbers, prompt first, after truncation; memory-
            mapped where nothing is truncated.
        kept: (rows,) int64, the rows of `tokenized` that are within the limits, in ascending order; None for all.
        form: Whether the user's rows were text, chat or token ids.
        filter_counts: What filtering by length left out, and what truncation cut.
        fingerprint: Name of the data, the tokenizer, the numbers of tokens and the limits: equal fingerprints mean
            equal rows. Versions of libraries are no part of it; the date is where the chat template writes today's.
        bos_token_id: The token that truncation leaves at the beginning of prompts, or None.
    """

    tokenized: Dataset
    parts: tuple[str, ...]
    lengths: NDArray[np.int32]
    kept: NDArray[np.int64] | None
    form: Form
    filter_counts: FilterCounts
    fingerprint: str
    bos_token_id: int | None

    def __len__(self) -> int:
        """Rows within the limits."""
        return self.filter_counts.kept

    @property
    def dataset(self) -> Dataset:
        """The rows within the limits, as `take` hands them out, which is quicker where there are many."""
        rows = self.tokenized if self.kept is None else self.tokenized.select(self.kept)
        if not self.filter_counts.truncated:
            return rows
        kept = np.arange(len(self.tokenized)) if self.kept is None else self.kept
        fingerprint = f"{self.tokenized._fingerprint}{self.fingerprint[32:]}"
        directory = cache_directory("truncated")
        directory.mkdir(parents=True, exist_ok=True)
        return rows.map(
            lambda columns, places: self._cut(columns, kept[places]),
            batched=True,
            with_indices=True,
            features=rows.features,
            cache_file_name=str(directory / f"{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
        )

    def take(self, rows: NDArray[np.int64]) -> dict[str, list[Any]]:
        """The columns of some of the rows within the limits; tokens are truncated, texts are not.

        Args:
            rows: Places in `dataset`.
        """
        places = rows if self.kept is None else self.kept[rows]
        return self._cut(self.tokenized[places.tolist()], places)

    def _cut(self, columns: Mapping[str, list[Any]], rows: NDArray[np.int64]) -> dict[str, list[Any]]:
        if not self.filter_counts.truncated:
            return dict(columns)
        return cut_columns(columns, self.parts, self.lengths[:, rows], bos_token_id=self.bos_token_id)

    def longest_sides(self) -> NDArray[np.int32]:
        """Tokens of the prompt with its longest completion if it has any, (rows,), for each row within the limits."""
        longest = self.lengths[0] + self.lengths[1:].max(axis=0, initial=0)
        return longest if self.kept is None else longest[self.kept]


def prepare_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout = PAIRS,
    *,
    name: str,
    max_context_length: int | None = None,
    min_completion_length: int | None = None,
    truncation: Truncation = "drop",
    chat_template_kwargs: Mapping[str, Any] | None = None,
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
        max_context_length: Most tokens of the prompt and its longest completion together, or of a prompt alone.
        min_completion_length: Leave out rows with a completion of fewer tokens (its end-of-sequence token counts) or
            with a prompt that has no room for as many.
        truncation: What becomes of rows with more: "drop", "keep_end" or "keep_start", see `LengthLimits`. The tokens
            are cut, not the texts.
        chat_template_kwargs: What the chat template is told for all rows, such as ``{"enable_thinking": False}``;
            what a row says in a column of this name wins.
        num_proc: Processes to tokenise with; None takes one per CPU for large datasets and none for small ones.

    Raises:
        DatasetError: The dataset or one of its rows cannot be learned from, or no row is left.
        TypeError: `tokenizer` is not a tokenizer, a number is not an integer, or JSON cannot hold
            `chat_template_kwargs`.
        ValueError: The tokenizer has no end-of-sequence token or no chat template where it needs one, a number is out
            of range, there is no such truncation, or `chat_template_kwargs` has a name that is reserved or that the
            template does not have.

    Warns:
        UserWarning: Rows were left out, or completions were cut; or the chat template leaves a part of the assistant's
            header away where an answer follows, or writes today's date.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}.")
    limits = LengthLimits(max_context_length, min_completion_length, truncation)
    if truncation == "keep_start" and not layout.completions:
        raise ValueError(
            "truncation='keep_start' cuts the end of completions, and these rows are prompts alone: use 'drop' or "
            "'keep_end'."
        )
    dataset = check_dataset(dataset, name=name)
    form = layout.form(dataset, name=name)
    check_tokenizer(tokenizer, form)
    template_kwargs = check_template_kwargs(chat_template_kwargs, tokenizer, form)
    tokenizer = isolated_copy(tokenizer)
    date = written_date(tokenizer, template_kwargs) if form is Form.CHAT else None
    if date is not None:
        _warn_of_date(date, tokenizer, name=name)
    fingerprint = tokenized_fingerprint(dataset._fingerprint, tokenizer, layout, template_kwargs, date)
    tokenize = partial(
        _tokenize_batch, tokenizer=tokenizer, layout=layout, form=form, template_kwargs=template_kwargs, name=name
    )
    tokenized = _tokenize(dataset, tokenize, layout, fingerprint, name, _processes(num_proc, len(dataset)))
    if form is Form.CHAT:
        _warn_of_lost_headers(tokenized, dataset, tokenizer, layout, template_kwargs, name=name)
    parts = ("prompt", *layout.completions)
    lengths = token_lengths(tokenized, [f"{part}_length" for part in parts], fingerprint)
    fitted = fit_lengths(tokenized, parts, lengths, limits, bos_token_id=tokenizer.bos_token_id)
    kept, counts = filter_rows(lengths, fitted, limits, name=name)
    rows = rows_fingerprint(dataset._fingerprint, tokenizer, lengths, layout, template_kwargs)
    return PreparedRows(
        tokenized=tokenized,
        parts=parts,
        lengths=fitted.lengths,
        kept=kept,
        form=form,
        filter_counts=counts,
        fingerprint=f"{rows}-{limits.max_context_length}-{limits.min_completion_length}"
        + ("" if limits.truncation == "drop" else f"-{limits.truncation}")
        + ("" if date is None else f"-written-{date}"),
        bos_token_id=tokenizer.bos_token_id,
    )


def _warn_of_date(date: str, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    remedy = (
        f"Pass chat_template_kwargs={{{PINNED_DATE!r}: ...}} with a date as the template writes it, to have the same "
        "tokens every day."
        if mentions(tokenizer, PINNED_DATE)
        else "To have the same tokens every day, set tokenizer.chat_template to one with a fixed date."
    )
    warnings.warn(
        f"The chat template may write today's date into the rows of the {name} dataset: on another day than {date} "
        f"they are other tokens, so that a run cannot be resumed. {remedy}",
        UserWarning,
        stacklevel=3,
    )


def _warn_of_lost_headers(
    tokenized: Dataset,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    template_kwargs: Mapping[str, Any],
    *,
    name: str,
) -> None:
    """Say once that answers are learned after another header than they are asked for with."""
    lost = pc.not_equal(tokenized.data.column("lost_header"), "")
    count = pc.sum(lost).as_py()
    if not count:
        return
    one = tokenized[pc.index(lost, True).as_py()]
    values = dataset.select_columns(list(layout.present(dataset)))[one["row"]]
    told = None
    for example in layout.read(Form.CHAT, one["row"], values, name=name):
        told = told or header_switch(*chat_of(example, tokenizer, template_kwargs))
    before = one["prompt"][-_EXCERPT:]
    warnings.warn(
        f"The chat template writes {before + one['lost_header']!r} before an answer that it is asked for and "
        f"{before!r} before one that is there: {count} of {len(tokenized)} rows of the {name} dataset, first row "
        f"{one['row']}. Their answers are learned after the latter, and the model is asked with the former. "
        + (
            "Set tokenizer.chat_template to one that writes the same."
            if told is None
            else f"Pass chat_template_kwargs={told}, with which both are the same."
        ),
        UserWarning,
        stacklevel=3,
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
    tokenize: Callable[..., dict[str, list[Any]]],
    layout: Layout,
    fingerprint: str,
    name: str,
    num_proc: int | None,
) -> Dataset:
    directory = cache_directory("tokenized")
    directory.mkdir(parents=True, exist_ok=True)
    columns = list(layout.present(dataset))
    return dataset.select_columns(columns).map(
        tokenize,
        batched=True,
        with_indices=True,
        remove_columns=columns,
        features=_features(layout),
        # datasets writes beside and renames, so a file that is there is complete.
        cache_file_name=str(directory / f"{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
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
    template_kwargs: Mapping[str, Any],
    name: str,
) -> dict[str, list[Any]]:
    tokenized = tokenize_rows(batch, rows, tokenizer, form, layout, template_kwargs, name=name)
    prepared: dict[str, list[Any]] = {
        "row": [row.row for row in tokenized],
        "lost_header": [row.lost_header for row in tokenized],
    }
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
    return Features.from_arrow_schema(pa.schema([("row", pa.int64()), *parts, ("lost_header", pa.string())]))
