"""Cut rows to length: on their lengths when a dataset is prepared, on their tokens when rows are taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from agiledpo.data.limits import LengthLimits


@dataclass(frozen=True, slots=True, eq=False)
class FittedLengths:
    """What truncation makes of rows.

    Attributes:
        lengths: (1 + completions, rows) int32 tokens of the prompt and of each completion that are kept; of a row that
            cannot be cut to fit, all.
        equal: (rows,) whether completions that differ are equal once they are cut.
        least_context: (rows,) the smallest `max_context_length` with which a row is kept, as far as that is known.
    """

    lengths: NDArray[np.int32]
    equal: NDArray[np.bool_]
    least_context: NDArray[np.int64]


def fit_lengths(
    tokenized: Dataset,
    parts: Sequence[str],
    lengths: NDArray[np.int32],
    limits: LengthLimits,
    *,
    bos_token_id: int | None,
) -> FittedLengths:
    """Decide how much of every row is kept.

    Tokens are looked at only where they matter: the first one of prompts that lose their beginning, and completions
    that are cut to the same length.

    Args:
        tokenized: Tokenised rows, not selected from.
        parts: What the prompt and the completions are called, in order.
        lengths: (1 + completions, rows) their numbers of tokens.
        limits: The limits.
        bos_token_id: The token that is kept at the beginning of a prompt.
    """
    prompt, completions = lengths[0], lengths[1:]
    longest, _ = completion_range(lengths, limits)
    nothing_equal = np.zeros(len(prompt), dtype=np.bool_)
    if limits.truncation == "keep_end":
        room = limits.context - longest
        cut = np.flatnonzero(prompt > room)
        least = longest + 1
        if bos_token_id is not None:
            least[cut] += _first_tokens(tokenized, f"{parts[0]}_ids", cut) == bos_token_id
        cut = cut[limits.context >= least[cut]]
        return FittedLengths(_with(lengths, 0, cut, room[cut]), nothing_equal, np.minimum(least, prompt + longest))
    whole = prompt + longest
    if limits.truncation == "drop":
        return FittedLengths(lengths, nothing_equal, whole)
    room = limits.context - prompt.astype(np.int64)
    cut = np.flatnonzero((room >= limits.least_room) & (longest > room))
    fitted = _with(lengths, slice(1, None), cut, np.minimum(completions[:, cut], room[cut]))
    equal = _equal_completions(tokenized, parts[1:], completions, fitted[1:], cut)
    return FittedLengths(fitted, equal, np.where(equal, whole, np.minimum(whole, prompt + limits.least_room)))


def completion_range(lengths: NDArray[np.int32], limits: LengthLimits) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of the longest and of the shortest completion of each row, (rows,) both.

    Prompts alone count as if they had the shortest completion that is allowed, for which they have to leave room.

    Args:
        lengths: (1 + completions, rows) numbers of tokens.
        limits: The limits.
    """
    if len(lengths) == 1:
        shortest = np.full(lengths.shape[1], limits.least_completion, dtype=np.int64)
        return shortest, np.maximum(shortest, 1)
    return lengths[1:].max(axis=0).astype(np.int64), lengths[1:].min(axis=0).astype(np.int64)


def cut_columns(
    columns: Mapping[str, list[Any]], parts: Sequence[str], lengths: NDArray[np.int32], *, bos_token_id: int | None
) -> dict[str, list[Any]]:
    """Cut the tokens of rows; their texts stay whole.

    Args:
        columns: Columns of tokenised rows, B values each.
        parts: What the prompt and the completions are called, in order.
        lengths: (1 + completions, B) tokens to keep.
        bos_token_id: The token that is kept at the beginning of a prompt.
    """
    fitted = dict(columns)
    prompt, *completions = parts
    for part, kept in zip(parts, lengths.tolist(), strict=True):
        fitted[f"{part}_length"] = kept
    fitted[f"{prompt}_ids"] = [
        cut_prompt(ids, length, bos_token_id)
        for ids, length in zip(columns[f"{prompt}_ids"], fitted[f"{prompt}_length"], strict=True)
    ]
    for part in completions:
        fitted[f"{part}_ids"] = [
            ids[:length] for ids, length in zip(columns[f"{part}_ids"], fitted[f"{part}_length"], strict=True)
        ]
    return fitted


def cut_prompt(ids: list[int], length: int, bos_token_id: int | None) -> list[int]:
    """The end of a prompt, after its beginning-of-sequence token if it has one.

    Args:
        ids: The prompt, at least one token.
        length: Tokens to keep; at least two of a longer prompt that begins with that token, otherwise at least one.
        bos_token_id: That token, or None.
    """
    if length == len(ids):
        return ids
    if ids[0] == bos_token_id:
        return [ids[0], *ids[len(ids) - length + 1 :]]
    return ids[len(ids) - length :]


def _with(
    lengths: NDArray[np.int32], parts: int | slice, rows: NDArray[np.int64], values: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Lengths of which some are others; the same array, which is a file, where none are."""
    if len(rows) == 0:
        return lengths
    changed = np.array(lengths)
    changed[parts, rows] = values
    return changed


def _first_tokens(tokenized: Dataset, column: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first tokens of rows, which have one; (rows,), in ascending order of rows."""
    first = np.empty(len(rows), dtype=np.int64)
    start = 0
    for batch in tokenized.select_columns(column).data.to_batches():
        here = slice(*np.searchsorted(rows, (start, start + batch.num_rows)))
        tokens, starts = _tokens(batch.column(0))
        first[here] = tokens[starts[rows[here] - start]]
        start += batch.num_rows
    return first


def _equal_completions(
    tokenized: Dataset,
    parts: Sequence[str],
    lengths: NDArray[np.int32],
    fitted: NDArray[np.int32],
    cut: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether two completions of a row begin with the same tokens, as many as are kept of both; only of rows cut."""
    equal = np.zeros(lengths.shape[1], dtype=np.bool_)
    for first, second in combinations(range(len(parts)), 2):
        rows = cut[fitted[first, cut] == fitted[second, cut]]
        if len(rows) == 0:
            continue
        start = 0
        for batch in tokenized.select_columns([f"{parts[first]}_ids", f"{parts[second]}_ids"]).data.to_batches():
            here = rows[slice(*np.searchsorted(rows, (start, start + batch.num_rows)))]
            if len(here):
                columns = [batch.column(f"{parts[part]}_ids") for part in (first, second)]
                equal[here] |= _same_beginnings(columns, here - start, fitted[first, here])
            start += batch.num_rows
    return equal


def _same_beginnings(
    columns: Sequence[pa.ListArray], rows: NDArray[np.int64], counts: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Whether the first `counts` tokens, at least one, of rows are the same in both columns."""
    ends = counts.cumsum(dtype=np.int64)
    # The place of every token that is compared within its row.
    within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    first, second = (
        tokens[np.repeat(starts[rows], counts) + within] for tokens, starts in (_tokens(each) for each in columns)
    )
    return np.logical_and.reduceat(first == second, ends - counts)


def _tokens(column: pa.ListArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All tokens of a column of lists one after the other, and where each list starts."""
    return column.values.to_numpy(), column.offsets.to_numpy()
