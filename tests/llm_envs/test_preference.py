"""PreferenceGym: what a batch holds, in which order batches come, and that evaluation and resuming change nothing."""

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from agiledpo.data import FilterCounts, PreferenceDataError
from agiledpo.llm_envs import PreferenceExperiences, PreferenceGym
from agiledpo.llm_envs.batching import epoch_permutation

MakeEnv = Callable[..., PreferenceGym]
MakeRows = Callable[..., Dataset]
MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
SameBatch = Callable[[PreferenceExperiences, PreferenceExperiences], None]


def take(env: PreferenceGym, batches: int) -> list[PreferenceExperiences]:
    return [env.step() for _ in range(batches)]


def rows_of(batches: list[PreferenceExperiences]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def test_batch_layout(make_env: MakeEnv) -> None:
    env = make_env(batch=4)
    batch = env.reset()
    tokenizer = env.tokenizer
    ids = {side: batch[f"{side}_input_ids"] for side in ("chosen", "rejected")}  # type: ignore[literal-required]
    masks = {side: batch[f"{side}_attention_mask"] for side in ("chosen", "rejected")}  # type: ignore[literal-required]
    assert ids["chosen"].shape == ids["rejected"].shape == masks["chosen"].shape == masks["rejected"].shape
    assert ids["chosen"].shape[0] == 4
    # As long as the longest sequence of both sides and no longer.
    lengths = {side: mask.sum(1) for side, mask in masks.items()}
    assert max(int(length.max()) for length in lengths.values()) == ids["chosen"].shape[1]
    for index in range(4):
        prompt_length = int(batch["prompt_lengths"][index])
        assert torch.equal(ids["chosen"][index, :prompt_length], ids["rejected"][index, :prompt_length])
        assert tokenizer.decode(ids["chosen"][index, :prompt_length]) == "<s>" + batch["prompt"][index]
        for side in ("chosen", "rejected"):
            length = int(lengths[side][index])
            mask = masks[side][index]
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            text = batch["prompt"][index] + batch[side][index]  # type: ignore[literal-required]
            assert tokenizer.decode(ids[side][index, :length]) == f"<s>{text}</s>"
            assert set(ids[side][index, length:].tolist()) <= {env.pad_token_id}
    assert batch["split"] == "train"
    for key in ("prompt_lengths", "row", "chosen_input_ids", "chosen_attention_mask"):
        assert batch[key].dtype == torch.int64  # type: ignore[literal-required]


def test_left_padding_tokenizer_makes_the_same_batches(
    make_env: MakeEnv, make_tokenizer: MakeTokenizer, assert_same_batch: SameBatch
) -> None:
    tokenizer = make_tokenizer(padding_side="left", truncation_side="left", model_max_length=4)
    tokenizer.backend_tokenizer.enable_padding(direction="left", length=40)
    expected, actual = make_env(), make_env(tokenizer=tokenizer)
    for _ in range(4):
        assert_same_batch(expected.step(), actual.step())
    assert actual.tokenizer is tokenizer
    assert tokenizer.padding_side == "left"
    assert tokenizer.backend_tokenizer.padding["length"] == 40


def test_padding_with_the_end_of_sequence_token(make_env: MakeEnv, make_tokenizer: MakeTokenizer) -> None:
    """The mask, not the id, tells tokens from padding."""
    env = make_env(tokenizer=make_tokenizer(pad_token="</s>"))
    assert env.pad_token_id == env.tokenizer.eos_token_id
    batch = env.reset()
    for side in ("chosen", "rejected"):
        ids, mask = batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"]  # type: ignore[literal-required]
        last = ids[torch.arange(len(ids)), mask.sum(1) - 1]
        assert (last == env.tokenizer.eos_token_id).all()


def test_chat_rows(make_tokenizer: MakeTokenizer) -> None:
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "system", "content": "no"}, {"role": "user", "content": f"hello {i}"}],
                "chosen": [{"role": "assistant", "content": "yes yes"}],
                "rejected": [{"role": "assistant", "content": "no"}],
            }
            for i in range(3)
        ]
    )
    tokenizer = make_tokenizer()
    env = PreferenceGym(rows, rows, tokenizer, data_batch_size_per_gpu=3)
    batch = next(env.test_batches())
    expected = tokenizer.apply_chat_template(rows[1]["prompt"] + rows[1]["chosen"], return_dict=False)
    assert batch["chosen_input_ids"][1].tolist() == expected
    assert batch["rejected"] == ["no<|im_end|>\n"] * 3
    assert batch["prompt"][2].endswith("hello 2<|im_end|>\n<|im_start|>assistant\n")
    assert batch in env.observation_space


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 12), batch=st.integers(1, 14), seed=st.integers(0, 2**40))
def test_every_epoch_covers_every_row_once(rows: int, batch: int, seed: int, make_env: MakeEnv) -> None:
    env = make_env(train=rows, test=2, batch=batch, seed=seed)
    per_epoch = -(-rows // batch)
    for epoch in range(3):
        batches = take(env, per_epoch)
        assert env.num_epochs == epoch
        sizes = [len(each) for each in rows_of(batches)]
        assert sizes == [batch] * (rows // batch) + ([rows % batch] if rows % batch else [])
        order = [row for each in rows_of(batches) for row in each]
        assert sorted(order) == list(range(rows))
        assert order == epoch_permutation(rows, seed, epoch).tolist()
        for each in batches:
            assert each in env.observation_space
            assert each["chosen_input_ids"] in env.action_space


def test_permutation_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_permutation(50, 42, 0)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    assert torch.equal(epoch_permutation(50, 42, 0), first)
    others = [epoch_permutation(50, seed, epoch) for seed, epoch in ((42, 1), (43, 0), (41, 1), (0, 42))]
    assert not any(torch.equal(other, first) for other in others)
    assert not torch.equal(epoch_permutation(50, 42, 1), epoch_permutation(50, 43, 0))
    before = torch.get_rng_state()
    epoch_permutation(50, 42, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_epoch_is_counted_when_the_next_one_begins(make_env: MakeEnv) -> None:
    env = make_env(train=8, batch=4)
    trained = []
    batch = env.reset()
    while env.num_epochs < 1:
        trained += batch["row"].tolist()
        batch = env.step(["ignored"])
    assert sorted(trained) == list(range(8))


def test_rows_are_numbers_in_the_users_dataset(make_env: MakeEnv) -> None:
    with pytest.warns(UserWarning, match="samples were filtered out of the train dataset"):
        env = make_env(train=12, test=1, batch=12, max_context_length=17)
    assert len(env) < 12
    batch = env.reset()
    assert [int(text.removeprefix("hello ").split(",")[0]) for text in batch["prompt"]] == batch["row"].tolist()
    assert env.filter_counts["train"].kept == len(env)
    assert env.filter_counts["test"] == FilterCounts(total=1)
    assert batch["chosen_input_ids"].shape[1] <= 17


def test_eval_mode_starts_at_the_start_and_gives_the_training_place_back(
    make_env: MakeEnv, assert_same_batch: SameBatch
) -> None:
    env, undisturbed = make_env(train=9, test=5, batch=2), make_env(train=9, test=5, batch=2)
    for _ in range(12):
        for _ in range(2):
            with env.eval_mode() as inside:
                assert inside is env
                assert len(env) == 5
                batches = [env.reset(), *take(env, 3)]
                assert rows_of(batches) == [[0, 1], [2, 3], [4], [0, 1]]
                assert {batch["split"] for batch in batches} == {"test"}
                assert all(batch in env.observation_space for batch in batches)
        assert len(env) == 9
        assert_same_batch(env.step(), undisturbed.step())
        assert env.num_epochs == undisturbed.num_epochs


def test_eval_modes_nest_and_survive_exceptions(make_env: MakeEnv) -> None:
    env, undisturbed = make_env(test=6, batch=2), make_env(test=6, batch=2)
    assert rows_of(take(env, 1)) == rows_of(take(undisturbed, 1))

    def fail() -> None:
        with env.eval_mode():
            assert rows_of(take(env, 2)) == [[0, 1], [2, 3]]
            raise RuntimeError("an evaluation that fails")

    with env.eval_mode():
        assert rows_of(take(env, 1)) == [[0, 1]]
        with pytest.raises(RuntimeError, match="an evaluation that fails"):
            fail()
        assert rows_of(take(env, 1)) == [[2, 3]]
    with pytest.raises(RuntimeError, match="an evaluation that fails"):
        fail()
    assert rows_of(take(env, 9)) == rows_of(take(undisturbed, 9))


def test_test_batches_touch_no_cursor(make_env: MakeEnv) -> None:
    env, undisturbed = make_env(test=5, batch=2), make_env(test=5, batch=2)
    take(env, 1), take(undisturbed, 1)
    with env.eval_mode():
        take(env, 1)
        batches = []
        for batch in env.test_batches():
            batches.append(batch)
            assert list(rows_of(list(env.test_batches()))) == [[0, 1], [2, 3], [4]]
        assert rows_of(batches) == [[0, 1], [2, 3], [4]]
        assert rows_of(take(env, 1)) == [[2, 3]]
    assert {batch["split"] for batch in batches} == {"test"}
    assert all(batch in env.observation_space for batch in batches)
    assert rows_of(take(env, 8)) == rows_of(take(undisturbed, 8))


def test_two_resets_in_a_row_warn(make_env: MakeEnv, recwarn: pytest.WarningsRecorder) -> None:
    env = make_env()
    warnings.simplefilter("always")
    first = env.reset()
    env.step()
    env.reset()
    with env.eval_mode():
        env.reset()
    env.step()
    env.reset()
    for _ in env.test_batches():
        pass
    env.step()
    assert not [warning for warning in recwarn if "reset" in str(warning.message)]
    env.reset()
    with pytest.warns(UserWarning, match=r"reset\(\) was called more than once in a row"):
        second = env.reset()
    assert first["row"].tolist() != second["row"].tolist()


def test_reset_rewinds_on_demand_and_warns(make_env: MakeEnv, assert_same_batch: SameBatch) -> None:
    env = make_env(train=10, batch=4)
    first_epoch = take(env, 3)
    second_epoch = take(env, 2)
    with pytest.warns(UserWarning, match="proceed with caution"):
        again = env.reset(reset_dataloaders=True)
    assert env.num_epochs == 1
    assert_same_batch(again, second_epoch[0])
    assert_same_batch(env.step(), second_epoch[1])
    assert rows_of(first_epoch)[0] != again["row"].tolist()
    with env.eval_mode():
        take(env, 1)
        with pytest.warns(UserWarning, match="test split"):
            assert env.reset(reset_dataloaders=True)["row"].tolist() == [0, 1, 2, 3]


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), batch=st.integers(1, 5), taken=st.integers(0, 12), evaluate=st.booleans())
def test_resumed_run_gets_the_batches_of_the_original(
    rows: int, batch: int, taken: int, evaluate: bool, make_env: MakeEnv, assert_same_batch: SameBatch
) -> None:
    original = make_env(train=rows, test=2, batch=batch, seed=7)
    take(original, taken)
    if evaluate:
        with original.eval_mode():
            take(original, 1)
            state = json.loads(json.dumps(original.state_dict()))
    else:
        state = json.loads(json.dumps(original.state_dict()))
    resumed = make_env(train=rows, test=2, batch=batch, seed=8)
    take(resumed, 3)
    resumed.load_state_dict(state)
    assert resumed.num_epochs == original.num_epochs
    for _ in range(8):
        assert_same_batch(resumed.step(), original.step())
        assert resumed.num_epochs == original.num_epochs
    assert resumed.state_dict() == original.state_dict()


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 130), batch=st.integers(1, 5), taken=st.integers(0, 150), seed=st.integers(0, 9))
def test_grouped_by_length_every_row_comes_once_and_resuming_is_exact(
    rows: int, batch: int, taken: int, seed: int, make_env: MakeEnv, assert_same_batch: SameBatch
) -> None:
    original = make_env(train=rows, test=3, batch=batch, seed=seed, group_by_length=True)
    per_epoch = -(-rows // batch)
    for epoch in range(2):
        batches = take(original, per_epoch)
        assert original.num_epochs == epoch
        assert [len(each["row"]) for each in batches[:-1]] == [batch] * (per_epoch - 1)
        assert sorted(row for each in rows_of(batches) for row in each) == list(range(rows))
    take(original, taken)
    state = json.loads(json.dumps(original.state_dict()))
    resumed = make_env(train=rows, test=3, batch=batch, seed=seed + 1, group_by_length=True)
    take(resumed, 2)
    resumed.load_state_dict(state)
    for _ in range(8):
        assert_same_batch(resumed.step(), original.step())
    assert resumed.state_dict() == original.state_dict()
    assert rows_of(list(resumed.test_batches())) == rows_of(list(make_env(test=3, batch=batch).test_batches()))


@pytest.mark.parametrize("limits", [{}, {"max_context_length": 18}])
def test_grouping_by_length_leaves_less_padding(limits: dict[str, int], make_env: MakeEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mixed, grouped = (make_env(train=202, batch=4, group_by_length=group, **limits) for group in (False, True))
    assert len(mixed) == len(grouped) == (202 if not limits else mixed.filter_counts["train"].kept)
    padding = []
    for env in (mixed, grouped):
        batches = take(env, -(-len(env) // 4))
        # Tokens that each pair's longer side falls short of its batch's width.
        lengths = [
            torch.maximum(b["chosen_attention_mask"].sum(1), b["rejected_attention_mask"].sum(1)) for b in batches
        ]
        padding.append(sum(int((length.max() - length).sum()) for length in lengths))
        widths = [b["chosen_input_ids"].shape[1] for b in batches]
    assert padding[1] < padding[0] / 4
    # Long and short batches alternate.
    assert widths != sorted(widths)
    assert widths != sorted(widths, reverse=True)


def test_state_of_another_order_is_refused(make_env: MakeEnv) -> None:
    env = make_env(batch=4, group_by_length=True)
    take(env, 1)
    state = env.state_dict()
    with pytest.raises(ValueError, match=r"group_by_length=True, which makes another order than group_by_length=False"):
        make_env(batch=4).load_state_dict(state)
    with pytest.raises(ValueError, match=r"data_batch_size_per_gpu=4, here it is 3.*the order depends on it"):
        make_env(batch=3, group_by_length=True).load_state_dict(state)
    with pytest.raises(ValueError, match=r"group_by_length=False, which makes another order"):
        env.load_state_dict(make_env(batch=4).state_dict())
    assert env.state_dict() == state


def test_state_of_other_data_is_refused(make_env: MakeEnv, make_tokenizer: MakeTokenizer) -> None:
    env = make_env(train=10)
    state = env.state_dict()
    for other in (
        make_env(train=9),
        make_env(max_context_length=90),
        make_env(tokenizer=make_tokenizer(bos_token="</s>")),
    ):
        with pytest.raises(ValueError, match="other training rows"):
            other.load_state_dict(state)
    # The test split and the batch size may change: the place is a row.
    make_env(train=10, test=3, batch=3).load_state_dict(state)


def test_an_upgrade_that_tokenises_alike_belongs_to_the_same_rows(
    make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    import agiledpo.data.fingerprint as module

    env = make_env(train=10)
    state, rows = env.state_dict(), [int(row) for row in env.step()["row"]]
    for library in ("transformers", "tokenizers"):
        monkeypatch.setattr(getattr(module, library), "__version__", "99.0")
    upgraded = make_env(train=10)  # tokenised anew, since the version is in the name of the cache
    assert upgraded.state_dict()["fingerprint"] == state["fingerprint"]
    upgraded.load_state_dict(state)
    assert [int(row) for row in upgraded.step()["row"]] == rows
    with pytest.raises(ValueError, match="another version of transformers, tokenizers or datasets"):
        make_env(train=10).load_state_dict({**state, "fingerprint": "0"})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"version": 99}, ValueError, "Not a state of this version"),
        ({"surplus": 1}, ValueError, "Not a state of this version"),
        ({"position": 11}, ValueError, "beyond the 10 rows"),
        ({"position": -1}, ValueError, "position must be at least 0"),
        ({"epoch": "1"}, TypeError, "epoch must be an int"),
    ],
)
def test_malformed_state_changes_nothing(
    change: dict[str, Any], error: type[Exception], message: str, make_env: MakeEnv
) -> None:
    env = make_env(train=10)
    take(env, 1)
    before = env.state_dict()
    with pytest.raises(error, match=message):
        env.load_state_dict({**before, "epoch": 5, "position": 2, "seed": 9, **change})
    assert env.state_dict() == before


def test_observation_space_refuses_what_is_no_batch(make_env: MakeEnv) -> None:
    env = make_env()
    batch = env.reset()
    wrong: list[dict[str, Any]] = [
        {"split": "valid"},
        {"prompt": tuple(batch["prompt"])},
        {"chosen_input_ids": batch["chosen_input_ids"].float()},
        {"chosen_input_ids": torch.full_like(batch["chosen_input_ids"], len(env.tokenizer))},
        {"rejected_attention_mask": batch["rejected_attention_mask"] * 2},
        {"prompt_lengths": torch.zeros_like(batch["prompt_lengths"])},
        {"row": -batch["row"] - 1},
        {"surplus": 1},
    ]
    assert batch in env.observation_space
    for change in wrong:
        assert {**batch, **change} not in env.observation_space, change
    del batch["row"]  # type: ignore[misc]
    assert batch not in env.observation_space
    env.observation_space.seed(0)
    sample = env.observation_space.sample()
    assert sample in env.observation_space
    assert sample["chosen_input_ids"].shape == sample["rejected_attention_mask"].shape
    assert torch.full((3, 9), env.pad_token_id) in env.action_space
    assert torch.full((3, 9), -1) not in env.action_space


def test_tokens_added_by_the_user_are_in_the_spaces(make_env: MakeEnv, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([" yes", " no"])
    env = make_env(tokenizer=tokenizer)
    batch = env.reset()
    assert int(batch["chosen_input_ids"].max()) >= tokenizer.vocab_size
    assert batch in env.observation_space


def test_processes_make_the_same_batches(
    make_env: MakeEnv, assert_same_batch: SameBatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path / "two"))
    with_two = make_env(num_proc=2)
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path / "one"))
    alone = make_env()
    for _ in range(4):
        assert_same_batch(with_two.step(), alone.step())
    assert with_two.state_dict() == alone.state_dict()


