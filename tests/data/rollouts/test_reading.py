"""What one line says, as chat messages."""

import json

import pytest

from agiledpo.data.rollouts.errors import UnusableRolloutError
from agiledpo.data.rollouts.reading import (
    MultiStep,
    read_answer,
    read_parameters,
    read_prompt,
    read_record,
    read_reward,
)

USER = {"role": "user", "content": "Why?"}


def text(words):
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": words}]}


CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "2"}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}


def prompt_of(value, **parameters):
    return read_prompt({"input": value, **parameters})


def test_a_text_is_one_user_message():
    assert prompt_of("Why?").messages == [USER]


def test_parts_are_joined_and_what_is_no_message_key_is_left_away():
    parts = [{"type": "input_text", "text": "Wh"}, {"type": "input_text", "text": "y?"}]
    item = {"type": "message", "role": "user", "content": parts, "phase": None, "id": "m"}
    assert prompt_of([item]).messages == [USER]


def test_instructions_are_the_first_system_message():
    messages = prompt_of([{"role": "system", "content": "B"}, USER], instructions="A").messages
    assert messages == [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, USER]


def test_earlier_calls_results_and_reasoning_are_kept():
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert prompt_of([USER, THOUGHT, CALL, RESULT]).messages == [
        USER,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]


def test_calls_at_once_are_one_message_with_the_words_before_them():
    messages = prompt_of([USER, text("I add."), CALL, CALL | {"call_id": "c2"}, RESULT]).messages
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["content"] == "I add."
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["c1", "c2"]


def test_reasoning_stays_with_its_own_turn():
    """A thought that no assistant message follows does not move to a later one."""
    messages = prompt_of([THOUGHT, USER, text("So."), USER]).messages
    assert all("reasoning_content" not in message for message in messages)


def test_flat_tools_become_those_of_chat_templates():
    flat = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}
    nested = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "strict": True}}
    assert prompt_of("Why?", tools=[flat]).tools == [nested] == prompt_of("Why?", tools=[nested]).tools
    assert prompt_of("Why?", tools=None).tools == []


@pytest.mark.parametrize("where", ["output", "response"])
def test_the_answer_with_its_reasoning(where):
    output = [THOUGHT, text("So.")]
    record = {"output": output} if where == "output" else {"response": {"output": output}}
    answer = read_answer(record, MultiStep.SKIP)
    assert answer.completion == [{"role": "assistant", "content": "So.", "reasoning_content": "Hm."}]
    assert not answer.final_only


@pytest.mark.parametrize(
    ("output", "skipped", "final"),
    [
        ([], "empty_response", "empty_response"),
        ([text(" \n")], "empty_response", "empty_response"),
        ([THOUGHT], "empty_response", "empty_response"),
        ([text("A"), text("")], None, None),  # Gym's verifiers agent ends every output with an empty message
        ([text("A"), text("B")], "multi_step", None),
        ([CALL], "multi_step", "empty_response"),
        ([CALL, RESULT, text("B")], "multi_step", None),
        ([text("A"), CALL, RESULT], "multi_step", None),
        ([text("A"), {"role": "user", "content": "?"}], "multi_step", None),
        ([{"type": "web_search_call", "id": "w"}, text("B")], "multi_step", None),
    ],
)
def test_what_is_a_single_step(output, skipped, final):
    assert read_answer({"output": output}, MultiStep.SKIP).left_out == skipped
    answer = read_answer({"output": output}, MultiStep.FINAL)
    assert answer.left_out == final
    if final is None:
        last = [item for item in output if item.get("role") == "assistant" and item["content"][0]["text"]][-1]
        assert answer.completion[0]["content"] == last["content"][0]["text"]
        assert answer.final_only == (skipped == "multi_step")


def test_the_final_message_keeps_only_its_own_reasoning():
    later = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Then."}], "summary": []}
    answer = read_answer({"output": [THOUGHT, CALL, RESULT, later, text("B")]}, MultiStep.FINAL)
    assert answer.completion == [{"role": "assistant", "content": "B", "reasoning_content": "Then."}]


@pytest.mark.parametrize(("value", "reward"), [(0.5, 0.5), (-1, -1.0), (1e-300, 1e-300)])
def test_numbers_are_rewards(value, reward):
    assert read_reward({"reward": value}) == reward


GOOD = {"responses_create_params": {"input": "Why?"}, "output": [text("So.")], "reward": 1.0}
PARAMS = "responses_create_params"


