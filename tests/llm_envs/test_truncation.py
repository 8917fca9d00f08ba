"""Environments that cut rows: their batches, figures and states."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from agiledpo.llm_envs import PreferenceGym, SFTGym
from agiledpo.scoring import PreferenceBatch

MakeEnv = Callable[..., PreferenceGym]
MakeTokenizer = Callable[..., PreTrainedTokenizerBase]


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def sides(env: PreferenceGym) -> dict[int, tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected tokens of the rows of the test split, by row."""
    found = {}
    for batch in env.test_batches():
        assert batch in env.observation_space
        for index, row in enumerate(batch["row"].tolist()):
            length = int(batch["prompt_lengths"][index])
            chosen, rejected = (
                batch[f"{side}_input_ids"][index][batch[f"{side}_attention_mask"][index].bool()].tolist()  # type: ignore[literal-required]
                for side in ("chosen", "rejected")
            )
            assert chosen[:length] == rejected[:length]
            found[row] = chosen[:length], chosen[length:], rejected[length:]
    return found


def test_batches_hold_what_is_kept(make_env: MakeEnv) -> None:
    whole = sides(make_env(test=30))
    most = 16
    ended, started = (
        make_env(test=30, max_context_length=most, truncation=each) for each in ("keep_end", "keep_start")
    )
    assert ended.filter_counts["test"].prompts_truncated > 3
    assert started.filter_counts["test"].completions_truncated > 3
    for row, (prompt, chosen, rejected) in sides(ended).items():
        room = most - max(len(chosen), len(rejected))
        full = whole[row][0]
        assert prompt == (full if len(full) <= room else [full[0], *full[len(full) - room + 1 :]])
        assert (chosen, rejected) == whole[row][1:]
    for row, (prompt, chosen, rejected) in sides(started).items():
        assert prompt + chosen == (whole[row][0] + whole[row][1])[:most]
        assert prompt + rejected == (whole[row][0] + whole[row][2])[:most]
    for env in (ended, started):
        lengths = {row: list(map(len, parts)) for row, parts in sides(env).items()}
        assert env.lengths("test").tolist() == list(lengths.values())
        batch = next(env.longest_first("test", 4))
        assert int(batch["chosen_attention_mask"].sum(1).max()) <= most
        assert len(PreferenceBatch.from_experiences(env.step())) == 4
    assert ended.filter_counts["test"].kept == len(sides(ended))


def test_demonstrations_are_cut(make_rows: Callable[..., Dataset], make_tokenizer: MakeTokenizer) -> None:
    rows = make_rows(12)
    env = SFTGym(
        rows, rows, make_tokenizer(), response_column="rejected", max_context_length=10, truncation="keep_start"
    )
    assert env.filter_counts["train"].completions_truncated > 0
    for batch in env.test_batches():
        cut = batch["attention_mask"].sum(1) == 10
        last = batch["input_ids"][torch.arange(len(cut)), batch["attention_mask"].sum(1) - 1]
        assert (last[~cut] == env.tokenizer.eos_token_id).all()
        for text, ids in zip(batch["response"], batch["input_ids"], strict=True):
            assert text.startswith(" no")
            assert len(ids) <= 10


def test_table_of_the_splits(make_env: MakeEnv) -> None:
    assert make_env().filter_table() == ""
    env = make_env(train=30, test=5, max_context_length=16, truncation="keep_start")
    lines = env.filter_table().splitlines()
    assert lines[0].split() == ["train", "test"]
    cut = [str(env.filter_counts[split].completions_truncated) for split in ("train", "test")]
    assert lines[-1].split() == ["kept,", "completion", "truncated", *cut]


def test_state_of_another_truncation_is_refused(make_env: MakeEnv) -> None:
    state = make_env(max_context_length=18, truncation="keep_end").state_dict()
    make_env(max_context_length=18, truncation="keep_end").load_state_dict(state)
    for truncation in ("drop", "keep_start"):
        with pytest.raises(ValueError, match=r"chat_template_kwargs.*and truncation"):
            make_env(max_context_length=18, truncation=truncation).load_state_dict(state)


def test_template_is_told(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ opening }}" + tokenizer.chat_template
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": "hello"}],
                "chosen": [{"role": "assistant", "content": "yes"}],
                "rejected": [{"role": "assistant", "content": "no"}],
            }
        ]
    )
    pairs = PreferenceGym(rows, rows, tokenizer, chat_template_kwargs={"opening": "so, "})
    told = SFTGym(rows, rows, tokenizer, response_column="chosen", chat_template_kwargs={"opening": "so, "})
    expected = "so, <|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert pairs.step()["prompt"] == told.step()["prompt"] == [expected]
    untold = PreferenceGym(rows, rows, tokenizer)
    assert untold.step()["prompt"] == [expected.removeprefix("so, ")]
    with pytest.raises(ValueError, match=r"other training rows.*chat_template_kwargs"):
        untold.load_state_dict(pairs.state_dict())
    with pytest.raises(ValueError, match="which rendering sets itself"):
        PreferenceGym(rows, rows, tokenizer, chat_template_kwargs={"return_tensors": "pt"})
    with pytest.raises(ValueError, match="never mentions"):
        SFTGym(rows, rows, tokenizer, response_column="chosen", chat_template_kwargs={"open": "x"})
