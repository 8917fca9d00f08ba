"""Where completions end: the tokens and texts that end them, and the room that a model leaves them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.generation.decoding import Ending
from agiledpo.generation.sampling import SamplingSettings
from agiledpo.generation.stopping import StopTexts


def eos_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Tokens that end a completion: those of the model's generation config and config, and the tokenizer's.

    Args:
        model: The model.
        tokenizer: Its tokenizer, if there is one.
    """
    found: set[int] = set()
    named = [model.generation_config.eos_token_id if model.generation_config is not None else None]
    named.append(model.config.get_text_config().eos_token_id)
    named.append(None if tokenizer is None else tokenizer.eos_token_id)
    for ids in named:
        found.update([] if ids is None else [ids] if isinstance(ids, int) else ids)
    return sorted(found)


def ending(model: PreTrainedModel, settings: SamplingSettings, tokenizer: PreTrainedTokenizerBase | None) -> Ending:
    """What ends the completions of a model.

    Args:
        model: The model.
        settings: Their stop texts are looked for.
        tokenizer: The model's; stop texts need it.

    Raises:
        ValueError: There are stop texts and no tokenizer.
    """
    if settings.stop and tokenizer is None:
        raise ValueError(f"stop={settings.stop!r} is text: pass the model's tokenizer as well.")
    stop = StopTexts(tokenizer, settings.stop) if tokenizer is not None and settings.stop else None
    return Ending(torch.tensor(eos_tokens(model, tokenizer), dtype=torch.long, device=model.device), stop)


def rooms(prompts: Sequence[Tensor], settings: SamplingSettings, max_positions: int | None) -> list[int]:
    """Most tokens that may follow each prompt.

    Args:
        prompts: int64 (tokens,) each.
        settings: Their limits.
        max_positions: Longest sequence of the model, tokens; None for no limit.

    Raises:
        ValueError: A prompt is empty or leaves no room.
    """
    longest = min((n for n in (max_positions, settings.max_model_len) if n is not None), default=None)
    found = []
    for place, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"Prompt {place} has no tokens; a completion needs at least one to follow.")
        room = settings.max_new_tokens if longest is None else min(settings.max_new_tokens, longest - len(prompt))
        if room < 1:
            raise ValueError(
                f"Prompt {place} has {len(prompt)} tokens and leaves no room for a completion: the longest "
                f"sequence of the model, or max_model_len, is {longest}. Pass max_context_length below that to the "
                "environment."
            )
        found.append(room)
    return found
