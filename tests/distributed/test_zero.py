"""ZeRO stages 0, 1 and 2 make the steps of one process, in a population too, and share out the optimizer's state."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.distributed import work, zero_work
from tests.distributed.ranks import run_ranks, zero_environment
from tests.distributed.test_data_parallel import assert_ranks_agree, assert_same_training

Found = Mapping[str, Any]


def assert_same(actual: Found, expected: Found, tolerance: float = 1e-5) -> None:
    """Weights and whole moments agree, and the settings of the optimizer are the same."""
    for name, tensor in expected["weights"].items():
        assert (actual["weights"][name] - tensor).abs().max() < tolerance, name
    ours, theirs = actual["optimizer"], expected["optimizer"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, entry in theirs["state"].items():
        assert ours["state"][number].keys() == entry.keys()
        for kind, value in entry.items():
            assert ours["state"][number][kind].shape == value.shape
            assert (ours["state"][number][kind] - value).abs().max() < tolerance, (number, kind)


@pytest.fixture(scope="module")
def alone() -> Found:
    return zero_work.training(None)


@pytest.fixture(scope="module", params=[1, 2])
def results(request: pytest.FixtureRequest) -> list[Found]:
    return run_ranks(zero_work.training, request.param, environment=zero_environment(request.param))


def test_stage_0_is_plain_data_parallelism(alone: Found) -> None:
    results = run_ranks(work.curve, environment=zero_environment(0))
    assert_ranks_agree(results)
    assert_same_training(results[0], alone["curve"])


def test_twenty_steps_are_those_of_one_process(alone: Found, results: list[Found]) -> None:
    assert {result["stepper"] for result in results} == {"ZeroStepper"}
    elements = sum(tensor.numel() for tensor in alone["curve"]["weights"].values())
    assert {result["held"] for result in results} == {2 * elements // 2 + 1}  # half of two moments, and a count
    assert_ranks_agree([result["curve"] for result in results])
    assert_same_training(results[0]["curve"], alone["curve"])
    for result in results:
        assert_same(result["curve"], alone["curve"])


def test_a_population_whose_agents_become_each_other(alone: Found, results: list[Found]) -> None:
    for result in results:
        for actual, expected in zip(result["population"], alone["population"], strict=True):
            assert_same(actual, expected)


def test_a_state_is_gone_on_from(alone: Found, results: list[Found]) -> None:
    for result in results:
        assert_same(result["restored"]["other"], alone["restored"]["other"])
        assert_same(result["restored"]["back"], alone["restored"]["back"])


def test_moments_in_cpu_memory_and_a_configuration_with_bf16_change_nothing() -> None:
    offloaded = {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu", "ACCELERATE_MIXED_PRECISION": "bf16"}
    results = run_ranks(work.curve, 5, environment=zero_environment(2, **offloaded))
    assert_ranks_agree(results)
    assert_same_training(results[0], work.curve(5, parallel=False))


def test_what_is_not_finite_in_one_rank_stops_the_step_in_all(alone: Found, results: list[Found]) -> None:
    for result in results:
        loss, gradient = result["undisturbed"]["said"]
        assert "The loss is not finite on" in loss
        assert "The gradient norm is inf" in gradient
        assert_same(result["undisturbed"], alone["undisturbed"])


def test_clones_leave_nothing_behind(results: list[Found]) -> None:
    for result in results:
        assert result["left"] == {"parameters": 0, "hooks": 1, "adapters": 2, "groups": 0}


def test_the_state_of_two_ranks_is_gone_on_from_by_one_process(alone: Found, results: list[Found]) -> None:
    agent = work.dpo(None)
    zero_work.taught(agent, range(6))
    expected = zero_work.found(agent)
    agent.stepper.load_state_dict(results[1]["undisturbed"]["optimizer"])
    with torch.no_grad():
        for name, parameter in agent.base.parameters(agent.adapters.owned["actor"]).items():
            parameter.copy_(results[1]["undisturbed"]["weights"][name])
    zero_work.taught(agent, range(6, 8))
    other = work.dpo(None)
    zero_work.taught(other, range(8))
    assert_same(zero_work.found(agent), zero_work.found(other))
    assert_same(results[1]["undisturbed"], expected)
