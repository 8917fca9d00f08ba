"""Files of every kind are opened with the values that were written, whatever readers would make of them."""

import csv
import gzip
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet
import pytest
from datasets import Dataset, Json, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from agiledpo.data import DatasetError, json_files
from agiledpo.data.files import FileRows, kind_of_file, open_files
from agiledpo.data.loading import load_preferences

Rows = list[dict[str, Any]]


def parsed(rows: Rows) -> Rows:
    """Rows as layouts read them: JSON text parsed, and messages without keys that are None."""

    def value(column: str, value: Any) -> Any:
        if column in ("tools", "chat_template_kwargs") and isinstance(value, str):
            return json.loads(value)
        if isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value):
            return [
                {
                    key: json.loads(part) if key == "tool_calls" and isinstance(part, str) else part
                    for key, part in message.items()
                    if part is not None
                }
                for message in value
            ]
        return value

    return [{column: value(column, part) for column, part in row.items()} for row in rows]


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"What is {number}?", "chosen": f"A number, {number}.", "rejected": "It is nothing.", **more}


def write_lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(f"{json.dumps(values)}\n" for values in rows))
    return path


def write_list(path: Path, rows: Rows) -> Path:
    path.write_text(json.dumps(rows, indent=2))
    return path


def write_gzip(path: Path, rows: Rows) -> Path:
    path.write_bytes(gzip.compress("".join(f"{json.dumps(values)}\n" for values in rows).encode()))
    return path


def write_csv(path: Path, rows: Rows) -> Path:
    Dataset.from_list(rows).to_csv(str(path))
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    Dataset.from_list(rows).to_parquet(str(path))
    return path


WRITERS: Mapping[str, Callable[[Path, Rows], Path]] = {
    "rows.jsonl": write_lines,
    "rows.ndjson": write_lines,
    "rows.json": write_list,
    "lines.json": write_lines,
    "rows.jsonl.gz": write_gzip,
    "rows.csv": write_csv,
    "rows.parquet": write_parquet,
}


def read(path: Path) -> Dataset:
    dataset, _ = open_files([path], name="train")
    return dataset


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file(name: str, tmp_path: Path) -> None:
    rows = [row(number) for number in range(250)]
    path = WRITERS[name](tmp_path / name, rows)
    dataset, opened = open_files([path], name="train")
    assert dataset.to_list() == rows
    assert opened == (FileRows(path, 250),)
    assert dataset.cache_files, "the rows are in memory and not on disk"


@pytest.mark.parametrize("name", WRITERS)
def test_fingerprint_is_of_the_content(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    rows = [row(number) for number in range(5)]
    here, there = WRITERS[name](tmp_path / name, rows), WRITERS[name](tmp_path / "other" / name, rows)
    assert read(here)._fingerprint == read(there)._fingerprint
    changed = WRITERS[name](tmp_path / name, [*rows[:-1], row(9)])
    assert read(changed)._fingerprint != read(there)._fingerprint


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "json"),
        ("a.b.JSON", "json"),
        ("a.json.gz", "json"),
        ("a.csv.gz", "csv"),
        ("train-00000-of-00001-8a3f.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("json", None),
        ("a.txt", None),
    ],
)
def test_kind_of_file(name: str, kind: str | None) -> None:
    assert kind_of_file(Path(name)) == kind


def test_words_of_csv_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    words = ["NA", "None", "null", "nan", "", "007", "1e3", "true", "2020-01-01", "#N/A", " x "]
    path.write_text("prompt,chosen,rejected\n" + "".join(f'"{word}",{word},b\n' for word in words))
    dataset = read(path)
    assert dataset["prompt"][:] == dataset["chosen"][:] == words
    assert dataset.features["prompt"] == Value("string")


def test_csv_with_commas_lines_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffprompt,chosen,rejected\r\n"a\n\nb","c ""d"", e",f\r\n\r\ng,h,i\r\n'.encode())
    assert read(path).to_list() == [
        {"prompt": "a\n\nb", "chosen": 'c "d", e', "rejected": "f"},
        {"prompt": "g", "chosen": "h", "rejected": "i"},
    ]