def with_input(value, **parameters):
    return GOOD | {PARAMS: {"input": value, **parameters}}


def with_output(*items):
    return GOOD | {"output": list(items)}


BAD = [
    ("{", "not_json", None, "it is not JSON"),
    ("[1]", "not_an_object", None, "expected a JSON object, got list"),
    ("3", "not_an_object", None, "expected a JSON object, got int"),
    ({"output": [], "reward": 1}, "input", PARAMS, "it is missing"),
    (GOOD | {PARAMS: "Why?"}, "input", PARAMS, "it is not an object"),
    (GOOD | {PARAMS: {}}, "input", f"{PARAMS}.input", "it is missing"),
    (with_input(None), "input", f"{PARAMS}.input", "expected a text or a list of messages, got nothing"),
    (with_input([]), "input", f"{PARAMS}.input", "it is empty"),
    (with_input(["Why?"]), "input", f"{PARAMS}.input[0]", "expected an item, got str"),
    (with_input([{"content": "Why?"}]), "input", f"{PARAMS}.input[0].type", "expected the item's type, got nothing"),
    (with_input([{"role": "usr", "content": "?"}]), "input", f"{PARAMS}.input[0].role", "unknown role 'usr'"),
    (with_input([{"role": "user"}]), "input", f"{PARAMS}.input[0].content", "expected a text or a list of its parts"),
    (
        with_input([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        "input",
        f"{PARAMS}.input[0].content[0]",
        "the part (input_image) holds no text",
    ),
    (with_input([{"type": "item_reference", "id": "x"}]), "input", f"{PARAMS}.input[0]", "has no chat message"),
    (
        with_input([CALL | {"arguments": {"a": 1}}, RESULT]),
        "input",
        f"{PARAMS}.input[0].arguments",
        "expected a text, got dict",
    ),
    (with_input([USER, text("So.")]), "input", f"{PARAMS}.input", "ends with a message of role 'assistant'"),
    (with_input("Why?", instructions=["A"]), "input", f"{PARAMS}.instructions", "expected a text, got list"),
    (with_input("Why?", tools={"name": "add"}), "tools", f"{PARAMS}.tools", "expected a list of tools, got dict"),
    ({PARAMS: {"input": "Why?"}, "reward": 1}, "output", "output", "it is missing"),
    (GOOD | {"output": "So."}, "output", "output", "expected a list of items, got str"),
    ({**GOOD, "output": None, "response": {"output_text": "So."}}, "output", "response.output", "it is missing"),
    (with_output("So."), "output", "output[0]", "expected an item, got str"),
    (with_output({"content": "So."}), "output", "output[0].type", "expected the item's type, got nothing"),
    (with_output(text(3)), "output", "output[0].content[0]", "the part (output_text) holds no text"),
    (with_output(text("A") | {"role": "bot"}), "output", "output[0].role", "unknown role 'bot'"),
    ({PARAMS: {"input": "Why?"}, "output": [text("So.")]}, "reward", "reward", "it is missing"),
    (GOOD | {"reward": None}, "reward", "reward", "it is null"),
    (GOOD | {"reward": "1.0"}, "reward", "reward", "expected a number, got '1.0'"),
    (GOOD | {"reward": True}, "reward", "reward", "expected a number, got True"),
    (GOOD | {"reward": float("nan")}, "reward", "reward", "it is nan, not a finite number"),
    (GOOD | {"reward": float("-inf")}, "reward", "reward", "it is -inf, not a finite number"),
    (GOOD | {"reward": 10**400}, "reward", "reward", "it is not a finite number"),
]


@pytest.mark.parametrize(("line", "reason", "field", "problem"), BAD)
def test_what_is_wrong_with_a_line_is_said_with_the_field_and_a_remedy(line, reason, field, problem):
    raw = (line if isinstance(line, str) else json.dumps(line)).encode() + b"\n"

    def read_all():
        record = read_record(raw)
        read_prompt(read_parameters(record))
        read_reward(record)
        read_answer(record, MultiStep.SKIP)

    with pytest.raises(UnusableRolloutError) as caught:
        read_all()
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert problem in caught.value.problem
    assert caught.value.remedy.endswith(".")
    message = str(caught.value.at("r.jsonl", 7))
    assert message.startswith("rollouts dataset (r.jsonl): line 7" + (f", field {field!r}: " if field else ": "))
