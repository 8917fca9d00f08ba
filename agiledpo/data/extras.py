"""What a row tells the chat template beside its messages."""

import json
from typing import Any

from agiledpo.data.errors import DatasetError
from agiledpo.data.layout import TEMPLATE_KWARGS, TOOLS
from agiledpo.data.template_kwargs import reserved_names


def read_tools(value: Any, *, row: int, name: str) -> list[dict[str, Any]] | None:
    """The JSON schemas of the tools of a row.

    Args:
        value: A list of schemas, or the JSON of one, or a list of the JSON of each; None or nothing for no tools.
        row: Row number, for the message.
        name: The dataset's name, for the message.

    Raises:
        DatasetError: It is something else.
    """
    value = _parsed(pruned(value), TOOLS, row, name)  # in JSON text a null is meant
    if value is None:
        return None
    if not isinstance(value, list):
        raise _error(f"expected a list of tools, got {type(value).__name__}", TOOLS, row, name)
    tools = [_parsed(tool, TOOLS, row, name) for tool in value]
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise _error(f"tool {number} is {type(tool).__name__}, not a JSON schema", TOOLS, row, name)
    return tools or None


def read_template_kwargs(value: Any, *, row: int, name: str) -> dict[str, Any] | None:
    """What the chat template is told for a row, such as ``{"enable_thinking": False}``.

    Args:
        value: A mapping or its JSON; None or nothing for none.
        row: Row number, for the message.
        name: The dataset's name, for the message.

    Raises:
        DatasetError: It is something else, or has a name that is not the template's.
    """
    value = _parsed(value, TEMPLATE_KWARGS, row, name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _error(f"expected a mapping, got {type(value).__name__}", TEMPLATE_KWARGS, row, name)
    told = {key: item for key, item in value.items() if item is not None}
    reserved = reserved_names(told)
    if reserved:
        raise _error(f"{reserved} is what rendering sets itself", TEMPLATE_KWARGS, row, name)
    return told or None


def pruned(value: Any) -> Any:
    """A copy without the keys that are None, at any depth.

    Arrow gives every mapping of a column the keys of all of them; a JSON schema means something else with them.
    """
    if isinstance(value, dict):
        return {key: pruned(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [pruned(item) for item in value]
    return value


def _parsed(value: Any, column: str, row: int, name: str) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:  # the latter of lists in lists in lists
        raise _error(f"the text cannot be read as JSON ({error})", column, row, name) from error


def _error(problem: str, column: str, row: int, name: str) -> DatasetError:
    what = "a list of JSON schemas" if column == TOOLS else "a mapping of the template's variables"
    return DatasetError(
        problem,
        remedy=f"Write {what}, as JSON text or as it is; or drop the column: dataset.remove_columns({column!r}).",
        dataset=name,
        row=row,
        column=column,
    )
