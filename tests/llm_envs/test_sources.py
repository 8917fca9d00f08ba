"""Whatever rows come from, and however they are written, an environment hands out the same batches of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from agiledpo.data import DatasetError, convert, load_demonstrations, load_preferences
from agiledpo.llm_envs import PreferenceGym, SFTGym

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
Rows = list[dict[str, Any]]


@pytest.fixture
def tokenizer(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerBase:
    return make_tokenizer()


@pytest.fixture
def rows() -> Rows:
    return [
        {
            "prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"hello {i}?"}],
            "chosen": [{"role": "assistant", "content": f"yes {i}"}],
            "rejected": [{"role": "assistant", "content": f"no no {i}"}],
        }
        for i in range(6)
    ]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def jsonl(rows: Rows, directory: Path) -> str:
    return str(write(directory / "pairs.jsonl", rows))


def parquet(rows: Rows, directory: Path) -> Path:
    path = directory / "pairs.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return path


def two_files(rows: Rows, directory: Path) -> Path:
    write(directory / "a.jsonl", rows[:2])
    write(directory / "b.jsonl", rows[2:])
    return directory


def stream(rows: Rows, directory: Path) -> IterableDataset:
    def generate() -> Iterator[dict[str, Any]]:
        yield from rows

    return IterableDataset.from_generator(generate)


def implicit(rows: Rows, directory: Path) -> Path:
    return write(
        directory / "implicit.jsonl",
        [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows],
    )


def ranked(rows: Rows, directory: Path) -> Path:
    return write(
        directory / "ranked.jsonl",
        [
            {
                "context": row["prompt"],
                "completions": [
                    {"rank": 1, "completion": row["rejected"]},
                    {"rank": 0, "completion": row["chosen"]},
                ],
            }
            for row in rows
        ],
    )


def named_columns(rows: Rows, directory: Path) -> Any:
    renamed = [{"question": row["prompt"], "better": row["chosen"], "worse": row["rejected"]} for row in rows]
    path = write(directory / "named.jsonl", renamed)
    return load_preferences(path, prompt_key="question", chosen_key="better", rejected_key="worse")


def converted(rows: Rows, directory: Path) -> Dataset:
    return convert(Dataset.from_list(rows), "ranked")


@pytest.mark.parametrize("source", [jsonl, parquet, two_files, stream, implicit, ranked, named_columns, converted])
def test_the_same_batches_from_every_source_and_format(
    source: Callable[[Rows, Path], Any], rows: Rows, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    expected = PreferenceGym(Dataset.from_list(rows), Dataset.from_list(rows), tokenizer, 4)
    opened = source(rows, tmp_path)
    env = PreferenceGym(opened, opened, tokenizer, 4)
    for _ in range(3):
        batch, other = expected.step(), env.step()
        assert batch.keys() == other.keys()
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[name])
            else:
                assert value == other[name]


def test_text_of_csv_is_text_of_a_dataset(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"is {i} odd? ", "chosen": "None" if i % 2 else "NA", "rejected": str(i)} for i in range(4)
    ]  # what readers of CSV like to take for nothing, and for numbers
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    tokenizer = make_tokenizer()
    (batch,) = PreferenceGym(path, path, tokenizer).test_batches()
    (expected,) = PreferenceGym(Dataset.from_list(rows), Dataset.from_list(rows), tokenizer).test_batches()
    assert batch["chosen"] == ["NA", "None", "NA", "None"]
    assert torch.equal(batch["rejected_input_ids"], expected["rejected_input_ids"])


def test_errors_name_the_file_and_the_row_in_it(rows: Rows, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows[4]["chosen"] = [{"role": "assistant", "content": " "}]
    directory = two_files(rows, tmp_path)
    with pytest.raises(DatasetError) as caught:
        PreferenceGym(directory, directory, tokenizer)
    assert str(caught.value).startswith(
        f"train dataset ({directory / 'b.jsonl'}), row 2, column 'chosen': the completion is empty or only whitespace."
    )
    with pytest.raises(DatasetError, match=r"^preference dataset \(.*b\.jsonl\), row 2, column 'chosen'"):
        load_preferences(directory).split_by_prompt(0.5)
    good = load_preferences(Dataset.from_list(rows[:4]))
    with pytest.raises(DatasetError, match=r"^test dataset \(.*b\.jsonl\), row 2, column 'chosen'"):
        PreferenceGym(good, directory, tokenizer)


def test_errors_of_selected_rows_name_the_row_in_the_file(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows[3]["rejected"] = [{"role": "user", "content": "no"}]
    loaded = load_preferences(two_files(rows, tmp_path))
    odd = loaded.select(torch.tensor([1, 3, 5]).numpy())
    with pytest.raises(DatasetError, match=r"^train dataset \(.*b\.jsonl\), row 1, column 'rejected'"):
        PreferenceGym(odd, odd, tokenizer)
    in_memory = load_preferences(Dataset.from_list(rows)).select(torch.tensor([1, 3, 5]).numpy())
    with pytest.raises(DatasetError, match=r"^train dataset, row 3, column 'rejected'"):
        PreferenceGym(in_memory, in_memory, tokenizer)


def test_splits_by_prompt_make_environments(rows: Rows, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    again = [{**row, "rejected": [{"role": "assistant", "content": "never"}]} for row in rows]
    train, test = load_preferences(jsonl(rows + again, tmp_path)).split_by_prompt(0.3, seed=1)
    env = PreferenceGym(train, test, tokenizer, 12)
    (held_out,) = env.test_batches()
    assert (len(train), len(test)) == (8, 4)
    assert not set(held_out["prompt"]) & set(env.step()["prompt"])
    assert env.name == "pairs"


def test_demonstrations_from_files(rows: Rows, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    dialogues = [{"messages": row["prompt"] + row["chosen"]} for row in rows]
    path = write(tmp_path / "dialogues.jsonl", dialogues)
    expected = SFTGym(Dataset.from_list(dialogues), Dataset.from_list(dialogues), tokenizer)
    chosen = SFTGym(jsonl(rows, tmp_path), load_demonstrations(path), tokenizer, response_column="chosen")
    for env in (SFTGym(path, path, tokenizer), chosen):
        (batch,), (other,) = env.test_batches(), expected.test_batches()
        assert torch.equal(batch["input_ids"], other["input_ids"])
        assert torch.equal(env.step()["input_ids"], expected.reset(reset_dataloaders=False)["input_ids"])
        expected = SFTGym(Dataset.from_list(dialogues), Dataset.from_list(dialogues), tokenizer)


def test_rows_of_the_other_gym_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Dataset.from_list([{"prompt": "hello", "chosen": " yes", "rejected": " no", "completion": " so"}] * 2)
    pairs, demonstrations = load_preferences(rows), load_demonstrations(rows)
    with pytest.raises(
        DatasetError, match=r"^train dataset: its rows are read as Pairs\(.*\), of chosen and rejected; ne"
    ):
        SFTGym(pairs, demonstrations, tokenizer)
    with pytest.raises(
        DatasetError, match=r"^test dataset: .* of completion; needed are rows of chosen and rejected\. L"
    ):
        PreferenceGym(pairs, demonstrations, tokenizer)
