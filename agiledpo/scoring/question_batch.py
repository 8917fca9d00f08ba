"""A batch of prompts that nobody has answered yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from agiledpo.scoring.prompt_batch import PromptBatch, row_labels


@dataclass(frozen=True)
class QuestionBatch(PromptBatch):
    """B prompts to sample completions for.

    Attributes:
        prompts: Prompt tokens; B int64 tensors (prompt tokens,).
        rows: Their row numbers in the dataset that the user handed over, by which the environment judges completions.
        splits: The split that each row belongs to.
        labels: Where each row comes from, for messages ("train row 17").
    """

    KEYS: ClassVar[Sequence[str]] = ("prompt_input_ids", "prompt_attention_mask", "row", "split")

    prompts: Sequence[Tensor]
    rows: Sequence[int]
    splits: Sequence[str]
    labels: Sequence[str]

    @property
    def numbered(self) -> Sequence[tuple[int, Tensor]]:
        """Nothing: there are no completions."""
        return []

    @classmethod
    def from_experiences(cls, experiences: Mapping[str, Any]) -> Self:
        """Read what ``ReasoningGym`` yields.

        Args:
            experiences: ``prompt_input_ids`` and ``prompt_attention_mask``, int64 (B, T), padded on either side;
                ``row`` (B,) and ``split``.

        Raises:
            ValueError: A key is missing, shapes disagree, or a prompt is empty; the row is named.
        """
        missing = [key for key in cls.KEYS if key not in experiences]
        if missing:
            raise ValueError(
                f"The experiences lack {', '.join(missing)}; they hold {', '.join(map(str, experiences))}. "
                "Pass what ReasoningGym.reset() or step() returns."
            )
        ids, masks = (torch.as_tensor(experiences[key]).cpu() for key in cls.KEYS[:2])
        if ids.ndim != 2 or ids.shape != masks.shape or len(ids) == 0:
            raise ValueError(
                "prompt_input_ids and prompt_attention_mask must have one shape (rows, tokens); they have "
                f"{tuple(ids.shape)} and {tuple(masks.shape)}."
            )
        labels = row_labels(experiences, len(ids), noun="row")
        prompts = [row[mask] for row, mask in zip(ids, masks.bool(), strict=True)]
        for prompt, label in zip(prompts, labels, strict=True):
            if not len(prompt):
                raise ValueError(f"{label}: the prompt is empty. Drop the row, or check prompt_attention_mask.")
        rows = [int(row) for row in experiences["row"]]
        return cls(prompts, rows, [str(experiences["split"])] * len(rows), labels)
