"""Prompts with one completion: where they are found, their tokens, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from agiledpo.data import (
    DatasetError,
    Demonstrations,
    Dialogues,
    FilterCounts,
    Form,
    PreparedRows,
    TokenizedRow,
    prepare_rows,
    recognise_demonstrations,
)
from agiledpo.data.tokenization import isolated_copy, tokenize_rows

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["hello", "hel", "lo", " world", "unbeliev", "able", "\n", " ", "</s>", "…"]),
    max_size=5,
).map("".join)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def prepare(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreparedRows:
    dataset = Dataset.from_list(rows)
    column = options.pop("response_column", None)
    return prepare_rows(dataset, tokenizer, recognise_demonstrations(dataset, column), name="train", **options)


def refusal(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        prepare(rows, tokenizer, **options)
    assert str(caught.value).startswith("train dataset")
    return caught.value


@pytest.fixture(scope="module")
def tokenizers_of_text(make_tokenizer: MakeTokenizer) -> dict[str, PreTrainedTokenizerBase]:
    return {"bare": make_tokenizer(), "bos": make_tokenizer(bos=True), "both": make_tokenizer(bos=True, eos=True)}


@pytest.mark.parametrize("kind", ["bare", "bos", "both"])
@settings(max_examples=120, deadline=None)
@given(prompt=TEXTS, completion=TEXTS)
def test_text_is_tokenised_as_one_piece(
    kind: str, prompt: str, completion: str, tokenizers_of_text: dict[str, PreTrainedTokenizerBase]
) -> None:
    tokenizer = tokenizers_of_text[kind]
    eos = tokenizer.eos_token_id
    whole, alone = tokenizer(prompt + completion).input_ids, tokenizer(prompt).input_ids
    shared = next(
        (i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(map(len, (alone, whole)))
    )
    nothing_learned = all(token == eos for token in whole[shared:])
    try:
        row = tokenize(tokenizer, prompt, completion)
    except DatasetError as error:
        problem = error.problem
    else:
        problem = ""
    # Only what cannot be learned from is refused.
    assert bool(problem) == (not completion.strip() or shared == 0 or nothing_learned)
    if problem:
        return
    expected = list(whole)
    while expected and expected[-1] == eos:
        expected.pop()
    assert row.prompt_ids == whole[:shared]
    assert row.prompt_ids + row.completion_ids[0] == [*expected, eos]
    assert (row.prompt, row.completions) == (prompt, (completion,))


def tokenize(tokenizer: PreTrainedTokenizerBase, prompt: Any, completion: Any, form: Form = Form.TEXT) -> TokenizedRow:
    batch = {"prompt": [prompt], "completion": [completion]}
    (row,) = tokenize_rows(batch, [0], isolated_copy(tokenizer), form, Demonstrations(), name="train")
    return row


WORDS = st.sampled_from(["hello", "yes", "no maybe", "the quick brown fox", "…", "a\nb"])


@pytest.mark.parametrize("template", ["chatml", "llama3", "plain"])
@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(WORDS, WORDS), max_size=2), question=WORDS, answer=WORDS)
def test_of_a_dialogue_exactly_the_last_answer_is_learned(
    template: str, turns: list[tuple[str, str]], question: str, answer: str, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(template=template)
    prompt = [message for asked, said in turns for message in (user(asked), assistant(said))] + [user(question)]
    whole = tokenizer.apply_chat_template([*prompt, assistant(answer)], return_dict=False)
    header = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    row = tokenize(tokenizer, prompt, [assistant(answer)], Form.CHAT)
    ids = row.prompt_ids + row.completion_ids[0]
    assert ids == (whole if template != "plain" else [*whole, tokenizer.eos_token_id])
    # The prompt is what the model is given when it answers; a merge may reach back over the border in words only.
    assert header.startswith(tokenizer.decode(row.prompt_ids))
    if template != "plain":
        assert tokenizer.decode(row.prompt_ids) == header
        assert tokenizer.decode(row.completion_ids[0]).startswith(answer)
    (dialogue,) = tokenize_rows(
        {"messages": [[*prompt, assistant(answer)]]},
        [0],
        isolated_copy(tokenizer),
        Form.CHAT,
        Dialogues(),
        name="train",
    )
    assert dialogue == row


def test_where_completions_are_found(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True, template="chatml")
    dialogue = [user("hello"), assistant("yes")]
    row = {
        "prompt": "hello ", "completion": "yes", "target": "no", "chosen": "maybe", "messages": dialogue, "id": "7"
    }  # fmt: skip

    def learned(*columns: str, **options: Any) -> str:
        prepared = prepare([{column: row[column] for column in columns}], tokenizer, **options)
        return prepared.dataset[0]["completion"]

    assert learned("prompt", "completion", "id") == "yes"
    assert learned("prompt", "target", "id") == "no"
    assert learned("prompt", "completion", "target", "messages") == "yes"
    assert learned("prompt", "completion", "chosen", response_column="chosen") == "maybe"
    assert learned("prompt", "messages") == learned("completion", "messages") == "yes<|im_end|>\n"
    prepared = prepare([row | {"prompt": "hello "}], tokenizer)
    assert set(prepared.dataset.column_names) == {
        "row", "prompt", "completion", "prompt_ids", "completion_ids", "prompt_length", "completion_length",
        "lost_header",
    }  # fmt: skip
    assert prepared.form is Form.TEXT
    assert prepared.lengths.shape == (2, 1)


def test_other_columns_are_other_rows(make_tokenizer: MakeTokenizer) -> None:
    rows = [
        {"prompt": f"hello {i} ", "chosen": f"yes {i}", "rejected": f"no {i}", "target": f"maybe {i}"} for i in range(3)
    ]
    dataset, tokenizer = Dataset.from_list(rows), make_tokenizer(bos=True)
    chosen, rejected, target = (
        prepare_rows(dataset, tokenizer, recognise_demonstrations(dataset, column), name="train")
        for column in ("chosen", "rejected", "target")
    )
    pairs = prepare_rows(dataset, tokenizer, name="train")
    assert len({prepared.fingerprint for prepared in (chosen, rejected, target, pairs)}) == 4
    for prepared, word in ((chosen, "yes"), (rejected, "no"), (target, "maybe")):
        assert list(prepared.dataset["completion"]) == [f"{word} {i}" for i in range(3)]
    for one, other in zip(chosen.dataset, pairs.dataset, strict=True):
        assert one["prompt_ids"] + one["completion_ids"] == other["prompt_ids"] + other["chosen_ids"]


def test_filtering_counts_the_only_completion(word_tokenizer: PreTrainedTokenizerBase) -> None:
    lengths = [(4, 3), (8, 2), (4, 7), (2, 5), (9, 2)]
    rows = [
        {"prompt": " ".join(["hello"] * prompt), "completion": " yes" * (completion - 1)}
        for prompt, completion in lengths
    ]
    with pytest.warns(UserWarning, match="4 samples were filtered out of the train dataset"):
        prepared = prepare(rows, word_tokenizer, max_context_length=10, min_completion_length=4)
    assert prepared.filter_counts == FilterCounts(5, prompt_too_long=2, pair_too_long=1, completion_too_short=1)
    assert list(prepared.dataset["row"]) == [3]
    assert prepared.longest_sides().tolist() == [7]


@pytest.mark.parametrize(
    ("rows", "row", "column", "problem"),
    [
        ([{"prompt": "a", "completion": "yes"}, {"prompt": "b", "completion": "  "}], 1, "completion", "empty"),
        ([{"prompt": "a", "completion": "yes"}, {"prompt": None, "completion": "b"}], 1, "prompt", "is None"),
        ([{"prompt": "hello:", "completion": "</s>"}], 0, "completion", "no tokens of its own"),
        ([{"prompt": [user("a")], "completion": [user("b")]}], 0, "completion", "begins with a message of role 'user'"),
        ([{"prompt": [assistant("a")], "completion": [assistant("b")]}], 0, "prompt", "role 'assistant'"),
        ([{"messages": [user("a"), assistant("b")]}, {"messages": [user("a")]}], 1, "messages", "ends with a message"),
        ([{"messages": [assistant("b")]}], 0, "messages", "nothing but the answer"),
        ([{"messages": [user("a"), assistant("b")]}, {"messages": []}], 1, "messages", "list of messages is empty"),
        ([{"messages": [user("a"), assistant("b")]}, {"messages": None}], 1, "messages", "is None"),
        ([{"messages": [user("a"), assistant(" ")]}], 0, "messages", "empty or only whitespace"),
        (
            [{"messages": [user("a"), assistant("b"), assistant("c")]}],
            0,
            "messages",
            "ends with a message of role 'ass",
        ),
        (
            [{"messages": [user("a"), {"role": "robot", "content": "b"}]}],
            0,
            "messages",
            "message 1 has the unknown role",
        ),
        ([{"messages": "hello"}], None, "messages", "holds text, not chat messages"),
        (
            [{"prompt": "a", "completion": [assistant("b")]}],
            None,
            None,
            "mixed: 'prompt' is text, 'completion' is chat",
        ),
        ([{"prompt": "a", "answer": "b"}], None, None, "required column 'completion' is missing"),
        ([{"completion": "b"}], None, None, "required column 'prompt' is missing"),
    ],
)
def test_what_is_refused(
    rows: list[dict[str, Any]], row: int | None, column: str | None, problem: str, make_tokenizer: MakeTokenizer
) -> None:
    error = refusal(rows, make_tokenizer(bos=True, template="chatml"))
    assert (error.row, error.column) == (row, column)
    assert problem in error.problem
    assert error.remedy


def test_a_missing_response_column_is_named(make_tokenizer: MakeTokenizer) -> None:
    error = refusal([{"prompt": "a", "completion": "b"}], make_tokenizer(), response_column="answer")
    assert "required column 'answer' is missing" in error.problem
