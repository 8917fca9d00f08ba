"""Formats written in one another: nothing is lost, and what cannot be written is refused."""

import json
import math
import warnings
from datetime import datetime
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Json, LargeList, List, Value, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from agiledpo.data import (
    DatasetError,
    Demonstrations,
    Dialogues,
    Form,
    ImplicitPairs,
    Layout,
    Pairs,
    Ranked,
    TokenPairs,
    convert,
    recognise_preferences,
)
from agiledpo.data.convert import json_lines
from agiledpo.data.messages import without_none

Message = dict[str, Any]
Row = dict[str, Any]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["", " ", "\n", "null", "12", '{"a": 1}', "\u2028", "\x00", "日本", "👩‍👩‍👧", "e\u0301"]
)
SAID = TEXTS.filter(str.strip)
NUMBERS = st.floats(allow_nan=False) | st.integers() | st.sampled_from([0.1 + 0.2, 48.8566, 2**64, -0.0, 10**30])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


@st.composite
def calls(draw: st.DrawFn) -> Message:
    """A turn of calls, as JSON text: the only way in which Arrow holds any arguments."""
    arguments = st.dictionaries(TEXTS, JSON, max_size=2)
    made = draw(st.lists(st.builds(lambda found: {"name": "f", "arguments": found}, arguments), min_size=1, max_size=2))
    content = draw(st.none() | TEXTS)
    return {"role": "assistant", "tool_calls": json.dumps([{"function": call} for call in made])} | (
        {} if content is None else {"content": content}
    )


RESULTS = st.builds(lambda text, name: {"role": "tool", "content": text, "name": name}, TEXTS, TEXTS)
ANSWERS = st.lists(st.tuples(calls(), RESULTS).map(list), max_size=2).flatmap(
    lambda turns: SAID.map(lambda text: [*chain.from_iterable(turns), assistant(text)])
)


@st.composite
def prompts(draw: st.DrawFn) -> list[Message]:
    system = draw(st.sampled_from([[], [{"role": "system"}], [{"role": "developer"}]]))
    turns = draw(st.lists(st.tuples(TEXTS.map(user).map(lambda turn: [turn]), ANSWERS), max_size=1))
    last = draw(st.sampled_from(["user", "tool"]))
    end = [*draw(st.tuples(calls(), RESULTS))] if last == "tool" else []
    opening = [message | {"content": draw(TEXTS)} for message in system]
    return [*opening, *chain.from_iterable(asked + said for asked, said in turns), user(draw(TEXTS)), *end]


@st.composite
def pairs(draw: st.DrawFn) -> Row:
    """Completions often begin with the same turns, and may be one the beginning of the other."""
    shared = draw(st.just([]) | ANSWERS | ANSWERS.map(lambda turns: turns[:-1]))
    chosen, rejected = (shared + draw(ANSWERS) for _ in range(2))
    rejected = draw(st.sampled_from([rejected, chosen[:1], chosen[:2], chosen[:-1]])) or rejected
    if chosen == rejected:
        rejected = [*rejected, assistant("more")]
    return {
        "prompt": draw(prompts()),
        "chosen": chosen,
        "rejected": rejected,
        "tools": draw(st.none() | st.lists(st.dictionaries(TEXTS, JSON, min_size=1, max_size=2), min_size=1, max_size=2)
                      .map(json.dumps)),
        "chat_template_kwargs": draw(st.none() | st.dictionaries(TEXTS, st.booleans(), min_size=1).map(json.dumps)),
        "id": draw(st.integers(0, 9)),
    }  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> Row:
    chosen, rejected = draw(st.lists(SAID, min_size=2, max_size=2, unique=True))
    return {"prompt": draw(TEXTS), "chosen": chosen, "rejected": rejected}


MESSAGES = List(dict.fromkeys(("role", "content", "name", "tool_calls"), Value("string")))
PAIRS = Features(
    dict.fromkeys(("prompt", "chosen", "rejected"), MESSAGES)
    | {"tools": Value("string"), "chat_template_kwargs": Value("string"), "id": Value("int64")}
)


