"""Named validation sets of an environment: splits like the others, of which training knows nothing."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data import DatasetError
from agiledpo.llm_envs import PreferenceExperiences, PreferenceGym, SFTGym
from agiledpo.llm_envs.validation import validation_splits

MakeEnv = Callable[..., PreferenceGym]
MakeRows = Callable[..., Dataset]


@pytest.fixture
def sets(make_rows: MakeRows) -> dict[str, Dataset]:
    return {"helpful": make_rows(7, first=50), "v2.1_x-y": make_rows(3, first=90)}


def test_they_are_splits_in_their_order_after_the_others(
    sets: dict[str, Dataset], make_env: MakeEnv, make_rows: MakeRows
) -> None:
    env = make_env(validation_datasets=sets, final_dataset=make_rows(2))
    assert env.validation_names == ("helpful", "v2.1_x-y")
    assert env.splits == ("train", "test", "final", "validation-helpful", "validation-v2.1_x-y")
    assert make_env().validation_names == make_env(validation_datasets={}).validation_names == ()


def test_each_hands_out_what_it_would_as_a_test_set(
    sets: dict[str, Dataset], make_env: MakeEnv, make_rows: MakeRows,
    assert_same_batch: Callable[[PreferenceExperiences, PreferenceExperiences], None],
) -> None:  # fmt: skip
    sets["helpful"] = make_rows(7, first=1000)
    with pytest.warns(UserWarning, match="filtered out of the validation-helpful dataset"):
        env = make_env(validation_datasets=sets, max_context_length=18)
    for name, rows in sets.items():
        split = f"validation-{name}"
        with warnings.catch_warnings(action="ignore"):
            other = PreferenceGym(make_rows(10), rows, env.tokenizer, data_batch_size_per_gpu=4, max_context_length=18)
        assert env.fingerprint(split) == other.fingerprint("test")
        assert env.filter_counts[split] == other.filter_counts["test"]
        assert np.array_equal(env.lengths(split), other.lengths("test"))
        batches = list(env.test_batches(split))
        for mine, theirs in zip(batches, other.test_batches(), strict=True):
            assert mine["split"] == split
            assert_same_batch({**mine, "split": "test"}, theirs)
            assert env.observation_space.contains(mine)
            assert not other.observation_space.contains(mine)
        assert {batch["split"] for batch in env.longest_first(split, 2)} == {split}
    assert 0 < env.filter_counts["validation-helpful"].kept < 7
    assert {env.observation_space["split"].sample() for _ in range(50)} == set(env.splits)


def test_the_place_in_training_is_the_same_with_and_without(sets: dict[str, Dataset], make_env: MakeEnv) -> None:
    env, plain = make_env(validation_datasets=sets), make_env()
    orders = []
    for each in (env, plain):
        orders.append([each.step()["row"].tolist() for _ in range(5)])
        list(each.test_batches())
    assert orders[0] == orders[1]
    assert env.state_dict() == plain.state_dict()
    fresh = make_env()
    fresh.load_state_dict(env.state_dict())
    assert fresh.step()["row"].tolist() == env.step()["row"].tolist()


def test_demonstrations_too(sets: dict[str, Dataset], make_env: MakeEnv, make_rows: MakeRows) -> None:
    tokenizer = make_env().tokenizer
    env = SFTGym(make_rows(4), make_rows(2), tokenizer, response_column="chosen", validation_datasets=sets)
    assert env.splits == ("train", "test", "validation-helpful", "validation-v2.1_x-y")
    (batch,) = env.test_batches("validation-v2.1_x-y")
    assert batch["response"] == list(sets["v2.1_x-y"]["chosen"])
    assert batch["row"].tolist() == [0, 1, 2]
    assert env.observation_space.contains(batch)


def test_a_dictionary_of_the_datasets_library_is_one(sets: dict[str, Dataset], make_env: MakeEnv) -> None:
    halves = DatasetDict({"a": sets["helpful"], "b": sets["helpful"]})
    assert make_env(validation_datasets=halves).validation_names == ("a", "b")


@given(st.text(max_size=6))
def test_names_are_those_that_a_metric_can_be_called_by(name: str) -> None:
    allowed = bool(name) and set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
    if allowed:
        assert validation_splits({name: 1}) == {name: 1}
    else:
        with pytest.raises(ValueError, match="validation_datasets has the names"):
            validation_splits({name: 1})


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a\n", 3, None])
def test_wrong_names_are_named(name: Any, sets: dict[str, Dataset], make_env: MakeEnv) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (looked at below)
        make_env(validation_datasets={"good": sets["helpful"], name: sets["helpful"]})
    assert f"validation_datasets has the names [{name!r}]" in str(caught.value)
    assert "ASCII letters, digits, '_', '-' and '.'" in str(caught.value)


def test_one_set_without_a_name_is_no_dictionary(sets: dict[str, Dataset], make_env: MakeEnv) -> None:
    with pytest.raises(TypeError, match=r"got a Dataset\. With one set pass validation_datasets=\{'default': dataset"):
        make_env(validation_datasets=sets["helpful"])


def test_errors_say_which_set(make_rows: MakeRows, make_env: MakeEnv) -> None:
    rows = make_rows(5).to_list()
    rows[3]["chosen"] = ""
    with pytest.raises(DatasetError, match=r"^validation-harmless dataset, row 3, column 'chosen': "):
        make_env(validation_datasets={"harmless": Dataset.from_list(rows)})
    env = make_env(validation_datasets={"harmless": make_rows(2)})
    with pytest.raises(ValueError, match=r"no held-out split 'harmless', only \['test', 'validation-harmless'\]"):
        list(env.test_batches("harmless"))


def test_all_are_looked_at_before_any_is_tokenised(
    make_rows: MakeRows, make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path))
    with pytest.raises(DatasetError, match=r"^validation-x dataset: required column 'chosen' is missing"):
        make_env(validation_datasets={"x": make_rows(2).remove_columns("chosen")})
    assert list(tmp_path.iterdir()) == []
