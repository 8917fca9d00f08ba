"""Token ids of preference pairs: exactly the tokenizer's, with one boundary for both completions."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from agiledpo.data.errors import PreferenceDataError
from agiledpo.data.formats import Form, check_row
from agiledpo.data.prefixes import common_prefix_length
from agiledpo.data.rendering import RenderedPair, render_chat, render_text

_UNLIMITED_TOKENS = 10**30


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """One row, ready to be batched.

    Attributes:
        prompt: Text of the prompt, as rendered for chat.
        chosen: Text of the chosen completion, as rendered for chat.
        rejected: Text of the rejected completion, as rendered for chat.
        prompt_ids: Tokens that both sides begin with, at least one.
        chosen_ids: Tokens of the chosen completion, ending its turn.
        rejected_ids: Tokens of the rejected completion, ending its turn.
    """

    prompt: str
    chosen: str
    rejected: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, form: Form) -> None:
    """Refuse a tokenizer that cannot end a sequence or, for chat, has no chat template.

    Raises:
        ValueError: See above.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-sequence token, so completions could not be ended. "
            'Set tokenizer.eos_token, for example tokenizer.eos_token = "</s>" if the model was trained with it.'
        )
    if form is Form.CHAT and not tokenizer.chat_template:
        raise ValueError(
            "The dataset holds chat messages but the tokenizer has no chat template. Set tokenizer.chat_template, "
            "use the tokenizer of the instruction-tuned model, or render the rows to text yourself."
        )


def isolated_copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Copy a tokenizer without its truncation and padding.

    Every call of a fast tokenizer rewrites the truncation and padding of its backend, which is the caller's.
    """
    tokenizer = copy.deepcopy(tokenizer)
    # The model's context is not our limit, and a warning per long row is not ours to give.
    tokenizer.model_max_length = _UNLIMITED_TOKENS
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def tokenize_pairs(
    columns: Mapping[str, Sequence[Any]],
    rows: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    *,
    name: str,
) -> list[TokenizedPair]:
    """Check and tokenise rows.

    The tokens of prompt and completion together are those of `tokenizer(prompt + completion)` for text and of the chat
    template for chat. The prompt is the longest token prefix common to the prompt alone and to both sides, so where a
    merge crosses the boundary the end of the prompt counts as the beginning of both completions. Text ends with exactly
    one end-of-sequence token; chat ends as the template ends it, and gets that token only if the template leaves the
    turn open.

    Args:
        columns: "prompt", "chosen" and "rejected", each with one value per row.
        rows: Row numbers, for messages.
        tokenizer: From `isolated_copy`; passed `check_tokenizer`.
        form: What the values are.
        name: The dataset's name, for messages.

    Raises:
        PreferenceDataError: A row cannot be learned from; the message names the first such row.
    """
    values = list(zip(rows, columns["prompt"], columns["chosen"], columns["rejected"], strict=True))
    for row, prompt, chosen, rejected in values:
        check_row(form, row, prompt, chosen, rejected, name=name)
    if form is Form.CHAT:
        rendered = [
            render_chat(prompt, chosen, rejected, tokenizer, row=row, name=name)
            for row, prompt, chosen, rejected in values
        ]
    else:
        rendered = [render_text(prompt, chosen, rejected) for _, prompt, chosen, rejected in values]
    # A template writes the special tokens itself.
    encode = partial(_encode, tokenizer=tokenizer, add_special_tokens=form is Form.TEXT)
    if form is Form.CHAT:
        closing = frozenset([*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids])
        end = partial(_end_chat, tokenizer=tokenizer, closing=closing)
    else:
        end = partial(_end_text, tokenizer=tokenizer)
    encoded = zip(
        rows,
        rendered,
        encode([pair.prompt for pair in rendered]),
        encode([pair.with_chosen for pair in rendered]),
        encode([pair.with_rejected for pair in rendered]),
        strict=True,
    )
    return [_assemble(*each, eos=tokenizer.eos_token_id, end=end, name=name) for each in encoded]


def _encode(texts: list[str], *, tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> list[list[int]]:
    encoding = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return encoding["input_ids"]


def _assemble(
    row: int,
    text: RenderedPair,
    prompt: list[int],
    with_chosen: list[int],
    with_rejected: list[int],
    *,
    eos: int,
    end: Callable[[list[int]], list[int]],
    name: str,
) -> TokenizedPair:
    boundary = common_prefix_length(prompt, with_chosen, with_rejected)
    if boundary == 0:
        raise PreferenceDataError(
            "no token is left for the prompt, so nothing predicts the first token of the completions",
            remedy="Give the row a prompt that the tokenizer keeps apart from the completions, "
            "or use a tokenizer that begins with a beginning-of-sequence token.",
            dataset=name,
            row=row,
        )
    completions: dict[str, list[int]] = {}
    for column, ids in (("chosen", with_chosen), ("rejected", with_rejected)):
        completion = ids[boundary:]
        if all(token == eos for token in completion):
            raise PreferenceDataError(
                "the completion has no tokens of its own",
                remedy="The tokenizer or the chat template drops its text: change the row or drop it.",
                dataset=name,
                row=row,
                column=column,
            )
        completions[column] = end(completion)
    if completions["chosen"] == completions["rejected"]:
        raise PreferenceDataError(
            "chosen and rejected differ as text but are the same tokens",
            remedy=f"Drop the row: dataset.filter(lambda row, index: index != {row}, with_indices=True).",
            dataset=name,
            row=row,
        )
    # For text this is the prompt as given; a template may write the assistant's header differently before an answer.
    shared = common_prefix_length(text.prompt, text.with_chosen, text.with_rejected)
    return TokenizedPair(
        prompt=text.prompt[:shared],
        chosen=text.with_chosen[shared:],
        rejected=text.with_rejected[shared:],
        prompt_ids=prompt[:boundary],
        chosen_ids=completions["chosen"],
        rejected_ids=completions["rejected"],
    )


def _end_text(completion: list[int], *, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """End with one end-of-sequence token, whether the tokenizer adds it, the text ends with it, both or neither."""
    end = len(completion)
    while end > 0 and completion[end - 1] == tokenizer.eos_token_id:
        end -= 1
    return [*completion[:end], tokenizer.eos_token_id]


def _end_chat(completion: list[int], *, tokenizer: PreTrainedTokenizerBase, closing: frozenset[int]) -> list[int]:
    """Leave the template's tokens alone unless the last one that is not whitespace is an ordinary word."""
    for token in reversed(completion):
        # Some vocabularies have added tokens that are runs of newlines: whitespace is looked at first.
        if str(tokenizer.decode([token], clean_up_tokenization_spaces=False)).strip():
            return completion if token in closing else [*completion, tokenizer.eos_token_id]
    return [*completion, tokenizer.eos_token_id]
