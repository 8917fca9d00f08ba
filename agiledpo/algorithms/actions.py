"""What an agent answered, in the layout of AgileRL's loops: prompts and completions in one tensor, and a mask."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from agiledpo.generation.sampling import Completions


class ActionResult(NamedTuple):
    """Completions of B prompts, G each.

    Attributes:
        completion_ids: For each prompt prompt and completions, int64 (G, T), padded on the right.
        action_masks: For each prompt, bool (G, T - 1): whether each token but the first was sampled.
        sampling_logps: Log-probability of the sampled tokens, float32 (tokens,), completion after completion of all
            prompts. None where whoever sampled does not tell all of them.
    """

    completion_ids: list[Tensor]
    action_masks: list[Tensor]
    sampling_logps: list[Tensor] | None


def action_result(prompts: Sequence[Tensor], completions: Completions, *, pad_token_id: int) -> ActionResult:
    """Lay completions out as AgileRL does.

    Args:
        prompts: Prompt tokens; B int64 tensors (prompt tokens,).
        completions: What was sampled for them.
        pad_token_id: Fills the rows; one that whoever judges them skips.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    ids, masks = [], []
    for prompt, group in zip(prompts, completions.tokens, strict=True):
        rows = [torch.cat([prompt, tokens]) for tokens in group]
        sampled = [torch.arange(1, len(row)) >= len(prompt) for row in rows]
        ids.append(pad(rows, batch_first=True, padding_value=pad_token_id))
        masks.append(pad(sampled, batch_first=True, padding_value=False))
    known = [group for group in completions.logps if group is not None]
    told = len(known) == len(completions.logps)
    return ActionResult(ids, masks, [logps for group in known for logps in group] if told else None)
