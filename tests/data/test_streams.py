"""Streams are written to disk once, as they are, and known by their content."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Features, IterableDataset, Json, List, Value, load_dataset

from agiledpo.cache import cache_directory
from agiledpo.data import DatasetError
from agiledpo.data.arrow_rows import tables_of_rows
from agiledpo.data.streams import write_stream


def stream(rows: list[dict[str, Any]], features: Features | None = None) -> IterableDataset:
    # One shard: a list among gen_kwargs would be taken for shards.
    return IterableDataset.from_generator(lambda: iter(rows), features=features)


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"{number}", "chosen": [{"role": "assistant", "content": "5"}], "score": number / 4, **more}


def refusal(rows: list[dict[str, Any]], features: Features | None = None) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        write_stream(stream(rows, features), name="train")
    return caught.value


def test_rows_come_back() -> None:
    rows = [pair(number, ids=[1, number], late=None, also=[]) for number in range(2500)]
    rows[2400] |= {"chosen": [{"role": "assistant", "tool_calls": [{"a": None}]}], "late": "5", "also": ["x"]}
    dataset = write_stream(stream(rows), name="train")
    assert dataset.to_list() == rows
    assert dataset.features == Features(
        prompt=Value("string"),
        chosen=List(Json()),
        score=Value("float64"),
        ids=List(Value("int64")),
        late=Json(),
        also=Json(),
    )
    assert dataset.cache_files


def test_known_by_content() -> None:
    rows = [pair(number) for number in range(1500)]
    first, again = (write_stream(stream(rows), name="train") for _ in range(2))
    assert first._fingerprint == again._fingerprint
    assert first.cache_files == again.cache_files
    assert write_stream(stream([*rows[:-1], pair(0)]), name="train")._fingerprint != first._fingerprint


def test_types_that_the_stream_knows(tmp_path: Path) -> None:
    features = Features(
        prompt=Value("large_string"), chosen=List({"role": Value("string"), "content": Value("string")})
    )
    rows = [{"prompt": "2", "chosen": [{"role": "assistant", "content": "5"}]}] * 3
    dataset = write_stream(stream(rows, features), name="train")
    assert dataset.features == features
    assert dataset.to_list() == rows
    (tmp_path / "a.csv").write_text("prompt,chosen\na,b\n")
    streamed = load_dataset("csv", data_files=str(tmp_path / "a.csv"), split="train", streaming=True)
    assert write_stream(streamed, name="train").to_list() == [{"prompt": "a", "chosen": "b"}]


def test_most_rows() -> None:
    rows = [pair(number) for number in range(30)]
    assert write_stream(stream(rows), name="train", max_rows=7).to_list() == rows[:7]


def test_no_rows() -> None:
    assert str(refusal([])) == "train dataset: the stream has no rows. Check what it is made of."


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("prompt", ["a"], "a list, which does not fit the column's type Value('string')"),
        ("prompt", 5, "a number, which does not fit the column's type Value('string')"),
        ("score", "high", "text, which does not fit the column's type Value('float64')"),
        ("chosen", "yes", "text, which does not fit the column's type List(Json(decode=True))"),
        ("chosen", ["yes"], "a list, which does not fit the column's type List(Json(decode=True))"),
    ],
)
def test_another_type_later(column: str, value: Any, said: str) -> None:
    rows = [pair(number) for number in range(2500)]
    rows[1800] = pair(1800, **{column: value})
    assert str(refusal(rows)) == (
        f"train dataset, row 1800, column {column!r}: the value is {said}. Write the column in the same way in all "
        "rows, or tell the stream its types: dataset.cast(features)."
    )


def test_another_column_later() -> None:
    rows = [pair(number) for number in range(1200)]
    rows[1100]["tools"] = []
    assert str(refusal(rows)) == (
        "train dataset, row 1100, column 'tools': there is no such column in the rows before; they have "
        "['prompt', 'chosen', 'score']. Give all rows the same columns, with None where there is no value."
    )


def test_values_that_are_not_json() -> None:
    error = refusal([{"prompt": "a"}, {"prompt": b"a"}])
    assert (error.row, error.column) == (1, "prompt")
    assert "the value is of type bytes" in str(error)


def test_nothing_is_left_of_an_interrupted_stream() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from (pair(number) for number in range(3000))
        raise KeyboardInterrupt

    directory = cache_directory("sources")
    directory.mkdir(parents=True, exist_ok=True)
    before = sorted(directory.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write_stream(IterableDataset.from_generator(rows), name="train")
    assert sorted(directory.iterdir()) == before


def test_memory_does_not_grow_with_the_stream() -> None:
    def peak(rows: int) -> int:
        text = "x" * 1000
        endless = IterableDataset.from_generator(lambda: ({"prompt": f"{row} {text}"} for row in range(rows)))
        tracemalloc.start()
        write_stream(endless, name="train")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1000)  # what is imported and cached once
    few, many = peak(2000), peak(20_000)
    assert many < 1.5 * few  # all 20,000 rows are ten times 2,000


@pytest.mark.parametrize(
    ("value", "feature"),
    [
        (5.9, Value("int64")),
        (True, Value("int64")),
        (b"abc", Value("string")),
        (1, Value("bool")),
        (True, Value("float64")),
        ([1, 5.9], List(Value("int64"))),
        ([{"a": b"x"}], List({"a": Value("string")})),
        ([{"b": "x"}], List({"a": Value("string")})),
        ("ab", List(Value("string"))),
    ],
)
def test_values_are_not_made_to_fit(value: Any, feature: Any) -> None:
    """Arrow would make 5 of 5.9 and text of bytes, and drop keys."""
    good = {"id": 1, "x": None}
    features = Features(id=Value("int64"), x=feature)
    with pytest.raises(DatasetError, match="does not fit the column's type") as caught:
        list(tables_of_rows(iter([good, {"id": 2, "x": value}]), features, name="train"))
    assert (caught.value.row, caught.value.column) == (1, "x")


@pytest.mark.parametrize("late", [{"ids": [1, 5.9]}, {"prompt": b"text"}])
def test_late_values_of_a_stream_are_not_made_to_fit(late: dict[str, Any]) -> None:
    rows = [pair(number, ids=[number]) for number in range(1500)]
    error = refusal([*rows, pair(1500, **{"ids": [1], **late})])
    assert (error.row, error.column) == (1500, next(iter(late)))


def test_json_in_messages_comes_back() -> None:
    features = Features(
        chosen=List({"role": Value("string"), "w": Json()}), rejected={"deep": List({"j": List(Json())})}
    )
    rows = [
        {"chosen": [{"role": "a", "w": weight}, {"role": "b", "w": None}], "rejected": {"deep": [{"j": [{"k": 1}]}]}}
        for weight in (1, 0.5, [None], {"x": "5"})
    ]
    dataset = write_stream(stream(rows, features), name="train")
    assert dataset.features == features
    assert dataset.to_list() == rows


def test_half_a_surrogate_pair_in_json() -> None:
    error = refusal([pair(0), pair(1, chosen=[{"role": "assistant", "content": "a \ud83d"}])])
    assert (error.row, error.column) == (1, "chosen")
    assert "half of a surrogate pair" in str(error)


def test_stream_that_fails() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from (pair(number) for number in range(1200))
        raise RuntimeError("gone")

    with pytest.raises(DatasetError) as caught:
        write_stream(IterableDataset.from_generator(rows), name="train")
    assert str(caught.value) == (
        "train dataset, row 1200: the stream failed here (RuntimeError: gone). Mend what makes its rows, or take the "
        "rows before with max_rows."
    )
