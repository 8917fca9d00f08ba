"""Turn a checked row into the three texts that are tokenised."""

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from agiledpo.data.errors import PreferenceDataError
from agiledpo.data.messages import without_none
from agiledpo.data.prefixes import common_prefix_length


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """The texts of one row.

    Attributes:
        prompt: What comes before the completion; for chat, up to and including the assistant's header.
        with_chosen: Prompt and chosen completion.
        with_rejected: Prompt and rejected completion.
    """

    prompt: str
    with_chosen: str
    with_rejected: str


def render_text(prompt: str, chosen: str, rejected: str) -> RenderedPair:
    """Concatenate; nothing is inserted between prompt and completion."""
    return RenderedPair(prompt, prompt + chosen, prompt + rejected)


def render_chat(
    prompt: list[dict[str, Any]],
    chosen: list[dict[str, Any]],
    rejected: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    row: int,
    name: str,
) -> RenderedPair:
    """Render messages with the tokenizer's chat template.

    Args:
        prompt: Checked messages, ending with the turn to be answered.
        chosen: Checked messages of the chosen completion.
        rejected: Checked messages of the rejected completion.
        tokenizer: A tokenizer that has a chat template.
        row: Row number, for messages.
        name: The dataset's name, for messages.

    Raises:
        PreferenceDataError: The template refuses the messages, or renders the prompt differently once a completion
            follows it, so that there is no common prompt to score the completions after.
    """
    prompt = without_none(prompt)
    conversations = [prompt, prompt, prompt + without_none(chosen), prompt + without_none(rejected)]
    rendered: list[str] = []
    for conversation, add_generation_prompt in zip(conversations, (False, True, False, False), strict=True):
        try:
            text = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except (TemplateError, TypeError) as error:  # TypeError: a template that adds text to what is not text
            raise PreferenceDataError(
                f"the chat template refuses the messages ({error})",
                remedy="Change the messages with dataset.map, or set tokenizer.chat_template to one that takes them.",
                dataset=name,
                row=row,
            ) from error
        rendered.append(str(text))
    without_header, with_header, with_chosen, with_rejected = rendered
    # Text a template writes only after a last user turn is not part of the prompt and need not be shared.
    dialogue = with_header[: common_prefix_length(without_header, with_header)]
    if not (with_chosen.startswith(dialogue) and with_rejected.startswith(dialogue)):
        raise PreferenceDataError(
            "the chat template renders the prompt differently once a completion follows it",
            remedy="Set tokenizer.chat_template to one that leaves earlier turns as they are, "
            "or render the rows to text yourself.",
            dataset=name,
            row=row,
        )
    return RenderedPair(with_header, with_chosen, with_rejected)
