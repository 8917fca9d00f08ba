"""What the environments hand out."""

from typing import Any, TypeAlias, TypedDict

import torch

# "train" is learned from; "test" selects; "final" and the sets "validation-<name>" are only measured.
Split: TypeAlias = str


class PreferenceExperiences(TypedDict):
    """A batch of preference pairs.

    B is the number of pairs, T the longest sequence of either side in this batch. Rows are padded on the right; where
    the mask is 0, ids are the pad token. Row i of both `*_input_ids` begins with the same `prompt_lengths[i]` tokens.

    Attributes:
        prompt: B texts, as rendered for chat.
        chosen: B texts, as rendered for chat.
        rejected: B texts, as rendered for chat.
        prompt_lengths: (B,) int64, number of prompt tokens, at least 1.
        chosen_input_ids: (B, T) int64, prompt and chosen completion.
        chosen_attention_mask: (B, T) int64, 1 where there is a token, 0 where there is padding.
        rejected_input_ids: (B, T) int64, prompt and rejected completion.
        rejected_attention_mask: (B, T) int64, as for chosen.
        row: (B,) int64, row numbers in the dataset that the user handed over.
        split: The split that the rows belong to.
    """

    prompt: list[str]
    chosen: list[str]
    rejected: list[str]
    prompt_lengths: torch.Tensor
    chosen_input_ids: torch.Tensor
    chosen_attention_mask: torch.Tensor
    rejected_input_ids: torch.Tensor
    rejected_attention_mask: torch.Tensor
    row: torch.Tensor
    split: Split


class SFTExperiences(TypedDict):
    """A batch of prompts with the completion to be learned.

    B is the number of rows, T the longest sequence in this batch. Rows are padded on the right; where the mask is 0,
    ids are the pad token.

    Attributes:
        prompt: B texts, as rendered for chat.
        response: B texts, the completions, as rendered for chat.
        prompt_lengths: (B,) int64, number of prompt tokens, at least 1.
        input_ids: (B, T) int64, prompt and completion.
        attention_mask: (B, T) int64, 1 where there is a token, 0 where there is padding.
        row: (B,) int64, row numbers in the dataset that the user handed over.
        split: The split that the rows belong to.
    """

    prompt: list[str]
    response: list[str]
    prompt_lengths: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    row: torch.Tensor
    split: Split


class ReasoningExperiences(TypedDict):
    """A batch of prompts, to be answered.

    B is the number of rows, T the longest prompt in this batch. Rows are padded on the right; where the mask is 0, ids
    are the pad token.

    Attributes:
        prompt: B texts, as rendered for chat.
        question: B texts, what was asked: the question as the row has it; of a prompt as text all of it, of a chat what
            the user said last.
        answer: B values as the rows have them, of any kind; None where rows have none.
        prompt_input_ids: (B, T) int64.
        prompt_attention_mask: (B, T) int64, 1 where there is a token, 0 where there is padding.
        prompt_lengths: (B,) int64, number of tokens, at least 1.
        pad_token_id: The pad token, for completions to be padded with it too: whoever judges them skips it.
        row: (B,) int64, row numbers in the dataset that the user handed over.
        split: The split that the rows belong to.
    """

    prompt: list[str]
    question: list[str]
    answer: list[Any]
    prompt_input_ids: torch.Tensor
    prompt_attention_mask: torch.Tensor
    prompt_lengths: torch.Tensor
    pad_token_id: int
    row: torch.Tensor
    split: Split
