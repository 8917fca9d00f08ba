"""The environment that hands out preference pairs."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from gymnasium import spaces
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from agiledpo.data import FilterCounts, PreparedPreferences, prepare_preferences
from agiledpo.data.formats import check_dataset, recognise_form
from agiledpo.llm_envs.batching import collate, epoch_permutation, length_grouped_order
from agiledpo.llm_envs.spaces import ChoiceSpace, CountSpace, TextListSpace, TokenSpace
from agiledpo.llm_envs.types import PreferenceExperiences, Split

# Raise it also when an order changes: a place in one is none in another.
_STATE_VERSION = 2


@dataclass(slots=True)
class _Cursor:
    """A place in the endless sequence of batches of a split.

    Attributes:
        split: The split.
        epoch: Complete passes over the split before this one.
        position: Rows of this pass that have been handed out.
        was_reset: Whether the last call was `reset`.
    """

    split: Split
    epoch: int = 0
    position: int = 0
    was_reset: bool = False


class PreferenceGym:
    """Hands out batches of preference pairs, epoch after epoch, from a training and a test split.

    Agents are chosen by what they do on the test split, so the best one's figures there flatter it. Pairs of a third,
    the final split, are for the one number at the end that no choice depended on.

    The training order is a new permutation in every epoch, a pure function of seed and epoch (grouped by length, also
    of the rows' lengths and the batch size): neither evaluation nor anything else in the process changes it. The last
    batch of an epoch may be smaller; no row is lost or moved to the next epoch. The test split keeps its order.

    Args:
        train_dataset: A `datasets.Dataset` with the columns "prompt", "chosen" and "rejected", all text or all lists of
            chat messages. Other columns are ignored.
        test_dataset: The same, for evaluation.
        tokenizer: The model's tokenizer, with a pad and an end-of-sequence token; it is not changed.
        data_batch_size_per_gpu: Pairs per batch.
        accelerator: Kept as an attribute; more than one process is not supported yet.
        max_context_length: Rows of more tokens are left out; None keeps all. Nothing is truncated.
        min_completion_length: Rows with a shorter completion, or without room for as long a one, are left out.
        seed: Of the training order; not negative.
        num_proc: Processes to tokenise with; None decides by the size of the dataset.
        group_by_length: Put pairs of similar length into the same training batch: see `length_grouped_order`. A pair's
            length is that of its prompt with the longer completion, which is as wide as it makes a padded batch. Models
            whose rows are packed read no padding in either order and gain nothing from this.
        final_dataset: The same as `test_dataset`, for the figures of the finished run; None for none.

    Attributes:
        name: Name of the training dataset, or "preferences" if it has none.
        tokenizer: As given.
        pad_token_id: The tokenizer's.
        accelerator: As given.
        data_batch_size_per_gpu: As given.
        seed: Of the training order.
        group_by_length: As given.
        observation_space: Contains every batch.
        action_space: Completions as token ids, int64 tensors (B, T); the `chosen_input_ids` of every batch lie in it.
        filter_counts: For each split, how many rows were left out and why.

    Raises:
        PreferenceDataError: A dataset or one of its rows cannot be learned from.
        TypeError: An argument has the wrong type.
        ValueError: The tokenizer lacks a token or chat template, a number is out of range, or the accelerator has
            several processes.

    Warns:
        UserWarning: Rows were left out.
    """

    def __init__(
        self,
        train_dataset: Dataset,
        test_dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        data_batch_size_per_gpu: int = 8,
        accelerator: Accelerator | None = None,
        max_context_length: int | None = None,
        min_completion_length: int | None = None,
        seed: int = 42,
        *,
        num_proc: int | None = None,
        group_by_length: bool = False,
        final_dataset: Dataset | None = None,
    ) -> None:
        _check_integer("data_batch_size_per_gpu", data_batch_size_per_gpu, lowest=1)
        _check_integer("seed", seed, lowest=0)
        if not isinstance(group_by_length, bool):
            raise TypeError(f"group_by_length must be True or False, got {group_by_length!r}.")
        if accelerator is not None and accelerator.num_processes > 1:
            raise ValueError(
                f"PreferenceGym does not support several processes yet, and the accelerator has "
                f"{accelerator.num_processes}. Start one process."
            )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}.")
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "The tokenizer has no pad token, and batches are padded with it. "
                "Set one first, for example tokenizer.pad_token = tokenizer.eos_token."
            )
        datasets: dict[Split, Dataset] = {"train": train_dataset, "test": test_dataset}
        if final_dataset is not None:
            datasets["final"] = final_dataset
        # All are looked at before any is tokenised, which may take minutes.
        for name, dataset in datasets.items():
            recognise_form(check_dataset(dataset, name=name), name=name)
        self.tokenizer = tokenizer
        self.pad_token_id: int = tokenizer.pad_token_id
        self.accelerator = accelerator
        self.data_batch_size_per_gpu = data_batch_size_per_gpu
        self.seed = seed
        self.group_by_length = group_by_length

        def prepare(dataset: Dataset, name: Split) -> PreparedPreferences:
            return prepare_preferences(
                dataset,
                tokenizer,
                name=name,
                max_context_length=max_context_length,
                min_completion_length=min_completion_length,
                num_proc=num_proc,
            )

        self._splits: dict[Split, PreparedPreferences] = {
            name: prepare(dataset, name) for name, dataset in datasets.items()
        }
        self.name: str = train_dataset.info.dataset_name or "preferences"
        self.filter_counts: dict[Split, FilterCounts] = {
            split: prepared.filter_counts for split, prepared in self._splits.items()
        }
        self.observation_space, self.action_space = _preference_spaces(tokenizer, data_batch_size_per_gpu)
        self._train_cursor = _Cursor("train")
        # The cursor in use: the training cursor, or one of an evaluation.
        self._cursor = self._train_cursor
        self._order: tuple[tuple[int, int, int], NDArray[np.int64]] | None = None

    @property
    def num_epochs(self) -> int:
        """Complete passes over the training split. Counted when the first batch of the next pass is asked for."""
        return self._train_cursor.epoch

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there are: "train", "test" and, if it was given, "final"."""
        return tuple(self._splits)

    @property
    def at_epoch_end(self) -> bool:
        """Whether all rows of this pass over the training split have been handed out."""
        return self._train_cursor.position >= len(self._splits["train"])

    def __len__(self) -> int:
        """Rows in the current split after filtering."""
        return len(self._splits[self._cursor.split])

    def reset(self, reset_dataloaders: bool = False) -> PreferenceExperiences:
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
        batch = self._next_batch()
        self._cursor.was_reset = True
        return batch

    def step(self, completions: Any = None) -> PreferenceExperiences:
        """Return the next batch of the current split, beginning a new pass when the split is exhausted.

        Args:
            completions: Ignored; the pairs are what they are.
        """
        batch = self._next_batch()
        self._cursor.was_reset = False
        return batch

    @contextmanager
    def eval_mode(self) -> Iterator["PreferenceGym"]:
        """Within the context, the current split is the test split, from its start.

        Contexts may be nested. On the way out, however it is taken, everything is where it was before.
        """
        outer = self._cursor
        self._cursor = _Cursor("test")
        try:
            yield self
        finally:
            self._cursor = outer

    def test_batches(self, split: Split = "test") -> Iterator[PreferenceExperiences]:
        """A whole held-out split once, in order, whatever the current split and place are, and without changing them.

        Args:
            split: "test" or "final".

        Raises:
            ValueError: There is no such held-out split.
        """
        if split == "train" or split not in self._splits:
            held_out = [name for name in self._splits if name != "train"]
            raise ValueError(f"There is no held-out split {split!r}, only {held_out}; see final_dataset.")
        for start in range(0, len(self._splits[split]), self.data_batch_size_per_gpu):
            yield self._batch(_Cursor(split, position=start))

    def lengths(self, split: Split) -> NDArray[np.int32]:
        """Tokens of prompt, chosen and rejected of each row of a split, (rows, 3) int32."""
        prepared = self._splits[split]
        lengths = prepared.lengths.T
        return lengths if prepared.kept is None else lengths[prepared.kept]

    def longest_first(self, split: Split, batch_size: int) -> Iterator[PreferenceExperiences]:
        """A whole split once, in batches of rows of like length, without changing any place.

        Args:
            split: Which.
            batch_size: Rows per batch.
        """
        order = np.argsort(-self.lengths(split).sum(axis=1), kind="stable")
        for start in range(0, len(order), batch_size):
            rows = self._splits[split].take(order[start : start + batch_size])
            yield collate(rows, split=split, pad_token_id=self.pad_token_id)

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
            raise ValueError(f"Not a state of this version of PreferenceGym (version {_STATE_VERSION}): {state!r}.")
        for number in ("epoch", "position", "seed"):
            _check_integer(number, state[number], lowest=0)
        fingerprint = self._splits["train"].fingerprint
        if state["fingerprint"] != fingerprint:
            raise ValueError(
                f"The state belongs to other training rows (fingerprint {state['fingerprint']}, here {fingerprint}): "
                "resume with the same dataset, tokenizer, max_context_length and min_completion_length."
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

    def _next_batch(self) -> PreferenceExperiences:
        """The batch at the cursor in use, which moves behind it."""
        cursor = self._cursor
        if cursor.position >= len(self):
            cursor.epoch += 1
            cursor.position = 0
        batch = self._batch(cursor)
        cursor.position += len(batch["prompt"])
        return batch

    def _batch(self, cursor: _Cursor) -> PreferenceExperiences:
        prepared = self._splits[cursor.split]
        stop = min(cursor.position + self.data_batch_size_per_gpu, len(prepared))
        if cursor.split == "train":
            rows = self._train_order(cursor.epoch)[cursor.position : stop]
        else:
            rows = np.arange(cursor.position, stop)
        return collate(prepared.take(rows), split=cursor.split, pad_token_id=self.pad_token_id)

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


def _preference_spaces(tokenizer: PreTrainedTokenizerBase, sample_rows: int) -> tuple[spaces.Dict, TokenSpace]:
    """The space of batches and the space of completions."""
    # Ids may have gaps, so that the largest is beyond their number.
    vocabulary_size = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)

    def ids() -> TokenSpace:
        return TokenSpace(vocabulary_size, sample_rows=sample_rows)

    def mask() -> TokenSpace:
        return TokenSpace(2, sample_rows=sample_rows)

    def texts() -> TextListSpace:
        return TextListSpace(sample_rows=sample_rows)

    observation_space = spaces.Dict(
        {
            "prompt": texts(),
            "chosen": texts(),
            "rejected": texts(),
            "prompt_lengths": CountSpace(low=1, sample_rows=sample_rows),
            "chosen_input_ids": ids(),
            "chosen_attention_mask": mask(),
            "rejected_input_ids": ids(),
            "rejected_attention_mask": mask(),
            "row": CountSpace(low=0, sample_rows=sample_rows),
            "split": ChoiceSpace(("train", "test", "final")),
        }
    )
    return observation_space, ids()


def _check_integer(name: str, value: Any, *, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}.")
    if value < lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}.")
