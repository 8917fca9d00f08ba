"""Lay a batch out as the tensors that go through the model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from agiledpo.scoring.batch import PreferenceBatch


@dataclass(frozen=True)
class Layout:
    """Model input, and where in it the completions are predicted.

    Completions are numbered 0..2B-1, all chosen ones first. N is the number of completion tokens of the batch.

    Attributes:
        input_ids: Tokens, right-padded; int64 (rows, T).
        position_ids: Position of each token in its own sequence; int64 (rows, T).
        predictors: Flat index into (rows * T) of the position that predicts each completion token; int64 (N,).
        targets: The completion tokens, completion by completion; int64 (N,).
        lengths: Tokens of each completion; int64 (2B,), on the CPU.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> "Layout":
        """Move what the model reads to ``device``."""
        return Layout(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            self.lengths,
        )


def separate_rows(batch: PreferenceBatch, pad_token_id: int) -> Layout:
    """One row ``[prompt | completion | padding]`` per completion.

    Rows are padded on the right, so under causal attention no real token ever sees padding and no mask is needed.

    Args:
        batch: B pairs.
        pad_token_id: Any valid token id; it fills positions that nothing reads.
    """
    completions = [*batch.chosen, *batch.rejected]
    rows = [torch.cat(parts) for parts in zip([*batch.prompts, *batch.prompts], completions, strict=True)]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    width = input_ids.shape[1]
    predictors = [
        row * width + torch.arange(len(ids) - len(completion), len(ids)) - 1
        for row, (ids, completion) in enumerate(zip(rows, completions, strict=True))
    ]
    return Layout(
        input_ids=input_ids,
        position_ids=torch.arange(width).expand_as(input_ids),
        predictors=torch.cat(predictors),
        targets=torch.cat(completions),
        lengths=torch.tensor([len(ids) for ids in completions]),
    )
