"""Turn a checked row into the texts that are tokenised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from agiledpo.data.chat_template import REFUSALS, ChatTemplate
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Message
from agiledpo.data.layout import TOOLS
from agiledpo.data.messages import without_none
from agiledpo.data.rewriting import (
    REASONING_KEYS,
    explain_lost_completion,
    explain_rewritten_prompt,
    explain_uneven_header,
    ignored_message,
    ignored_tool,
)


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """The texts of one row.

    Attributes:
        prompt: What comes before the completions; for chat, up to and including the assistant's header.
        sequences: The prompt with each of its completions.
        contents: What each completion says, as far as that is known and text, without whitespace around it.
        endings: What the template writes behind that; None where its place is not known.
        lost_header: The end of the assistant's header, if the template leaves it away where an answer follows.
    """

    prompt: str
    sequences: tuple[str, ...]
    contents: tuple[str, ...]
    endings: tuple[str | None, ...]
    lost_header: str = ""


def render_text(example: Example) -> RenderedRow:
    """Concatenate; nothing is inserted between prompt and completion."""
    prompt, completions = cast(str, example.prompt), cast(tuple[str, ...], example.completions)
    return RenderedRow(
        prompt,
        sequences=tuple(prompt + completion for completion in completions),
        contents=tuple(completion.strip() for completion in completions),
        endings=("",) * len(completions),
    )


def chat_of(
    example: Example, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]
) -> tuple[ChatTemplate, list[Message], list[list[Message]]]:
    """The template as a row tells it, and the messages of its prompt and of its completions without keys of None."""
    template = ChatTemplate(tokenizer, example.tools, {**template_kwargs, **(example.chat_template_kwargs or {})})
    prompt = without_none(cast(list[Message], example.prompt))
    return template, prompt, [without_none(each) for each in cast(tuple[list[Message], ...], example.completions)]


def render_chat(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any],
    *,
    row: int,
    sources: Sequence[str],
    name: str,
) -> RenderedRow:
    """Render messages with the tokenizer's chat template.

    Args:
        example: Checked messages.
        tokenizer: A tokenizer that has a chat template.
        template_kwargs: What the template is told for all rows; a row's own win.
        row: Row number, for messages.
        sources: Column of each completion, for messages.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: A completion holds a tool's result; or the template refuses the messages; renders the prompt
            differently once a completion follows it, so that there is no common prompt to score the completions after;
            or drops a message, a tool or part of an answer, so that something else would be learned than the row says.
    """
    error = partial(DatasetError, dataset=name, row=row)
    template, prompt, completions = chat_of(example, tokenizer, template_kwargs)
    for column, completion in zip(sources, completions, strict=True):
        # All of a completion is scored.
        if any(message["role"] == "tool" for message in completion):
            raise error(
                "the completion holds a message of role 'tool', which would be learned as the model's own words",
                remedy="Move the earlier turns to prompt and keep only the last answer as the completion, or drop such "
                "rows.",
                column=column,
            )
    try:
        rendered = template.render(prompt, completions)
    except REFUSALS as refusal:
        raise error(
            f"the chat template refuses the messages ({refusal})",
            remedy="Change the messages with dataset.map, or set tokenizer.chat_template to one that takes them.",
        ) from refusal
    if not rendered.keeps_prompt:
        problem, remedy = explain_rewritten_prompt(template, rendered, prompt, completions)
        raise error(problem, remedy=remedy)
    number = ignored_message(prompt, rendered.prompt)
    if number is not None:
        raise error(
            f"the chat template does not write message {number} (role {prompt[number]['role']!r}) of the prompt",
            remedy="Remove the message with dataset.map, write its text into another one, or set "
            "tokenizer.chat_template to one that writes it.",
        )
    ignored = ignored_tool(template, prompt, rendered)
    if ignored is not None:
        raise error(
            f"the chat template does not tell the model of the tool {ignored!r}",
            remedy=f"Set tokenizer.chat_template to one that writes tools, or drop them: "
            f"dataset.remove_columns({TOOLS!r}).",
            column=TOOLS,
        )
    for column, completion, sequence in zip(sources, completions, rendered.sequences, strict=True):
        lost = explain_lost_completion(template, rendered, sequence, prompt, completion)
        if lost is not None:
            problem, remedy = lost
            raise error(problem, remedy=remedy, column=column)
    lost_header = rendered.lost_header
    if lost_header:
        uneven = explain_uneven_header(template, rendered, prompt, sources)
        if uneven is not None:
            problem, remedy = uneven
            raise error(problem, remedy=remedy)
    contents = tuple(map(_said, completions))
    endings = tuple(
        _behind(content, sequence, start)
        for content, sequence, start in zip(contents, rendered.sequences, rendered.kept_of_prompt, strict=True)
    )
    return RenderedRow(rendered.prompt, rendered.sequences, contents, endings, lost_header)


def _said(completion: Sequence[Message]) -> str:
    """The content of a completion of one message that is nothing else."""
    message = completion[0]
    content = message.get("content")
    if len(completion) > 1 or message.get("tool_calls") or any(message.get(key) for key in REASONING_KEYS):
        return ""
    return content.strip() if isinstance(content, str) else ""


def _behind(content: str, sequence: str, start: int) -> str | None:
    place = sequence.find(content, start) if content else -1
    return None if place < 0 else sequence[place + len(content) :]
