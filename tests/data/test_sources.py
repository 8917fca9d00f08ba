"""Every kind of source, and the splits of those that have some."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from agiledpo.data import DatasetError
from agiledpo.data.sources import open_source


def rows(start: int, count: int = 3) -> list[dict[str, str]]:
    return [{"prompt": str(number), "chosen": "b", "rejected": "c"} for number in range(start, start + count)]


def write(path: Path, start: int, count: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list(rows(start, count)).to_parquet(str(path))
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows(start, count)))
    return path


def prompts(source: Any, **options: Any) -> list[int]:
    dataset, _ = open_source(source, name="train", **options)
    return [int(prompt) for prompt in dataset["prompt"]]


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        open_source(source, name="train", **options)
    return str(caught.value)


def test_a_file_as_text_or_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 0)
    assert prompts(path) == prompts(str(path)) == [0, 1, 2]
    assert refusal(path, split="train") == (
        f"train dataset ({path}): split 'train' is asked of a file, which has none. Leave split out."
    )


def test_directory_in_the_order_of_names(tmp_path: Path) -> None:
    for name, start in (("c", 6), ("a", 0), ("b", 3)):
        write(tmp_path / f"{name}.jsonl", start)
    (tmp_path / "README.md").write_text("x")
    dataset, files = open_source(tmp_path, name="train")
    assert prompts(tmp_path) == list(range(9))
    assert [(file.path.name, file.rows) for file in files] == [("a.jsonl", 3), ("b.jsonl", 3), ("c.jsonl", 3)]
    assert dataset.cache_files


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("train/a.jsonl", "train/b.jsonl", "test/a.jsonl"),
        ("train/0.parquet", "train/1.parquet", "test/0.parquet"),
        ("pairs-train.1.jsonl", "pairs-train.2.jsonl", "pairs-test.jsonl"),
        ("train-clean.jsonl", "train-more.jsonl", "test-clean.jsonl"),
        ("data.train.jsonl", "data.train.more.jsonl", "data.test.jsonl"),
        ("train1.jsonl", "train2.jsonl", "my_test.jsonl"),
    ],
)
def test_directory_of_splits(names: tuple[str, str, str], tmp_path: Path) -> None:
    for name, start in zip(names, (0, 3, 6), strict=True):
        write(tmp_path / name, start)
    assert prompts(tmp_path, split="train") == list(range(6))
    assert prompts(tmp_path, split="test") == [6, 7, 8]
    where = f"train dataset ({tmp_path}): the directory has"
    assert refusal(tmp_path) == f"{where} the splits test, train. Choose one, such as split='test'."
    assert refusal(tmp_path, split="dev") == (
        f"{where} no split 'dev'; it has test, train. Choose one of them, such as split='test'."
    )


def test_directory_of_one_split_or_none(tmp_path: Path) -> None:
    write(tmp_path / "one" / "train.jsonl", 0)
    assert prompts(tmp_path / "one") == prompts(tmp_path / "one", split="train") == [0, 1, 2]
    write(tmp_path / "none" / "pairs.jsonl", 0)
    assert refusal(tmp_path / "none", split="train").endswith(
        "the directory has no split 'train'; it has none. Leave split out."
    )
    write(tmp_path / "one" / "more.jsonl", 3)
    assert refusal(tmp_path / "one").endswith(
        "has files of splits (train) and others, such as more.jsonl. Choose one, such as split='train'."
    )


def test_saved_to_disk(tmp_path: Path) -> None:
    Dataset.from_list(rows(0)).save_to_disk(str(tmp_path / "one"))
    assert prompts(tmp_path / "one") == [0, 1, 2]
    assert refusal(tmp_path / "one", split="train").endswith(
        "is asked of a saved dataset, which has none. Leave split out."
    )
    splits = DatasetDict(train=Dataset.from_list(rows(0)), test=Dataset.from_list(rows(3)))
    splits.save_to_disk(str(tmp_path / "two"))
    for source in (tmp_path / "two", splits):
        assert prompts(source, split="test") == [3, 4, 5]
        assert refusal(source) == (
            'train dataset: the source has the splits train, test. Pass one of them, such as dataset["train"], or its '
            "name to load_preferences(..., split=...)."
        )
        assert refusal(source, split="dev") == (
            "train dataset: the source has no split 'dev'; it has train, test. Choose one of these."
        )


def test_datasets_and_streams() -> None:
    dataset = Dataset.from_list(rows(0))
    assert prompts(dataset) == [0, 1, 2]
    assert open_source(dataset, name="train")[0]._fingerprint == dataset._fingerprint
    stream = IterableDataset.from_generator(lambda: iter(rows(4)))
    assert prompts(stream) == [4, 5, 6]
    assert prompts(IterableDatasetDict(test=stream), split="test") == [4, 5, 6]
    assert refusal(dataset, split="train") == (
        "train dataset: split 'train' is asked of a Dataset, which has none. Leave split out."
    )
    assert refusal(rows(0)).startswith("train dataset: expected a datasets.Dataset, got list. ")
    assert refusal(dataset.select([])).startswith("train dataset: it has no rows.")


def test_first_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 0)
    write(tmp_path / "b.jsonl", 3)
    dataset, files = open_source(tmp_path, name="train", max_rows=4)
    assert [int(prompt) for prompt in dataset["prompt"]] == [0, 1, 2, 3]
    assert [file.rows for file in files] == [3, 1]
    again, _ = open_source(tmp_path, name="train", max_rows=4)
    all_rows, _ = open_source(tmp_path, name="train")
    assert again._fingerprint == dataset._fingerprint != all_rows._fingerprint
    assert prompts(tmp_path, max_rows=100) == list(range(6))
    with pytest.raises(ValueError, match=r"^max_rows must be at least 1 or None, got 0\.$"):
        open_source(tmp_path, name="train", max_rows=0)


@pytest.mark.parametrize("options", [{}, {"config": "c", "data_dir": "d", "split": "train"}])
def test_hub_that_cannot_be_reached(options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = " with name='c', data_dir='d', split='train'" if options else ""
    message = refusal("agiledpo-test/no-such-data", **options)
    assert message.startswith(
        f"train dataset: 'agiledpo-test/no-such-data' is no file here, and could not be loaded from the Hub{asked} ("
    )
    assert message.endswith(
        "). Check the name, the network and HF_HUB_OFFLINE, or download it and pass the path of its files."
    )
    assert "\n" not in message


def test_a_path_is_not_taken_for_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "pairs.jsonl", 0)
    assert prompts("data/pairs.jsonl") == prompts("data") == [0, 1, 2]
    assert refusal("data/pair.jsonl").endswith("Perhaps 'data/pairs.jsonl' is meant.")
    assert "no such file" in refusal("data/pairs")
    assert "no such file" in refusal("dat/pairs.jsonl")


@pytest.mark.parametrize("name", ["attest.jsonl", "contest.jsonl", "trained.jsonl", "train-test.jsonl"])
def test_names_that_are_of_no_split(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 0)
    write(tmp_path / name, 3)
    assert sorted(prompts(tmp_path)) == list(range(6))


@pytest.mark.parametrize("name", ["b.jsonl.zst", "b.csv.bz2", "b.tsv", "b.arrow", "b.parquet.gz", "sub/b.jsonl.zst"])
def test_files_that_would_be_left_out(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 0)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert f"{name!r} in the directory is not of a supported format. Supported are .jsonl" in refusal(tmp_path)


def test_links_and_pipes(tmp_path: Path) -> None:
    directory = tmp_path / "rows"
    write(directory / "a.jsonl", 0)
    write(tmp_path / "elsewhere" / "b.jsonl", 3)
    (directory / "sub").symlink_to(tmp_path / "elsewhere")
    (directory / "again").symlink_to(directory)
    assert prompts(directory) == list(range(6))
    (directory / "z.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    assert "'z.jsonl' in the directory is a link to a file that is not there. Restore" in refusal(directory)
    (directory / "z.jsonl").unlink()
    os.mkfifo(directory / "z.jsonl")
    assert "'z.jsonl' in the directory is no regular file." in refusal(directory)
    assert "it is a pipe or a device, no regular file." in refusal(directory / "z.jsonl")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "train dataset: the path is empty. Pass the path of a file or directory."),
        ("  ", "train dataset: the path is empty. Pass the path of a file or directory."),
        ("a" * 5000, f"train dataset: the path '{'a' * 80}…' cannot be opened (File name too long). Correct it."),
        ("~nouser/x.jsonl", "train dataset: the path '~nouser/x.jsonl' cannot be opened (Could not determine home "),
        ("a\0b", "train dataset: the path 'a\\x00b' cannot be opened (embedded null byte). Correct it."),
    ],
)
def test_paths_that_are_none(path: str, says: str) -> None:
    assert refusal(path).startswith(says)


@pytest.mark.parametrize("most", [0, -1, 1.5, "3", True])
def test_number_of_rows_that_is_none(most: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"max_rows must be at least 1 or None, got {most!r}"):
        open_source(write(tmp_path / "a.jsonl", 0), name="train", max_rows=most)
