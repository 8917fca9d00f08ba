"""Dialogues written as one text, as HH-RLHF has them."""

import re

from agiledpo.data.examples import Message

_ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"\n\n(Human|Assistant):")


def parse_transcript(text: str) -> list[Message]:
    r"""Take a transcript apart into messages.

    A turn begins with an empty line and ``Human:`` or ``Assistant:`` and a space, which are not part of what is said.

    Args:
        text: ``"\n\nHuman: ...\n\nAssistant: ..."``; the empty line before the first turn may be missing.

    Returns:
        The messages, roles ``user`` and ``assistant``; the content of an empty turn is empty.

    Raises:
        ValueError: The text does not begin with a turn.
    """
    before, *turns = _TURN.split("\n\n" + text.lstrip())
    if before or not turns:
        raise ValueError("the text does not begin with 'Human:' or 'Assistant:'")
    return [
        {"role": _ROLES[speaker], "content": said.removeprefix(" ")}
        for speaker, said in zip(turns[::2], turns[1::2], strict=True)
    ]
