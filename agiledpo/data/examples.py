"""What every format of data comes to: a prompt with its completions."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Message = dict[str, Any]
# One side of a row: a text, chat messages, or token ids.
Turns = str | list[Message] | list[int]


class Form(StrEnum):
    """How prompts and completions are written."""

    TEXT = "text"
    CHAT = "chat"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with its completions.

    Attributes:
        prompt: A text; messages that end with the turn to be answered; or token ids.
        completions: What may follow it, in the same form.
        tools: JSON schemas of the functions that the chat template is told of, or None.
        chat_template_kwargs: What else the chat template is told for this row, or None.
    """

    prompt: Turns
    completions: tuple[Turns, ...]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
