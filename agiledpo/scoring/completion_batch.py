"""A batch of prompts with one completion each, as ragged token sequences, free of any layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from agiledpo.scoring.prompt_batch import SidedBatch, row_labels


@dataclass(frozen=True)
class CompletionBatch(SidedBatch):
    """B prompts with the completion to be learned.

    Attributes:
        prompts: Prompt tokens; B int64 tensors (prompt tokens,).
        completions: Tokens of the completions; B int64 tensors (completion tokens,).
        labels: Where each row comes from, for messages ("train row 17").
    """

    KEYS: ClassVar[Sequence[str]] = ("input_ids", "attention_mask", "prompt_lengths")

    prompts: Sequence[Tensor]
    completions: Sequence[Tensor]
    labels: Sequence[str]

    @property
    def sides(self) -> tuple[Sequence[Tensor], ...]:
        """The completions."""
        return (self.completions,)

    @classmethod
    def from_experiences(cls, experiences: Mapping[str, Any]) -> Self:
        """Read what ``SFTGym`` yields, or AgileRL's padded dictionary.

        Args:
            experiences: ``input_ids`` and ``attention_mask``, int64 (B, T), padded on either side; ``prompt_lengths``
                (B,), tokens; optionally ``row`` (B,) and ``split``, used in messages.

        Raises:
            ValueError: A key is missing, shapes disagree, or a prompt or completion is empty; the row is named.
        """
        missing = [key for key in cls.KEYS if key not in experiences]
        if missing:
            raise ValueError(
                f"The experiences lack {', '.join(missing)}; they hold {', '.join(map(str, experiences))}. "
                "Pass what SFTGym.reset() or step() returns."
            )
        ids, masks, prompt_lengths = (torch.as_tensor(experiences[key]).cpu() for key in cls.KEYS)
        prompt_lengths = prompt_lengths.reshape(-1)
        if ids.ndim != 2 or ids.shape != masks.shape:
            raise ValueError(
                "input_ids and attention_mask must have one shape (rows, tokens); they have "
                f"{tuple(ids.shape)} and {tuple(masks.shape)}."
            )
        if len(ids) == 0 or len(prompt_lengths) != len(ids):
            raise ValueError(
                f"prompt_lengths has {len(prompt_lengths)} entries for {len(ids)} rows; one per row is needed."
            )
        labels = row_labels(experiences, len(ids), noun="row")
        prompts, completions = [], []
        for row, mask, length, label in zip(ids, masks.bool(), prompt_lengths.tolist(), labels, strict=True):
            sequence = row[mask]
            if not 0 < length < len(sequence):
                raise ValueError(
                    f"{label}: prompt_lengths={length} of {len(sequence)} tokens leaves the prompt or the completion "
                    "empty. Drop the row, or check prompt_lengths and the attention mask."
                )
            prompts.append(sequence[:length])
            completions.append(sequence[length:])
        return cls(prompts, completions, labels)
