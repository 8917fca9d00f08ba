"""The environment that hands out prompts, and judges what is answered."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from accelerate import Accelerator
from gymnasium import spaces
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agiledpo.data import (
    DatasetError,
    Example,
    LoadedRows,
    PromptLayout,
    Questions,
    RowSource,
    load_questions,
)
from agiledpo.data.examples import Form, Message
from agiledpo.data.limits import Truncation
from agiledpo.data.messages import check_prompt_messages, without_none
from agiledpo.data.questions import check_template
from agiledpo.data.tokenization import check_tokenizer, isolated_copy, tokenize_prompt
from agiledpo.llm_envs.batching import collate_questions
from agiledpo.llm_envs.dataset_gym import DatasetGym, batch_spaces
from agiledpo.llm_envs.rewards import RewardFunctions, Rewards
from agiledpo.llm_envs.spaces import AnyListSpace
from agiledpo.llm_envs.types import ReasoningExperiences, Split

if TYPE_CHECKING:
    from agiledpo.generation.sampling import Completions
    from agiledpo.scoring import QuestionBatch

# What `step` takes: AgileRL's (G, T) token ids of a prompt with its completions, for each prompt; the texts of these;
# or what a generator sampled.
Answers: TypeAlias = "Sequence[Tensor] | Tensor | Sequence[Sequence[str]] | Completions"

_ALIKE = 0.5


class ReasoningGym(DatasetGym[ReasoningExperiences]):
    """Hands out batches of prompts, epoch after epoch, and judges completions by one or several rewards.

    Order, splits and state are those of :class:`agiledpo.llm_envs.PreferenceGym`. Judging depends on nothing but the
    rows, so a whole population can share one environment.

    Args:
        train_dataset: A `datasets.Dataset`, a file (.jsonl, .json, .csv, .parquet), a directory of such files, the name
            of a repository on the Hub, a finite stream, or what `load_questions` returned. It has a text column
            "question", or else a column "prompt", text or chat messages as they are; and the column of answers. Other
            columns are ignored.
        test_dataset: The same, for evaluation.
        tokenizer: The model's tokenizer, with a pad and an end-of-sequence token; it is not changed.
        reward_fn: A function of a completion, its answer and its question, in this order, that returns a number, or
            None where it does not apply, which counts 0. Several of them, in order or by name, are added up. One that
            judges all completions of a batch at once is wrapped in :class:`agiledpo.llm_envs.BatchedReward`. Text is
            what a completion says, without special tokens.
        conversation_template: Messages into which each question is put, in place of ``{question}``, and ``{answer}``
            where it is to be seen; other braces are written twice. If the last one is the assistant's, every answer
            goes on from it, and it is no part of the completion; otherwise an answer is asked for as the chat template
            does it. None for the question as the user's message.
        data_batch_size_per_gpu: Prompts per batch and process.
        accelerator: Accelerate's handle: every process is handed the same batches, which agents divide.
        return_raw_completions: Kept as an attribute for AgileRL's sake: batches always hold the prompts as text.
        max_context_length: Most tokens of a prompt; None keeps all.
        seed: Of the training order; not negative.
        reward_weights: What each function's rewards are multiplied by, in the order of `reward_fn`; None for 1 each.
        success_reward: A completion with at least this reward counts as a success.
        final_dataset: The same as `test_dataset`, for the figures of the finished run; None for none.
        validation_datasets: More of the same by name, to watch the run by. None for none.
        truncation: What becomes of prompts of more than `max_context_length` tokens. "drop" leaves them out. "keep_end"
            cuts the beginning, but not its beginning-of-sequence token. Only tokens are cut; texts stay whole.
        chat_template_kwargs: What the chat template is told for all rows, such as ``{"enable_thinking": False}``; what
            a row says in a column of this name wins. None for nothing.
        num_proc: Processes to tokenise with; None decides by the size of the dataset.
        group_by_length: Put prompts of similar length into the same training batch.
        answer_column: Column of the answers, values of any kind; None if there are none, and rewards are told None.

    Attributes:
        name: Name of the training dataset, or "questions" if it has none.
        tokenizer: As given.
        pad_token_id: The tokenizer's.
        accelerator: As given.
        data_batch_size_per_gpu: As given.
        conversation_template: As given.
        answer_column: As given.
        return_raw_completions: As given.
        rewards: The reward functions with their names and weights.
        success_reward: As given.
        seed: Of the training order.
        group_by_length: As given.
        observation_space: Contains every batch.
        action_space: Prompts with completions as token ids, int64 tensors (G, T).
        validation_names: Names of the validation sets; their splits are "validation-<name>".
        filter_counts: For each split, how many rows were left out or cut and why; `filter_table()` shows it.

    Raises:
        DatasetError: A dataset or one of its rows cannot be asked.
        TypeError: An argument has the wrong type.
        ValueError: The tokenizer lacks a token or chat template, a number is out of range, the template has no place
            for the question or an unknown placeholder, there is not one weight for each reward function, or a
            validation set's name has other characters than ASCII letters, digits, "_", "-" and ".".

    Warns:
        UserWarning: Rows were left out.
    """

    def __init__(
        self,
        train_dataset: RowSource,
        test_dataset: RowSource,
        tokenizer: PreTrainedTokenizerBase,
        reward_fn: RewardFunctions,
        conversation_template: Sequence[Mapping[str, str]] | None = None,
        data_batch_size_per_gpu: int = 8,
        accelerator: Accelerator | None = None,
        return_raw_completions: bool = False,
        max_context_length: int | None = None,
        seed: int = 42,
        *,
        reward_weights: Sequence[float] | None = None,
        success_reward: float = 1.0,
        final_dataset: RowSource | None = None,
        validation_datasets: Mapping[str, RowSource] | None = None,
        truncation: Truncation = "drop",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        num_proc: int | None = None,
        group_by_length: bool = False,
        answer_column: str | None = "answer",
    ) -> None:
        self.rewards = Rewards(reward_fn, reward_weights)
        if isinstance(success_reward, bool) or not isinstance(success_reward, int | float):
            raise TypeError(f"success_reward must be a number, got {success_reward!r}.")
        if not math.isfinite(success_reward):
            raise ValueError(f"success_reward must be finite, got {success_reward!r}.")
        if not isinstance(return_raw_completions, bool):
            raise TypeError(f"return_raw_completions must be True or False, got {return_raw_completions!r}.")
        if answer_column is not None and not isinstance(answer_column, str):
            raise TypeError(f"answer_column must be a column's name or None, got {answer_column!r}.")
        if conversation_template is not None:
            check_template(conversation_template)
            if answer_column is None and Questions(template=conversation_template).shows_answer:
                raise ValueError(
                    "conversation_template has '{answer}', and answer_column=None says that there are no answers."
                )
        self.success_reward = float(success_reward)
        self.return_raw_completions = return_raw_completions
        self.conversation_template = conversation_template
        self.answer_column = answer_column
        self._layouts: dict[Split, PromptLayout] = {}
        self._template_kwargs = dict(chat_template_kwargs or {})
        super().__init__(
            train_dataset,
            test_dataset,
            final_dataset,
            validation_datasets,
            tokenizer,
            data_batch_size_per_gpu=data_batch_size_per_gpu,
            accelerator=accelerator,
            max_context_length=max_context_length,
            min_completion_length=None,
            truncation=truncation,
            chat_template_kwargs=chat_template_kwargs,
            seed=seed,
            num_proc=num_proc,
            group_by_length=group_by_length,
            default_name="questions",
        )
        # Answers stay out of the tokens' cache: they are looked up where they are needed.
        self._rows = {split: self._readable(split) for split in self.splits}

    # Judging --------------------------------------------------------------------------------------------------------

    def step(
        self, completions: Answers, action_masks: Sequence[Tensor] | None = None
    ) -> tuple[ReasoningExperiences, Tensor]:
        """Judge the completions of the last batch's prompts, and hand out the next batch.

        Args:
            completions: For each prompt of the last batch, in order, a group of the same number G of completions:
                token ids (G, T) that begin with the tokens of the prompt, padded on the right; or texts; or what a
                generator sampled for the batch.
            action_masks: For each prompt, bool (G, T - 1), whether each token of `completions` but the first belongs to
                the completion; the others are not judged. None where token ids are padded with the tokenizer's pad
                token, which says nothing, as they are by ``get_action`` of a batch.

        Returns:
            The next batch of the current split; and the rewards, (B, G) float32.

        Raises:
            RewardError: A reward function failed; the place in the split is unchanged.
            RuntimeError: There is no last batch.
            ValueError: The completions are not those of the last batch.
        """
        batch: ReasoningExperiences | None = self._cursor.batch
        if batch is None:
            raise RuntimeError(
                "step() judges the completions of the last batch, and there is none of this split yet: call reset() "
                "first."
            )
        prompts = [
            ids[:length]
            for ids, length in zip(batch["prompt_input_ids"], batch["prompt_lengths"].tolist(), strict=True)
        ]
        if action_masks is None:
            groups = self._texts(completions, prompts)
        else:
            groups = [self._decoded(group) for group in _sampled(completions, action_masks, prompts)]
        sizes = [len(group) for group in groups]
        if len(set(sizes)) > 1:
            raise ValueError(f"step() needs as many completions for every prompt, got {sizes}.")
        splits = [batch["split"]] * len(prompts)
        rewards = self._judged(splits, batch["row"].tolist(), groups)
        return self.next_batch(), torch.tensor(rewards, dtype=torch.float32)

    def judge(self, questions: "QuestionBatch", completions: "Completions") -> list[list[float]]:
        """The reward of each completion, prompt by prompt; nothing of the environment changes.

        Args:
            questions: The prompts, whose rows say what the answers are.
            completions: What was sampled for them.

        Raises:
            RewardError: A reward function failed.
            ValueError: There is not a group of completions for each prompt, or no such row.
        """
        return self._judged(questions.splits, questions.rows, self._texts(completions, questions.prompts))

    def _judged(
        self, splits: Sequence[Split], rows: Sequence[int], groups: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Rewards of groups of completions."""
        asked = self._asked(splits, rows)
        completions, questions, answers, labels = [], [], [], []
        for split, row, (question, answer), group in zip(splits, rows, asked, groups, strict=True):
            where = self._where(split, row)
            for number, completion in enumerate(group, start=1):
                completions.append(completion)
                questions.append(question)
                answers.append(answer)
                labels.append(f"{where}, completion {number} of {len(group)}")
        judged = self.rewards.judge(completions, answers, questions, labels)
        rest = iter(self.rewards.total(judged, labels))
        return [[next(rest) for _ in group] for group in groups]

    def _where(self, split: Split, row: int) -> str:
        """What messages call a row: as errors of datasets do, by its file and number there if it has one."""
        place = self._loaded[split].locate(DatasetError("", remedy="", dataset=split, row=int(row)))
        return f"{split} row {place.row}" + ("" if place.file is None else f" of {place.file}")

    def _texts(self, completions: Answers, prompts: Sequence[Tensor]) -> list[list[str]]:
        """What each completion says, prompt by prompt."""
        groups: Sequence[Any]
        if isinstance(completions, Sequence):
            groups = completions
        else:
            groups = list(completions) if isinstance(completions, Tensor) else completions.tokens
        if len(groups) != len(prompts):
            raise ValueError(
                f"The completions are of {len(groups)} prompts, and the batch has {len(prompts)}: pass a group of "
                "completions for each prompt, in order."
            )
        texts = []
        for number, (group, prompt) in enumerate(zip(groups, prompts, strict=True)):
            if len(group) == 0:
                raise ValueError(f"Prompt {number} of the batch has no completion; at least one is needed.")
            if isinstance(group, Tensor):
                texts.append(self._decoded(list(_completions_of(group, prompt, number))))
            elif not isinstance(group, str) and all(isinstance(completion, str) for completion in group):
                texts.append(list(group))
            elif all(isinstance(completion, Tensor) for completion in group):
                texts.append(self._decoded(group))
            else:
                raise TypeError(
                    f"The completions of prompt {number} of the batch must be a tensor (G, T) of token ids or a list "
                    f"of texts, got {group!r:.80}."
                )
        return texts

    def _decoded(self, completions: Sequence[Tensor]) -> list[str]:
        ids = [completion.tolist() for completion in completions]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def settings(self) -> dict[str, Any]:
        """Where answers are and how completions are judged; what a reward function does inside is not known."""
        return {
            "answer_column": self.answer_column,
            "reward functions": list(self.rewards.names),
            "reward_weights": [float(weight) for weight in self.rewards.weights],
            "success_reward": self.success_reward,
        }

    # Rows -----------------------------------------------------------------------------------------------------------

    def example(self, split: Split, row: int) -> Example:
        """The prompt of a row before it is rendered, with its tools.

        Args:
            split: Its split.
            row: Its number in the dataset that the user handed over.

        Raises:
            ValueError: There is no such row.
        """
        (values,) = self._values([split], [row])
        (example,) = self._layouts[split].read(self._splits[split].form, row, values, name=split)
        return example

    def messages(self, split: Split, row: int) -> str | list[Message]:
        """The prompt of a row before it is rendered: chat messages, without keys that are None, or a text.

        Args:
            split: Its split.
            row: Its number in the dataset that the user handed over.

        Raises:
            ValueError: There is no such row.
        """
        prompt = self.example(split, row).prompt
        return prompt if isinstance(prompt, str) else without_none(cast(list[Message], prompt))

    def prompt_tokens(self, split: Split, row: int, prompt: str | Sequence[Message]) -> Tensor:
        """Tokenise another prompt for a row as its own is: with its tools, and what the chat template is told.

        Args:
            split: Its split.
            row: Its number in the dataset that the user handed over.
            prompt: Chat messages, rendered with the header of the answer, or begun by a last one of the assistant's; or
                a text, which is given to the model as it is. It is not cut to `max_context_length`.

        Returns:
            (tokens,) int64.

        Raises:
            DatasetError: The messages are malformed, or the chat template refuses them.
            ValueError: There is no such row, or no chat template for messages.
        """
        name = f"prompt for the {split}"
        if isinstance(prompt, str):
            form, example = Form.TEXT, Example(prompt, ())
        else:
            own, form = self.example(split, row), Form.CHAT
            messages = [dict(message) for message in prompt]
            check_prompt_messages(messages, row=row, column="prompt", name=name, may_begin_answer=True)
            example = replace(own, prompt=messages, completions=())
        check_tokenizer(self.tokenizer, form)
        ids = tokenize_prompt(example, self._isolated, form, self._template_kwargs, row=row, name=name)
        return torch.tensor(ids, dtype=torch.int64)

    @cached_property
    def _isolated(self) -> PreTrainedTokenizerBase:
        return isolated_copy(self.tokenizer)

    def questions_and_answers(self, questions: "QuestionBatch") -> list[tuple[str, Any]]:
        """Question and answer of each row, as reward functions are given them.

        Args:
            questions: The rows.
        """
        return self._asked(questions.splits, questions.rows)

    def _asked(self, splits: Sequence[Split], rows: Sequence[int]) -> list[tuple[str, Any]]:
        """Question and answer of each row."""
        return [
            (self._layouts[split].asked(values), None if self.answer_column is None else values[self.answer_column])
            for split, values in zip(splits, self._values(splits, rows), strict=True)
        ]

    def _values(self, splits: Sequence[Split], rows: Sequence[int]) -> list[dict[str, Any]]:
        """The columns of rows that are read, as the user's datasets have them."""
        found: dict[tuple[Split, int], dict[str, Any]] = {}
        for split in dict.fromkeys(splits):
            if split not in self._rows:
                raise ValueError(f"There is no split {split!r}, only {list(self._rows)}: the rows are of another gym.")
            dataset = self._rows[split]
            wanted = sorted({int(row) for other, row in zip(splits, rows, strict=True) if other == split})
            beyond = [row for row in wanted if not 0 <= row < len(dataset)]
            if beyond:
                raise ValueError(f"There is no row {beyond[0]} in the {split} split of {len(dataset)} rows.")
            columns = dataset[wanted]
            for place, row in enumerate(wanted):
                found[split, row] = {column: values[place] for column, values in columns.items()}
        return [found[split, int(row)] for split, row in zip(splits, rows, strict=True)]

    def _readable(self, split: Split) -> Any:
        """The user's rows of a split, with the columns that are read only."""
        dataset = self._loaded[split].dataset.with_format(None)
        columns = dict.fromkeys(self._layouts[split].present(dataset))
        if self.answer_column is not None:
            columns[self.answer_column] = None
        return dataset.select_columns(list(columns))

    def _load(self, source: RowSource, *, name: Split) -> LoadedRows:
        template = self.conversation_template
        if isinstance(source, LoadedRows):
            remedy = "Load them with load_questions, or train with PreferenceGym or SFTGym."
            loaded = source.named(name).expect((), remedy=remedy)
            same = isinstance(loaded.layout, Questions) and loaded.layout == replace(loaded.layout, template=template)
            if template is not None and not same:
                raise ValueError(
                    f"The {name} dataset was loaded as {loaded.layout!r}, which is not conversation_template. Give the "
                    "template to load_questions, and leave it out here."
                )
        else:
            loaded = load_questions(
                source,
                conversation_template=template,
                answer_column=self.answer_column or "answer",
                dataset_name=name,
            )
        if not isinstance(loaded.layout, PromptLayout):
            raise TypeError(f"The {name} dataset is read as {loaded.layout!r}, which must be a PromptLayout.")
        self._check_answers(loaded, name)
        self._layouts[name] = loaded.layout
        return loaded

    def _check_answers(self, loaded: LoadedRows, name: Split) -> None:
        columns = loaded.dataset.column_names
        if self.answer_column is None or self.answer_column in columns:
            return
        by_lower_case = {column.lower(): column for column in columns if column not in loaded.layout.columns}
        near = difflib.get_close_matches(self.answer_column.lower(), list(by_lower_case), n=1, cutoff=_ALIKE)
        meant = f"Perhaps answer_column={by_lower_case[near[0]]!r} is meant. " if near else ""
        raise loaded.locate(
            DatasetError(
                f"the column {self.answer_column!r} of answers is missing; the columns are {columns}",
                remedy=f"{meant}Pass answer_column with the name of the one that holds them, or answer_column=None if "
                "the rewards need none.",
                dataset=name,
            )
        )

    def _collate(self, columns: Mapping[str, Sequence[Any]], split: Split) -> ReasoningExperiences:
        rows = columns["row"]
        questions, answers = zip(*self._asked([split] * len(rows), rows), strict=True)
        return collate_questions(columns, questions, answers, split=split, pad_token_id=self.pad_token_id)

    def _observation_space(self) -> spaces.Dict:
        batch = batch_spaces(
            ("prompt", "question"), ("prompt_",), self.splits, self.action_space.size, self.rows_per_batch
        )
        answers = AnyListSpace(sample_rows=self.rows_per_batch)
        pad = spaces.Discrete(1, start=self.pad_token_id)
        return spaces.Dict({**batch.spaces, "answer": answers, "pad_token_id": pad})