def meaning(value: Any) -> Any:
    """Rows as they are read: messages without what is None, JSON text as what it says."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return without_none(value)
    if isinstance(value, list):
        return [meaning(item) for item in value]
    if isinstance(value, dict):
        return {key: read_json(item) if key in EXTRAS else meaning(item) for key, item in value.items()}
    return value


EXTRAS = ("tools", "chat_template_kwargs")


def read_json(value: str | None) -> Any:
    def pruned(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: pruned(item) for key, item in found.items() if item is not None}
        return [pruned(item) for item in found] if isinstance(found, list) else found

    # What says nothing is no tool and no variable at all.
    return None if value is None else pruned(json.loads(value)) or None


def rows(dataset: Dataset) -> list[Row]:
    return meaning(dataset.to_list())


def same(one: Any, other: Any) -> None:
    """Equal also in the types of numbers, of which 1 == 1.0 == True, and in the order of keys."""
    assert json.dumps(one) == json.dumps(other)


@settings(max_examples=40, deadline=None)
@given(st.lists(pairs(), min_size=1, max_size=4))
def test_chat_pairs_survive_every_format(given_rows: list[Row]) -> None:
    dataset = Dataset.from_list(given_rows, features=PAIRS)
    columns = list(PAIRS)
    expected = rows(dataset)

    again = convert(dataset, "pairs").select_columns(columns)
    same(rows(again), expected)

    ranked = convert(dataset, "ranked")
    assert set(ranked.column_names) == {"context", "completions", *columns[3:]}
    same(rows(convert(ranked, "pairs").select_columns(columns)), expected)

    implicit = convert(dataset, "implicit")
    assert set(implicit.column_names) == {"chosen", "rejected", *columns[3:]}
    for row, dialogues in zip(expected, rows(implicit), strict=True):
        same(dialogues["chosen"], row["prompt"] + row["chosen"])
        same(dialogues["rejected"], row["prompt"] + row["rejected"])
    divided = convert(implicit, "pairs").select_columns(columns)
    for row, found in zip(expected, rows(divided), strict=True):
        moved = moved_border(row["chosen"], row["rejected"])
        same(
            found,
            row
            | {
                "prompt": row["prompt"] + row["chosen"][:moved],
                "chosen": row["chosen"][moved:],
                "rejected": row["rejected"][moved:],
            },
        )
    # Once more, and nothing moves any longer.
    same(rows(convert(convert(divided, "implicit"), "pairs").select_columns(columns)), rows(divided))


def moved_border(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages completions share up to the last result of a tool that both go on from with an answer."""
    borders = [
        place
        for place in range(1, min(len(chosen), len(rejected)))
        if chosen[:place] == rejected[:place]
        and chosen[place - 1]["role"] == "tool"
        and chosen[place]["role"] == rejected[place]["role"] == "assistant"
    ]
    return max(borders, default=0)