def test_texts_that_look_like_times(tmp_path: Path) -> None:
    rows = [{"prompt": "2020-01-01T00:00:00Z", "chosen": "2020-01-01", "turns": ["2021-05-05"]} for _ in range(3)]
    assert read(write_lines(tmp_path / "a.jsonl", rows)).to_list() == rows


def test_messages_that_look_like_times_and_numbers(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in ("2020-01-01", "2021-01-01")]
    assert read(write_lines(tmp_path / "a.jsonl", rows)).to_list() == rows
    # One content is a list, so datasets would keep contents as JSON, and read the text "5" as a number.
    rows = [{"prompt": [{"role": "user", "content": content}]} for content in ("5", "null", '"so"', ["part"])]
    assert read(write_lines(tmp_path / "a.jsonl", rows)).to_list() == rows


def test_keys_that_not_all_messages_have(tmp_path: Path) -> None:
    tool = {"name": "f", "parameters": {"city": {"type": "string", "default": None}}}
    rows = [
        {"prompt": [{"role": "user", "content": "a"}], "tools": [tool]},
        {"prompt": [{"role": "user", "content": "b"}, {"role": "assistant", "tool_calls": [{"id": 1}]}], "tools": []},
        {"prompt": [{"role": "user", "content": "c"}], "tools": [{"name": "g", "parameters": {"day": {}}}]},
    ]
    for name, write in (("a.jsonl", write_lines), ("a.json", write_list)):
        assert parsed(read(write(tmp_path / name, rows)).to_list()) == rows


def test_missing_keys_are_none(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "a"}, {"chosen": "b"}, {"prompt": None, "extra": 1}])
    assert read(path).to_list() == [
        {"prompt": "a", "chosen": None, "extra": None},
        {"prompt": None, "chosen": "b", "extra": None},
        {"prompt": None, "chosen": None, "extra": 1},
    ]


def test_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    rows = [row(number, tools=[{"name": {str(number): None}}]) for number in range(3)]
    first, *others = (json.dumps(values) for values in rows)
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff\n \n" + first + "\n\n \t\n" + "\r\n".join(others) + "\n\n", encoding="utf-8")
    assert parsed(read(path).to_list()) == rows


@pytest.mark.parametrize("blank", ["\n", " \t\r\n"])
def test_blank_lines_do_not_add_keys(blank: str, tmp_path: Path) -> None:
    # datasets looks for keys that not all objects have only where every line is an object.
    rows = [{"tools": [{"name": "f", "city": 1}]}, {"tools": [{"name": "g", "day": 1}]}]
    first, second = (f"{json.dumps(values)}\n" for values in rows)
    for number, text in enumerate((first + blank + second, first + second + blank, first + second + blank.strip("\n"))):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(text)
        assert parsed(read(path).to_list()) == rows


def test_numbers_that_no_float_holds(tmp_path: Path) -> None:
    rows = [{"id": 2**64 - 1, "score": 0.1234567890123456}, {"id": 0.5, "score": math.pi}]
    assert read(write_list(tmp_path / "a.json", rows)).to_list() == rows


