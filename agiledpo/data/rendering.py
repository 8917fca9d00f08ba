"""Turn a checked row into the texts that are tokenised."""

from dataclasses import dataclass
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Message
from agiledpo.data.messages import without_none
from agiledpo.data.prefixes import common_prefix_length


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """The texts of one row.

    Attributes:
        prompt: What comes before the completions; for chat, up to and including the assistant's header.
        sequences: The prompt with each of its completions.
    """

    prompt: str
    sequences: tuple[str, ...]


def render_text(example: Example) -> RenderedRow:
    """Concatenate; nothing is inserted between prompt and completion."""
    prompt, completions = cast(str, example.prompt), cast(tuple[str, ...], example.completions)
    return RenderedRow(prompt, tuple(prompt + completion for completion in completions))


def render_chat(example: Example, tokenizer: PreTrainedTokenizerBase, *, row: int, name: str) -> RenderedRow:
    """Render messages with the tokenizer's chat template.

    Args:
        example: Checked messages.
        tokenizer: A tokenizer that has a chat template.
        row: Row number, for messages.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: The template refuses the messages, or renders the prompt differently once a completion
            follows it, so that there is no common prompt to score the completions after.
    """
    prompt = without_none(cast(list[Message], example.prompt))
    completions = cast(tuple[list[Message], ...], example.completions)
    conversations = [(prompt, False), (prompt, True)]
    conversations += [(prompt + without_none(completion), False) for completion in completions]
    rendered: list[str] = []
    for conversation, add_generation_prompt in conversations:
        try:
            text = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except (TemplateError, TypeError) as error:  # TypeError: a template that adds text to what is not text
            raise DatasetError(
                f"the chat template refuses the messages ({error})",
                remedy="Change the messages with dataset.map, or set tokenizer.chat_template to one that takes them.",
                dataset=name,
                row=row,
            ) from error
        rendered.append(str(text))
    without_header, with_header, *sequences = rendered
    # Text a template writes only after a last user turn is not part of the prompt and need not be shared.
    dialogue = with_header[: common_prefix_length(without_header, with_header)]
    if not all(sequence.startswith(dialogue) for sequence in sequences):
        raise DatasetError(
            "the chat template renders the prompt differently once a completion follows it",
            remedy="Set tokenizer.chat_template to one that leaves earlier turns as they are, "
            "or render the rows to text yourself.",
            dataset=name,
            row=row,
        )
    return RenderedRow(with_header, tuple(sequences))
