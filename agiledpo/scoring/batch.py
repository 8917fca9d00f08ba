"""A batch of preference pairs as ragged token sequences, free of any layout."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

_SIDES = ("chosen", "rejected")
_KEYS = ("prompt_lengths", *(f"{side}_{part}" for side in _SIDES for part in ("input_ids", "attention_mask")))


class Batch(Protocol):
    """Rows that an agent learns from, whatever a row is."""

    @property
    def labels(self) -> Sequence[str]:
        """Where each row comes from, for messages."""
        ...

    def __len__(self) -> int: ...

    def slice(self, start: int, stop: int) -> Self:
        """Rows ``start`` to ``stop``."""
        ...

    @staticmethod
    def concat(batches: Sequence[Any]) -> Any:
        """Put several batches one after the other."""
        ...

    @staticmethod
    def from_experiences(experiences: Mapping[str, Any]) -> Any:
        """Read what an environment yields."""
        ...


@dataclass(frozen=True)
class PreferenceBatch:
    """B preference pairs.

    Attributes:
        prompts: Prompt tokens that both completions of a pair share; B int64 tensors (prompt tokens,).
        chosen: Tokens of the preferred completions; B int64 tensors (completion tokens,).
        rejected: Tokens of the other completions, likewise.
        labels: Where each pair comes from, for messages ("train row 17").
    """

    prompts: Sequence[Tensor]
    chosen: Sequence[Tensor]
    rejected: Sequence[Tensor]
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def slice(self, start: int, stop: int) -> "PreferenceBatch":
        """Pairs ``start`` to ``stop``."""
        return PreferenceBatch(
            self.prompts[start:stop], self.chosen[start:stop], self.rejected[start:stop], self.labels[start:stop]
        )

    def select(self, places: Sequence[int]) -> "PreferenceBatch":
        """The pairs at some places, in that order."""
        return PreferenceBatch(
            [self.prompts[place] for place in places],
            [self.chosen[place] for place in places],
            [self.rejected[place] for place in places],
            [self.labels[place] for place in places],
        )

    def spans(self, size: int) -> Iterator[tuple[int, int]]:
        """Cut into consecutive (start, stop) spans of at most ``size`` pairs."""
        return ((start, min(start + size, len(self))) for start in range(0, len(self), size))

    @staticmethod
    def concat(batches: Sequence["PreferenceBatch"]) -> "PreferenceBatch":
        """Put several batches one after the other."""
        return PreferenceBatch(
            [x for batch in batches for x in batch.prompts],
            [x for batch in batches for x in batch.chosen],
            [x for batch in batches for x in batch.rejected],
            [x for batch in batches for x in batch.labels],
        )

    @property
    def chosen_tokens(self) -> int:
        """Number of tokens in all chosen completions."""
        return sum(len(ids) for ids in self.chosen)

    @property
    def tokens(self) -> int:
        """Number of tokens in all pairs, a shared prompt counted once."""
        return sum(len(ids) for side in (self.prompts, self.chosen, self.rejected) for ids in side)

    @property
    def largest_token_id(self) -> int:
        """Largest token id of the batch."""
        return max(int(ids.max()) for side in (self.prompts, self.chosen, self.rejected) for ids in side)

    @staticmethod
    def from_experiences(experiences: Mapping[str, Any]) -> "PreferenceBatch":
        """Read what ``PreferenceGym`` yields, or AgileRL's padded dictionary.

        Args:
            experiences: ``chosen_input_ids``, ``chosen_attention_mask``, ``rejected_input_ids`` and
                ``rejected_attention_mask``, int64 (B, T), padded on either side; ``prompt_lengths`` (B,), tokens;
                optionally ``row`` (B,) and ``split``, used in messages.

        Raises:
            ValueError: A key is missing, shapes disagree, or a completion is empty; the row is named.
        """
        missing = [key for key in _KEYS if key not in experiences]
        if missing:
            raise ValueError(
                f"The experiences lack {', '.join(missing)}; they hold {', '.join(map(str, experiences))}. "
                "Pass what PreferenceGym.reset() or step() returns."
            )
        tensors = {key: torch.as_tensor(experiences[key]).cpu() for key in _KEYS}
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key != "prompt_lengths"}
        lengths = tensors["prompt_lengths"].reshape(-1)
        if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
            raise ValueError(
                f"The ids and masks of both sides must have one shape (pairs, tokens); they have {shapes}."
            )
        pairs = shapes["chosen_input_ids"][0]
        if pairs == 0 or len(lengths) != pairs:
            raise ValueError(f"prompt_lengths has {len(lengths)} entries for {pairs} pairs; one per pair is needed.")
        labels = _labels(experiences, pairs)
        prompts, chosen, rejected = [], [], []
        for i in range(pairs):
            sides = [tensors[f"{s}_input_ids"][i][tensors[f"{s}_attention_mask"][i].bool()] for s in _SIDES]
            prompt = _shared_prompt(sides, int(lengths[i]), labels[i])
            prompts.append(sides[0][:prompt])
            chosen.append(sides[0][prompt:])
            rejected.append(sides[1][prompt:])
        return PreferenceBatch(prompts, chosen, rejected, labels)


def _labels(experiences: Mapping[str, Any], pairs: int) -> list[str]:
    if "row" not in experiences:
        return [f"pair {i} of the batch" for i in range(pairs)]
    split = f"{experiences['split']} " if "split" in experiences else ""
    return [f"{split}row {int(row)}" for row in experiences["row"]]


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
