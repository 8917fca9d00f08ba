"""A prompt with its completions, as a chat template writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError, TemplateRuntimeError
from transformers import PreTrainedTokenizerBase

from agiledpo.data.examples import Message
from agiledpo.data.prefixes import common_prefix_length

# What a template raises that cannot take the messages; TypeError: it adds text to what is not text.
REFUSALS = (TemplateError, TypeError)


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A prompt with its completions.

    Attributes:
        dialogue: The prompt without the assistant's header, and without text that is written only after a last turn.
        prompt: The prompt with the header, or with the answer that it begins itself.
        sequences: The prompt with each of its completions.
    """

    dialogue: str
    prompt: str
    sequences: tuple[str, ...]

    @property
    def keeps_prompt(self) -> bool:
        """Whether all sequences begin with the dialogue."""
        return all(sequence.startswith(self.dialogue) for sequence in self.sequences)

    @property
    def kept_of_prompt(self) -> tuple[int, ...]:
        """How many characters of the prompt each sequence begins with; all if only whitespace of the header differs."""
        places = (common_prefix_length(self.prompt, sequence) for sequence in self.sequences)
        return tuple(place if self.prompt[place:].strip() else len(self.prompt) for place in places)

    @property
    def lost_header(self) -> str:
        """The end of the prompt that a sequence does not begin with; empty if all begin with all of it."""
        return self.prompt[min(self.kept_of_prompt, default=len(self.prompt)) :]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A tokenizer's chat template with what it is told beside the messages.

    Attributes:
        tokenizer: Has a chat template.
        tools: JSON schemas of functions, or None.
        kwargs: Further variables by name.
    """

    tokenizer: PreTrainedTokenizerBase
    tools: list[dict[str, Any]] | None
    kwargs: Mapping[str, Any]

    def told(self, **kwargs: Any) -> "ChatTemplate":
        """The same template, told more."""
        return replace(self, kwargs={**self.kwargs, **kwargs})

    def told_tools(self, tools: list[dict[str, Any]] | None) -> "ChatTemplate":
        """The same template with other tools."""
        return replace(self, tools=tools)

    def render(self, prompt: list[Message], completions: Sequence[list[Message]]) -> RenderedChat:
        """Render messages.

        Args:
            prompt: Messages without keys that are None. Where the last is the assistant's, an answer goes on from it.
            completions: Messages that follow them.

        Raises:
            jinja2.TemplateError: The template refuses the messages.
            TypeError: It cannot make text of them.
        """
        without_header = self._text(prompt)
        begun = prompt[-1]["role"] == "assistant"
        with_header = self._begun(prompt) if begun else self._text(prompt, add_generation_prompt=True)
        return RenderedChat(
            dialogue=with_header[: common_prefix_length(without_header, with_header)],
            prompt=with_header,
            sequences=tuple(self._text(prompt + completion) for completion in completions),
        )

    def _begun(self, messages: list[Message]) -> str:
        """The messages without what ends the last one."""
        try:
            return self._text(messages, continue_final_message=True)
        except ValueError as error:
            raise TemplateRuntimeError(f"it cannot go on from the last message: {error}") from error

    def _text(self, messages: list[Message], **options: Any) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tools=None if self.tools is None else [*self.tools],
                tokenize=False,
                **options,
                **self.kwargs,
            )
        )
