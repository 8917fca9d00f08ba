"""The file of lengths says what the tokens say, and is found again."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from agiledpo.data import PreparedRows, prepare_rows

Rows = Callable[..., Dataset]
MakeTokenizer = Callable[..., PreTrainedTokenizerBase]


@pytest.fixture
def lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path))
    return tmp_path / "lengths"


@pytest.fixture
def prepare(lengths: Path, text_rows: Rows, make_tokenizer: MakeTokenizer) -> Callable[..., PreparedRows]:
    def make(rows: int = 30, **options: int) -> PreparedRows:
        return prepare_rows(text_rows(rows), make_tokenizer(bos=True), name="train", **options)

    return make


def check(prepared: PreparedRows) -> None:
    columns = prepared.tokenized.to_dict()
    expected = [[len(ids) for ids in columns[f"{part}_ids"]] for part in ("prompt", "chosen", "rejected")]
    assert prepared.lengths.dtype == np.int32
    assert prepared.lengths.tolist() == expected
    kept = prepared.dataset.to_dict()
    longest = [
        len(prompt) + max(len(chosen), len(rejected))
        for prompt, chosen, rejected in zip(kept["prompt_ids"], kept["chosen_ids"], kept["rejected_ids"], strict=True)
    ]
    assert prepared.longest_sides().tolist() == longest
    assert len(prepared) == len(longest)


@pytest.mark.parametrize("processes", [1, 2])
def test_lengths_are_the_tokens(processes: int, prepare: Callable[..., PreparedRows]) -> None:
    # More rows than go through the tokenizer at once.
    check(prepare(2500, num_proc=processes))


def test_lengths_of_the_rows_within_the_limits(prepare: Callable[..., PreparedRows]) -> None:
    middle = int(np.median(prepare().longest_sides()))
    with pytest.warns(UserWarning, match="filtered out"):
        prepared = prepare(max_context_length=middle - 1)
    assert 0 < len(prepared) < 30
    check(prepared)
    places = np.arange(len(prepared))[::-2]
    assert prepared.take(places) == prepared.dataset.select(places).to_dict()


def test_lengths_are_written_once(lengths: Path, prepare: Callable[..., PreparedRows]) -> None:
    prepare()
    (path,) = lengths.iterdir()
    before = path.stat().st_mtime_ns, path.stat().st_ino
    check(prepare())
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert list(lengths.iterdir()) == [path]


def test_lengths_of_other_tokens_are_not_believed(lengths: Path, prepare: Callable[..., PreparedRows]) -> None:
    prepare()
    (path,) = lengths.iterdir()
    np.save(path, np.ones((3, 29), dtype=np.int32))
    check(prepare())
    np.save(path, np.ones((3, 30), dtype=np.int32))
    datasets.disable_caching()
    try:
        check(prepare())
    finally:
        datasets.enable_caching()
    check(prepare())
