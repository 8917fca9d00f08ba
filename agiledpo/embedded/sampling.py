"""Sample answers to chats."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agiledpo.algorithms.core.randomness import TorchRandomStream
from agiledpo.generation import SamplingSettings, TransformersGenerator
from agiledpo.scoring import CausalLM

Message = dict[str, str]


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Attributes:
        text: The answer without special tokens; a prefilled opening is part of it.
        finished: Whether the model ended the answer itself, within the length limit.
    """

    text: str
    finished: bool


def sample_answers(
    lm: CausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[Message]],
    *,
    max_new_tokens: int,
    stream: TorchRandomStream,
    temperature: float = 0.0,
    top_k: int = 50,
    openings: Sequence[str] | None = None,
) -> list[Answer]:
    """Answer each prompt once.

    Args:
        lm: A causal language model in evaluation mode, with whatever adapter is active on it.
        tokenizer: Its tokenizer, with a chat template.
        prompts: One chat per answer.
        max_new_tokens: The length limit.
        stream: The random numbers; a temperature of 0 draws none.
        temperature: The sampling temperature; 0 takes the most probable token.
        top_k: How many tokens are sampled from.
        openings: What the answers begin with, one per prompt.

    Returns:
        One answer per prompt, in the order of `prompts`.
    """
    starts = list(openings) if openings is not None else [""] * len(prompts)
    completions = TransformersGenerator().sample(
        lm,
        [_tokens(tokenizer, prompt, start) for prompt, start in zip(prompts, starts, strict=True)],
        group_size=1,
        settings=SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k),
        stream=stream,
        tokenizer=tokenizer,
    )
    return [
        Answer((start + str(tokenizer.decode(tokens, skip_special_tokens=True))).strip(), finished)
        for start, (tokens,), (finished,) in zip(starts, completions.tokens, completions.finished, strict=True)
    ]


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], opening: str) -> Tensor:
    text = str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)) + opening
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False))
