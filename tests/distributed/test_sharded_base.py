"""ZeRO stage 3: the frozen base in parts, and everything computed as with the whole of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import work
from tests.distributed.ranks import run_ranks, zero_environment
from tests.distributed.test_data_parallel import assert_ranks_agree, assert_same_training

# A tiny model's weights are all smaller than what DeepSpeed shards by default.
_EVERYTHING = zero_environment(3, SHARD_FROM="0")


def test_twenty_steps_are_those_of_one_process() -> None:
    expected = work.curve(parallel=False)
    results = run_ranks(work.curve, environment=_EVERYTHING)
    assert results[0]["ranks"] == 2
    assert_ranks_agree(results)
    assert_same_training(results[0], expected)


@pytest.fixture(scope="module")
def expected() -> Mapping[str, Any]:
    return work.whole_population()


@pytest.fixture(scope="module")
def results() -> list[Mapping[str, Any]]:
    return run_ranks(work.sharded_population, environment=_EVERYTHING)


def test_a_population_on_a_sharded_base_is_that_on_a_whole_one(
    expected: Mapping[str, Any], results: list[Mapping[str, Any]]
) -> None:
    for actual in results:
        assert actual["losses"] == results[0]["losses"]
        assert actual["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        for ours, theirs, same in zip(actual["weights"], expected["weights"], results[0]["weights"], strict=True):
            for name, tensor in theirs.items():
                assert (ours[name] - tensor).abs().max() < 1e-5
                assert ours[name].equal(same[name])
        # The twin of an agent that then learned from the same pairs is that agent.
        for name, tensor in actual["weights"][0].items():
            assert actual["weights"][2][name].equal(tensor)


def test_a_sharded_base_is_known_by_the_same_name_and_read_back_whole(
    expected: Mapping[str, Any], results: list[Mapping[str, Any]]
) -> None:
    elements = sum(parameter.numel() for parameter in work.model().parameters())
    for actual in results:
        assert actual["identity"] == expected["identity"]
        assert actual["content"] == expected["content"]
        assert actual["state"].keys() == actual["whole_weights"].keys()
        for key, tensor in actual["whole_weights"].items():
            assert actual["state"][key].equal(tensor)
            assert actual["shapes"][key] == tensor.shape
        # Half of everything, and nothing is left gathered after a step.
        assert 2 * actual["held_elements"] == elements


def test_other_weights_can_be_written_into_a_sharded_base() -> None:
    other = work.model(seed=5)
    with torch.no_grad():
        expected = other(input_ids=torch.arange(3, 9)[None]).logits
    for logits in run_ranks(work.write_sharded_base, environment=_EVERYTHING):
        assert (logits - expected).abs().max() < 1e-5


def test_what_copies_or_moves_whole_layers_is_refused() -> None:
    for said in run_ranks(work.refused_when_sharded, environment=_EVERYTHING):
        copied, replaced, moved, taken = said
        assert "modules_to_save" in copied
        assert "trainable_token_indices=[3]" in replaced
        assert "stage 2" in copied
        assert "activation_offload=True" in moved
        assert "before adapters are on it" in taken


def test_a_model_that_was_loaded_in_parts_learns_the_same_and_gathers_its_head_once_a_step(tmp_path: Path) -> None:
    work.model().save_pretrained(tmp_path)
    expected = work.dpo()
    losses = [expected.learn(work.pairs(5))["loss"] for _ in range(2)]
    for actual in run_ranks(work.loaded_in_parts, str(tmp_path), environment={**_EVERYTHING, "ZERO3_INIT": "1"}):
        assert actual["losses"] == pytest.approx(losses, rel=1e-5)
        for name, tensor in work.weights(expected).items():
            assert (actual["weights"][name] - tensor).abs().max() < 1e-5
        # Once for each step, of two micro-batches, and for each of two rounds of scoring under the reference.
        assert actual["gathered"] == 4
        assert actual["ranks"] == 2
        assert actual["whole"] == 0
