"""The environment that hands out preference pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from gymnasium import spaces
from transformers import PreTrainedTokenizerBase

from agiledpo.data import LoadedRows, RowSource, load_preferences
from agiledpo.data.layout import Layout
from agiledpo.data.limits import Truncation
from agiledpo.llm_envs.batching import collate_pairs
from agiledpo.llm_envs.dataset_gym import batch_spaces
from agiledpo.llm_envs.offline import OfflineGym
from agiledpo.llm_envs.types import PreferenceExperiences, Split


class PreferenceGym(OfflineGym[PreferenceExperiences]):
    """Hands out batches of preference pairs, epoch after epoch, from a training and a test split.

    Agents are chosen by what they do on the test split, so the best one's figures there flatter it. Pairs of a third,
    the final split, are for the one number at the end that no choice depended on.

    The training order is a new permutation in every epoch, a pure function of seed and epoch (grouped by length, also
    of the rows' lengths and the batch size): neither evaluation nor anything else in the process changes it. The last
    batch of an epoch may be smaller; no row is lost or moved to the next epoch. The test split keeps its order.

    Args:
        train_dataset: Preferences: a `datasets.Dataset`, a file (.jsonl, .json, .csv, .parquet), a directory of such
            files, the name of a repository on the Hub, a finite stream, or what `load_preferences` returned. The format
            is recognised by the columns: "prompt", "chosen" and "rejected", all text or all lists of chat messages;
            "chosen" and "rejected" as whole dialogues; "context" with ranked "completions"; or "prompt_ids",
            "chosen_ids" and "rejected_ids". Of "tools" and "chat_template_kwargs" the chat template is told; other
            columns are ignored.
        test_dataset: The same, for evaluation.
        tokenizer: The model's tokenizer, with a pad and an end-of-sequence token; it is not changed.
        data_batch_size_per_gpu: Pairs per batch and process.
        accelerator: Accelerate's handle: every process is handed the same batches, which agents divide.
        max_context_length: Most tokens of a prompt with its longest completion; None keeps all.
        min_completion_length: Rows with a shorter completion, or without room for as long a one, are left out.
        seed: Of the training order; not negative.
        num_proc: Processes to tokenise with; None decides by the size of the dataset.
        group_by_length: Put pairs of similar length into the same training batch: see `length_grouped_order`. A pair's
            length is that of its prompt with the longer completion, which is as wide as it makes a padded batch. Models
            whose rows are packed read no padding in either order and gain nothing from this.
        final_dataset: The same as `test_dataset`, for the figures of the finished run; None for none.
        validation_datasets: More of the same by name, to watch the run by: the training loops measure the fittest agent
            on each and report "validation-<name>_loss", "validation-<name>_accuracy" and so on. No choice depends on
            them. None for none.
        truncation: What becomes of rows of more than `max_context_length` tokens. "drop" leaves them out. "keep_end"
            cuts the beginning of the prompt, the same for all completions and never its beginning-of-sequence token.
            "keep_start" cuts the end of completions, which are then unfinished: they have no end-of-sequence token.
            Only tokens are cut; the texts in a batch stay whole.
        chat_template_kwargs: What the chat template is told for all rows, such as ``{"enable_thinking": False}``; what
            a row says in a column of this name wins. None for nothing.

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
        validation_names: Names of the validation sets; their splits are "validation-<name>".
        filter_counts: For each split, how many rows were left out or cut and why; `filter_table()` shows it.

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
        tokenizer: PreTrainedTokenizerBase,
        data_batch_size_per_gpu: int = 8,
        accelerator: Accelerator | None = None,
        max_context_length: int | None = None,
        min_completion_length: int | None = None,
        seed: int = 42,
        *,
        num_proc: int | None = None,
        group_by_length: bool = False,
        final_dataset: RowSource | None = None,
        validation_datasets: Mapping[str, RowSource] | None = None,
        truncation: Truncation = "drop",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            train_dataset,
            test_dataset,
            final_dataset,
            validation_datasets,
            tokenizer,
            data_batch_size_per_gpu=data_batch_size_per_gpu,
            accelerator=accelerator,
            max_context_length=max_context_length,
            min_completion_length=min_completion_length,
            truncation=truncation,
            chat_template_kwargs=chat_template_kwargs,
            seed=seed,
            num_proc=num_proc,
            group_by_length=group_by_length,
            default_name="preferences",
        )

    def _load(self, source: RowSource, *, name: Split) -> LoadedRows:
        if isinstance(source, LoadedRows):
            remedy = "Load pairs with load_preferences, or train on these with SFTGym."
            return source.named(name).expect(Layout.completions, remedy=remedy)
        return load_preferences(source, dataset_name=name)

    def _collate(self, columns: Mapping[str, Sequence[Any]], split: Split) -> PreferenceExperiences:
        return collate_pairs(columns, split=split, pad_token_id=self.pad_token_id)

    def _observation_space(self) -> spaces.Dict:
        return batch_spaces(
            ("prompt", "chosen", "rejected"),
            ("chosen_", "rejected_"),
            self.splits,
            self.action_space.size,
            self.rows_per_batch,
        )