def test_names_and_defaults(make_rows: MakeRows, make_tokenizer: MakeTokenizer) -> None:
    rows = make_rows(9)
    env = PreferenceGym(rows, rows, make_tokenizer())
    assert (env.data_batch_size_per_gpu, env.accelerator, env.seed, env.num_epochs) == (8, None, 42, 0)
    assert env.name == "preferences"
    rows.info.dataset_name = "human-like"
    accelerator = Accelerator(cpu=True)
    named = PreferenceGym(
        train_dataset=rows,
        test_dataset=rows,
        tokenizer=env.tokenizer,
        data_batch_size_per_gpu=16,
        accelerator=accelerator,
        max_context_length=64,
        min_completion_length=1,
        seed=1,
    )
    assert named.name == "human-like"
    assert named.accelerator is accelerator
    assert len(named.reset()["prompt"]) == 9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": 0}, ValueError, "data_batch_size_per_gpu must be at least 1, got 0"),
        ({"batch": 2.0}, TypeError, "data_batch_size_per_gpu must be an int"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"group_by_length": 1}, TypeError, "group_by_length must be True or False, got 1"),
        ({"tokenizer": "gpt2"}, TypeError, "tokenizer must be a transformers tokenizer, got str"),
        ({"max_context_length": 2}, PreferenceDataError, r"^train dataset: no row is left.*at least \d+\.$"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str, make_env: MakeEnv) -> None:
    with pytest.raises(error, match=message):
        make_env(**options)


