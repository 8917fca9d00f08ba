"""Check chat messages."""

import json
from typing import Any

from agiledpo.data.errors import DatasetError
from agiledpo.data.extras import pruned

ROLES = ("system", "developer", "user", "assistant", "tool")
# What a completion is made of: the model's words, and what its tools said to it.
ANSWERING_ROLES = ("assistant", "tool")


def without_none(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copy messages without the keys that are None, at any depth, and with tool calls as lists.

    Arrow gives every message of a column the keys of all of them, and every tool call the arguments of all of them;
    templates expect absent keys to be absent. What is None in tool calls that are JSON text was written so, and stays;
    a second time it would go, so layouts leave messages as they are.

    Args:
        messages: Passed `check_messages`.
    """
    return [
        {key: _tool_calls(value) if key == "tool_calls" else pruned(value) for key, value in present.items()}
        for present in ({key: value for key, value in message.items() if value is not None} for message in messages)
    ]


def _tool_calls(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else pruned(value)


def split_dialogue(messages: Any, *, row: int, column: str, name: str) -> tuple[list[Any], list[Any]]:
    """Divide a dialogue into the prompt and the completion, which is its last message.

    Raises:
        DatasetError: A message is malformed, or the last one is not the assistant's; names the row and column.
    """
    check_messages(messages, row=row, column=column, name=name)
    last = messages[-1]["role"]
    if last != "assistant":
        raise _error(
            f"the dialogue ends with a message of role {last!r}",
            "End it with the assistant's answer, which is what is learned, or drop such rows.",
            row,
            column,
            name,
        )
    if len(messages) == 1:
        raise _error(
            "the dialogue holds nothing but the answer",
            "Put the user's turn before it, or drop such rows.",
            row,
            column,
            name,
        )
    return messages[:-1], messages[-1:]


def check_prompt_messages(messages: Any, *, row: int, column: str, name: str, may_begin_answer: bool = False) -> None:
    """Refuse a chat prompt that is malformed or that does not end with a turn to be answered.

    Args:
        messages: The value.
        row: Row number, for messages.
        column: Its column, for messages.
        name: The dataset's name, for messages.
        may_begin_answer: The last message may also be the beginning of the answer.

    Raises:
        DatasetError: See above; names the row and column.
    """
    check_messages(messages, row=row, column=column, name=name)
    last = messages[-1]["role"]
    if may_begin_answer and last == "assistant":
        asked = len(messages) > 1 and messages[-2]["role"] in ("user", "tool")
        if not asked or messages[-1].get("tool_calls") or not _says_something(messages[-1]):
            problem = "not with text" if asked else "no user's turn is before it"
            raise _error(
                f"the last message of the prompt begins the answer, but {problem}",
                "Write there what every answer begins with, or end the prompt with the user's turn.",
                row,
                column,
                name,
            )
    elif last not in ("user", "tool"):
        raise _error(
            f"the prompt ends with a message of role {last!r}",
            "End it with the user's turn (or a tool's result); what is to be learned or compared is the completion.",
            row,
            column,
            name,
        )


def check_completion_messages(messages: Any, *, row: int, column: str, name: str) -> None:
    """Refuse a chat completion that is malformed, says nothing, or holds more than the assistant's side.

    Calls of tools with their results may be in it, a user's turn may not.

    Raises:
        DatasetError: See above; names the row and column.
    """
    check_messages(messages, row=row, column=column, name=name)
    first = messages[0]["role"]
    if first != "assistant":
        raise _error(
            f"the completion begins with a message of role {first!r}",
            "Keep the dialogue so far in prompt only; a completion begins with the assistant's answer.",
            row,
            column,
            name,
        )
    for message in messages:
        if message["role"] not in ANSWERING_ROLES:
            raise _error(
                f"the completion holds a message of role {message['role']!r}",
                "Move the earlier turns to prompt and keep only the last answer as the completion, or drop such rows.",
                row,
                column,
                name,
            )
        if message["role"] == "assistant" and not _says_something(message):
            raise _error(
                "the completion is empty or only whitespace",
                f"Give it content, or drop such rows: "
                f'dataset.filter(lambda row: row["{column}"][-1]["content"].strip()).',
                row,
                column,
                name,
            )


def check_messages(messages: Any, *, row: int, column: str, name: str) -> None:
    """Refuse what is not a list of chat messages.

    Raises:
        DatasetError: See above; names the row and column.
    """
    if not isinstance(messages, list):
        raise _error(
            f"expected a list of chat messages, got {type(messages).__name__}",
            "Write it as [{'role': ..., 'content': ...}].",
            row,
            column,
            name,
        )
    if not messages:
        raise _error("the list of messages is empty", "Fill it in, or drop such rows.", row, column, name)
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _error(
                f"message {number} is {type(message).__name__}, not a dict",
                "Write it as {'role': ..., 'content': ...}.",
                row,
                column,
                name,
            )
        role = message.get("role")
        if role is None:
            keys = ", ".join(repr(key) for key, value in message.items() if value is not None)
            raise _error(
                f"message {number} has no role; it has {keys or 'nothing'}",
                "Write it as {'role': ..., 'content': ...}; rename other keys with dataset.map.",
                row,
                column,
                name,
            )
        if role not in ROLES:
            raise _error(
                f"message {number} has the unknown role {role!r}",
                f"Use one of {', '.join(ROLES)}; rename others with dataset.map.",
                row,
                column,
                name,
            )
        content, calls = message.get("content"), message.get("tool_calls")
        if calls is not None:
            _check_tool_calls(calls, number, row, column, name)
        if content is None and calls is not None and _tool_calls(calls):
            continue
        if content is None:
            raise _error(
                f"message {number} (role {role!r}) has no content",
                "Give every message a text under 'content' (only a message with tool_calls may lack it).",
                row,
                column,
                name,
            )
        if not isinstance(content, str):
            raise _error(
                f"the content of message {number} is {type(content).__name__}, not text",
                "Only text can be trained on: join its text parts into one string.",
                row,
                column,
                name,
            )


def _check_tool_calls(value: Any, number: int, row: int, column: str, name: str) -> None:
    try:
        calls = _tool_calls(value)
    except (ValueError, RecursionError) as error:  # the latter of lists in lists in lists
        problem = f"the tool_calls of message {number} are text that cannot be read as JSON ({error})"
    else:
        if isinstance(calls, list) and all(isinstance(call, dict) for call in calls):
            return
        problem = f"the tool_calls of message {number} are not a list of mappings"
    raise _error(problem, "Write a list of calls, as JSON text or as it is.", row, column, name)


def _says_something(message: dict[str, Any]) -> bool:
    return bool((message.get("content") or "").strip() or _tool_calls(message.get("tool_calls")))


def _error(problem: str, remedy: str, row: int, column: str, name: str) -> DatasetError:
    return DatasetError(problem, remedy=remedy, dataset=name, row=row, column=column)
