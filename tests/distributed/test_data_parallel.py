"""Several processes that share each step's pairs make the steps that one process makes."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.distributed import work
from tests.distributed.ranks import run_ranks, zero_environment


def assert_same_training(actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = 1e-5) -> None:
    """Metrics of every step, of the measurement, and the final weights agree."""
    for ours, theirs in zip(actual["metrics"], expected["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    assert actual["measured"] == pytest.approx(expected["measured"], rel=tolerance, abs=tolerance)
    assert actual["weights"].keys() == expected["weights"].keys()
    for name, tensor in expected["weights"].items():
        assert (actual["weights"][name] - tensor).abs().max() < tolerance


def assert_ranks_agree(results: list[Mapping[str, Any]]) -> None:
    """What all processes know they know to the bit."""
    for other in results[1:]:
        assert other["metrics"] == results[0]["metrics"]
        assert other["measured"] == results[0]["measured"]
        for name, tensor in results[0]["weights"].items():
            assert other["weights"][name].equal(tensor)


@pytest.fixture(scope="module")
def alone() -> Mapping[str, Any]:
    return work.curve(parallel=False)


@pytest.mark.parametrize("ranks", [2, 3])
def test_twenty_steps_are_those_of_one_process(alone: Mapping[str, Any], ranks: int) -> None:
    results = run_ranks(work.curve, ranks=ranks)
    assert results[0]["ranks"] == ranks
    assert_ranks_agree(results)
    assert_same_training(results[0], alone)


def test_sft_too() -> None:
    results = run_ranks(work.sft_curve)
    assert_ranks_agree(results)
    assert_same_training(results[0], work.sft_curve(parallel=False))


@pytest.mark.parametrize("stage", [None, 2, 3])
def test_losses_that_compare_all_pairs_of_a_step_also_where_a_process_has_none(stage: int | None) -> None:
    environment = {} if stage is None else zero_environment(stage, SHARD_FROM="0")
    results = run_ranks(work.coupled_curve, environment=environment)
    assert_ranks_agree(results)
    assert_same_training(results[0], work.coupled_curve(parallel=False))


def test_a_parameter_that_no_process_reaches_is_not_stepped() -> None:
    for found in run_ranks(work.unreached):
        both, one, none = found["gradients"]
        assert both.tolist() == [2, 2, 2]
        assert one.tolist() == [1, 1, 1]
        assert none is None
        assert found["norm"] == pytest.approx(15**0.5)
        assert found["untouched"].tolist() == [1, 1, 1]  # not decayed either
