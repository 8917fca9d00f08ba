"""Write a dataset in another format, without losing anything."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast, get_args

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Json, LargeList, List, Value

from agiledpo.data.checking import check_dataset
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Form, Message, Turns
from agiledpo.data.extras import read_template_kwargs, read_tools
from agiledpo.data.layout import TEMPLATE_KWARGS, TOOLS, Layout
from agiledpo.data.messages import without_none
from agiledpo.data.pairs import ImplicitPairs
from agiledpo.data.recognition import recognise_preferences

Format = Literal["pairs", "text", "implicit", "ranked", "demonstrations"]
FORMATS: tuple[str, ...] = get_args(Format)

# Which row a pair is of, to count the rows that have none.
_ROW = "_row"
_STRICT = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def convert(
    dataset: Dataset,
    to: Format,
    *,
    layout: Layout | None = None,
    name: str = "given",
    num_proc: int | None = None,
) -> Dataset:
    """Write the preferences of a dataset in another format.

    Every row is read, and checked, as it is for training. What a text prompt and its completions are as chat is a
    user's message and an assistant's; only such chat can become text. Where the completions of a row begin with the
    same calls of tools, their common dialogues ("implicit") no longer tell where the prompt ended: it then ends behind
    those calls. The dialogues, and the DPO loss, in which what both sides share cancels, stay the same.

    Rows without a preference are left out. A row of more than two ranked completions becomes a row for each of its
    pairs. Columns that are not read travel as they are. `tools` and `chat_template_kwargs` travel as JSON text, and so
    do the `tool_calls` of messages: Arrow would give every call the arguments of all, and lose their types and digits.

    Args:
        dataset: Rows in a format of preferences; see `recognise_preferences`. Its rows are not held in memory.
        to: "pairs": prompt, chosen and rejected as chat messages. "text": the same as text. "implicit": chosen and
            rejected as whole dialogues. "ranked": context and completions, ranked 0 (chosen) and 1.
            "demonstrations": prompt and completion, which is the chosen one; text stays text.
        layout: Where the parts of a row are; None recognises it by the columns.
        name: What messages call the dataset.
        num_proc: Processes to convert with; None works in this one.

    Raises:
        DatasetError: A row cannot be learned from, or cannot be written in the format; no row has a preference; or a
            column that is not read is in the way.
        ValueError: There is no such format, or the layout's rows are not preferences.

    Warns:
        UserWarning: Rows without a preference were left out.
    """
    if to not in FORMATS:
        raise ValueError(f"to must be one of {', '.join(map(repr, FORMATS))}, got {to!r}.")
    dataset = check_dataset(dataset, name=name)
    layout = recognise_preferences(dataset, name=name) if layout is None else layout
    if not layout.completions or (len(layout.completions) != 2 and to != "demonstrations"):
        raise ValueError(f"layout must be of preferences to be converted to {to!r}, got {layout!r}.")
    form = layout.form(dataset, name=name)
    if form is Form.TOKENS:
        raise DatasetError(
            "token ids cannot be written in another format",
            remedy="Convert the texts that they were made of.",
            dataset=name,
        )
    read = layout.present(dataset)
    features = _features(dataset, layout, form, to)
    kept = {column: feature for column, feature in dataset.features.items() if column not in read}
    for column in kept:
        if column in features:
            raise DatasetError(
                f"the column {column!r} is not read, and one of that name is to be written",
                remedy=f"Rename or remove it: dataset.remove_columns({column!r}).",
                dataset=name,
            )
    features |= kept
    converted = dataset.map(
        _convert_batch,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(features | {_ROW: Value("int64")}),
        fn_kwargs={"features": features, "layout": layout, "form": form, "to": to, "kept": list(kept), "name": name},
        num_proc=num_proc,
        desc=f"Converting {name} dataset",
    )
    found = pc.count_distinct(converted.data.column(_ROW)).as_py()
    if found == 0:
        raise DatasetError(
            f"none of its {len(dataset)} rows has a preference",
            remedy="Give completions that differ in quality different ranks.",
            dataset=name,
        )
    if found < len(dataset):
        warnings.warn(
            f"{len(dataset) - found} of {len(dataset)} rows were left out of the {name} dataset: "
            "no preference between the completions.",
            UserWarning,
            stacklevel=2,
        )
    return converted.remove_columns(_ROW)


def json_lines(dataset: Dataset, *, name: str) -> Iterator[str]:
    """The rows of a dataset as lines of JSON, without their line breaks.

    Args:
        dataset: The rows.
        name: What messages call the dataset.

    Raises:
        DatasetError: JSON cannot hold a column, which is said before the first line, or a number that is not finite.
    """
    for field in dataset.features.arrow_schema:
        unknown = _no_json(field.type)
        if unknown is not None:
            raise DatasetError(
                f"the column holds values of type {unknown}, which JSON cannot hold",
                remedy=f"Make them text, or drop the column: dataset.remove_columns({field.name!r}).",
                dataset=name,
                column=field.name,
            )
    return map(partial(_json_line, name=name), dataset)


def _json_line(row: Any, *, name: str) -> str:
    try:
        return _STRICT.encode(row)
    except ValueError as error:
        for column, value in row.items():
            try:
                _STRICT.encode(value)
            except ValueError:
                raise DatasetError(
                    f"a number is not finite, and JSON has no such numbers: {json.dumps(value)}",
                    remedy=f"Replace it by None, or drop the column: dataset.remove_columns({column!r}).",
                    dataset=name,
                    column=column,
                ) from error
        raise


def _no_json(found: pa.DataType) -> pa.DataType | None:
    """The part of a type that JSON cannot hold, if there is one."""
    if isinstance(found, pa.BaseExtensionType):
        return None if Json().pa_type == found else found
    if pa.types.is_struct(found):
        return next((part for field in found if (part := _no_json(field.type)) is not None), None)
    if pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found):
        return _no_json(found.value_type)
    if pa.types.is_dictionary(found):
        return _no_json(found.value_type)
    simple = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string)
    others = (pa.types.is_large_string, pa.types.is_string_view)
    return None if any(is_one(found) for is_one in (*simple, *others)) else found


def _convert_batch(
    batch: Mapping[str, list[Any]],
    rows: Sequence[int],
    *,
    features: Mapping[str, Any],
    layout: Layout,
    form: Form,
    to: Format,
    kept: Sequence[str],
    name: str,
) -> dict[str, list[Any]]:
    converted: dict[str, list[Any]] = {column: [] for column in (*features, _ROW)}
    for place, row in enumerate(rows):
        values = {column: batch[column][place] for column in batch}
        extras: dict[str, Any] = {column: values[column] for column in kept}
        extras[TOOLS] = _json(read_tools(values.get(TOOLS), row=row, name=name))
        extras[TEMPLATE_KWARGS] = _json(read_template_kwargs(values.get(TEMPLATE_KWARGS), row=row, name=name))
        told = [column for column in (TOOLS, TEMPLATE_KWARGS) if to == "text" and extras[column] is not None]
        if told:
            raise DatasetError(
                f"only chat messages can have {told[0]}, so the row cannot be written as text",
                remedy="Keep such rows as chat messages, or drop them.",
                dataset=name,
                row=row,
                column=told[0],
            )
        for example in layout.read(form, row, values, name=name):
            written = _written(example, form, to, layout, row, name) | extras
            converted[_ROW].append(row)
            for column, feature in features.items():
                converted[column].append(_storable(written[column], feature))
    return converted


def _written(example: Example, form: Form, to: Format, layout: Layout, row: int, name: str) -> dict[str, Any]:
    """The columns of one pair."""
    if to == "demonstrations":
        prompt, completion = example.prompt, example.completions[0]
        if form is Form.CHAT:
            prompt, completion = _as_chat(prompt, "user"), _as_chat(completion, "assistant")
        return {"prompt": prompt, "completion": completion}
    if to == "text":
        sources = (_prompt_column(layout), *layout.sources)
        roles = ("user", "assistant", "assistant")
        sides = [
            _as_text(side, role, row=row, column=column, name=name)
            for side, role, column in zip((example.prompt, *example.completions), roles, sources, strict=True)
        ]
        return dict(zip(("prompt", "chosen", "rejected"), sides, strict=True))
    prompt = _as_chat(example.prompt, "user")
    chosen, rejected = (_as_chat(completion, "assistant") for completion in example.completions)
    if to == "implicit":
        return {"chosen": prompt + chosen, "rejected": prompt + rejected}
    if to == "ranked":
        ranked = [{"rank": rank, "completion": completion} for rank, completion in enumerate((chosen, rejected))]
        return {"context": prompt, "completions": ranked}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _as_chat(side: Turns, role: str) -> list[Message]:
    if isinstance(side, str):
        return [{"role": role, "content": side}]
    return [
        message | {"tool_calls": _json(message["tool_calls"])} if "tool_calls" in message else message
        for message in without_none(cast(list[Message], side))
    ]


def _as_text(side: Turns, role: str, *, row: int, column: str, name: str) -> str:
    if isinstance(side, str):
        return side
    messages = without_none(cast(list[Message], side))
    roles = [message["role"] for message in messages]
    if roles != [role]:
        problem = f"only a single message of role {role!r} can be written as text, and the roles are {', '.join(roles)}"
    elif more := sorted(set(messages[0]) - {"role", "content"}):
        problem = f"only a message's content can be written as text, and it also has {', '.join(map(repr, more))}"
    else:
        return str(messages[0]["content"])
    raise DatasetError(
        problem, remedy="Keep such rows as chat messages, or drop them.", dataset=name, row=row, column=column
    )


def _prompt_column(layout: Layout) -> str:
    return layout.chosen if isinstance(layout, ImplicitPairs) else layout.columns[0]


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _features(dataset: Dataset, layout: Layout, form: Form, to: Format) -> dict[str, Any]:
    """Types of the columns that are written."""
    text = Value("string")
    messages = List(_message_feature([dataset.features[column] for column in layout.columns]))
    own: dict[Format, dict[str, Any]] = {
        "pairs": {"prompt": messages, "chosen": messages, "rejected": messages},
        "text": {"prompt": text, "chosen": text, "rejected": text},
        "implicit": {"chosen": messages, "rejected": messages},
        "ranked": {
            "context": messages,
            "completions": List({"rank": Value("int64"), "completion": messages}),
        },
        "demonstrations": dict.fromkeys(("prompt", "completion"), text if form is Form.TEXT else messages),
    }
    extras = {column: text for column in layout.extras if column in dataset.column_names}
    return own[to] | extras


def _message_feature(features: Sequence[Any]) -> Any:
    """The type of a message that can be any of those in columns of these types."""
    fields: dict[str, Any] = {"role": Value("string"), "content": Value("string")}
    for item in _items(features):
        if isinstance(item, Json):
            return item
        for key, feature in item.items():
            if feature == Value("null"):
                continue
            if key == "tool_calls" or feature in (Value("large_string"), Value("string_view")):
                feature = Value("string")
            fields[key] = feature if fields.get(key, feature) == feature else Json()
    return fields


def _items(features: Sequence[Any]) -> Iterator[Any]:
    """The types of the messages in columns: mappings of types, or JSON."""
    for feature in features:
        item = feature.feature if isinstance(feature, List | LargeList) else feature
        if isinstance(item, dict) and "completion" in item and "role" not in item:  # ranked
            yield from _items([item["completion"]])
        elif isinstance(item, dict | Json):
            yield item


def _storable(value: Any, feature: Any) -> Any:
    """A value as datasets is to store it.

    What is JSON is written here: datasets rounds its floats, and would take a text that happens to be JSON for what
    it says.
    """
    if value is None:
        return None
    if isinstance(feature, Json):
        return _json(value)
    if isinstance(feature, List | LargeList):
        return [_storable(item, feature.feature) for item in value]
    if isinstance(feature, dict):
        return {key: _storable(value.get(key), item) for key, item in feature.items()}
    return value