@settings(max_examples=40, deadline=None)
@given(st.lists(texts(), min_size=1, max_size=5))
def test_text_survives_every_format(given_rows: list[Row]) -> None:
    dataset = Dataset.from_list(given_rows)
    for by in ("text", "pairs", "implicit", "ranked"):
        there = convert(dataset, by)
        back = convert(there, "text")
        assert back.to_list() == given_rows
        assert back.features == dataset.features
    assert convert(dataset, "pairs").to_list() == [
        {
            "prompt": [user(row["prompt"])],
            "chosen": [assistant(row["chosen"])],
            "rejected": [assistant(row["rejected"])],
        }
        for row in given_rows
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=5), min_size=1, max_size=4),
    st.sampled_from(["best_worst", "adjacent", "all"]),
)
def test_ranked_completions_become_their_pairs(ranks: list[list[int]], pairing: Any) -> None:
    """With "all", a pair for every two completions of different rank and for no others, in the order of the rows."""
    dataset = Dataset.from_list(
        [
            {
                "context": [user(f"question {row}")],
                "completions": [
                    {"rank": rank, "completion": [assistant(f"{place}: {rank}")]} for place, rank in enumerate(places)
                ],
                "id": f"row {row}",
            }
            for row, places in enumerate(ranks)
        ]
    )
    layout = Ranked(pairing=pairing)
    ties = sum(len(set(places)) == 1 for places in ranks)
    if ties == len(ranks):
        with pytest.raises(DatasetError, match=f"given dataset: none of its {ties} rows has a preference"):
            convert(dataset, "pairs", layout=layout)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = convert(dataset, "pairs", layout=layout).to_list()
        single = convert(convert(dataset, "ranked", layout=layout), "pairs").to_list()
    left_out = f"{ties} of {len(ranks)} rows were left out of the given dataset: no preference between the completions."
    assert [str(warning.message) for warning in caught] == [left_out] * (2 * (ties > 0))
    expected = []
    for number, row in enumerate(dataset):
        for example in layout.read(Form.CHAT, number, row, name="train"):
            chosen, rejected = example.completions
            expected.append({"prompt": example.prompt, "chosen": chosen, "rejected": rejected, "id": f"row {number}"})
    assert found == expected
    if pairing == "all":
        said = [(row["id"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found]
        strict = {
            (f"row {row}", f"{a}: {better}", f"{b}: {worse}")
            for row, places in enumerate(ranks)
            for a, better in enumerate(places)
            for b, worse in enumerate(places)
            if better < worse
        }
        assert (set(said), len(said)) == (strict, len(strict))
    # A pair is ranked completions of which there are two.
    assert single == found


TOOL_CALL = {"function": {"name": "look_up", "arguments": {"city": "Köln", "at": 0.1 + 0.2, "days": None}}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
DIALOGUE_PAIR = {
    "prompt": [{"role": "system", "content": "Be brief.\u2028"}, user("Wie ist das Wetter in Köln? 👋")],
    "chosen": [
        {"role": "assistant", "content": None, "tool_calls": json.dumps([TOOL_CALL])},
        {"role": "tool", "content": "", "name": "look_up"},
        assistant("Gut."),
    ],
    "rejected": [assistant("null")],
    "tools": json.dumps(TOOLS),
    "chat_template_kwargs": None,
    "id": 3,
}


@pytest.mark.parametrize("to", ["pairs", "implicit", "ranked"])
@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_round_trip_through_files(to: Any, kind: str, tmp_path: Path) -> None:
    dataset = Dataset.from_list([DIALOGUE_PAIR] * 3, features=PAIRS)
    path = str(tmp_path / f"rows.{kind}")
    written = convert(dataset, to)
    _ = written.to_json(path, force_ascii=False) if kind == "json" else written.to_parquet(path)
    loaded = load_dataset(kind, data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(
        recognise_preferences(loaded, name="train"), {"pairs": Pairs, "implicit": ImplicitPairs}.get(to, Ranked)
    )
    back = convert(loaded, "pairs").select_columns(list(PAIRS))
    same(rows(back), rows(dataset))
    calls = without_none(back[0]["chosen"])[0]["tool_calls"]
    same(calls, [TOOL_CALL])


def test_a_file_is_converted_once(tmp_path: Path) -> None:
    """The rows of a file stay on disk, and a conversion is found again."""
    path = str(tmp_path / "rows.parquet")
    Dataset.from_list([DIALOGUE_PAIR] * 3, features=PAIRS).to_parquet(path)
    loaded = load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    first, second = convert(loaded, "implicit"), convert(loaded, "implicit")
    assert first.cache_files == second.cache_files != []
    assert convert(loaded, "ranked").cache_files != first.cache_files


def test_workers_convert_the_same() -> None:
    dataset = Dataset.from_list([DIALOGUE_PAIR | {"id": number} for number in range(5)], features=PAIRS)
    assert convert(dataset, "ranked", num_proc=2).to_list() == convert(dataset, "ranked").to_list()


def test_arguments_that_arrow_unified_are_told_apart() -> None:
    """Of calls that are structs, an argument that is None is one of another call."""
    arguments = {"city": Value("string"), "days": Value("int32")}
    calls = List({"function": {"name": Value("string"), "arguments": arguments}})
    messages = List({"role": Value("string"), "content": Value("string"), "tool_calls": calls})
    features = Features(dict.fromkeys(("prompt", "chosen", "rejected"), messages))

    def call(**given_arguments: Any) -> list[Message]:
        return [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": given_arguments}}]}]

    row = {"prompt": [user("a")], "chosen": call(city="Köln"), "rejected": call(days=2)}
    dataset = Dataset.from_list([row], features=features)
    for to in ("pairs", "implicit", "ranked"):
        converted = convert(dataset, to)
        assert rows(convert(converted, "pairs")) == [row]
    assert convert(dataset, "pairs").features["chosen"] == List(
        dict.fromkeys(("role", "content", "tool_calls"), Value("string"))
    )


def test_messages_of_any_types() -> None:
    """Columns may differ in the keys of their messages and in how these are typed."""
    features = Features(
        {
            "prompt": LargeList({"role": Value("large_string"), "content": Value("string"), "extra": Value("null")}),
            "chosen": List({"role": Value("string"), "content": Value("string"), "extra": Value("int64")}),
            "rejected": List({"role": Value("string"), "content": Value("string"), "extra": Value("string")}),
        }
    )
    row = {
        "prompt": [user("a")],
        "chosen": [assistant("b") | {"extra": 12}],
        "rejected": [assistant("c") | {"extra": "12"}],
    }
    dataset = Dataset.from_list([row], features=features)
    for to in ("pairs", "implicit", "ranked"):
        same(rows(convert(convert(dataset, to), "pairs")), [row])
    messages = Features(dict.fromkeys(("prompt", "chosen", "rejected"), List(Json())))
    dataset = Dataset.from_list([row], features=messages)
    for to in ("pairs", "implicit", "ranked"):
        same(rows(convert(convert(dataset, to), "pairs")), [row])


def test_columns_that_are_not_read_travel() -> None:
    features = Features(
        dict.fromkeys(("prompt", "chosen", "rejected"), Value("string")) | {"judged": Json(), "n": Value("int8")}
    )
    judged = ["12", {"score": [1, None]}, None]
    dataset = Dataset.from_list(
        [
            {"prompt": "a", "chosen": f"b{n}", "rejected": "c", "judged": json.dumps(found), "n": n}
            for n, found in enumerate(judged)
        ],
        features=features,
    )
    converted = convert(dataset, "ranked")
    assert list(converted["judged"]) == list(dataset["judged"]) == judged
    assert converted.features["n"] == Value("int8")


@pytest.mark.parametrize(
    ("row", "layout", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, None, ("a", "b")),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
            None,
            ([user("a")], [assistant("b")]),
        ),
        ({"messages": [user("a"), assistant("b")]}, Dialogues(), ([user("a")], [assistant("b")])),
        ({"prompt": "a", "target": "b"}, Demonstrations(completion="target"), ("a", "b")),
    ],
)
def test_demonstrations(row: Row, layout: Layout | None, expected: tuple[Any, Any]) -> None:
    converted = convert(Dataset.from_list([row]), "demonstrations", layout=layout)
    assert converted.to_list() == [{"prompt": expected[0], "completion": expected[1]}]


QUESTION, ANSWER, OTHER = [user("a")], [assistant("b")], [assistant("c")]


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        (
            {"prompt": [{"role": "system", "content": "s"}, *QUESTION], "chosen": ANSWER, "rejected": OTHER},
            "prompt",
            "only a single message of role 'user' can be written as text, and the roles are system, user",
        ),
        (
            {"prompt": QUESTION, "chosen": ANSWER, "rejected": [*OTHER, *OTHER]},
            "rejected",
            "only a single message of role 'assistant' can be written as text, and the roles are assistant, assistant",
        ),
        (
            {"prompt": QUESTION, "chosen": [ANSWER[0] | {"thinking": "t", "name": "n"}], "rejected": OTHER},
            "chosen",
            "only a message's content can be written as text, and it also has 'name', 'thinking'",
        ),
        (
            {"chosen": [*QUESTION, *ANSWER, *QUESTION, *ANSWER], "rejected": [*QUESTION, *ANSWER, *QUESTION, *OTHER]},
            "chosen",
            "only a single message of role 'user' can be written as text, and the roles are user, assistant, user",
        ),
    ],
)
def test_chat_that_is_no_text(row: Row, column: str, problem: str) -> None:
    good = {"prompt": QUESTION, "chosen": ANSWER, "rejected": OTHER}
    if "prompt" not in row:
        good = {"chosen": QUESTION + ANSWER, "rejected": QUESTION + OTHER}
    with pytest.raises(DatasetError) as caught:
        convert(Dataset.from_list([good, row]), "text", name="train")
    assert str(caught.value) == (
        f"train dataset, row 1, column {column!r}: {problem}. Keep such rows as chat messages, or drop them."
    )


def test_what_is_refused() -> None:
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c", "context": "d"}])
    with pytest.raises(
        ValueError, match="to must be one of 'pairs', 'text', 'implicit', 'ranked', 'demonstrations', got 'chat'"
    ):
        convert(text, "chat")  # type: ignore[arg-type]
    with pytest.raises(DatasetError) as caught:
        convert(text, "ranked", name="train")
    assert str(caught.value) == (
        "train dataset: the column 'context' is not read, and one of that name is to be written. Rename or remove it: "
        "dataset.remove_columns('context')."
    )
    with pytest.raises(DatasetError, match="given dataset, row 1, column 'chosen': the completion is empty"):
        convert(Dataset.from_list([text[0], text[0] | {"chosen": " "}]), "pairs")
    with pytest.raises(ValueError, match="layout must be of preferences to be converted to 'pairs', got Dialogues"):
        convert(text, "pairs", layout=Dialogues())
    ids = Dataset.from_list([{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}])
    assert recognise_preferences(ids, name="train") == TokenPairs()
    with pytest.raises(DatasetError, match="given dataset: token ids cannot be written in another format"):
        convert(ids, "pairs")


def test_lines_of_json() -> None:
    rows = [{"a": "ä\n", "b": [1.5, None], "c": {"d": True}}, {"a": None, "b": [], "c": {"d": None}}]
    assert [json.loads(line) for line in json_lines(Dataset.from_list(rows), name="given")] == rows
    assert "ä" in next(iter(json_lines(Dataset.from_list(rows), name="given")))
    mixed = Dataset.from_list([{"a": [{"x": 1}]}, {"a": [{"x": "y"}]}], features=Features({"a": List(Json())}))
    assert [json.loads(line) for line in json_lines(mixed, name="given")] == mixed.to_list()


@pytest.mark.parametrize(
    ("value", "said"), [(datetime(2024, 1, 1), "timestamp"), (b"x", "binary"), ([{"x": Decimal(1)}], "decimal")]
)
def test_what_json_cannot_hold_is_said_by_column(value: Any, said: str) -> None:
    with pytest.raises(DatasetError, match=rf"^given dataset, column 'b': the column holds values of type {said}"):
        json_lines(Dataset.from_list([{"a": 1, "b": value}]), name="given")


def test_numbers_that_are_not_finite_are_never_written() -> None:
    lines = json_lines(Dataset.from_list([{"a": 1.0, "b": {"c": 1.0}}, {"a": 1.0, "b": {"c": math.nan}}]), name="given")
    assert next(lines) == '{"a": 1.0, "b": {"c": 1.0}}'
    with pytest.raises(DatasetError, match=r"^given dataset, column 'b': a number is not finite, .*: {\"c\": NaN}\. R"):
        next(lines)


@pytest.mark.parametrize("column", ["tools", "chat_template_kwargs"])
def test_what_only_chat_has_is_not_lost_in_text(column: str) -> None:
    told = {"tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": False}}[column]
    sides = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    row = {"prompt": [{"role": "user", "content": "q"}], "chosen": sides[0], "rejected": sides[1], column: told}
    with pytest.raises(DatasetError, match=f"^given dataset, row 0, column '{column}': only chat messages can have"):
        convert(Dataset.from_list([row]), "text")
