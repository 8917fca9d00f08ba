"""Prompts without completions: their messages, their tokens, how long they may be, and what is refused."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase
from trl.data_utils import apply_chat_template

from agiledpo.data import (
    PAIRS,
    DatasetError,
    Form,
    PreparedRows,
    PromptLayout,
    Prompts,
    Questions,
    convert,
    load_preferences,
    load_questions,
    prepare_rows,
)
from agiledpo.data.questions import filled, placeholders, recognise_questions

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
Rows = list[dict[str, Any]]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
BRACED = st.lists(TEXTS | st.sampled_from(["{", "}", "{}", "{question}", "{answer}", "{0}", "{{"])).map("".join)
SYSTEM = {"role": "system", "content": "be {{brief}}"}
ASK = {"role": "user", "content": "hello: {question}?"}
BEGIN = {"role": "assistant", "content": "yes, the answer"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def prepare(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, layout: PromptLayout | None = None, **options: Any
) -> PreparedRows:
    dataset = Dataset.from_list(rows)
    layout = recognise_questions(dataset, name="train") if layout is None else layout
    return prepare_rows(dataset, tokenizer, layout, name="train", **options)


def refusal(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, layout: PromptLayout | None = None, **options: Any
) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        prepare(rows, tokenizer, layout, **options)
    assert str(caught.value).startswith("train dataset")
    return caught.value


# Templates ----------------------------------------------------------------------------------------------------------


@given(pieces=st.lists(BRACED | st.just(0) | st.just(1)), question=BRACED, answer=BRACED)
def test_placeholders_are_filled_as_format_does_it(pieces: list[str | int], question: str, answer: str) -> None:
    """A template of literal texts and placeholders, against joining the parts, and against `str.format`."""
    values = (question, answer)
    text = "".join(
        piece.replace("{", "{{").replace("}", "}}") if isinstance(piece, str) else ("{question}", "{answer}")[piece]
        for piece in pieces
    )
    expected = "".join(piece if isinstance(piece, str) else values[piece] for piece in pieces)
    parts = {"question": question, "answer": answer}
    assert filled(text, parts) == expected == text.format(**parts)
    assert placeholders(text) == {("question", "answer")[piece] for piece in pieces if isinstance(piece, int)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{}", "'{}' is no placeholder"),
        ("{0}", "'{0}' is no placeholder"),
        ("{question.__class__}", "'{question.__class__}' is no placeholder"),
        ("{question[0]}", r"'{question\[0\]}' is no placeholder"),
        ("{question!r}", "'{question!r}' is no placeholder"),
        ("{question:>5}", "'{question:>5}' is no placeholder"),
        ("{solution}", "'{solution}' is no placeholder"),
        ("{", "Single '{'"),
        ("}", "Single '}'"),
    ],
)
def test_other_braces_are_written_twice(text: str, found: str) -> None:
    with pytest.raises(ValueError, match=rf"{found}.*write any other brace twice, as in \\boxed\{{\{{\}}\}}"):
        placeholders(text)


@pytest.mark.parametrize(
    ("template", "error", "problem"),
    [
        ("{question}", TypeError, "must be a list of messages or None, got '{question}'"),
        (ASK, TypeError, "must be a list of messages or None"),
        (["{question}"], TypeError, "Message 0 of conversation_template must have a role and a content, both text"),
        ([ASK, {"role": "user", "content": 3}], TypeError, "Message 1 .* both text"),
        ([{"role": "user"}], ValueError, "must have a role and a content and nothing else"),
        ([ASK | {"name": "x"}], ValueError, "must have a role and a content and nothing else"),
        ([{"role": "human", "content": "{question}"}], ValueError, "unknown role 'human'"),
        ([user("hello")], ValueError, "has no '{question}', so all prompts would be the same"),
        ([], ValueError, "has no '{question}'"),
        ([ASK, SYSTEM], ValueError, "ends with a message of role 'system'"),
        (
            [user(r"{question} in \boxed{}")],
            ValueError,
            r"Message 0 of .*'{}' is no placeholder",
        ),
    ],
)
def test_bad_templates(template: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        Questions(template=template)
    with pytest.raises(error, match=problem):
        load_questions("nowhere.jsonl", conversation_template=template)


def test_a_template_is_what_it_was_when_it_was_given() -> None:
    template = [dict(ASK)]
    layout = Questions(template=template)
    before = layout.identity
    template[0]["content"] = "no {question}"
    template.append(dict(BEGIN))
    assert layout.identity == before == Questions(template=(ASK,)).identity
    assert layout == Questions(template=[ASK])
    assert before != Questions(template=[ASK, BEGIN]).identity


# Tokens -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["chatml", "llama3", "gemma", "plain", "thinking", "tools"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("messages", [None, [ASK], [SYSTEM, ASK], [ASK, BEGIN]])
def test_tokens_are_those_of_the_chat_template(
    template: str, bos: bool, messages: Any, make_tokenizer: MakeTokenizer
) -> None:
    if template == "gemma" and messages and messages[0] is SYSTEM:
        return  # which it refuses
    tokenizer = make_tokenizer(bos=bos, eos=bos, template=template)
    rows = [{"question": f" {text} ", "answer": 3} for text in ("hello", "{question} {", "one\n\ntwo {answer}")]
    prepared = prepare(rows, tokenizer, Questions(template=messages))
    assert (prepared.form, prepared.parts) == (Form.CHAT, ("prompt",))
    for row, made in zip(rows, prepared.dataset, strict=True):
        chat = [{"role": m["role"], "content": m["content"].format(**row)} for m in messages or [user("{question}")]]
        begun = chat[-1]["role"] == "assistant"
        told: dict[str, Any] = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
        assert made["prompt_ids"] == tokenizer.apply_chat_template(chat, return_dict=False, **told)
        assert made["prompt"] == tokenizer.apply_chat_template(chat, tokenize=False, **told)
        assert made["prompt"] == apply_chat_template({"prompt": chat}, tokenizer)["prompt"]
        assert made["prompt_length"] == len(made["prompt_ids"])
        assert made["lost_header"] == ""
        assert made["prompt"].endswith(BEGIN["content"]) == begun


def test_tokens_of_a_real_model(smollm_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": [user("What is 2 + 2?")]}, {"prompt": [{"role": "system", "content": "Be brief."}, user("Hm")]}]
    for row, made in zip(rows, prepare(rows, smollm_tokenizer).dataset, strict=True):
        expected = smollm_tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert made["prompt_ids"] == expected


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS.filter(len), min_size=1, max_size=4), bos=st.booleans(), eos=st.booleans())
def test_text_is_tokenised_as_it_is_and_left_open(
    texts: list[str], bos: bool, eos: bool, make_tokenizer: MakeTokenizer
) -> None:
    """What a tokenizer adds at the end of every text would end the answer before it begins."""
    tokenizer = make_tokenizer(bos=bos, eos=eos)
    prepared = prepare([{"prompt": text} for text in texts], tokenizer)
    head = [tokenizer.bos_token_id] if bos else []
    for text, made in zip(texts, prepared.dataset, strict=True):
        assert made["prompt_ids"] == head + tokenizer(text, add_special_tokens=False).input_ids
        assert made["prompt"] == text


def test_an_end_of_sequence_token_that_the_text_has_itself_stays(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True)
    (made,) = prepare([{"prompt": "hello</s>"}], tokenizer).dataset
    assert made["prompt_ids"] == tokenizer("hello</s>").input_ids
    assert made["prompt_ids"][-1] == tokenizer.eos_token_id


def test_the_answer_in_the_prompt_is_text(make_tokenizer: MakeTokenizer) -> None:
    layout = Questions("q", [user("{question} is {answer}")], "a")
    prepared = prepare([{"q": "half", "a": 0.5}, {"q": "{answer}", "a": 1.0}], make_tokenizer(template="plain"), layout)
    assert prepared.dataset["prompt"][:] == ["user: half is 0.5\nassistant: ", "user: {answer} is 1.0\nassistant: "]
    assert layout.columns == ("q", "a")
    assert Questions("q", [ASK], "a").columns == ("q",)
    error = refusal([{"q": "half", "a": None}], make_tokenizer(template="plain"), layout)
    assert (error.row, error.column, error.problem) == (0, "a", "the value is None")


def test_a_template_is_told_tools_and_variables(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{{ mood }} {{ messages[0].content }}"
    )
    tools = [{"type": "function", "function": {"name": "lookup"}}]
    rows = [{"question": "one", "tools": json.dumps(tools), "chat_template_kwargs": json.dumps({"mood": "fox"})}]
    (made,) = prepare(rows, tokenizer).dataset
    assert made["prompt"] == "lookup fox one"
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert "does not tell the model of the tool 'lookup'" in refusal(rows, tokenizer).problem


def test_equal_prompts_with_different_answers_are_all_kept(make_tokenizer: MakeTokenizer) -> None:
    rows = [{"question": "one", "answer": answer} for answer in ("1", "2")]
    prepared = prepare(rows, make_tokenizer(template="chatml"))
    assert len(prepared) == 2
    assert prepared.dataset["prompt_ids"][0] == prepared.dataset["prompt_ids"][1]


def test_what_names_the_rows(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="chatml")
    rows = [{"question": "one", "answer": "1"}]
    names = {
        prepare(rows, tokenizer).fingerprint,
        prepare(rows, tokenizer, Questions(template=[ASK])).fingerprint,
        prepare(rows, tokenizer, Questions(template=[SYSTEM, ASK])).fingerprint,
        prepare([rows[0] | {"answer": "2"}], tokenizer).fingerprint,
    }
    assert len(names) == 4
    assert prepare(rows, tokenizer, Questions(template=[dict(ASK)])).fingerprint in names


# Lengths ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    bos=st.booleans(),
    most=st.none() | st.integers(2, 10),
    least=st.none() | st.integers(0, 4),
    truncation=st.sampled_from(["drop", "keep_end"]),
)
def test_prompts_leave_room_for_a_completion(
    words: list[int], bos: bool, most: int | None, least: int | None, truncation: Any, make_tokenizer: MakeTokenizer
) -> None:
    """Against an account of each row; a refusal names a limit with which a row is kept."""
    if most is None:
        truncation = "drop"
    elif most <= (least or 0):
        return
    tokenizer = make_tokenizer(bos=bos)
    rows = [{"prompt": "hello" + " hello" * (count - 1)} for count in words]
    ids = [tokenizer(row["prompt"]).input_ids for row in rows]
    room = np.inf if most is None else most - (least or 0)
    expected: dict[int, list[int]] = {}
    for number, whole in enumerate(ids):
        if len(whole) <= room:
            expected[number] = whole
        elif truncation == "keep_end" and room > bos:
            expected[number] = whole[:bos] + whole[len(whole) - int(room) + bos :]
    options: dict[str, Any] = {"min_completion_length": least, "truncation": truncation}
    if not expected:
        error = refusal(rows, tokenizer, max_context_length=most, **options)
        enough = int(error.remedy.removeprefix("Raise max_context_length to at least ").rstrip("."))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(prepare(rows, tokenizer, max_context_length=enough, **options)) > 0
            assert "no row is left" in refusal(rows, tokenizer, max_context_length=enough - 1, **options).problem
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepared = prepare(rows, tokenizer, max_context_length=most, **options)
    assert bool(caught) == (len(expected) < len(rows))
    taken = prepared.take(np.arange(len(prepared)))
    assert dict(zip(taken["row"], taken["prompt_ids"], strict=True)) == expected
    assert taken["prompt_ids"] == prepared.dataset["prompt_ids"][:]
    assert prepared.longest_sides().tolist() == [len(prompt) for prompt in expected.values()]
    assert prepared.lengths.shape == (1, len(rows))
    counts = prepared.filter_counts
    assert (counts.total, counts.kept) == (len(rows), len(expected))
    assert counts.prompts_truncated == sum(len(expected[row]) < len(ids[row]) for row in expected)
    assert counts.completions_truncated == counts.without_preference == counts.completion_too_short == 0


def test_there_is_no_completion_to_cut(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ValueError, match=r"truncation='keep_start' cuts the end of completions, and these rows are"):
        prepare([{"prompt": "hello"}], make_tokenizer(), max_context_length=9, truncation="keep_start")


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "problem", "remedy"),
    [
        ([{"question": " \n"}], "the question is empty or only whitespace", "Drop such rows"),
        ([{"question": None}, {"question": "one"}], "the value is None", "Fill it in"),
        ([{"question": [user("one")]}], "the column does not hold questions as text", "Convert it"),
        ([{"question": 3}], "the column holds values of type int64", "Convert it"),
        ([{"question": json.dumps([user("one")])}], "the text is a list of chat messages", "Write the messages"),
        ([{"problem": "one"}], "required column 'question' is missing", "Rename the column that holds it"),
        ([{"Question": "one"}], "required column 'question' is missing", "If 'Question' is it, rename it"),
        ([{"prompt": [BEGIN]}], "begins the answer, but no user's turn is before it", "end the prompt with the user's"),
        ([{"prompt": [user("one"), BEGIN | {"content": " "}]}], "begins the answer, but not with text", "Write there"),
        ([{"prompt": [{"role": "system", "content": "one"}]}], "ends with a message of role 'system'", "End it with"),
        ([{"prompt": ""}], "no token is left for the prompt", "Give the row a prompt of at least one token"),
        ([{"prompt": "one", "tools": '[{"name": "x"}]'}], "told tools, but the row is text", "drop the column"),
    ],
)
def test_refused_rows(rows: Rows, problem: str, remedy: str, make_tokenizer: MakeTokenizer) -> None:
    error = refusal(rows, make_tokenizer(template="chatml"))
    assert problem in error.problem
    assert remedy in error.remedy


def test_a_begun_answer_that_the_template_drops(make_tokenizer: MakeTokenizer) -> None:
    error = refusal([{"prompt": [user("one"), BEGIN]}], make_tokenizer(template="dropping"))
    assert error.problem.startswith("the chat template refuses the messages (it cannot go on from the last message: ")


def test_pairs_still_end_with_a_turn_to_be_answered(make_tokenizer: MakeTokenizer) -> None:
    rows = Dataset.from_list([{"prompt": [user("one"), BEGIN], "chosen": [BEGIN], "rejected": [BEGIN]}])
    with pytest.raises(DatasetError, match="the prompt ends with a message of role 'assistant'"):
        prepare_rows(rows, make_tokenizer(template="chatml"), PAIRS, name="train")


def test_a_tokenizer_without_chat_template(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        prepare([{"question": "one"}], make_tokenizer())


# Loading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "dataset"])
def test_questions_of_files(kind: str, make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    dataset = Dataset.from_list([{"question": f"what is {i} + {{}}?", "answer": str(i)} for i in range(3)])
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        dataset.to_json(path)
    elif kind == "csv":
        dataset.to_csv(path)
    elif kind == "parquet":
        dataset.to_parquet(path)
    loaded = load_questions(dataset if kind == "dataset" else path, conversation_template=[ASK])
    assert loaded.layout == Questions(template=[ASK])
    made = loaded.prepare(make_tokenizer(template="plain"))
    assert made.dataset["prompt"][:] == [f"user: hello: what is {i} + {{}}??\nassistant: " for i in range(3)]


def test_which_column_is_read() -> None:
    def layout(template: Any = None, **columns: Any) -> PromptLayout:
        loaded = load_questions(Dataset.from_list([columns]), conversation_template=template).layout
        assert isinstance(loaded, PromptLayout)
        return loaded

    assert layout(question="one") == Questions()
    assert layout(prompt="one") == Prompts()
    assert layout(question="one", prompt=[user("two")]) == Questions()
    assert layout([ASK], question="one", prompt=[user("two")]) == Questions(template=[ASK])
    with pytest.raises(DatasetError, match="conversation_template is for a column 'question', and there is none but"):
        layout([ASK], prompt="one")
    with pytest.raises(DatasetError, match=r"the template has '\{answer\}', and there is no column 'answer'"):
        layout([user("{question} {answer}")], question="one", solution="1")
    rows = Dataset.from_list([{"problem": "one"}])
    assert load_questions(rows, layout=Questions("problem")).layout == Questions("problem")


def test_arguments_that_contradict_each_other() -> None:
    rows = Dataset.from_list([{"question": "one"}])
    with pytest.raises(ValueError, match="conversation_template and layout each say how rows are read"):
        load_questions(rows, conversation_template=[ASK], layout=Questions())
    with pytest.raises(ValueError, match="layout must be of prompts alone"):
        load_questions(rows, layout=PAIRS)
    for to in ("demonstrations", "pairs"):
        with pytest.raises(ValueError, match="layout must be of preferences to be converted"):
            convert(rows, to, layout=Questions())  # type: ignore[arg-type]


def test_rows_of_one_kind_are_not_taken_for_another(tmp_path: Path) -> None:
    pairs = load_preferences(Dataset.from_list([{"prompt": "one", "chosen": "1", "rejected": "2"}]))
    with pytest.raises(DatasetError, match=r"of chosen and rejected; needed are rows of prompts alone\. Do"):
        pairs.expect((), remedy="Do.")
    questions = load_questions(Dataset.from_list([{"question": "one"}]))
    with pytest.raises(DatasetError, match=r"of prompts alone; needed are rows of completion\. Do"):
        questions.expect(("completion",), remedy="Do.")
    assert questions.expect((), remedy="Do.") is questions


def test_errors_name_the_file_and_its_row(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", " ")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": text}) + "\n")
    with pytest.raises(DatasetError) as caught:
        load_questions(tmp_path).prepare(make_tokenizer(template="chatml"))
    assert caught.value.file == str(tmp_path / "b.jsonl")
    assert (caught.value.row, caught.value.column) == (0, "question")


def test_equal_questions_are_held_out_together() -> None:
    rows = [{"question": f"is {i % 5}?", "answer": str(i)} for i in range(20)]
    loaded = load_questions(Dataset.from_list(rows))
    train, test = loaded.split_by_prompt(0.3, seed=1)
    assert set(train.dataset["question"][:]).isdisjoint(test.dataset["question"][:])
    assert (len(train), len(test)) == (12, 8)
    # Also where the template shows the answer, so that prompts of one question differ: the same rows.
    told = load_questions(
        Dataset.from_list(rows), conversation_template=[{"role": "user", "content": "{question} {answer}"}]
    )
    for part, same in zip(told.split_by_prompt(0.3, seed=1), (train, test), strict=True):
        assert part.dataset["answer"][:] == same.dataset["answer"][:]


# What rewards are told ----------------------------------------------------------------------------------------------


def test_what_was_asked() -> None:
    assert Questions("q", [SYSTEM, ASK]).asked({"q": "{one}"}) == "{one}"
    assert Prompts().asked({"prompt": "one"}) == "one"
    chat = [user("first"), {"role": "assistant", "content": "hm"}, user("second"), BEGIN]
    assert Prompts("p").asked({"p": chat}) == "second"
    assert Prompts("p").asked({"p": [{"role": "tool", "content": "3"}]}) == "3"
