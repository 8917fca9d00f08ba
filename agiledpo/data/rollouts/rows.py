"""Write two rollouts as one row of preferences."""

from enum import StrEnum
from typing import Any

from agiledpo.data.rollouts.errors import UnusableRolloutError
from agiledpo.data.rollouts.reading import PARAMETERS, Answer, Prompt

_REMEDY = "Use format='messages' (--format messages), which keeps everything."


class PairFormat(StrEnum):
    """How pairs are written.

    MESSAGES: prompt, chosen and rejected are lists of chat messages; nothing is lost.
    TEXT: They are strings, as NeMo Gym's recipe writes them: only for prompts that are a single user message.
    RANKED: NeMo RL's context with two ranked completions.
    """

    MESSAGES = "messages"
    TEXT = "text"
    RANKED = "ranked"


def check_format(pair_format: PairFormat, prompt: Prompt, answer: Answer | None = None) -> None:
    """Refuse what would not survive as text.

    Raises:
        UnusableRolloutError: The format is text, and the prompt is not a single user message without tools, or there is
            reasoning before the answer.
    """
    if pair_format is not PairFormat.TEXT:
        return
    roles = [message["role"] for message in prompt.messages]
    if roles != ["user"] or len(prompt.messages[0]) > 2:
        raise UnusableRolloutError(
            "format",
            f"{PARAMETERS}.input",
            f"a prompt of the messages {', '.join(roles)} cannot be written as one text",
            _REMEDY,
        )
    if prompt.tools:
        raise UnusableRolloutError(
            "format", f"{PARAMETERS}.tools", "tools cannot be written as part of a text", _REMEDY
        )
    if answer is not None and any(len(message) > 2 for message in answer.completion):
        raise UnusableRolloutError("format", "output", "reasoning cannot be written as part of a text", _REMEDY)


def pair_row(
    pair_format: PairFormat,
    prompt: Prompt,
    chosen: Answer,
    rejected: Answer,
    *,
    chosen_reward: float,
    rejected_reward: float,
    prompts_differ: bool | None,
) -> dict[str, Any]:
    """One pair as a row.

    Args:
        pair_format: How it is written.
        prompt: What was asked, or what the chosen one was asked.
        chosen: The better answer.
        rejected: The worse one.
        chosen_reward: Its reward.
        rejected_reward: Its reward.
        prompts_differ: Whether the rejected one answers another prompt; None where that is impossible.
    """
    row: dict[str, Any]
    if pair_format is PairFormat.RANKED:
        completions = [{"rank": rank, "completion": a.completion} for rank, a in enumerate((chosen, rejected))]
        row = {"context": prompt.messages, "completions": completions}
    elif pair_format is PairFormat.TEXT:
        messages = (prompt.messages, chosen.completion, rejected.completion)
        texts = (part[0]["content"] for part in messages)
        row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
    else:
        row = {"prompt": prompt.messages, "chosen": chosen.completion, "rejected": rejected.completion}
    row["reward_gap"] = chosen_reward - rejected_reward
    row["chosen_reward"] = chosen_reward
    row["rejected_reward"] = rejected_reward
    if prompt.tools:
        row["tools"] = prompt.tools
    if prompts_differ is not None:
        row["prompts_differ"] = prompts_differ
    return row
