"""Whether a model's cache can be repeated and thinned out, checked on a few tokens."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from agiledpo.generation.batches import left_padded
from agiledpo.generation.decoding import generate, own_config, own_settings, prefilled, select_rows

# What a model whose cache is of another kind may fail with.
_FAILURES = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)


@dataclass(frozen=True)
class CacheTraits:
    """What is known of a model's cache.

    Attributes:
        shares: Whether padded prompts that are computed once, repeated and thinned out go on as each does alone.
        token_bytes: Memory of a token's keys and values; None if that is not what the cache consists of.
    """

    shares: bool
    token_bytes: int | None


@torch.no_grad()
def cache_traits(model: PreTrainedModel, vocabulary: int) -> CacheTraits:
    """Find out on two short prompts; nothing is drawn.

    Args:
        model: A causal language model in evaluation mode.
        vocabulary: Number of its tokens.
    """
    prompts = [torch.tensor(ids) % vocabulary for ids in ([1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11])]
    forced = torch.tensor([[12], [13], [14]], device=model.device) % vocabulary
    owner = torch.tensor([0, 1, 0, 1], device=model.device)
    kept = torch.tensor([3, 0, 2], device=model.device)
    ids, mask = left_padded(prompts, model.device)
    with own_settings(model):
        try:
            cache = prefilled(model, ids, mask)
            if not isinstance(cache, Cache):
                return CacheTraits(shares=False, token_bytes=None)
            size = _token_bytes(cache)
            select_rows(cache, owner)
            first, cache = _next_logits(model, ids[owner], mask[owner], cache)
            select_rows(cache, kept)
            ids = torch.cat([ids[owner[kept]], forced], dim=1)
            mask = torch.cat([mask[owner[kept]], torch.ones_like(forced)], dim=1)
            second, _ = _next_logits(model, ids, mask, cache)
        except _FAILURES:
            return CacheTraits(shares=False, token_bytes=None)
        rows = [row[places.bool()][None] for row, places in zip(ids, mask, strict=True)]
        before = torch.cat([_next_logits(model, row[:, :-1], None, None)[0] for row in rows])
        after = torch.cat([_next_logits(model, row, None, None)[0] for row in rows])
    shares = _close(model, first[kept], before) and _close(model, second, after)
    return CacheTraits(shares=shares, token_bytes=size)


def _next_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor | None, cache: Cache | None) -> tuple[Tensor, Cache]:
    output = generate(model, ids, mask, cache, own_config(do_sample=False, max_new_tokens=1, output_logits=True))
    return cast(tuple[Tensor], output.logits)[0], cast(Cache, output.past_key_values)


def _token_bytes(cache: Cache) -> int | None:
    """Memory of one token of one row."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
    return sum(x[0, :, 0].nbytes for layer in layers for x in (layer.keys, layer.values) if x is not None) or None


def _close(model: PreTrainedModel, actual: Tensor, expected: Tensor) -> bool:
    # Loose in low precision, as in agiledpo/scoring/probe.py.
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.25
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    return bool(difference <= tolerance)
