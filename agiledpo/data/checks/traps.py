"""Texts that training accepts and that are often not what is meant."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from agiledpo.data.checks.findings import Severity
from agiledpo.data.checks.texts import around, contents, ending
from agiledpo.data.examples import Example, Form

# A shorter prompt may well be quoted by its answer.
_LONG_ENOUGH_TO_BE_NO_ACCIDENT = 24
# Lines with which another turn begins, and tokens that only a chat template writes.
_MARKERS = re.compile(
    r"(?:^|\n\n)(?:Human|User|Assistant):"
    r"|<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|endoftext|user|assistant|system)\|>"
    r"|</?s>|<(?:start|end)_of_turn>|\[/?INST\]|### (?:Instruction|Response):"
)


@dataclass(frozen=True, slots=True)
class Trap:
    """A kind of text to look for.

    Attributes:
        check: Name, for programs.
        severity: What it means.
        problem: What is wrong where it is found.
        remedy: What to do.
        find: Returns an excerpt of it in an example, or None.
    """

    check: str
    severity: Severity
    problem: str
    remedy: str
    find: Callable[[Form, Example], str | None]


def _prompt_ends_with_space(form: Form, example: Example) -> str | None:
    if form is not Form.TEXT:
        return None
    prompt = cast(str, example.prompt)
    # A newline stays a token of its own; a space is joined to the word that follows.
    return ending(prompt) if prompt.endswith((" ", "\t")) else None


def _words_run_together(form: Form, example: Example) -> str | None:
    if form is not Form.TEXT:
        return None
    prompt = cast(str, example.prompt)
    if not prompt or prompt[-1].isspace():
        return None
    for completion in cast(tuple[str, ...], example.completions):
        if completion[:1].isalnum():
            return ending(prompt[-36:] + completion[:36])
    return None


def _completion_repeats_prompt(form: Form, example: Example) -> str | None:
    if form is not Form.TEXT:
        return None
    prompt = cast(str, example.prompt).strip()
    if len(prompt) < _LONG_ENOUGH_TO_BE_NO_ACCIDENT:
        return None
    for completion in cast(tuple[str, ...], example.completions):
        place = completion.find(prompt)
        if place >= 0:
            return around(completion, place, place + 1)
    return None


def _role_marker(form: Form, example: Example) -> str | None:
    texts = [text for completion in example.completions for text in contents(completion)]
    if form is Form.CHAT:  # a prompt that is text is expected to have them
        texts += contents(example.prompt)
    for text in texts:
        found = _MARKERS.search(text)
        if found:
            return around(text, *found.span())
    return None


def _cut_off_json(form: Form, example: Example) -> str | None:
    for completion in example.completions:
        for text in contents(completion):
            text = text.strip()
            if not re.match(r'\{\s*["}]|\[\s*[\[{"\d]', text):
                continue
            try:
                json.loads(text)
            except json.JSONDecodeError as error:
                # Wrong at its very end, or in a string that never ends: what is there is right, but not all of it.
                if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
                    return ending(text)
            except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
                continue
    return None


TRAPS: tuple[Trap, ...] = (
    Trap(
        "prompt_ends_with_space",
        Severity.WARNING,
        "the prompt ends with a space, which tokenizers join to the word that follows",
        "Move the space from the end of the prompt to the beginning of both completions.",
        _prompt_ends_with_space,
    ),
    Trap(
        "words_run_together",
        Severity.WARNING,
        "the prompt ends and the completion begins without whitespace, so that their words run together",
        "Begin the completions with a space or a newline; nothing is put between prompt and completion.",
        _words_run_together,
    ),
    Trap(
        "completion_repeats_prompt",
        Severity.WARNING,
        "a completion repeats the prompt, which it is put behind",
        "Take the prompt off the completions.",
        _completion_repeats_prompt,
    ),
    Trap(
        "role_marker",
        Severity.WARNING,
        "a text holds the marker of a turn, which the model would learn to write",
        "Cut completions before another turn begins, and leave markers of turns to the chat template.",
        _role_marker,
    ),
    Trap(
        "cut_off_json",
        Severity.WARNING,
        "a completion is JSON that ends in the middle",
        "Generate it again with a higher limit of tokens, or drop such rows.",
        _cut_off_json,
    ),
)
