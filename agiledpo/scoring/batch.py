"""A batch of preference pairs as ragged token sequences, free of any layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from agiledpo.scoring.prompt_batch import SidedBatch, row_labels

_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PreferenceBatch(SidedBatch):
    """B preference pairs.

    Attributes:
        prompts: Prompt tokens that both completions of a pair share; B int64 tensors (prompt tokens,).
        chosen: Tokens of the preferred completions; B int64 tensors (completion tokens,).
        rejected: Tokens of the other completions, likewise.
        labels: Where each pair comes from, for messages ("train row 17").
    """

    KEYS: ClassVar[Sequence[str]] = (
        "prompt_lengths",
        "chosen_input_ids",
        "chosen_attention_mask",
        "rejected_input_ids",
        "rejected_attention_mask",
    )

    prompts: Sequence[Tensor]
    chosen: Sequence[Tensor]
    rejected: Sequence[Tensor]
    labels: Sequence[str]

    @property
    def sides(self) -> tuple[Sequence[Tensor], ...]:
        """The chosen, then the rejected completions."""
        return self.chosen, self.rejected

    @property
    def chosen_tokens(self) -> int:
        """Number of tokens in all chosen completions."""
        return sum(len(ids) for ids in self.chosen)

    @classmethod
    def from_experiences(cls, experiences: Mapping[str, Any]) -> Self:
        """Read what ``PreferenceGym`` yields, or AgileRL's padded dictionary.

        Args:
            experiences: ``chosen_input_ids``, ``chosen_attention_mask``, ``rejected_input_ids`` and
                ``rejected_attention_mask``, int64 (B, T), padded on either side; ``prompt_lengths`` (B,), tokens;
                optionally ``row`` (B,) and ``split``, used in messages.

        Raises:
            ValueError: A key is missing, shapes disagree, or a completion is empty; the row is named.
        """
        missing = [key for key in cls.KEYS if key not in experiences]
        if missing:
            raise ValueError(
                f"The experiences lack {', '.join(missing)}; they hold {', '.join(map(str, experiences))}. "
                "Pass what PreferenceGym.reset() or step() returns."
            )
        tensors = {key: torch.as_tensor(experiences[key]).cpu() for key in cls.KEYS}
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key != "prompt_lengths"}
        lengths = tensors["prompt_lengths"].reshape(-1)
        if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
            raise ValueError(
                f"The ids and masks of both sides must have one shape (pairs, tokens); they have {shapes}."
            )
        pairs = shapes["chosen_input_ids"][0]
        if pairs == 0 or len(lengths) != pairs:
            raise ValueError(f"prompt_lengths has {len(lengths)} entries for {pairs} pairs; one per pair is needed.")
        labels = row_labels(experiences, pairs, noun="pair")
        prompts, chosen, rejected = [], [], []
        for i in range(pairs):
            sides = [tensors[f"{s}_input_ids"][i][tensors[f"{s}_attention_mask"][i].bool()] for s in _SIDES]
            prompt = _shared_prompt(sides, int(lengths[i]), labels[i])
            prompts.append(sides[0][:prompt])
            chosen.append(sides[0][prompt:])
            rejected.append(sides[1][prompt:])
        return cls(prompts, chosen, rejected, labels)


def _shared_prompt(sides: Sequence[Tensor], prompt_length: int, label: str) -> int:
    """Length of the prompt both sides have in common, at most ``prompt_length`` tokens.

    Where a tokenizer merges across the border the two sides differ before ``prompt_length``; those tokens then belong
    to the completions, as in ``PreferenceGym``.
    """
    for name, ids in zip(_SIDES, sides, strict=True):
        if len(ids) <= prompt_length:
            raise ValueError(
                f"{label}: the {name} completion is empty ({len(ids)} tokens with a prompt of {prompt_length}). "
                "Drop the pair, or check prompt_lengths and the attention mask."
            )
    heads = [ids[:prompt_length] for ids in sides]
    different = (heads[0] != heads[1]).nonzero()
    shared = int(different[0]) if len(different) else prompt_length
    if shared < 1:
        raise ValueError(
            f"{label}: chosen and rejected share no prompt token, so the first completion token has nothing to be "
            "predicted from. Use a tokenizer that adds a beginning-of-sequence token, or a non-empty prompt."
        )
    return shared
