"""The words in prompts and completions, and excerpts of them."""

import json

from agiledpo.data.examples import Message, Turns

EXCERPT = 48


def plain_text(turns: Turns) -> str:
    """All that is written in a prompt or completion, messages one after the other; nothing for token ids."""
    if isinstance(turns, str):
        return turns
    return "\n".join(contents(turns))


def contents(turns: Turns) -> list[str]:
    """What each message says, calls of tools as JSON; one text for text, nothing for token ids."""
    if isinstance(turns, str):
        return [turns]
    if not turns or not isinstance(turns[0], dict):
        return []
    return [_said(message) for message in turns if isinstance(message, dict)]


def length(turns: Turns) -> int:
    """Characters of a text or of what messages say; ids of token ids."""
    if isinstance(turns, str):
        return len(turns)
    if turns and not isinstance(turns[0], dict):
        return len(turns)
    return sum(map(len, contents(turns)))


def prompt_excerpt(prompt: Turns) -> str:
    """The end of a text, the beginning of the last message, or the last token ids."""
    if isinstance(prompt, str):
        return ending(prompt)
    said = contents(prompt)
    return beginning(said[-1]) if said else ending(str(prompt))


def beginning(text: str) -> str:
    """The first characters of a text."""
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"


def ending(text: str) -> str:
    """The last characters of a text."""
    return text if len(text) <= EXCERPT else "…" + text[-EXCERPT:]


def around(text: str, start: int, stop: int) -> str:
    """A place in a text with what is around it."""
    margin = max(0, EXCERPT - (stop - start)) // 2
    low, high = max(0, start - margin), min(len(text), stop + margin)
    return "…" * (low > 0) + text[low:high] + "…" * (high < len(text))


def _said(message: Message) -> str:
    content = message.get("content") or ""
    calls = message.get("tool_calls")
    return content + json.dumps(calls, ensure_ascii=False, default=str) if calls else content
