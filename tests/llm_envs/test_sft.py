"""The environment of demonstrations: its batches, and that it walks through them as PreferenceGym does."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from agiledpo.data import DatasetError
from agiledpo.llm_envs import PreferenceGym, SFTGym
from agiledpo.scoring import CompletionBatch

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
MakeRows = Callable[..., Dataset]


@pytest.fixture(scope="module")
def make_sft(make_tokenizer: MakeTokenizer, make_rows: MakeRows) -> Callable[..., SFTGym]:
    def make(train: int = 10, test: int = 5, batch: int = 4, **options: Any) -> SFTGym:
        options = {"tokenizer": make_tokenizer(), "response_column": "chosen", **options}
        return SFTGym(make_rows(train), make_rows(test, first=1000), data_batch_size_per_gpu=batch, **options)

    return make


def test_batch_layout(make_sft: Callable[..., SFTGym], make_rows: MakeRows) -> None:
    env = make_sft(min_completion_length=1)
    rows = make_rows(10)
    batch = env.reset()
    assert env.observation_space.contains(batch)
    assert env.action_space.contains(batch["input_ids"])
    assert batch["split"] == "train"
    for i, number in enumerate(batch["row"].tolist()):
        prompt, chosen = rows[number]["prompt"], rows[number]["chosen"]
        assert (batch["prompt"][i], batch["response"][i]) == (prompt, chosen)
        length = int(batch["attention_mask"][i].sum())
        expected = [*env.tokenizer(prompt + chosen).input_ids, env.tokenizer.eos_token_id]
        assert batch["input_ids"][i, :length].tolist() == expected
        assert batch["input_ids"][i, length:].eq(env.pad_token_id).all()
        assert batch["attention_mask"][i, :length].all()
        ids = batch["input_ids"][i, : int(batch["prompt_lengths"][i])]
        assert env.tokenizer.decode(ids) == "<s>" + prompt
    assert batch["input_ids"].shape[1] == int(batch["attention_mask"].sum(1).max())
    assert len(CompletionBatch.from_experiences(batch)) == 4
    assert not env.observation_space.contains(batch | {"prompt_lengths": torch.zeros(4, dtype=torch.int64)})
    env.observation_space.seed(3)
    assert env.observation_space.contains(env.observation_space.sample())


def test_it_walks_as_preference_gym_does(
    make_sft: Callable[..., SFTGym], make_env: Callable[..., PreferenceGym]
) -> None:
    """Same order, epochs, evaluation and held-out batches, row by row, over three epochs."""
    mine, theirs = make_sft(train=11, seed=5), make_env(train=11, seed=5)
    for step in range(9):
        assert mine.step()["row"].tolist() == theirs.step()["row"].tolist()
        assert (mine.num_epochs, mine.at_epoch_end, len(mine)) == (theirs.num_epochs, theirs.at_epoch_end, len(theirs))
        if step == 4:
            with mine.eval_mode() as inner, theirs.eval_mode() as outer:
                assert inner is mine
                assert inner.reset()["row"].tolist() == outer.reset()["row"].tolist() == [0, 1, 2, 3]
    assert [b["row"].tolist() for b in mine.test_batches()] == [b["row"].tolist() for b in theirs.test_batches()]


def test_grouped_by_length_every_row_comes_once_in_an_epoch(make_sft: Callable[..., SFTGym]) -> None:
    env = make_sft(train=11, group_by_length=True)
    epochs = [[env.step()["row"].tolist() for _ in range(3)] for _ in range(3)]
    assert [sorted(row for batch in batches for row in batch) for batches in epochs] == [list(range(11))] * 3
    lengths = env.lengths("train").sum(1)
    shorter, longer = sorted(epochs[0][:2], key=lambda batch: max(lengths[batch]))
    assert max(lengths[shorter]) <= min(lengths[longer])


def test_lengths_and_batches_of_like_length(make_sft: Callable[..., SFTGym]) -> None:
    env = make_sft(train=11)
    lengths = env.lengths("train")
    assert lengths.shape == (11, 2)
    batches = list(env.longest_first("train", 4))
    widths = [int(batch["attention_mask"].sum(1).max()) for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert sorted(row for batch in batches for row in batch["row"].tolist()) == list(range(11))
    first = batches[0]
    assert first["attention_mask"].sum(1).tolist() == lengths.sum(1)[first["row"]].tolist()


@pytest.mark.parametrize("steps", [0, 3, 4])  # three make an epoch
def test_resumed_run_gets_the_batches_of_the_original(
    steps: int, make_sft: Callable[..., SFTGym], assert_same_batch: Callable[..., None]
) -> None:
    env = make_sft(train=11)
    for _ in range(steps):
        env.step()
    resumed = make_sft(train=11, seed=9)
    resumed.load_state_dict(json.loads(json.dumps(env.state_dict())))
    for _ in range(5):
        assert_same_batch(resumed.step(), env.step())


def test_state_of_another_environment_or_column_is_refused(
    make_sft: Callable[..., SFTGym], make_env: Callable[..., PreferenceGym]
) -> None:
    for other in (make_env(), make_sft(response_column="rejected")):
        with pytest.raises(ValueError, match="other training rows"):
            make_sft().load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"Not a state of this version of SFTGym \(version 3\)"):
        make_sft().load_state_dict({})


def test_dialogues_and_a_final_split(make_tokenizer: MakeTokenizer) -> None:
    rows = Dataset.from_list(
        [
            {"messages": [{"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "yes"}]}
            for i in range(3)
        ]
    )
    env = SFTGym(rows, rows, make_tokenizer(), final_dataset=rows.select([1]))
    assert env.name == "demonstrations"
    assert env.splits == ("train", "test", "final")
    (final,) = env.test_batches("final")
    assert final["response"] == ["yes<|im_end|>\n"]
    assert final["prompt"] == ["<|im_start|>user\nhello 1<|im_end|>\n<|im_start|>assistant\n"]


def test_bad_arguments(make_sft: Callable[..., SFTGym], make_rows: MakeRows, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(TypeError, match="response_column must be a column's name or None, got 3"):
        make_sft(response_column=3)
    with pytest.raises(DatasetError, match=r"^train dataset: required column 'completion' is missing"):
        make_sft(response_column=None)
    rows = make_rows(3)
    with pytest.raises(DatasetError, match=r"^test dataset: required column 'chosen' is missing"):
        SFTGym(rows, rows.remove_columns("chosen"), make_tokenizer(), response_column="chosen")
    with pytest.raises(DatasetError, match=r"^train dataset: expected a datasets.Dataset, got dict"):
        SFTGym({}, rows, make_tokenizer())  # type: ignore[arg-type]


def test_agilerls_positions(make_rows: MakeRows, make_tokenizer: MakeTokenizer) -> None:
    rows = make_rows(3).rename_column("chosen", "target")
    env = SFTGym(rows, rows, make_tokenizer(), 2, "target", None, 50, 7)
    assert (env.data_batch_size_per_gpu, env.response_column, env.accelerator, env.seed) == (2, "target", None, 7)
    assert SFTGym(rows, rows, make_tokenizer()).data_batch_size_per_gpu == 8
