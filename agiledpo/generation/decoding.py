"""Transformers' own generation loop, run in segments between which rows that have ended leave the batch.

``generate`` computes every row until the longest has ended. Here it is called for some tokens at a time, each time with
the cache that the last call left, from which the ended rows are taken out. The cache begins with the prompts, each
computed once, and is then repeated for the rows that follow it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import GenerateDecoderOnlyOutput

from agiledpo.generation.batches import left_padded
from agiledpo.generation.sampling import SamplingSettings
from agiledpo.generation.watching import RawLogits, TokenWatch
from agiledpo.layers.forwards import replaced_forwards
from agiledpo.losses.errors import NonFiniteLossError


@dataclass(frozen=True)
class Ending:
    """What ends a completion beside its length.

    Attributes:
        eos: End-of-sequence tokens, int64 (E,), on the model's device.
        stop: Looks for stop texts; None without.
    """

    eos: Tensor
    stop: StoppingCriteria | None = None


@dataclass
class SampledRow:
    """One completion: its tokens, their log-probabilities, and whether it ended itself; on the CPU."""

    tokens: Tensor
    logps: Tensor
    finished: bool


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    copies: Sequence[int],
    *,
    room: int,
    settings: SamplingSettings,
    ending: Ending,
    segment: int,
    share: bool,
) -> list[SampledRow]:
    """Continue prompts, with what is active on the model as it is; draws come from torch's global generator.

    Args:
        model: A causal language model in evaluation mode.
        prompts: int64 (tokens,) each.
        copies: Rows of each prompt.
        room: Most tokens of a row.
        settings: How tokens are drawn.
        ending: What ends a row.
        segment: Tokens between two times that ended rows are dropped; speed, and which draws are whose.
        share: Compute each prompt once and drop ended rows. Without it every row is computed from its first token to
            the end of the longest, which asks nothing of the model's cache.

    Returns:
        The rows, prompt by prompt.

    Raises:
        NonFiniteLossError: The logits are NaN or infinite.
    """
    ids, mask = left_padded(prompts, model.device)
    owner = torch.arange(len(prompts)).repeat_interleave(torch.tensor(copies)).to(model.device)
    width = ids.shape[1]
    rows = [SampledRow(torch.empty(0, dtype=torch.long), torch.empty(0), False) for _ in range(len(owner))]
    alive = list(range(len(rows)))
    with own_settings(model):
        cache = prefilled(model, ids, mask) if share else None
        if cache is not None:
            select_rows(cache, owner)
        ids, mask = ids[owner], mask[owner]
        while alive and ids.shape[1] < width + room:
            left = width + room - ids.shape[1]
            raw = RawLogits()
            watch = TokenWatch(
                raw,
                len(alive),
                eos=ending.eos,
                stop=ending.stop,
                start=width + settings.min_new_tokens,
                temperature=settings.temperature or 1.0,
            )
            output = generate(
                model,
                ids,
                mask if share else None,
                cache,
                generation_config(settings, min(segment, left) if share else left),
                logits_processor=_processors(raw, settings, mask, width, ending.eos),
                stopping_criteria=StoppingCriteriaList([watch]),
            )
            new = output.sequences[:, ids.shape[1] :].cpu()
            logps, lengths, ended = watch.logps.cpu(), watch.lengths.tolist(), watch.ended.tolist()
            if logps.isnan().any():
                raise NonFiniteLossError(
                    "The logits of the actor are not finite, so nothing can be sampled from it. Lower the learning "
                    "rate: its steps went astray."
                )
            for place, row in enumerate(alive):
                tokens, count = rows[row], lengths[place]
                tokens.tokens = torch.cat([tokens.tokens, new[place, :count]])
                tokens.logps = torch.cat([tokens.logps, logps[place, :count]])
                tokens.finished = ended[place]
            ids, cache = output.sequences, output.past_key_values
            mask = torch.nn.functional.pad(mask, (0, new.shape[1]), value=1)
            if not share:
                break
            if any(ended):
                keep = (~watch.ended).nonzero()[:, 0]
                alive = [alive[place] for place in keep.tolist()]
                if alive and cache is not None:
                    ids, mask = ids[keep], mask[keep]
                    select_rows(cache, keep)
    return rows


def prefilled(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Cache | None:
    """The model's cache of left-padded prompts but for their last tokens; None where they have no other ones.

    Args:
        model: The model.
        ids: int64 (P, T).
        mask: Which of them are tokens, int64 (P, T).
    """
    if ids.shape[1] == 1:
        return None
    # One more token than is of use: this way `generate` itself makes the cache and the positions.
    config = own_config(do_sample=False, max_new_tokens=1)
    return generate(model, ids[:, :-1], mask[:, :-1], None, config).past_key_values


def generate(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None,
    cache: Cache | None,
    config: GenerationConfig,
    **arguments: Any,
) -> GenerateDecoderOnlyOutput:
    """Transformers' loop, from a cache of all tokens but the last where there is one.

    Args:
        model: The model.
        ids: int64 (rows, T).
        mask: Which of them are tokens, int64 (rows, T); None if all are, which models without a mask need.
        cache: It is continued in place.
        config: Complete settings.
        **arguments: More for ``generate``.
    """
    given = {"attention_mask": mask, "past_key_values": cache}
    arguments.update({name: value for name, value in given.items() if value is not None})
    output: GenerateDecoderOnlyOutput = cast(Any, model).generate(input_ids=ids, generation_config=config, **arguments)
    return output


def select_rows(cache: Cache, rows: Tensor) -> None:
    """Make a cache that of some of its rows, each any number of times.

    Args:
        cache: Changed in place. What Transformers reorders for beam search covers every kind of state.
        rows: int64 (new rows,).
    """
    cache.reorder_cache(cast(torch.LongTensor, rows))


def generation_config(settings: SamplingSettings, max_new_tokens: int) -> GenerationConfig:
    """Transformers' settings for a segment; penalties and ends are not among them, see :func:`decode`.

    Args:
        settings: Ours.
        max_new_tokens: Length of the segment.
    """
    if settings.temperature == 0:
        return own_config(do_sample=False, max_new_tokens=max_new_tokens)
    return own_config(
        do_sample=True,
        max_new_tokens=max_new_tokens,
        temperature=float(settings.temperature),
        top_k=settings.top_k,
        top_p=float(settings.top_p),
        min_p=float(settings.min_p) or None,
    )


def own_config(**settings: object) -> GenerationConfig:
    """Settings of Transformers' on top of what every call here needs."""
    return GenerationConfig(use_cache=True, return_dict_in_generate=True, disable_compile=True, **settings)


def _processors(
    raw: RawLogits, settings: SamplingSettings, mask: Tensor, width: int, eos: Tensor
) -> LogitsProcessorList:
    """What comes between the model's logits and the temperature; the first keeps them as they are."""
    processors = LogitsProcessorList([raw])
    if settings.repetition_penalty != 1:
        padding = (mask != 0).int().argmax(dim=1)
        processors.append(
            RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty), prompt_ignore_length=padding)
        )
    if settings.min_new_tokens and len(eos):
        processors.append(MinNewTokensLengthLogitsProcessor(width, settings.min_new_tokens, eos))
    return processors


@contextmanager
def own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Keep ``generate`` from filling in what the model's own generation config says, and torch from copying its head.

    The head is called on the last position of each row, a slice, for which torch copies the head's weights once for
    each row.

    Args:
        model: It has its own config and head again afterwards.
    """
    theirs = model.generation_config
    head = model.get_output_embeddings()
    model.generation_config = GenerationConfig()
    try:
        with replaced_forwards([(head, partial(_contiguous, head.forward))]):
            yield
    finally:
        model.generation_config = theirs


def _contiguous(forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    return forward(hidden.contiguous())
