"""Sample answers in batches, from a generator of its own and without waiting for the longest answer.

`generate` draws from the global random state and keeps every row of a batch until the last one has ended. Answers that
end after ten tokens next to answers that ramble for a hundred are the rule here, so rows that ended leave the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

Message = dict[str, str]

# Rows that ended are removed when they make up this share of the batch; copying the cache for each one costs more.
_COMPACT_AT = 0.25


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Attributes:
        text: The answer without special tokens; a prefilled opening is part of it.
        finished: Whether the model ended the answer itself, within the length limit.
    """

    text: str
    finished: bool


@torch.inference_mode()
def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 50,
    generator: torch.Generator | None = None,
    openings: Sequence[str] | None = None,
) -> list[Answer]:
    """Answer each prompt once.

    Args:
        model: A causal language model (a PEFT model as well); it should be in evaluation mode.
        tokenizer: Its tokenizer, with a chat template, an end and a padding token.
        prompts: One chat per answer; all of them make up one batch.
        max_new_tokens: The length limit.
        temperature: The sampling temperature; 0 takes the most probable token.
        top_k: How many tokens are sampled from.
        generator: The random numbers, on the model's device; needed unless `temperature` is 0.
        openings: What the answers begin with, one per prompt.

    Returns:
        One answer per prompt, in the order of `prompts`.
    """
    if temperature > 0 and generator is None:
        raise ValueError("Sampling with a temperature needs a generator: pass one, or temperature=0 for greedy.")
    starts = list(openings) if openings is not None else [""] * len(prompts)
    ids, mask = _left_padded(tokenizer, prompts, starts, model.device)
    cache = DynamicCache(config=model.config)
    answers: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    rows = torch.arange(len(prompts), device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    for _ in range(max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        ids = _next_tokens(logits, temperature, top_k, generator)
        for row, token, over in zip(rows.tolist(), ids[:, 0].tolist(), ended.tolist(), strict=True):
            if over:
                continue
            if token == tokenizer.eos_token_id:
                finished[row] = True
            else:
                answers[row].append(token)
        ended |= ids[:, 0] == tokenizer.eos_token_id
        if bool(ended.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
        if ended.float().mean() >= _COMPACT_AT:
            keep = (~ended).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, ids, mask, positions, ended = rows[keep], ids[keep], mask[keep], positions[keep], ended[keep]
    texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in answers]
    return [Answer((start + text).strip(), end) for start, text, end in zip(starts, texts, finished, strict=True)]


def _left_padded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]], openings: Sequence[str], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    texts = [
        str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)) + opening
        for prompt, opening in zip(prompts, openings, strict=True)
    ]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    width = max(map(len, encoded))
    ids = torch.full((len(encoded), width), int(tokenizer.pad_token_id), device=device)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(encoded):
        ids[row, width - len(tokens) :] = torch.tensor(tokens, device=device)
        mask[row, width - len(tokens) :] = 1
    return ids, mask


def _next_tokens(
    logits: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator | None
) -> torch.Tensor:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    values, tokens = logits.float().topk(top_k, dim=-1)
    chosen = torch.multinomial((values / temperature).softmax(-1), 1, generator=generator)
    return tokens.gather(1, chosen)