def test_no_pad_token(make_env: MakeEnv, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(pad_token=None)
    with pytest.raises(ValueError, match=r"no pad token.*tokenizer\.pad_token = tokenizer\.eos_token"):
        make_env(tokenizer=tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    assert make_env(tokenizer=tokenizer).pad_token_id == tokenizer.eos_token_id


def test_errors_name_the_split(make_rows: MakeRows, make_tokenizer: MakeTokenizer) -> None:
    rows = make_rows(3)
    with pytest.raises(PreferenceDataError, match=r"^test dataset: required column 'chosen'.*'Chosen' is it"):
        PreferenceGym(rows, rows.rename_column("chosen", "Chosen"), make_tokenizer())
    with pytest.raises(PreferenceDataError, match=r"^train dataset: required column 'rejected'"):
        PreferenceGym(rows.remove_columns("rejected"), rows, make_tokenizer())
    with pytest.raises(
        PreferenceDataError,
        match=r"^test dataset: the source has the splits test\. Pass one of them, such as dataset\[.test.\]",
    ):
        PreferenceGym(rows, DatasetDict(test=rows), make_tokenizer())


def test_both_datasets_are_looked_at_before_either_is_tokenised(
    make_rows: MakeRows, make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path))
    rows = make_rows(3)
    with pytest.raises(PreferenceDataError, match="test dataset"):
        PreferenceGym(rows, rows.remove_columns("prompt"), make_tokenizer())
    assert list(tmp_path.iterdir()) == []
