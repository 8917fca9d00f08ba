"""Checks, on a few tokens, that scoring does with a model what the model does itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agiledpo.scoring.attention import PACKED_ATTENTION, packed_attention
from agiledpo.scoring.batch import PreferenceBatch
from agiledpo.scoring.layout import Layout, packed_rows, separate_rows

if TYPE_CHECKING:
    from agiledpo.scoring.causal_lm import CausalLM


# What a model that does not know packed rows, or whose body is not what it says, may fail with.
_FAILURES = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)


@torch.no_grad()
def reproduces_logits(lm: "CausalLM") -> bool:
    """Whether body and head together give the model's own logits."""
    if lm.head is None:
        return False
    with _evaluating(lm.model), lm.whole_head():
        layout = separate_rows(_pairs(lm), 0).to(lm.model.device)
        try:
            actual = lm.head.logits(lm.hidden_states(layout))
        except _FAILURES:
            return False
        return _close(lm.model, actual, lm.logits(layout))


@torch.no_grad()
def packs(lm: "CausalLM", *, window: int | None) -> bool:
    """Whether packed rows with a shared prompt give the hidden states of separate ones.

    They do not where something else than attention carries information along the sequence (state spaces, linear
    attention, convolutions), or where the model does not take its attention from Transformers' interface.

    Args:
        lm: The model.
        window: Its sliding window, positions; None for none. Attention must be told of it, not only the mask, which
            packed rows replace.
    """
    if not lm.takes_positions:
        return False
    pairs = _pairs(lm)
    device = lm.model.device
    layouts = [
        packed_rows(pairs, share_prompts=True).to(device),
        packed_rows(pairs, share_prompts=False).to(device),
        packed_rows(replace(pairs, chosen=pairs.rejected), share_prompts=True).to(device),
    ]
    with _evaluating(lm.model):
        expected = _at_predictors(lm, separate_rows(pairs, 0).to(device))
        try:
            with packed_attention(lm.model):
                if lm.model.config._attn_implementation != PACKED_ATTENTION:
                    return False
                shared, separate, other = (_at_predictors(lm, layout) for layout in layouts)
        except _FAILURES:
            return False
    packed = layouts[0].packed
    if packed is None or (window is not None and window not in packed.windows):
        return False
    # With other chosen completions of the same length the rejected ones' hidden states must be the same to the bit.
    rejected = sum(len(ids) for ids in pairs.chosen)
    isolated = torch.equal(shared[rejected:], other[rejected:])
    return isolated and _close(lm.model, shared, expected) and _close(lm.model, separate, expected)


@torch.no_grad()
def agrees(lm: "CausalLM", other: "CausalLM") -> bool:
    """Whether two ways to run one model end in the same hidden states, each in its own layout."""
    with _evaluating(lm.model):
        results = []
        for one in (lm, other):
            layout = packed_rows(_pairs(lm), share_prompts=True) if one.packs else separate_rows(_pairs(lm), 0)
            try:
                with one.prepared():
                    results.append(_at_predictors(one, layout.to(lm.model.device)))
            except _FAILURES:
                return False
    return _close(lm.model, *results)


def _at_predictors(lm: "CausalLM", layout: Layout) -> Tensor:
    return lm.hidden_states(layout).flatten(0, 1)[layout.predictors]


def _pairs(lm: "CausalLM") -> PreferenceBatch:
    def ids(*numbers: int) -> Tensor:
        return torch.tensor(numbers) % lm.vocabulary

    return PreferenceBatch(
        prompts=[ids(1, 2, 3), ids(4)],
        chosen=[ids(5, 6), ids(7, 8, 9)],
        rejected=[ids(10, 11), ids(12, 13, 14)],
        labels=["", ""],
    )


def _close(model: PreTrainedModel, actual: Tensor, expected: Tensor) -> bool:
    if actual.shape != expected.shape:
        return False
    # Loose in low precision: bfloat16 alone moves the hidden states of 30 layers by 9 %; a wrong position moves more.
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.25
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    return bool(difference <= tolerance)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
