"""Every kind of unusable input is refused with the dataset, the row, the column and a remedy."""

import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from agiledpo.data import PreferenceDataError, prepare_rows

Rows = Callable[..., Dataset]
MakeTokenizer = Callable[..., PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerBase:
    return make_tokenizer(bos=True, template="chatml")


def refusal(dataset: Any, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreferenceDataError:
    with pytest.raises(PreferenceDataError) as caught:
        prepare_rows(dataset, tokenizer, name="train", **options)
    message = str(caught.value)
    assert message.startswith("train dataset")
    assert message.endswith(caught.value.remedy)
    assert caught.value.remedy.endswith(".")
    return caught.value


def test_error_survives_pickling() -> None:
    error = PreferenceDataError("it is broken", remedy="Mend it.", dataset="test", row=3, column="chosen")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "test dataset, row 3, column 'chosen': it is broken. Mend it."
    assert (copy.problem, copy.remedy, copy.dataset, copy.row, copy.column) == (
        "it is broken",
        "Mend it.",
        "test",
        3,
        "chosen",
    )
    assert isinstance(copy, ValueError)


def test_a_remedy_for_a_file_does_not_speak_of_a_dataset() -> None:
    def located(remedy: str) -> str:
        return PreferenceDataError("it is broken", remedy=remedy, dataset="test").in_file("a.jsonl", 3).remedy

    assert located("Drop it: dataset.filter(lambda row: row['a'] == ').').") == "Drop it."
    assert located("Rename it with dataset.map, or drop it.") == "Rename it, or drop it."
    assert located("Do one: the dataset.") == "Do one: the dataset."


@pytest.mark.parametrize(
    ("make", "kind", "remedy"),
    [
        (lambda rows: DatasetDict(train=rows), "DatasetDict", r'dataset\["train"\]'),
        (lambda rows: rows.to_iterable_dataset(), "IterableDataset", "streaming"),
        (lambda rows: list(rows), "list", "Dataset.from_list"),
        (lambda rows: "some/name", "str", "load_dataset"),
        (lambda rows: rows.to_pandas(), "DataFrame", "from_pandas"),
    ],
)
def test_not_a_dataset(
    make: Callable[[Dataset], Any], kind: str, remedy: str, text_rows: Rows, tokenizer: PreTrainedTokenizerBase
) -> None:
    error = refusal(make(text_rows()), tokenizer)
    assert kind in error.problem
    assert re.search(remedy, error.remedy)


def test_empty_dataset(text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    assert "no rows" in refusal(text_rows().select([]), tokenizer).problem


def test_columns_computed_on_access(text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    assert "dataset.map" in refusal(text_rows().with_transform(lambda batch: batch), tokenizer).remedy


@pytest.mark.parametrize(
    ("found", "missing"), [("Prompt", "prompt"), ("chosen_response", "chosen"), ("reject", "rejected")]
)
def test_misnamed_column(found: str, missing: str, text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    error = refusal(text_rows().rename_column(missing, found), tokenizer)
    assert f"{missing!r} is missing" in error.problem
    assert repr(found) in error.problem
    assert f'rename_column("{found}", "{missing}")' in error.remedy


def test_missing_column(text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    error = refusal(text_rows().remove_columns("rejected").add_column("score", [1, 2, 3]), tokenizer)
    assert "['prompt', 'chosen', 'score']" in error.problem
    assert 'rename_column("<its name>", "rejected")' in error.remedy


@pytest.mark.parametrize(
    ("replace", "row", "column", "problem", "remedy"),
    [
        ({1: {"prompt": None}}, 1, "prompt", "is None", "filter"),
        ({2: {"chosen": None}}, 2, "chosen", "is None", "filter"),
        ({0: {"rejected": None}}, 0, "rejected", "is None", "filter"),
        ({1: {"chosen": ""}}, 1, "chosen", "empty or only whitespace", "filter"),
        ({1: {"rejected": " \n\t"}}, 1, "rejected", "empty or only whitespace", "filter"),
        ({2: {"chosen": "same", "rejected": "same"}}, 2, None, "are equal", "filter"),
        ({2: {"prompt": "hello:", "chosen": "</s>"}}, 2, "chosen", "no tokens of its own", "drop it"),
        # Equal once the end-of-sequence token is there exactly once.
        ({1: {"chosen": "yes", "rejected": "yes</s>"}}, 1, None, "the same tokens", "index != 1"),
    ],
)
def test_bad_text_row(
    replace: dict[int, dict[str, Any]],
    row: int,
    column: str | None,
    problem: str,
    remedy: str,
    text_rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    error = refusal(text_rows(3, replace), tokenizer)
    assert (error.row, error.column) == (row, column)
    assert f"row {row}" in str(error)
    assert problem in error.problem
    assert remedy in error.remedy


def test_column_of_nothing_but_none(text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    error = refusal(text_rows(2, {0: {"chosen": None}, 1: {"chosen": None}}), tokenizer)
    assert (error.row, error.column) == (0, "chosen")


@pytest.mark.parametrize("values", [[1, 2, 3], [1.5, 2.5, 3.5], [["a"], ["b"], ["c"]], [{"a": 1}] * 3])
def test_column_of_another_type(values: list[Any], text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    error = refusal(text_rows().remove_columns("chosen").add_column("chosen", values), tokenizer)
    assert error.column == "chosen"
    assert "map" in error.remedy


def test_column_of_texts_and_lists(text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = text_rows().to_list()
    rows[1]["prompt"] = ["hello"]
    error = refusal(Dataset.from_list(rows, on_mixed_types="use_json"), tokenizer)
    assert (error.row, error.column) == (1, "prompt")
    assert "expected text, got list" in error.problem


USER = {"role": "user", "content": "hello?"}
ASSISTANT = {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    ("replace", "row", "column", "problem", "remedy"),
    [
        ({1: {"prompt": None}}, 1, "prompt", "is None", "filter"),
        ({1: {"prompt": []}}, 1, "prompt", "list of messages is empty", "drop"),
        ({2: {"chosen": []}}, 2, "chosen", "list of messages is empty", "drop"),
        ({1: {"prompt": [{"role": "human", "content": "hi"}]}}, 1, "prompt", "unknown role 'human'", "tool"),
        ({1: {"prompt": [{"content": "hi"}]}}, 1, "prompt", "no role; it has 'content'", "rename"),
        ({1: {"prompt": [{"role": "user"}]}}, 1, "prompt", "message 0 (role 'user') has no content", "content"),
        ({1: {"prompt": [USER, ASSISTANT]}}, 1, "prompt", "ends with a message of role 'assistant'", "user's turn"),
        ({0: {"prompt": [{"role": "system", "content": "x"}]}}, 0, "prompt", "role 'system'", "user's turn"),
        ({1: {"chosen": [USER, ASSISTANT]}}, 1, "chosen", "begins with a message of role 'user'", "prompt only"),
        ({1: {"rejected": [ASSISTANT, USER, ASSISTANT]}}, 1, "rejected", "holds a message of role 'user'", "Move"),
        ({1: {"rejected": [{"role": "assistant", "content": " \n"}]}}, 1, "rejected", "only whitespace", "filter"),
        ({1: {"chosen": [None]}}, 1, "chosen", "message 0 is NoneType", "role"),
        ({1: {"chosen": [ASSISTANT], "rejected": [ASSISTANT]}}, 1, None, "are equal", "filter"),
        # ChatML keeps the content as it is; the two differ only in what Llama 3's template trims.
        (
            {1: {"chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": " hello "}]}},
            1,
            None,
            "the same tokens",
            "index != 1",
        ),
    ],
)
def test_bad_chat_row(
    replace: dict[int, dict[str, Any]],
    row: int,
    column: str | None,
    problem: str,
    remedy: str,
    chat_rows: Rows,
    make_tokenizer: MakeTokenizer,
) -> None:
    error = refusal(chat_rows(3, replace), make_tokenizer(template="llama3"))
    assert (error.row, error.column) == (row, column)
    assert f"row {row}" in str(error)
    assert problem in error.problem
    assert remedy in error.remedy


def test_content_in_parts(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    rows = Dataset.from_list([{"prompt": prompt, "chosen": [ASSISTANT], "rejected": [ASSISTANT]}])
    error = refusal(rows, tokenizer)
    assert (error.row, error.column) == (0, "prompt")
    assert "not text" in error.problem


@pytest.mark.parametrize("text_columns", [("prompt",), ("chosen", "rejected"), ("prompt", "rejected"), ("chosen",)])
def test_mixed_forms(
    text_columns: tuple[str, ...], text_rows: Rows, chat_rows: Rows, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = text_rows()
    mixed = chat_rows()
    for column in text_columns:
        mixed = mixed.remove_columns(column).add_column(column, texts[column])
    error = refusal(mixed, tokenizer)
    assert "mixed" in error.problem
    # The remedy is Python that works.
    expression = re.search(r"dataset\.map\((lambda row: \{.*\})\)", error.remedy)
    assert expression is not None
    repaired = mixed.map(eval(expression.group(1)))
    assert len(prepare_rows(repaired, tokenizer, name="train").dataset) == 3


def test_template_that_refuses_a_message(chat_rows: Rows, make_tokenizer: MakeTokenizer) -> None:
    rows = chat_rows(3, {2: {"prompt": [{"role": "system", "content": "be brief"}, USER]}})
    error = refusal(rows, make_tokenizer(template="gemma"))
    assert error.row == 2
    assert "System role not supported" in error.problem
    assert "chat_template" in error.remedy


def test_template_that_rewrites_the_prompt(chat_rows: Rows, make_tokenizer: MakeTokenizer) -> None:
    error = refusal(chat_rows(), make_tokenizer(template="rewriting"))
    assert error.row == 0
    assert "renders the prompt differently" in error.problem


def test_template_that_drops_the_answer(chat_rows: Rows, make_tokenizer: MakeTokenizer) -> None:
    error = refusal(chat_rows(), make_tokenizer(template="dropping"))
    assert (error.row, error.column) == (0, "chosen")
    assert "no tokens of its own" in error.problem


def test_no_chat_template(chat_rows: Rows, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ValueError, match=r"no chat template.*tokenizer\.chat_template"):
        prepare_rows(chat_rows(), make_tokenizer(), name="train")


def test_no_end_of_sequence_token(text_rows: Rows, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ValueError, match=r"no end-of-sequence token.*tokenizer\.eos_token"):
        prepare_rows(text_rows(), make_tokenizer(eos_token=None), name="train")


def test_not_a_tokenizer(text_rows: Rows) -> None:
    with pytest.raises(TypeError, match="tokenizer must be a transformers tokenizer, got str"):
        prepare_rows(text_rows(), "gpt2", name="train")  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", ["", "hel"])
def test_no_token_left_for_the_prompt(prompt: str, text_rows: Rows, word_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = text_rows(3, {1: {"prompt": prompt, "chosen": "lo world", "rejected": "p three"}})
    error = refusal(rows, word_tokenizer)
    assert error.row == 1
    assert "no token is left for the prompt" in error.problem
    assert "beginning-of-sequence" in error.remedy


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_context_length": 1}, ValueError, "max_context_length must be at least 2, got 1"),
        ({"max_context_length": 8.0}, TypeError, "max_context_length must be an int or None, got 8.0"),
        ({"min_completion_length": -1}, ValueError, "min_completion_length must be at least 0"),
        ({"max_context_length": 8, "min_completion_length": 8}, ValueError, "a prompt needs room too"),
        ({"num_proc": 0}, ValueError, "num_proc must be at least 1, got 0"),
        ({"num_proc": True}, TypeError, "num_proc must be an int or None"),
    ],
)
def test_bad_options(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    text_rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(error, match=message):
        prepare_rows(text_rows(), tokenizer, name="train", **options)


def test_error_from_a_worker_process(text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    error = refusal(text_rows(6, {4: {"chosen": "\t"}}), tokenizer, num_proc=2)
    assert (error.dataset, error.row, error.column) == ("train", 4, "chosen")
