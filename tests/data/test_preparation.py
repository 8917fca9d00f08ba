"""Tokenising once, caching, and leaving rows out."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from agiledpo.cache import cache_directory
from agiledpo.data import FilterCounts, Form, PreferenceDataError, prepare_rows
from agiledpo.data.fingerprint import rows_fingerprint, tokenized_fingerprint
from agiledpo.data.tokenization import isolated_copy

Rows = Callable[..., Dataset]
MakeTokenizer = Callable[..., PreTrainedTokenizerBase]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path))
    return tmp_path / "tokenized"


@pytest.fixture
def tokenizer(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerBase:
    return make_tokenizer(bos=True, template="chatml")


def files(directory: Path) -> dict[str, tuple[int, int]]:
    """Names, with what changes when a file is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in directory.iterdir()}


def test_columns_and_row_numbers(text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = text_rows(5).add_column("score", [1.0] * 5).select([4, 2, 0])
    prepared = prepare_rows(rows, tokenizer, name="train")
    assert prepared.form is Form.TEXT
    assert prepared.filter_counts == FilterCounts(total=3)
    assert list(prepared.dataset["row"]) == [0, 1, 2]
    assert list(prepared.dataset["prompt"]) == ["hello 4? ", "hello 2? ", "hello 0? "]
    first = prepared.dataset[0]
    assert tokenizer.decode(first["prompt_ids"] + first["chosen_ids"]) == "<s>hello 4? yes 4</s>"
    for side in ("prompt", "chosen", "rejected"):
        assert first[f"{side}_length"] == len(first[f"{side}_ids"])
    assert "score" not in prepared.dataset.column_names


def test_output_format_of_the_dataset_does_not_matter(text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = text_rows()
    expected = prepare_rows(rows, tokenizer, name="train").dataset.to_list()
    formatted = rows.with_format("torch", columns=["prompt"])
    assert prepare_rows(formatted, tokenizer, name="train").dataset.to_list() == expected
    assert formatted.format["columns"] == ["prompt"]


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path / "here"))
    assert cache_directory("tokenized") == tmp_path / "here" / "tokenized"
    monkeypatch.delenv("AGILEDPO_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory("tokenized") == tmp_path / ".cache" / "agiledpo" / "tokenized"


def test_second_time_nothing_is_tokenised(
    cache: Path, text_rows: Rows, tokenizer: PreTrainedTokenizerBase, make_tokenizer: MakeTokenizer
) -> None:
    first = prepare_rows(text_rows(), tokenizer, name="train")
    written = files(cache)
    assert len(written) == 1
    # Calling a tokenizer changes its state, and another one with another side of padding makes the same tokens.
    tokenizer(["hello", "hello world"], padding=True, truncation=True, max_length=4)
    other = make_tokenizer(bos=True, template="chatml", padding_side="left", model_max_length=5)
    for again in (tokenizer, other):
        # The data are made anew, and have only their content in common.
        prepared = prepare_rows(text_rows(), again, name="test", max_context_length=100)
        assert prepared.dataset.to_list() == first.dataset.to_list()
    assert files(cache) == written


def test_what_changes_tokens_is_tokenised_again(cache: Path, text_rows: Rows, make_tokenizer: MakeTokenizer) -> None:
    rows = text_rows()
    longer = text_rows(4)
    added = make_tokenizer(bos=True)
    added.add_tokens(["hello 1"])
    variants = [
        (rows, make_tokenizer(bos=True)),
        (longer, make_tokenizer(bos=True)),
        (longer.select([0, 1, 3]), make_tokenizer(bos=True)),
        (rows, make_tokenizer(bos=True, eos=True)),
        (rows, make_tokenizer(bos=True, eos_token="<|im_end|>")),
        (rows, make_tokenizer(bos=True, template="chatml")),
        (rows, make_tokenizer(bos=True, template="llama3")),
        (rows, make_tokenizer(bos=True, split_special_tokens=True)),
        (rows, added),
        (rows, ByT5Tokenizer()),
        (rows, ByT5Tokenizer(extra_ids=10)),
    ]
    for number, (dataset, tokenizer) in enumerate(variants, start=1):
        prepare_rows(dataset, tokenizer, name="train")
        assert len(files(cache)) == number


def test_limits_share_the_tokens_and_have_their_own_fingerprint(
    cache: Path, text_rows: Rows, tokenizer: PreTrainedTokenizerBase
) -> None:
    limits = [{}, {"max_context_length": 50}, {"max_context_length": 50, "min_completion_length": 2}]
    fingerprints = [prepare_rows(text_rows(), tokenizer, name="train", **options).fingerprint for options in limits]
    assert len(set(fingerprints)) == 3
    assert len(files(cache)) == 1


def test_a_failed_run_leaves_nothing_behind(cache: Path, text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PreferenceDataError):
        prepare_rows(text_rows(2500, {2200: {"chosen": ""}}), tokenizer, name="train")
    assert files(cache) == {}


def test_another_process_finds_the_tokens(
    cache: Path, text_rows: Rows, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = text_rows(4)
    rows.to_json(tmp_path / "rows.jsonl")
    prepare_rows(rows, AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), name="train")
    written = files(cache)
    script = (
        "import json, sys\n"
        "from datasets import Dataset\n"
        "from transformers import AutoTokenizer\n"
        "from agiledpo.data import prepare_rows\n"
        "rows = Dataset.from_list([json.loads(line) for line in open(sys.argv[1] + '/rows.jsonl')])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1] + '/tokenizer')\n"
        "print(len(prepare_rows(rows, tokenizer, name='train').dataset))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "AGILEDPO_CACHE": str(cache.parent), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "4", result.stderr
    assert files(cache) == written


@pytest.mark.parametrize("form", ["text", "chat"])
def test_processes_make_the_same_rows(
    form: str, cache: Path, text_rows: Rows, chat_rows: Rows, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = (text_rows if form == "text" else chat_rows)(25)
    with_two = prepare_rows(rows, tokenizer, name="train", num_proc=2)
    assert len(files(cache)) == 2
    for path in cache.iterdir():
        path.unlink()
    alone = prepare_rows(rows, tokenizer, name="train")
    assert len(files(cache)) == 1
    assert with_two.fingerprint == alone.fingerprint
    assert with_two.dataset.to_list() == alone.dataset.to_list()
    assert list(alone.dataset["row"]) == list(range(25))


def test_tokens_of_several_processes_are_found_by_one(
    cache: Path, text_rows: Rows, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = text_rows(5)
    with_two = prepare_rows(rows, tokenizer, name="train", num_proc=2)
    written = files(cache)
    alone = prepare_rows(rows, tokenizer, name="train")
    assert files(cache) == written
    assert alone.dataset.to_list() == with_two.dataset.to_list()


def test_more_processes_than_rows(text_rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(prepare_rows(text_rows(2), tokenizer, name="train", num_proc=9).dataset) == 2


def test_fingerprint_ignores_what_calls_change(make_tokenizer: MakeTokenizer) -> None:
    used, fresh = make_tokenizer(), make_tokenizer()
    used(["hello"] * 3, padding="max_length", max_length=9, truncation=True)
    names = [tokenized_fingerprint("data", isolated_copy(tokenizer)) for tokenizer in (used, fresh)]
    assert names[0] == names[1]
    assert len(names[0]) == 32


def test_rows_that_are_tokenised_otherwise_are_other_rows(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = isolated_copy(make_tokenizer())
    lengths = np.array([[3, 4], [1, 2], [2, 2]], dtype=np.int32)
    name = rows_fingerprint("data", tokenizer, lengths)
    assert name == rows_fingerprint("data", isolated_copy(make_tokenizer()), np.asfortranarray(lengths))
    longer = lengths.copy()
    longer[2, 1] += 1
    assert len({name, rows_fingerprint("data", tokenizer, longer), rows_fingerprint("other", tokenizer, lengths)}) == 3


@pytest.fixture
def sized(word_tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, PreTrainedTokenizerBase]:
    """Rows of known lengths, (prompt, chosen, rejected) with the end-of-sequence tokens."""
    lengths = [(4, 3, 2), (8, 2, 2), (4, 2, 7), (2, 5, 5), (9, 2, 3)]
    rows = [
        {
            "prompt": " ".join(["hello"] * prompt),
            "chosen": " yes" * (chosen - 1),
            "rejected": " no" * (rejected - 1),
        }
        for prompt, chosen, rejected in lengths
    ]
    return Dataset.from_list(rows), word_tokenizer


@pytest.mark.parametrize(
    ("max_context", "min_completion", "kept", "counts"),
    [
        (None, None, [0, 1, 2, 3, 4], FilterCounts(5)),
        (12, None, [0, 1, 2, 3, 4], FilterCounts(5)),
        (11, None, [0, 1, 2, 3], FilterCounts(5, pair_too_long=1)),
        (8, None, [0, 3], FilterCounts(5, prompt_too_long=1, pair_too_long=2)),
        (10, 3, [3], FilterCounts(5, prompt_too_long=2, pair_too_long=1, completion_too_short=1)),
        (None, 3, [3], FilterCounts(5, completion_too_short=4)),
        (None, 2, [0, 1, 2, 3, 4], FilterCounts(5)),
        (7, 0, [0, 3], FilterCounts(5, prompt_too_long=2, pair_too_long=1)),
    ],
)
def test_filtering(
    max_context: int | None,
    min_completion: int | None,
    kept: list[int],
    counts: FilterCounts,
    sized: tuple[Dataset, PreTrainedTokenizerBase],
) -> None:
    rows, tokenizer = sized
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepared = prepare_rows(
            rows, tokenizer, name="test", max_context_length=max_context, min_completion_length=min_completion
        )
    assert list(prepared.dataset["row"]) == kept
    assert prepared.filter_counts == counts
    assert counts.kept == len(kept)
    messages = [str(warning.message) for warning in caught if "filtered out" in str(warning.message)]
    assert len(messages) == (1 if counts.dropped else 0)
    # What is kept is whole.
    untouched = prepare_rows(rows, tokenizer, name="test").dataset.select(kept)
    assert prepared.dataset.to_list() == untouched.to_list()


def test_warning_says_how_many_and_why(sized: tuple[Dataset, PreTrainedTokenizerBase]) -> None:
    rows, tokenizer = sized
    with pytest.warns(UserWarning, match="filtered out") as caught:
        prepare_rows(rows, tokenizer, name="test", max_context_length=10, min_completion_length=3)
    assert str(caught[0].message) == (
        "4 samples were filtered out of the test dataset due to the max context length constraint. "
        "2 of 5: prompt longer than max_context_length - min_completion_length (10 - 3); "
        "1 of 5: prompt and completion longer than max_context_length (10); "
        "1 of 5: completion shorter than min_completion_length (3)."
    )


def test_nothing_left_says_what_would_fit(sized: tuple[Dataset, PreTrainedTokenizerBase]) -> None:
    rows, tokenizer = sized
    with pytest.raises(PreferenceDataError) as caught:
        prepare_rows(rows, tokenizer, name="test", max_context_length=6)
    message = str(caught.value)
    assert message.startswith("test dataset: no row is left after filtering by length (2 of 5: prompt longer than")
    assert "3 of 5: prompt and completion longer than max_context_length (6)" in message
    assert "the shortest row has 7 tokens" in message
    assert message.endswith("Raise max_context_length to at least 7.")
    with pytest.warns(UserWarning, match="3 samples"):
        assert len(prepare_rows(rows, tokenizer, name="test", max_context_length=7).dataset) == 2


def test_nothing_left_because_completions_are_short(sized: tuple[Dataset, PreTrainedTokenizerBase]) -> None:
    rows, tokenizer = sized
    with pytest.raises(PreferenceDataError, match=r"Lower min_completion_length to at most 5\.$"):
        prepare_rows(rows, tokenizer, name="train", min_completion_length=6)


def test_counts_are_frozen() -> None:
    counts = FilterCounts(total=4, prompt_too_long=1)
    assert (counts.dropped, counts.kept) == (1, 3)
    with pytest.raises(FrozenInstanceError):
        counts.total = 5  # type: ignore[misc]