@pytest.mark.parametrize("late", [{"role": "user"}, 7, True, ["a"], [{"role": "user", "content": 7}]])
def test_type_that_changes_in_a_later_piece(late: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # datasets finds types anew in each piece, and makes text of what follows text. The last row is a piece of its own.
    monkeypatch.setattr(json_files, "_PIECE", 1 << 15)
    rows = [row(number) for number in range(2000)]
    path = write_lines(tmp_path / "a.jsonl", [*rows, row(2000, chosen=late)])
    assert read(path).to_list() == [*rows, row(2000, chosen=late)]
    with pytest.raises(DatasetError) as caught:
        load_preferences(path, dataset_name="train")
    assert (caught.value.row, caught.value.column, caught.value.file) == (2000, "chosen", str(path))
    assert "(line 2001), but in row 0 (line 1) it is text" in str(caught.value)


def test_key_that_appears_in_a_later_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_PIECE", 1 << 15)
    rows = [{"prompt": [{"role": "user", "content": str(number)}], "tools": None} for number in range(2000)]
    rows.append({"prompt": [{"role": "tool", "content": "x", "id": "5"}], "tools": [{"name": "f"}]})
    assert parsed(read(write_lines(tmp_path / "a.jsonl", rows)).to_list()) == rows


def test_files_of_different_types(tmp_path: Path) -> None:
    first, second = [row(0, id=1, tools=None)], [row(1, id="5", tools=[{"a": 1}]), row(2, id="x", more=True)]
    dataset, opened = open_files(
        [write_lines(tmp_path / "a.jsonl", first), write_list(tmp_path / "b.json", second)], name="train"
    )
    assert [file.rows for file in opened] == [1, 2]
    assert dataset.features["id"] == Json()
    assert dataset.features["tools"] == Value("string")
    assert dataset["id"][:] == [1, "5", "x"]
    assert dataset["more"][:] == [None, None, True]


def test_parquet_files_of_different_types(tmp_path: Path) -> None:
    paths = [write_parquet(tmp_path / "a.parquet", [row(0)]), write_parquet(tmp_path / "b.parquet", [row(1, id=1)])]
    with pytest.raises(DatasetError) as caught:
        open_files(paths, name="train")
    assert str(caught.value) == (
        f"train dataset ({paths[1]}), column 'id': the file has Value('int64') where a.parquet has no values. "
        "Give all files the same columns with the same types, or load them one by one."
    )


def test_parquet_is_the_files_own_types(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"prompt_ids": [1, 2], "prompt": [{"role": "user", "content": "a"}]}])
    assert pyarrow.parquet.read_metadata(path).num_rows == 1
    assert read(path).features["prompt_ids"] == List(Value("int64"))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["5", "null", "2020-01-01"])
