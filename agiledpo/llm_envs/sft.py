"""The environment that hands out demonstrations: prompts with the completion to be learned."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from gymnasium import spaces
from transformers import PreTrainedTokenizerBase

from agiledpo.data import LoadedRows, RowSource, load_demonstrations
from agiledpo.data.demonstrations import Demonstrations
from agiledpo.data.limits import Truncation
from agiledpo.llm_envs.batching import collate_demonstrations
from agiledpo.llm_envs.dataset_gym import batch_spaces
from agiledpo.llm_envs.offline import OfflineGym
from agiledpo.llm_envs.types import SFTExperiences, Split


class SFTGym(OfflineGym[SFTExperiences]):
    """Hands out batches of prompts with their completions, epoch after epoch, from a training and a test split.

    Order, splits, filtering and state are those of :class:`agiledpo.llm_envs.PreferenceGym`.

    Args:
        train_dataset: A `datasets.Dataset`, a file (.jsonl, .json, .csv, .parquet), a directory of such files, the name
            of a repository on the Hub, a finite stream, or what `load_demonstrations` returned. It has the columns
            "prompt" and "completion" (or "target", AgileRL's name), both text or both lists of chat messages; or a
            column "messages" of whole dialogues, whose last message is the completion. A completion column beside
            "prompt" wins over "messages". Other columns are ignored.
        test_dataset: The same, for evaluation.
        tokenizer: The model's tokenizer, with a pad and an end-of-sequence token; it is not changed.
        data_batch_size_per_gpu: Rows per batch and process.
        response_column: Column of the completion beside "prompt", such as "chosen" of preference pairs; None finds it
            as described above.
        accelerator: Accelerate's handle: every process is handed the same batches, which agents divide.
        max_context_length: Most tokens of a prompt with its completion; None keeps all.
        seed: Of the training order; not negative.
        min_completion_length: Rows with a shorter completion, or without room for as long a one, are left out.
        num_proc: Processes to tokenise with; None decides by the size of the dataset.
        group_by_length: Put rows of similar length into the same training batch. Models whose rows are packed read no
            padding in either order and gain nothing from this.
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
        response_column: str | None = None,
        accelerator: Accelerator | None = None,
        max_context_length: int | None = None,
        seed: int = 42,
        *,
        min_completion_length: int | None = None,
        num_proc: int | None = None,
        group_by_length: bool = False,
        final_dataset: RowSource | None = None,
        validation_datasets: Mapping[str, RowSource] | None = None,
        truncation: Truncation = "drop",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if response_column is not None and not isinstance(response_column, str):
            raise TypeError(f"response_column must be a column's name or None, got {response_column!r}.")
        self.response_column = response_column
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
            default_name="demonstrations",
        )

    def _load(self, source: RowSource, *, name: Split) -> LoadedRows:
        if isinstance(source, LoadedRows):
            remedy = "Load them with load_demonstrations (of pairs with response_column), or train with PreferenceGym."
            return source.named(name).expect(Demonstrations.completions, remedy=remedy)
        return load_demonstrations(source, response_column=self.response_column, dataset_name=name)

    def _collate(self, columns: Mapping[str, Sequence[Any]], split: Split) -> SFTExperiences:
        return collate_demonstrations(columns, split=split, pad_token_id=self.pad_token_id)

    def _observation_space(self) -> spaces.Dict:
        return batch_spaces(("prompt", "response"), ("",), self.splits, self.action_space.size, self.rows_per_batch)