def _completions_of(sequences: Tensor, prompt: Tensor, number: int) -> Tensor:
    """What follows the prompt in (G, T) sequences."""
    if sequences.ndim != 2 or sequences.is_floating_point():
        raise ValueError(
            f"The completions of prompt {number} of the batch must be token ids (G, T), got {sequences.dtype} of shape "
            f"{tuple(sequences.shape)}."
        )
    sequences = sequences.cpu()
    if not torch.equal(sequences[:, : len(prompt)], prompt.expand(len(sequences), -1)):
        raise ValueError(
            f"The completions of prompt {number} of the batch do not begin with its {len(prompt)} tokens: pass prompt "
            "and completion together, without padding before them, for the prompts of the last batch."
        )
    return sequences[:, len(prompt) :]


def _sampled(sequences: Answers, masks: Sequence[Tensor], prompts: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tokens that masks choose of (G, T) sequences, which begin with the prompts."""
    if not isinstance(sequences, Sequence) or not all(isinstance(group, Tensor) for group in sequences):
        raise TypeError("action_masks go with token ids, a tensor (G, T) for each prompt; leave them out otherwise.")
    groups = cast(Sequence[Tensor], sequences)
    if not len(groups) == len(masks) == len(prompts):
        raise ValueError(
            f"step() got completions of {len(groups)} prompts and action_masks of {len(masks)}, and the batch has "
            f"{len(prompts)} prompts."
        )
    chosen = []
    for number, (ids, mask, prompt) in enumerate(zip(groups, masks, prompts, strict=True)):
        behind = _completions_of(ids, prompt, number)
        if mask.dtype != torch.bool or mask.shape != (len(ids), ids.shape[1] - 1) or mask[:, : len(prompt) - 1].any():
            raise ValueError(
                f"The mask of prompt {number} of the batch must be bool {(len(ids), ids.shape[1] - 1)}, False for the "
                f"prompt's {len(prompt)} tokens, got {mask.dtype} of shape {tuple(mask.shape)}; pass what get_action "
                "returned."
            )
        chosen.append([row[part] for row, part in zip(behind, mask[:, len(prompt) - 1 :].cpu(), strict=True)])
    return chosen
