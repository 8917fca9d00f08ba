"""Whether every prompt leaves room for a completion, found out before training."""

from typing import Any

from agiledpo.algorithms.core.llm import LLMAlgorithm


def check_room(agent: LLMAlgorithm, env: Any, max_model_len: int | None = None) -> None:
    """Check that at least one token fits behind the longest prompt of every split.

    Args:
        agent: Whose model answers.
        env: Where prompts come from, training and held-out ones.
        max_model_len: Most tokens of a prompt with its completion; None for what the model allows.

    Raises:
        ValueError: A prompt leaves no room.
    """
    limits = {"the model's longest sequence": agent.lm.max_positions, "max_model_len": max_model_len}
    known = [(tokens, name) for name, tokens in limits.items() if tokens is not None]
    if not known:
        return
    limit, name = min(known)
    for split in env.splits:
        if env.lengths(split)[:, 0].max(initial=0) < limit:
            continue
        longest = next(env.longest_first(split, 1))
        raise ValueError(
            f"Row {int(longest['row'][0])} of the {split} split has a prompt of {int(longest['prompt_lengths'][0])} "
            f"tokens, which leaves no room for a completion: {name} is {limit} tokens. Make the environment with "
            f"max_context_length={limit - 1}."
        )