# What datasets keeps as JSON it reads back with fifteen digits.
NUMBERS = st.integers(-(2**62), 2**62) | st.sampled_from([0.5, -2.25, 1e-3])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.sampled_from("abc"), items, max_size=2),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"prompt": JSON_VALUES, "chosen": JSON_VALUES}), min_size=1, max_size=4))
def test_any_json_list_comes_back(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_list(tmp_path_factory.mktemp("any") / "a.json", rows)
    assert parsed(read(path).to_list()) == rows


MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXTS}), min_size=1, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": MESSAGES, "chosen": TEXTS, "rejected": TEXTS}), min_size=1, max_size=4
    )
)
def test_any_lines_of_messages_come_back(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_lines(tmp_path_factory.mktemp("any") / "a.jsonl", rows)
    assert read(path).to_list() == rows


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), max_rows=st.none() | st.integers(1, 12))
def test_row_of_the_dataset_is_a_row_of_a_file(
    sizes: list[int], max_rows: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("files")
    origin = [(directory / f"{file}.jsonl", number) for file, size in enumerate(sizes) for number in range(size)]
    for file, size in enumerate(sizes):
        write_lines(directory / f"{file}.jsonl", [row(number, file=file) for number in range(size)])
    data = load_preferences(directory, max_rows=max_rows)
    expected = origin[:max_rows]
    assert len(data.dataset) == sum(file.rows for file in data.files) == len(expected)
    for number, (path, place) in enumerate(expected):
        error = data.locate(DatasetError("it is bad", remedy="Mend it.", dataset="train", row=number, column="chosen"))
        assert (error.file, error.row) == (str(path), place)
        assert data.dataset[number]["prompt"] == f"What is {place}?"
        assert str(error) == f"train dataset ({path}), row {place}, column 'chosen': it is bad. Mend it."


def test_readers_that_read_ahead_get_no_file_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their threads would wait for the interpreter, and abort the process if it ends meanwhile."""
    handed = []

    def noting(reader: Callable[..., Any]) -> Callable[..., Any]:
        def read(file: Any, **options: Any) -> Any:
            handed.append(type(file))
            return reader(file, **options)

        return read

    monkeypatch.setattr("pyarrow.json.open_json", noting(pyarrow.json.open_json))
    data = b'{"prompt": "hello", "chosen": "yes", "rejected": "no"}\n' * 200_000  # several pieces
    (tmp_path / "a.jsonl").write_bytes(data)
    with gzip.open(tmp_path / "b.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(data[: len(data) // 200_000 * 190_000])
    for name in ("a.jsonl", "b.jsonl.gz"):
        dataset, _ = open_files([tmp_path / name], name="train")
        assert dataset[-1] == {"prompt": "hello", "chosen": "yes", "rejected": "no"}
    assert len(handed) == 4  # to find the types, and to read
    assert all(issubclass(kind, pa.NativeFile) and not issubclass(kind, pa.PythonFile) for kind in handed)


def rewritten(path: Path, before: Callable[[], Any], after: Callable[[], Any]) -> tuple[Dataset, Dataset]:
    """What is read before and after a file is written anew with the time of the old one."""
    datasets = []
    for write in (before, after):
        write()
        os.utime(path, (1e9, 1e9))
        datasets.append(read(path))
    return datasets[0], datasets[1]


@pytest.mark.parametrize("name", WRITERS)
def test_file_written_anew_with_the_same_time(name: str, tmp_path: Path) -> None:
    path, old, new = tmp_path / name, [row(1), row(2)], [row(7), row(8)]
    first, second = rewritten(path, lambda: WRITERS[name](path, old), lambda: WRITERS[name](path, new))
    assert (first.to_list(), second.to_list()) == (old, new)
    assert first._fingerprint != second._fingerprint


@pytest.mark.parametrize("name", WRITERS)
def test_names_are_no_patterns(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / f"a1{name}", [row(1)])
    assert read(WRITERS[name](tmp_path / f"a[12]{name}", [row(2)])).to_list() == [row(2)]


def test_second_time_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row(number, told="second time") for number in range(3)])
    first = read(path)
    monkeypatch.setattr("pyarrow.json.open_json", lambda *_, **__: pytest.fail("the file is parsed again"))
    assert read(path).cache_files == first.cache_files


ARGUMENTS: tuple[list[str], ...] = (
    ['{"x": 1}', '{"x": 1.5}'],
    ['{"a": 1, "b": 2}', '{"b": 1, "a": 2}'],
    ['{"a": null}', "{}"],
    ['{"a": 18446744073709551617}'],
    ['{"a": 1180591620717411303424, "b": 0.30000000000000004}'],
    ['{"d": "2024-01-01"}', '{"d": 1}'],
    [f'{{"a": {[0.1 * number / 7 for number in range(50)]}}}'],
)


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments_of_tool_calls_stay_as_they_are(arguments: list[str], tmp_path: Path) -> None:
    path, calls = (
        tmp_path / "a.jsonl",
        [f'[{{"function": {{"name": "f", "arguments": {text}}}}}]' for text in arguments],
    )
    answers = [f'[{{"role": "assistant", "content": "", "tool_calls": {call}}}]' for call in calls]
    ranked = [f'[{{"rank": 0, "completion": {answer}}}]' for answer in answers]
    path.write_text(
        "".join(
            f'{{"chosen": {answer}, "completions": {entries}, "tools": {call}}}\n'
            for answer, entries, call in zip(answers, ranked, calls, strict=True)
        )
    )
    dataset = read(path)
    for number, call in enumerate(calls):
        values = dataset[number]
        inner = values["completions"][0]["completion"][0]["tool_calls"]
        assert values["chosen"][0]["tool_calls"] == inner == values["tools"] == json.dumps(json.loads(call))


def test_numbers_of_a_column_that_floats_do_not_hold(tmp_path: Path) -> None:
    rows = [{"n": 0.5}, {"n": 2**53 + 1}]
    assert read(write_lines(tmp_path / "a.jsonl", rows)).to_list() == rows


def test_long_field_of_csv(tmp_path: Path) -> None:
    limit, text = csv.field_size_limit(), "x y " * 600_000
    path = tmp_path / "a.csv"
    path.write_text(f'prompt,chosen,rejected\nhello,"{text}",z\nhello,a\n')
    with pytest.raises(DatasetError, match="row 1: line 3 has 2 fields"):
        read(path)
    path.write_text(f'prompt,chosen,rejected\nhello,"{text}",z\n')
    assert read(path)["chosen"][0] == text
    assert csv.field_size_limit() == limit
