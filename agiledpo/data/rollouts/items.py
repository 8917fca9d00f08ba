"""Items of the Responses API, as NeMo Gym stores them, as chat messages.

The messages are those of the chat templates: `role`, `content` (a text), `reasoning_content`, `tool_calls`,
`tool_call_id`. Everything that has a place there is kept, arguments of calls as the very text that the model wrote;
identifiers and states of items are not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agiledpo.data.messages import ROLES
from agiledpo.data.rollouts.errors import UnusableRolloutError

Message = dict[str, Any]

_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def prompt_messages(value: Any, *, field: str) -> list[Message]:
    """The messages that a request's `input` stands for.

    Args:
        value: A text, which is one user message, or a list of items.
        field: Its name, for messages.

    Raises:
        UnusableRolloutError: It is empty, an item is malformed or no text, or the last one leaves nothing to answer.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise _unusable(field, f"expected a text or a list of messages, got {_kind(value)}", "Write the prompt there.")
    messages: list[Message] = []
    reasoning = ""
    for number, item in enumerate(value):
        where = f"{field}[{number}]"
        kind = item_type(item, field=where, reason="input")
        if kind == "message":
            messages.append(message_of(item, field=where, reason="input"))
        elif kind == "reasoning":
            reasoning += reasoning_text(item, field=where, reason="input")
            continue
        elif kind == "function_call":
            call = {"id": item.get("call_id"), "type": "function", "function": _function(item, where)}
            # What is called at once is one message, as it is said at once.
            if not (messages and messages[-1]["role"] == "assistant"):
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            content = text_of(item.get("output"), field=f"{where}.output", reason="input")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        else:
            raise _unusable(
                where, f"the type {kind!r} has no chat message", "Leave such rollouts out: on_invalid='skip'."
            )
        if reasoning and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = reasoning
        reasoning = ""
    if not messages:
        raise _unusable(field, "it is empty", "Write the prompt there.")
    if messages[-1]["role"] not in ("user", "tool"):
        raise _unusable(
            field,
            f"it ends with a message of role {messages[-1]['role']!r}",
            "End the prompt with the user's turn or a tool's result; what answers it belongs in the output.",
        )
    return messages


def chat_tools(tools: Any, *, field: str) -> list[dict[str, Any]]:
    """A request's tools as chat templates take them, with name, description and parameters under "function".

    Raises:
        UnusableRolloutError: It is not a list of objects.
    """
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnusableRolloutError(
            "tools", field, f"expected a list of tools, got {_kind(tools)}", "Write one object per tool."
        )
    return [
        {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
        if tool.get("type") == "function" and "function" not in tool
        else tool
        for tool in tools
    ]


def item_type(item: Any, *, field: str, reason: str) -> str:
    """Type of an item; one without a type but with a role is a message.

    Raises:
        UnusableRolloutError: It is not an object, or has neither.
    """
    if not isinstance(item, dict):
        raise UnusableRolloutError(reason, field, f"expected an item, got {_kind(item)}", "Write it as an object.")
    kind = item.get("type")
    if kind is None and "role" in item:
        return "message"
    if not isinstance(kind, str):
        raise UnusableRolloutError(
            reason, f"{field}.type", f"expected the item's type, got {_kind(kind)}", 'Write "message" there.'
        )
    return kind


def message_of(item: Mapping[str, Any], *, field: str, reason: str) -> Message:
    """One item of type message, with its text in one piece.

    Raises:
        UnusableRolloutError: Its role is unknown, or its content is not text.
    """
    role = item.get("role", "assistant" if reason == "output" else None)
    if role not in ROLES:
        raise UnusableRolloutError(reason, f"{field}.role", f"unknown role {role!r}", f"Use one of {', '.join(ROLES)}.")
    content = item.get("content")
    calls = item.get("tool_calls")
    if content is None and calls:
        content = ""
    message: Message = {"role": role, "content": text_of(content, field=f"{field}.content", reason=reason)}
    for key in ("reasoning_content", "tool_calls", "tool_call_id", "name"):
        if item.get(key):
            message[key] = item[key]
    return message


def reasoning_text(item: Mapping[str, Any], *, field: str, reason: str) -> str:
    """Text of an item of type reasoning: its content, or else its summary, or "" where the model kept it to itself."""
    for key in ("content", "summary"):
        if item.get(key):
            return text_of(item[key], field=f"{field}.{key}", reason=reason)
    return ""


def text_of(content: Any, *, field: str, reason: str) -> str:
    """A text, or the texts of all parts, in one piece.

    Raises:
        UnusableRolloutError: It is neither, or a part is something else than text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UnusableRolloutError(
            reason, field, f"expected a text or a list of its parts, got {_kind(content)}", "Write the text there."
        )
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else _kind(part)
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in (*_TEXT_PARTS, "refusal") or not isinstance(text, str):
            raise UnusableRolloutError(
                reason,
                f"{field}[{number}]",
                f"the part ({kind}) holds no text",
                "Only text can be trained on: leave such rollouts out with on_invalid='skip'.",
            )
        texts.append(text)
    return "".join(texts)


def _function(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    for key, value in function.items():
        if not isinstance(value, str):
            raise _unusable(f"{where}.{key}", f"expected a text, got {_kind(value)}", "Write the call in full.")
    return function


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _unusable(field: str, problem: str, remedy: str) -> UnusableRolloutError:
    return UnusableRolloutError("input", field, problem, remedy)
