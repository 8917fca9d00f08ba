"""What a chat template may be told beside the messages, for all rows of a dataset."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from agiledpo.data.examples import Form

# The variable by which real templates are told a date.
PINNED_DATE = "date_string"
# What `apply_chat_template` itself takes, and what it gives to the template.
RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


def reserved_names(names: Mapping[str, Any]) -> list[str]:
    """Those of the names that are not the template's to be told."""
    return sorted(RESERVED & set(names))


def check_template_kwargs(value: Any, tokenizer: PreTrainedTokenizerBase, form: Form) -> dict[str, Any]:
    """The variables of a chat template, as JSON would give them back.

    Args:
        value: Values by name; None for none.
        tokenizer: Passed `check_tokenizer`.
        form: How the rows are written.

    Raises:
        TypeError: It is not a mapping with text keys, or JSON cannot hold it.
        ValueError: A name is reserved, the template does not have it, or there are no chat messages to render.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(
            f"chat_template_kwargs must be a dictionary of the template's variables by name, or None, got {value!r}."
        )
    reserved = reserved_names(value)
    if reserved:
        raise ValueError(
            f"chat_template_kwargs has {reserved}, which rendering sets itself. Leave them out: tools come from a "
            "column 'tools', a template is set with tokenizer.chat_template."
        )
    try:
        # The name of the cached tokens is made of the JSON: the template shall see what it says.
        kwargs: dict[str, Any] = json.loads(json.dumps(dict(value), sort_keys=True))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"chat_template_kwargs must hold what JSON can, got {value!r} ({error}). The tokens are cached under a "
            "name that it is part of."
        ) from error
    if kwargs and form is not Form.CHAT:
        raise ValueError(
            f"chat_template_kwargs={kwargs!r} has no effect: the rows are {form}, not chat messages. Leave it out."
        )
    unknown = [name for name in kwargs if not mentions(tokenizer, name)]
    if unknown:
        raise ValueError(
            f"chat_template_kwargs has {unknown}, which the tokenizer's chat template never mentions. "
            "Correct the name, or leave it out."
        )
    return kwargs


def written_date(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> str | None:
    """Today's date, such as "2026-11-21", if the chat template may write it; None if not, or if it is told another."""
    if not mentions(tokenizer, "strftime_now") or (PINNED_DATE in template_kwargs and mentions(tokenizer, PINNED_DATE)):
        return None
    return datetime.now().date().isoformat()


def mentions(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """Whether a name occurs in the chat template, or in one of several."""
    templates = tokenizer.chat_template
    texts = templates.values() if isinstance(templates, dict) else [templates or ""]
    return any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts)
