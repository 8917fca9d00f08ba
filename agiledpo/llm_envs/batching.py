"""Order of rows and layout of batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from agiledpo.llm_envs.types import PreferenceExperiences, Split


def epoch_permutation(rows: int, seed: int, epoch: int) -> torch.Tensor:
    """Order of `rows` rows in an epoch, a pure function of its arguments.

    Args:
        rows: Number of rows.
        seed: Not negative.
        epoch: Not negative.

    Returns:
        (rows,) int64, a permutation of 0..rows-1.
    """
    # Mixing, unlike adding, keeps (seed, epoch + 1) apart from (seed + 1, epoch).
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]) >> 1
    return torch.randperm(rows, generator=torch.Generator().manual_seed(mixed))


def collate(columns: Mapping[str, Sequence[Any]], *, split: Split, pad_token_id: int) -> PreferenceExperiences:
    """Lay prepared rows out as a batch.

    Args:
        columns: Columns of `PreparedPreferences.dataset`, each with B values.
        split: The split that the rows come from.
        pad_token_id: What to fill up with, on the right.
    """
    prompts = columns["prompt_ids"]
    chosen = [[*prompt, *completion] for prompt, completion in zip(prompts, columns["chosen_ids"], strict=True)]
    rejected = [[*prompt, *completion] for prompt, completion in zip(prompts, columns["rejected_ids"], strict=True)]
    longest = max(len(sequence) for sequence in (*chosen, *rejected))
    chosen_ids, chosen_mask = _pad(chosen, longest, pad_token_id)
    rejected_ids, rejected_mask = _pad(rejected, longest, pad_token_id)
    return PreferenceExperiences(
        prompt=list(columns["prompt"]),
        chosen=list(columns["chosen"]),
        rejected=list(columns["rejected"]),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64),
        chosen_input_ids=chosen_ids,
        chosen_attention_mask=chosen_mask,
        rejected_input_ids=rejected_ids,
        rejected_attention_mask=rejected_mask,
        row=torch.tensor(columns["row"], dtype=torch.int64),
        split=split,
    )


def _pad(sequences: Sequence[Sequence[int]], length: int, pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both (B, length) int64."""
    ids = torch.full((len(sequences), length), pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, sequence in enumerate(sequences):
        ids[index, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
        mask[index, : len(sequence)] = 1
    return ids, mask
