"""Lay a batch out as the tensors that go through the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agiledpo.scoring.attention import PackedRows
from agiledpo.scoring.prompt_batch import PromptBatch


@dataclass(frozen=True)
class Layout:
    """Model input, and where in it the completions are predicted.

    The N completions have the order of ``batch.numbered``. M is the number of completion tokens of the batch.

    Attributes:
        input_ids: Tokens; int64 (rows, T).
        position_ids: Position of each token in its own sequence; int64 (rows, T).
        predictors: Flat index into (rows * T) of the position that predicts each completion token; int64 (M,).
        targets: The completion tokens, completion by completion; int64 (M,).
        lengths: Tokens of each completion; int64 (N,), on the CPU.
        packed: How the tokens make up rows, if they are packed into one sequence; None for padded rows.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    lengths: Tensor
    packed: PackedRows | None = None

    def to(self, device: torch.device) -> "Layout":
        """Move what the model reads to ``device``."""
        packed = self.packed
        return Layout(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            self.lengths,
            packed and PackedRows(packed.bounds, packed.parts.to(device), packed.positions.to(device)),
        )


def separate_rows(batch: PromptBatch, pad_token_id: int) -> Layout:
    """One padded row ``[prompt | completion | padding]`` per completion, for any causal model.

    Rows are padded on the right, so under causal attention no real token ever sees padding and no mask is needed.

    Args:
        batch: B prompts with their completions.
        pad_token_id: Any valid token id; it fills positions that nothing reads.
    """
    completions = [ids for _, ids in batch.numbered]
    rows = [torch.cat([batch.prompts[place], ids]) for place, ids in batch.numbered]
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
        lengths=_lengths(completions),
    )


def packed_rows(batch: PromptBatch, *, share_prompts: bool) -> Layout:
    """All tokens in one sequence without padding, for attention through :mod:`agiledpo.scoring.attention`.

    Args:
        batch: B prompts with their completions.
        share_prompts: One row per prompt, ``[prompt | chosen | rejected]`` of a pair, positions restarting after the
            prompt; False makes one per completion, ``[prompt | chosen]`` and ``[prompt | rejected]``.
    """
    places, completions = zip(*batch.numbered, strict=True)
    rows = [[number] for number in range(len(completions))]
    if share_prompts:
        of_prompt: dict[int, list[int]] = {place: [] for place in range(len(batch))}
        for number, place in enumerate(places):
            of_prompt[place].append(number)
        rows = list(of_prompt.values())
    tokens, positions, parts, bounds = [], [], [], []
    predictors: list[Tensor] = [torch.empty(0)] * len(completions)
    end = 0
    for row in rows:
        start, prompt = end, batch.prompts[places[row[0]]]
        pieces = [prompt, *(completions[i] for i in row)]
        last_of_prompt = end = start + len(prompt)
        last_of_prompt -= 1
        for i in row:
            # The first token of each completion is predicted by the end of the prompt, the others by their neighbour.
            predictors[i] = torch.arange(end - 1, end - 1 + len(completions[i]))
            predictors[i][0] = last_of_prompt
            end += len(completions[i])
        tokens += pieces
        positions += [
            torch.arange(len(prompt)),
            *(torch.arange(len(prompt), len(prompt) + len(completions[i])) for i in row),
        ]
        parts += [torch.full((len(piece),), number) for number, piece in enumerate(pieces)]
        bounds.append((start, end))
    position_ids = torch.cat(positions)
    return Layout(
        input_ids=torch.cat(tokens)[None],
        position_ids=position_ids[None],
        predictors=torch.cat(predictors),
        targets=torch.cat(completions),
        lengths=_lengths(completions),
        packed=PackedRows(tuple(bounds), torch.cat(parts), position_ids),
    )


def _lengths(completions: Sequence[Tensor]) -> Tensor:
    return torch.tensor([len(ids) for ids in completions])
