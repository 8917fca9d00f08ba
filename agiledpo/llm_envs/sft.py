"""The environment that hands out demonstrations: prompts with the completion to be learned."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from gymnasium import spaces
from transformers import PreTrainedTokenizerBase

from agiledpo.data import Layout, recognise_demonstrations
from agiledpo.llm_envs.batching import collate_demonstrations
from agiledpo.llm_envs.dataset_gym import DatasetGym, batch_spaces
from agiledpo.llm_envs.types import SFTExperiences, Split


class SFTGym(DatasetGym[SFTExperiences]):
    """Hands out batches of prompts with their completions, epoch after epoch, from a training and a test split.

    Order, splits, filtering and state are those of :class:`agiledpo.llm_envs.PreferenceGym`.

    Args:
        train_dataset: A `datasets.Dataset` with the columns "prompt" and "completion" (or "target", AgileRL's name),
            both text or both lists of chat messages; or with a column "messages" of whole dialogues, whose last message
            is the completion. A completion column beside "prompt" wins over "messages". Other columns are ignored.
        test_dataset: The same, for evaluation.
        tokenizer: The model's tokenizer, with a pad and an end-of-sequence token; it is not changed.
        data_batch_size_per_gpu: Rows per batch.
        response_column: Column of the completion beside "prompt", such as "chosen" of preference pairs; None finds it
            as described above.
        accelerator: Kept as an attribute; more than one process is not supported yet.
        max_context_length: Rows of more tokens are left out; None keeps all. Nothing is truncated.
        seed: Of the training order; not negative.
        min_completion_length: Rows with a shorter completion, or without room for as long a one, are left out.
        num_proc: Processes to tokenise with; None decides by the size of the dataset.
        group_by_length: Put rows of similar length into the same training batch. Models whose rows are packed read no
            padding in either order and gain nothing from this.
        final_dataset: The same as `test_dataset`, for the figures of the finished run; None for none.

    Attributes:
        name: Name of the training dataset, or "demonstrations" if it has none.
        tokenizer: As given.
        pad_token_id: The tokenizer's.
        accelerator: As given.
        data_batch_size_per_gpu: As given.
        response_column: As given.
        seed: Of the training order.
        group_by_length: As given.
        observation_space: Contains every batch.
        action_space: Completions as token ids, int64 tensors (B, T); the `input_ids` of every batch lie in it.
        filter_counts: For each split, how many rows were left out and why.

    Raises:
        DatasetError: A dataset or one of its rows cannot be learned from.
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
        response_column: str | None = None,
        accelerator: Accelerator | None = None,
        max_context_length: int | None = None,
        seed: int = 42,
        *,
        min_completion_length: int | None = None,
        num_proc: int | None = None,
        group_by_length: bool = False,
        final_dataset: Dataset | None = None,
    ) -> None:
        if response_column is not None and not isinstance(response_column, str):
            raise TypeError(f"response_column must be a column's name or None, got {response_column!r}.")
        self.response_column = response_column
        super().__init__(
            train_dataset,
            test_dataset,
            final_dataset,
            tokenizer,
            data_batch_size_per_gpu=data_batch_size_per_gpu,
            accelerator=accelerator,
            max_context_length=max_context_length,
            min_completion_length=min_completion_length,
            seed=seed,
            num_proc=num_proc,
            group_by_length=group_by_length,
            default_name="demonstrations",
        )

    def _layout(self, dataset: Dataset, *, name: str) -> Layout:
        return recognise_demonstrations(dataset, self.response_column)

    def _collate(self, columns: Mapping[str, Sequence[Any]], split: Split) -> SFTExperiences:
        return collate_demonstrations(columns, split=split, pad_token_id=self.pad_token_id)

    def _observation_space(self) -> spaces.Dict:
        return batch_spaces(("prompt", "response"), ("",), self.action_space.size, self.data_batch_size_per_gpu)
