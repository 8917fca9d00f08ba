"""An environment that walks through datasets: a training split epoch after epoch, and held-out splits."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import numpy as np
from accelerate import Accelerator
from gymnasium import spaces
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from agiledpo.data import FilterCounts, LoadedRows, PreparedRows, RowSource
from agiledpo.data.examples import Example
from agiledpo.data.filtering import filter_table
from agiledpo.data.limits import Truncation
from agiledpo.data.tokenization import vocabulary_size
from agiledpo.distributed.team import Team, local_leader_first
from agiledpo.llm_envs.batching import epoch_permutation, length_grouped_order
from agiledpo.llm_envs.spaces import ChoiceSpace, CountSpace, TextListSpace, TokenSpace
from agiledpo.llm_envs.types import Split
from agiledpo.llm_envs.validation import validation_split, validation_splits

# Raise it also when an order changes: a place in one is none in another.
_STATE_VERSION = 3

Experiences = TypeVar("Experiences")


@dataclass(slots=True)
class _Cursor:
    """A place in the endless sequence of batches of a split.

    Attributes:
        split: The split.
        epoch: Complete passes over the split before this one.
        position: Rows of this pass that have been handed out.
        was_reset: Whether the last call was `reset`.
        batch: The batch that was handed out last; None before the first.
    """

    split: Split
    epoch: int = 0
    position: int = 0
    was_reset: bool = False
    batch: Any = None


class DatasetGym(ABC, Generic[Experiences]):
    """Hands out batches of rows, epoch after epoch, from a training and from held-out splits.

    The training order is a new permutation in every epoch, a pure function of seed and epoch (grouped by length, also
    of the rows' lengths and the batch size): neither evaluation nor anything else in the process changes it. The last
    batch of an epoch may be smaller; no row is lost or moved to the next epoch. Held-out splits keep their order.

    Args:
        train_dataset: Rows to learn from: a `datasets.Dataset`, a file or directory, the name of a repository on the
            Hub, a finite stream, or what a function of `agiledpo.data` has loaded.
        test_dataset: Rows for evaluation.
        final_dataset: Rows for the figures of the finished run; None for none.
        validation_datasets: Rows to watch the run by, by name; None for none.
        tokenizer: The model's tokenizer, with a pad and an end-of-sequence token; it is not changed.
        data_batch_size_per_gpu: Rows per batch and process.
        accelerator: Accelerate's handle. Every process is handed the same batches, of ``data_batch_size_per_gpu`` rows
            for each; agents divide them. The order of the rows does not depend on the number of processes.
        max_context_length: Most tokens of a row; None keeps all.
        min_completion_length: Rows with a shorter completion, or without room for as long a one, are left out.
        truncation: What becomes of rows of more tokens, see `agiledpo.data.limits.LengthLimits`.
        chat_template_kwargs: What the chat template is told for all rows; None for nothing.
        seed: Of the training order; not negative.
        num_proc: Processes to tokenise with; None decides by the size of the dataset.
        group_by_length: Put rows of similar length into the same training batch: see `length_grouped_order`.
        default_name: Name of a training dataset that has none.

    Raises:
        DatasetError: A dataset or one of its rows cannot be learned from.
        TypeError: An argument has the wrong type.
        ValueError: The tokenizer lacks a token or chat template, a number is out of range, or a validation set's name
            has other characters than ASCII letters, digits, "_", "-" and ".".

    Warns:
        UserWarning: Rows were left out, or completions were cut.
    """

    def __init__(
        self,
        train_dataset: RowSource,
        test_dataset: RowSource,
        final_dataset: RowSource | None,
        validation_datasets: Mapping[str, RowSource] | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        data_batch_size_per_gpu: int,
        accelerator: Accelerator | None,
        max_context_length: int | None,
        min_completion_length: int | None,
        truncation: Truncation,
        chat_template_kwargs: Mapping[str, Any] | None,
        seed: int,
        num_proc: int | None,
        group_by_length: bool,
        default_name: str,
    ) -> None:
        _check_integer("data_batch_size_per_gpu", data_batch_size_per_gpu, lowest=1)
        _check_integer("seed", seed, lowest=0)
        if not isinstance(group_by_length, bool):
            raise TypeError(f"group_by_length must be True or False, got {group_by_length!r}.")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}.")
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "The tokenizer has no pad token, and batches are padded with it. "
                "Set one first, for example tokenizer.pad_token = tokenizer.eos_token."
            )
        sources: dict[Split, RowSource] = {"train": train_dataset, "test": test_dataset}
        if final_dataset is not None:
            sources["final"] = final_dataset
        named = validation_splits(validation_datasets)
        sources.update({validation_split(name): source for name, source in named.items()})
        # All are opened and looked at before any is tokenised, which may take minutes.
        self._loaded = {name: self._load(source, name=name) for name, source in sources.items()}
        self.validation_names = tuple(named)
        self.tokenizer = tokenizer
        self.pad_token_id: int = tokenizer.pad_token_id
        self.accelerator = accelerator
        self.data_batch_size_per_gpu = data_batch_size_per_gpu
        self.seed = seed
        self.group_by_length = group_by_length

        with local_leader_first(accelerator):  # the others find what it has tokenised in the cache
            self._splits: dict[Split, PreparedRows] = {
                name: rows.prepare(
                    tokenizer,
                    max_context_length=max_context_length,
                    min_completion_length=min_completion_length,
                    truncation=truncation,
                    chat_template_kwargs=chat_template_kwargs,
                    num_proc=num_proc,
                )
                for name, rows in self._loaded.items()
            }
        self.name: str = self._loaded["train"].title or default_name
        self.filter_counts: dict[Split, FilterCounts] = {
            split: prepared.filter_counts for split, prepared in self._splits.items()
        }
        self.action_space = TokenSpace(vocabulary_size(tokenizer), sample_rows=self.rows_per_batch)
        self.observation_space = self._observation_space()
        self._train_cursor = _Cursor("train")
        # The cursor in use: the training cursor, or one of an evaluation.
        self._cursor = self._train_cursor
        self._order: tuple[tuple[int, int, int], NDArray[np.int64]] | None = None

    # What each environment provides ---------------------------------------------------------------------------------

    @abstractmethod
    def _load(self, source: RowSource, *, name: Split) -> LoadedRows:
        """Open the rows of a split and recognise their format."""

    @abstractmethod
    def _collate(self, columns: Mapping[str, Sequence[Any]], split: Split) -> Experiences:
        """Lay prepared rows of a split out as a batch."""

    @abstractmethod
    def _observation_space(self) -> spaces.Dict:
        """The space of batches; the tokenizer and the batch size are known."""

    # Walking through the splits -------------------------------------------------------------------------------------

    @property
    def rows_per_batch(self) -> int:
        """Rows of a batch, those of all processes together."""
        return self.data_batch_size_per_gpu * Team.of(self.accelerator).size

    @property
    def num_epochs(self) -> int:
        """Complete passes over the training split. Counted when the first batch of the next pass is asked for."""
        return self._train_cursor.epoch

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there are: "train", "test" and, where they were given, "final" and "validation-<name>"."""
        return tuple(self._splits)

    @property
    def at_epoch_end(self) -> bool:
        """Whether all rows of this pass over the training split have been handed out."""
        return self._train_cursor.position >= len(self._splits["train"])

    def __len__(self) -> int:
        """Rows in the current split after filtering."""
        return len(self._splits[self._cursor.split])

    def reset(self, reset_dataloaders: bool = False) -> Experiences:
        """Return the next batch of the current split.

        Args:
            reset_dataloaders: Go back to the start of the current pass over the split first; `num_epochs` stays.

        Warns:
            UserWarning: The split is rewound, or the previous call was a reset as well, whose batch is then skipped.
        """
        if reset_dataloaders:
            warnings.warn(
                f"Rewinding the {self._cursor.split} split to the start of its current pass: proceed with caution, "
                "rows that were already handed out come again.",
                UserWarning,
                stacklevel=2,
            )
            self._cursor.position = 0
        if self._cursor.was_reset:
            warnings.warn(
                "env.reset() was called more than once in a row without env.step(): "
                "every call hands out a new batch, so the one before may go unused.",
                UserWarning,
                stacklevel=2,
            )
        batch = self.next_batch()
        self._cursor.was_reset = True
        return batch

    def next_batch(self) -> Experiences:
        """Return the next batch of the current split, beginning a new pass when the split is exhausted."""
        cursor = self._cursor
        if cursor.position >= len(self):
            cursor.epoch += 1
            cursor.position = 0
        batch = self._batch(cursor)
        cursor.position = self._stop(cursor)
        cursor.was_reset = False
        cursor.batch = batch
        return batch

    @contextmanager
    def eval_mode(self) -> Iterator[Self]:
        """Within the context, the current split is the test split, from its start.

        Contexts may be nested. On the way out, however it is taken, everything is where it was before.
        """
        outer = self._cursor
        self._cursor = _Cursor("test")
        try:
            yield self
        finally:
            self._cursor = outer

    def test_batches(self, split: Split = "test") -> Iterator[Experiences]:
        """A whole held-out split once, in order, whatever the current split and place are, and without changing them.

        Args:
            split: "test", "final" or "validation-<name>".

        Raises:
            ValueError: There is no such held-out split.
        """
        if split == "train" or split not in self._splits:
            held_out = [name for name in self._splits if name != "train"]
            raise ValueError(
                f"There is no held-out split {split!r}, only {held_out}; see final_dataset and validation_datasets."
            )
        for start in range(0, len(self._splits[split]), self.rows_per_batch):
            yield self._batch(_Cursor(split, position=start))

    def rows_at(self, split: Split, places: NDArray[np.int64]) -> Experiences:
        """Some rows of a split as a batch, without changing any place.

        Args:
            split: Which.
            places: Their places among the rows that are within the limits.
        """
        return self._collate(self._splits[split].take(places), split)

    def example(self, split: Split, row: int) -> Example:
        """A prompt with its completions as a row has them, before they are rendered; of several the first.

        Args:
            split: Its split.
            row: Its number in the dataset that the user handed over.

        Raises:
            ValueError: There is no such row.
        """
        if split not in self._loaded:
            raise ValueError(f"There is no split {split!r}, only {list(self._loaded)}.")
        loaded = self._loaded[split]
        if not 0 <= row < len(loaded):
            raise ValueError(f"There is no row {row} in the {split} split of {len(loaded)} rows.")
        columns = loaded.layout.present(loaded.dataset)
        values = loaded.dataset.with_format(None).select_columns(list(columns))[row]
        return loaded.layout.read(self._splits[split].form, row, values, name=split)[0]

    def filter_table(self) -> str:
        """How many rows of each split were left out or cut and why, as aligned text; none where all are kept whole."""
        if not any(counts.dropped or counts.truncated for counts in self.filter_counts.values()):
            return ""
        return filter_table({str(split): counts for split, counts in self.filter_counts.items()})

    def fingerprint(self, split: Split) -> str:
        """Name of the tokenised rows of a split and of the limits: equal names mean equal rows."""
        return self._splits[split].fingerprint

    def settings(self) -> dict[str, Any]:
        """What may be changed when a run goes on, but makes it another run, by name; plain values."""
        return {}

    def lengths(self, split: Split) -> NDArray[np.int32]:
        """Tokens of the prompt and of each completion of the rows of a split, (rows, 1 + completions) int32."""
        prepared = self._splits[split]
        lengths = prepared.lengths.T
        return lengths if prepared.kept is None else lengths[prepared.kept]

    def longest_first(self, split: Split, batch_size: int) -> Iterator[Experiences]:
        """A whole split once, in batches of rows of like length, without changing any place.

        Args:
            split: Which.
            batch_size: Rows per batch.
        """
        order = np.argsort(-self.lengths(split).sum(axis=1), kind="stable")
        for start in range(0, len(order), batch_size):
            rows = self._splits[split].take(order[start : start + batch_size])
            yield self._collate(rows, split)

    def state_dict(self) -> dict[str, Any]:
        """The place in the training split, also in `eval_mode`; JSON can hold it."""
        return {
            "version": _STATE_VERSION,
            "epoch": self._train_cursor.epoch,
            "position": self._train_cursor.position,
            "seed": self.seed,
            "group_by_length": self.group_by_length,
            "data_batch_size_per_gpu": self.data_batch_size_per_gpu,
            "fingerprint": self._splits["train"].fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place where `state_dict` was taken; the batches that follow are the ones that followed there.

        The seed is taken from the state. Batches are the same if the batch size is; grouped by length it must be.

        Raises:
            ValueError: The state is of another version, of other data, another tokenizer or other length limits, of
                another `group_by_length`, with it of another batch size, or is not a place in this split.
        """
        expected = set(self.state_dict())
        if set(state) != expected or state["version"] != _STATE_VERSION:
            raise ValueError(
                f"Not a state of this version of {type(self).__name__} (version {_STATE_VERSION}): {state!r}."
            )
        for number in ("epoch", "position", "seed"):
            _check_integer(number, state[number], lowest=0)
        fingerprint = self._splits["train"].fingerprint
        if state["fingerprint"] != fingerprint:
            raise ValueError(
                f"The state belongs to other training rows (fingerprint {state['fingerprint']}, here {fingerprint}): "
                "resume with the same dataset, tokenizer, chat_template_kwargs, max_context_length, "
                "min_completion_length and truncation. If they are the same, another version of transformers, "
                "tokenizers or datasets makes something else of them: resume with the versions that the run began with."
            )
        if state["group_by_length"] is not self.group_by_length:
            raise ValueError(
                f"The state was taken with group_by_length={state['group_by_length']}, which makes another order than "
                f"group_by_length={self.group_by_length} here: make the environment with the state's."
            )
        if self.group_by_length and state["data_batch_size_per_gpu"] != self.data_batch_size_per_gpu:
            raise ValueError(
                f"The state was taken with data_batch_size_per_gpu={state['data_batch_size_per_gpu']}, here it is "
                f"{self.data_batch_size_per_gpu}, and with group_by_length=True the order depends on it: "
                "make the environment with the state's."
            )
        rows = len(self._splits["train"])
        if state["position"] > rows:
            raise ValueError(f"position {state['position']} is beyond the {rows} rows of the train split.")
        self.seed = state["seed"]
        self._train_cursor.epoch = state["epoch"]
        self._train_cursor.position = state["position"]
        self._train_cursor.was_reset = False
        self._train_cursor.batch = None

    def _batch(self, cursor: _Cursor) -> Experiences:
        prepared = self._splits[cursor.split]
        stop = self._stop(cursor)
        if cursor.split == "train":
            rows = self._train_order(cursor.epoch)[cursor.position : stop]
        else:
            rows = np.arange(cursor.position, stop)
        return self._collate(prepared.take(rows), cursor.split)

    def _stop(self, cursor: _Cursor) -> int:
        """The place behind the batch at a cursor."""
        return min(cursor.position + self.rows_per_batch, len(self._splits[cursor.split]))

    def _train_order(self, epoch: int) -> NDArray[np.int64]:
        """(rows,) int64; the last one is kept, since every batch of an epoch needs the same."""
        key = (self.seed, epoch, self.data_batch_size_per_gpu)
        if self._order is None or self._order[0] != key:
            train = self._splits["train"]
            if self.group_by_length:
                order = length_grouped_order(train.longest_sides(), self.data_batch_size_per_gpu, self.seed, epoch)
            else:
                order = epoch_permutation(len(train), self.seed, epoch).numpy()
            self._order = key, order
        return self._order[1]


def batch_spaces(
    texts: Sequence[str], sequences: Sequence[str], splits: Sequence[Split], vocabulary_size: int, sample_rows: int
) -> spaces.Dict:
    """The space of batches of padded sequences.

    Args:
        texts: Keys of lists of texts.
        sequences: Keys of token ids (B, T) and their masks, without "input_ids" and "attention_mask" at the end.
        splits: Names of the splits that batches come from.
        vocabulary_size: Number of token ids.
        sample_rows: B of a sample.
    """
    parts: dict[str, spaces.Space[Any]] = {name: TextListSpace(sample_rows=sample_rows) for name in texts}
    parts["prompt_lengths"] = CountSpace(low=1, sample_rows=sample_rows)
    for name in sequences:
        parts[f"{name}input_ids"] = TokenSpace(vocabulary_size, sample_rows=sample_rows)
        parts[f"{name}attention_mask"] = TokenSpace(2, sample_rows=sample_rows)
    parts["row"] = CountSpace(low=0, sample_rows=sample_rows)
    parts["split"] = ChoiceSpace(splits)
    return spaces.Dict(parts)


def _check_integer(name: str, value: Any, *, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}.")
    if value < lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}.")
