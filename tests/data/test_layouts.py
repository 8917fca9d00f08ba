"""Which format a dataset is recognised to be in, where whole dialogues are divided, and rows of token ids."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Json, List, Value
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data import (
    DatasetError,
    Example,
    Form,
    ImplicitPairs,
    Layout,
    Pairs,
    Ranked,
    TokenPairs,
    recognise_preferences,
)
from agiledpo.data.messages import without_none


def message(role: str, content: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


def user(text: str) -> dict[str, Any]:
    return message("user", text)


def assistant(text: str) -> dict[str, Any]:
    return message("assistant", text)


def tool(text: str) -> dict[str, Any]:
    return message("tool", text)


def call(**arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


TEXT = "a"
DIALOGUE = [user("a"), assistant("b")]
ANSWER = [assistant("b")]
RANKING = [{"rank": 0, "completion": ANSWER}]
IDS = [1, 2]


# ------------------------------------------------------------------------------------------------------ recognition
@pytest.mark.parametrize(
    ("row", "layout"),
    [
        ({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}, Pairs()),
        ({"prompt": DIALOGUE, "chosen": ANSWER, "rejected": ANSWER}, Pairs()),
        ({"prompt": TEXT, "chosen": DIALOGUE, "rejected": DIALOGUE}, ImplicitPairs(prompt="prompt")),
        # A column without a value tells nothing.
        ({"prompt": TEXT, "chosen": DIALOGUE, "rejected": None}, ImplicitPairs(prompt="prompt")),
        ({"prompt": TEXT, "chosen": DIALOGUE, "rejected": TEXT}, Pairs()),
        ({"chosen": DIALOGUE, "rejected": DIALOGUE, "score": 1.0}, ImplicitPairs()),
        ({"context": DIALOGUE, "completions": RANKING}, Ranked(pairing="all")),
        ({"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS}, TokenPairs()),
        # Of several, the first in the order that is documented.
        (
            {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT, "context": DIALOGUE, "completions": RANKING},
            Pairs(),
        ),
        (
            {"chosen": DIALOGUE, "rejected": DIALOGUE, "context": DIALOGUE, "completions": RANKING},
            Ranked(pairing="all"),
        ),
        (
            {"chosen": DIALOGUE, "rejected": DIALOGUE, "prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS},
            ImplicitPairs(),
        ),
        # Some of the three, or names like them: what is missing is said when it is read.
        ({"prompt": TEXT, "chosen": TEXT}, Pairs()),
        ({"prompt": TEXT, "chosen_response": TEXT, "reject": TEXT}, Pairs()),
        ({"Chosen": TEXT, "Rejected": TEXT}, Pairs()),
    ],
)
def test_recognised(row: dict[str, Any], layout: Layout) -> None:
    assert recognise_preferences(Dataset.from_list([row]), name="train", pairing="all") == layout


@pytest.mark.parametrize(
    ("columns", "remedy"),
    [
        (
            ["id", "better"],
            'Rename its columns to those of one of them: dataset.rename_column("id", "prompt").',
        ),
        (
            ["context", "responses"],
            "The nearest is context, completions, which lacks 'completions'; rename what holds it: "
            'dataset.rename_column("<its name>", "completions").',
        ),
        (
            ["Context", "completion"],
            "The nearest is context, completions, which lacks 'context' and 'completions'; rename what holds it: "
            'dataset.rename_column("Context", "context"), then dataset.rename_column("completion", "completions").',
        ),
        (
            ["prompt_ids", "chosen_ids", "rejected_tokens"],
            "The nearest is prompt_ids, chosen_ids, rejected_ids, which lacks 'rejected_ids'; rename what holds it: "
            'dataset.rename_column("rejected_tokens", "rejected_ids").',
        ),
    ],
)
def test_columns_of_no_format(columns: list[str], remedy: str) -> None:
    with pytest.raises(DatasetError) as caught:
        recognise_preferences(Dataset.from_list([dict.fromkeys(columns, "a")]), name="train")
    assert str(caught.value) == (
        f"train dataset: the columns {columns} are those of no format of preferences; known are: prompt, chosen, "
        "rejected (text or chat messages); context, completions (chat messages, and completions with ranks); chosen, "
        f"rejected (whole dialogues); prompt_ids, chosen_ids, rejected_ids (token ids). {remedy}"
    )


def test_unknown_pairing() -> None:
    dataset = Dataset.from_list([{"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}])
    with pytest.raises(ValueError, match="pairing must be one of 'best_worst', 'adjacent', 'all', got 'top'"):
        recognise_preferences(dataset, name="train", pairing="top")  # type: ignore[arg-type]


def test_columns_of_other_names() -> None:
    layout = Pairs(prompt="question", chosen="better", rejected="worse")
    row = {"question": "a", "better": "b", "worse": "c", "prompt": "not this"}
    assert layout.form(Dataset.from_list([row]), name="train") is Form.TEXT
    assert layout.read(Form.TEXT, 0, row, name="train") == [Example("a", ("b", "c"))]
    with pytest.raises(DatasetError, match="row 0, column 'worse': the value is None"):
        layout.read(Form.TEXT, 0, row | {"worse": None}, name="train")
    with pytest.raises(DatasetError, match="row 0: better and worse are equal"):
        layout.read(Form.TEXT, 0, row | {"worse": "b"}, name="train")


# -------------------------------------------------------------------------------------------------- whole dialogues
def divide(chosen: Any, rejected: Any, **more: Any) -> Example:
    layout = ImplicitPairs(prompt="prompt" if "prompt" in more else None)
    (example,) = layout.read(Form.CHAT, 3, {"chosen": chosen, "rejected": rejected} | more, name="train")
    return example


U, V, A, B, T, S = user("u"), user("v"), assistant("a"), assistant("b"), tool("t"), message("system", "s")
C, D = call(x=1), call(x=2)


@pytest.mark.parametrize(
    ("chosen", "rejected", "border"),
    [
        ([U, A], [U, B], 1),
        ([S, U, A], [S, U, B], 2),
        ([message("developer", "s"), U, A], [message("developer", "s"), U, B], 2),
        # Messages are shared, never characters of them.
        ([U, assistant("yes, it is")], [U, assistant("yes, it is not")], 1),
        ([U, A, V, A], [U, A, V, B], 3),
        ([A, U, A], [A, U, B], 2),
        # A call and its result that both begin with are what they answer.
        ([U, C, T, A], [U, C, T, B], 3),
        ([U, C, T, D, T, A], [U, C, T, D, T, B], 5),
        ([U, C, T, T, A], [U, C, T, T, B], 4),
        # They part in an assistant's turn, which is theirs from its beginning.
        ([U, C, T, A], [U, D, T, A], 1),
        ([U, C, T, A], [U, C, tool("u"), A], 1),
        ([U, C, T, T, A], [U, C, T, tool("u"), A], 1),
        ([U, C, T, D, T, A], [U, C, T, D, tool("u"), A], 3),
        ([U, A, A], [U, A, B], 1),
        ([U, C, T, A, A], [U, C, T, A, B], 3),
        # One stops where the other goes on.
        ([U, C, T, A], [U, C], 1),
        ([U, C, T, A], [U, C, T], 1),
        ([U, A], [U, A, B], 1),
    ],
)
def test_where_dialogues_are_divided(chosen: list[Any], rejected: list[Any], border: int) -> None:
    for one, other in ((chosen, rejected), (rejected, chosen)):
        example = divide(one, other)
        assert example.prompt == one[:border] == other[:border]
        assert example.completions == (one[border:], other[border:])


@pytest.mark.parametrize(
    ("chosen", "rejected", "column", "problem"),
    [
        ([U, A], [U, A], None, "chosen and rejected are equal, so there is nothing to prefer"),
        ([U], [U, A], "chosen", "the dialogue is the beginning of rejected's, so it has no completion of its own"),
        ([U, A], [U], "rejected", "the dialogue is the beginning of chosen's, so it has no completion of its own"),
        (
            [U, A, V, A],
            [U, A],
            "rejected",
            "the dialogue is the beginning of chosen's, so it has no completion of its own",
        ),
        ([U, A], [V, A], None, "chosen and rejected have no message in common that could be the prompt"),
        (
            [S, U, A],
            [message("system", "other"), U, B],
            None,
            "chosen and rejected have no message in common that could be the prompt",
        ),
        ([A], [U, B], None, "chosen and rejected have no message in common that could be the prompt"),
        ([A], [B], None, "chosen and rejected begin with the answer, and there is no prompt column"),
        (
            [U, A, U, A],
            [U, A, V, B],
            "chosen",
            "the dialogues part at message 2, and what follows is not only an answer: its roles are "
            "assistant, user, assistant",
        ),
        (
            [U, A, V, A],
            [U, B],
            "chosen",
            "the dialogues part at message 1, and what follows is not only an answer: its roles are "
            "assistant, user, assistant",
        ),
        (
            [U, A],
            [U, V, A],
            "rejected",
            "the dialogues part at message 1, and what follows is not only an answer: its roles are user, assistant",
        ),
        (
            [U, T, A],
            [U, A],
            "chosen",
            "the dialogues part at message 1, and what follows is not only an answer: its roles are tool, assistant",
        ),
        ([S, A], [S, B], "chosen", "the prompt ends with a message of role 'system'"),
        ([U, A], [U, assistant(" ")], "rejected", "the completion is empty or only whitespace"),
        ("u", [U, A], "chosen", "expected a list of chat messages, got str"),
        ([U, A], [], "rejected", "the list of messages is empty"),
        ([U, A], None, "rejected", "the value is None"),
        (
            [U, call() | {"tool_calls": "{f}"}],
            [U, A],
            "chosen",
            "the tool_calls of message 1 are text that cannot be read as JSON (Expecting property name "
            "enclosed in double quotes: line 1 column 2 (char 1))",
        ),
        (
            [U, A | {"tool_calls": '"f"'}],
            [U, A],
            "chosen",
            "the tool_calls of message 1 are not a list of mappings",
        ),
        (
            [U, message("assistant", None, tool_calls="[]")],
            [U, A],
            "chosen",
            "message 1 (role 'assistant') has no content",
        ),
    ],
)
def test_dialogues_that_are_refused(chosen: Any, rejected: Any, column: str | None, problem: str) -> None:
    with pytest.raises(DatasetError) as caught:
        divide(chosen, rejected)
    assert (caught.value.row, caught.value.column, caught.value.problem) == (3, column, problem)


@pytest.mark.parametrize("prompt", ["u", " u\n", "v", None])
def test_a_prompt_that_the_dialogues_repeat(prompt: str | None) -> None:
    assert divide([U, A, V, A], [U, A, V, B], prompt=prompt).prompt == [U, A, V]


@pytest.mark.parametrize("prompt", ["w", "a", "", ["u"]])
def test_a_prompt_that_the_dialogues_do_not_repeat(prompt: Any) -> None:
    with pytest.raises(DatasetError) as caught:
        divide([U, A, V, A], [U, A, V, B], prompt=prompt)
    assert str(caught.value) == (
        "train dataset, row 3, column 'prompt': the text is none of the user's messages that chosen and rejected have "
        "in common. If the dialogues are right, drop the column: dataset.remove_columns('prompt')."
    )


def test_a_prompt_as_text_beside_answers() -> None:
    with pytest.raises(DatasetError) as caught:
        divide([A], [B], prompt="u")
    assert "text and chat messages are mixed: 'prompt' is text, 'chosen' is chat" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "prompt", "column", "problem"),
    [
        (
            {"chosen": TEXT, "rejected": TEXT},
            None,
            "chosen",
            "there is no prompt column, and 'chosen' is text: nobody can tell where the prompt ends in it",
        ),
        ({"chosen": IDS, "rejected": IDS}, None, "chosen", "the column does not hold dialogues"),
        (
            {"prompt": TEXT, "chosen": DIALOGUE, "rejected": TEXT},
            "prompt",
            "rejected",
            "the column does not hold dialogues",
        ),
        (
            {"prompt": DIALOGUE, "chosen": DIALOGUE, "rejected": DIALOGUE},
            "prompt",
            "prompt",
            "the column does not hold texts, which repeat a user's message of the dialogues",
        ),
    ],
)
def test_columns_that_are_no_dialogues(row: dict[str, Any], prompt: str | None, column: str, problem: str) -> None:
    with pytest.raises(DatasetError) as caught:
        ImplicitPairs(prompt=prompt).form(Dataset.from_list([row]), name="train")
    assert (caught.value.column, caught.value.problem) == (column, problem)


def test_what_arrow_adds_is_taken_away_again() -> None:
    """In Arrow all messages have the keys of all, and all calls the arguments of all."""
    first, second = call(city="Paris"), call(days=2, unit={"of": "K"})
    arguments = {"city": Value("string"), "days": Value("int64"), "unit": {"of": Value("string")}}
    calls = List({"function": {"name": Value("string"), "arguments": arguments}})
    messages = List({"role": Value("string"), "content": Value("string"), "tool_calls": calls})
    rows = [{"chosen": [U, first, T, A], "rejected": [U, second, T, B]}]
    given = Dataset.from_list(rows, features=Features({"chosen": messages, "rejected": messages}))[0]
    found = given["chosen"][1]["tool_calls"][0]["function"]["arguments"]
    assert found == {"city": "Paris", "days": None, "unit": None}
    example = divide(given["chosen"], given["rejected"])
    assert without_none(example.prompt) == [U]
    assert [without_none(answer) for answer in example.completions] == [[first, T, A], [second, T, B]]


def test_tool_calls_as_json_text_are_taken_as_they_are() -> None:
    """What JSON says is nothing is not what Arrow added."""
    calls = [{"function": {"name": "f", "arguments": {"unit": None, "x": 0.1 + 0.2, "big": 10**20}}}]
    text = '[{"function": {"name": "f", "arguments": {"unit": null, "x": 0.30000000000000004, "big": 1%s}}}]'
    text = text.replace("%s", "0" * 20)
    example = divide([U, {"role": "assistant", "content": None, "tool_calls": text}], [U, A])
    assert without_none(example.completions[0]) == [{"role": "assistant", "tool_calls": calls}]


def test_messages_of_mixed_types_are_dialogues() -> None:
    features = Features({"chosen": List(Json()), "rejected": List(Json())})
    dataset = Dataset.from_list([{"chosen": [U, C], "rejected": [U, A]}], features=features)
    layout = recognise_preferences(dataset, name="train")
    assert layout == ImplicitPairs()
    (example,) = layout.read(layout.form(dataset, name="train"), 0, dataset[0], name="train")
    assert example == Example([U], ([C], [A]))


# -------------------------------------------------------------------------------------------------------- token ids
@pytest.mark.parametrize("integer", ["int64", "int32", "uint16"])
def test_token_ids(integer: str) -> None:
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    features = Features(dict.fromkeys(columns, List(Value(integer))))
    dataset = Dataset.from_list([{"prompt_ids": [1], "chosen_ids": [0, 3], "rejected_ids": [4]}], features=features)
    layout = TokenPairs()
    assert layout.present(dataset.add_column("tools", ["[]"])) == columns
    assert layout.form(dataset, name="train") is Form.TOKENS
    assert layout.read(Form.TOKENS, 0, dataset[0], name="train") == [Example([1], ([0, 3], [4]))]


@given(*[st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)] * 3)
def test_ids_come_out_as_they_are(prompt: list[int], chosen: list[int], rejected: list[int]) -> None:
    values = {
        "prompt_ids": np.array(prompt),
        "chosen_ids": [np.int32(token) for token in chosen],
        "rejected_ids": rejected,
    }
    if chosen == rejected:
        with pytest.raises(DatasetError, match="chosen_ids and rejected_ids are equal"):
            TokenPairs().read(Form.TOKENS, 0, values, name="train")
        return
    (example,) = TokenPairs().read(Form.TOKENS, 0, values, name="train")
    assert example == Example(prompt, (chosen, rejected))
    assert {type(token) for ids in (example.prompt, *example.completions) for token in ids} == {int}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "the value is None"),
        ([], "there are no token ids"),
        ("abc", "expected a list of token ids, got str"),
        ([1, -1], "token 1 is -1, not a token id"),
        ([1, True], "token 1 is True, not a token id"),
        ([1, 2.0], "token 1 is 2.0, not a token id"),
        ([1, None], "token 1 is None, not a token id"),
    ],
)
@pytest.mark.parametrize("column", ["prompt_ids", "chosen_ids", "rejected_ids"])
def test_ids_that_are_refused(column: str, value: Any, problem: str) -> None:
    values = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]} | {column: value}
    with pytest.raises(DatasetError) as caught:
        TokenPairs().read(Form.TOKENS, 5, values, name="train")
    assert (caught.value.row, caught.value.column, caught.value.problem) == (5, column, problem)
    if value is not None:
        assert caught.value.remedy == (
            "Write lists of the tokenizer's ids, as in tokenizer(text)['input_ids'], or give the rows as text."
        )


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([1.5], "the column holds lists of double, not of token ids"),
        (["a"], "the column holds lists of string, not of token ids"),
        ([True], "the column holds lists of bool, not of token ids"),
        ("a b", "the column holds values of type string, not lists of token ids"),
    ],
)
def test_columns_that_are_no_ids(value: Any, problem: str) -> None:
    dataset = Dataset.from_list([{"prompt_ids": [1], "chosen_ids": value, "rejected_ids": [3]}])
    with pytest.raises(DatasetError) as caught:
        TokenPairs().form(dataset, name="train")
    assert (caught.value.column, caught.value.problem) == ("chosen_ids", problem)
