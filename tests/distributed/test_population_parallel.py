"""A population whose agents are spread over processes becomes what it becomes in one, to the bit."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agiledpo.algorithms import DPO
from agiledpo.training.train_llm import finetune_llm_preference
from tests.distributed import populations, work
from tests.distributed.ranks import run_ranks, run_ranks_that_may_fail, zero_environment

# What is known of a finished run in every process, and is the same however many there are.
WHOLE = ("agents", "fitnesses", "elite", "final", "validation", "lineage", "selection", "mutation", "adapters")
RUNS = {2: list(populations.CASES), 3: ["tournament"]}


def same_bits(one: Any, other: Any) -> bool:
    """Whether two states are equal, NaN and negative zero included."""
    match one, other:
        case Tensor(), Tensor():
            flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
            return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)
        case dict(), dict():
            return list(one) == list(other) and all(same_bits(one[name], other[name]) for name in one)
        case ((list() | tuple()), (list() | tuple())):
            return len(one) == len(other) and all(map(same_bits, one, other))
        case float(), float():
            return struct.pack("d", one) == struct.pack("d", other)
    return type(one) is type(other) and repr(one) == repr(other)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two states differ, for the message."""
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        return [place for name in one for place in differences(one[name], other[name], f"{where}/{name}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [place for number, pair in pairs for place in differences(*pair, f"{where}/{number}")]
    return [] if same_bits(one, other) else [where]


@pytest.fixture(scope="module")
def one() -> Mapping[str, Any]:
    """Each case in a process of its own."""
    torch.set_num_threads(1)
    return populations.several(list(populations.CASES), None)


@pytest.fixture(scope="module")
def spread() -> Mapping[int, Any]:
    """The cases among as many processes as the key says: what each of these has at the end."""
    return {ranks: run_ranks(populations.several, RUNS[ranks], "population", ranks=ranks) for ranks in RUNS}


@pytest.mark.parametrize(("ranks", "case"), [(ranks, case) for ranks, cases in RUNS.items() for case in cases])
def test_every_process_has_the_population_of_one(one, spread, ranks, case):
    expected = {name: one[case][name] for name in WHOLE}
    for rank in range(ranks):
        actual = {name: spread[ranks][rank][case][name] for name in WHOLE}
        assert differences(actual, expected) == []
        assert spread[ranks][rank][case]["teams"] == [ranks] * len(expected["agents"])


def test_the_cases_are_what_they_are_meant_to_be(one):
    for case, found in one.items():
        events = [record["event"] for record in found["lineage"]]
        assert events.count("selected") == 3, case
        assert events.count("born") > len(found["agents"]), case
        assert "mutated" in events, case
        diverged = [record["agent"] for record in found["lineage"] if record["event"] == "diverged"]
        ill = {"tournament": 1, "truncation, own environments": 2, "subpopulations of eight": 5}
        assert diverged == ([ill[case]] if case in ill else []), case
    mutated = {record["parameter"] for record in one["tournament"]["lineage"] if record["event"] == "mutated"}
    assert mutated >= {"lr", "batch_size"} or mutated >= {"beta", "batch_size"}
    moved, still = (one[case]["agents"][0]["adapters"]["reference"] for case in ("own references", "tournament"))
    assert not same_bits(moved, still)


@pytest.mark.parametrize(("ranks", "case"), [(2, "tournament"), (3, "tournament"), (2, "own references")])
def test_nothing_travels_but_children_to_their_homes(one, spread, ranks, case):
    moved = moves(one[case]["lineage"], len(one[case]["agents"]), ranks)
    size = one[case]["size"]
    adapter = size["adapters"] // 2
    state = size["optimizer"] + size["random_stream"] + size["sampling_stream"] + adapter
    sent = [spread[ranks][rank][case]["traffic"]["sent"] for rank in range(ranks)]
    assert [len(messages) for messages in sent] == [moved.count(rank) for rank in range(ranks)]
    if case == "tournament":  # all references are the one that all began with
        assert {size for messages in sent for size in messages} == {state}
    else:
        assert {size for messages in sent for size in messages} <= {state, state + adapter}
        assert state + adapter in {size for messages in sent for size in messages}
    assert sum(map(len, sent)) > 0


def moves(lineage: list[Mapping[str, Any]], size: int, ranks: int) -> list[int]:
    """Rank of the parent of each child whose home is another, from the lineage alone."""
    places = list(range(size))
    moved = []
    replaced: list[int] = []
    parents = dict(enumerate(places))
    for record in lineage:
        if record["event"] == "selected":
            parents = {index: place for place, index in enumerate(places)}
            replaced = sorted(places.index(index) for index in record["replaced"])
        elif record["event"] == "born" and record["parent"] is not None:
            place = replaced.pop(0)
            places[place] = record["agent"]
            giver = parents[record["parent"]] % ranks
            if giver != place % ranks:
                moved.append(giver)
    return moved


def test_draws_without_a_seed_are_the_leaders():
    first, second = run_ranks(populations.preference, "population", "unseeded")
    assert differences(first["agents"], second["agents"]) == []
    assert first["lineage"] == second["lineage"]


def test_agents_that_differ_between_processes_are_refused():
    outcomes = run_ranks_that_may_fail(populations.differing)
    for well, text in outcomes:
        assert not well
        assert "agent 1's lr is 0.002 in process 1 and 0.001 in process 0" in text


def test_a_population_that_all_processes_work_on_is_that_of_one():
    expected = populations.alike(None)
    first, second = run_ranks(populations.alike, "data")
    assert differences(first["agents"], second["agents"]) == []
    assert first["lineage"] == second["lineage"]
    assert [_decision(record) for record in first["lineage"]] == [_decision(record) for record in expected["lineage"]]
    for ours, theirs in zip(first["agents"], expected["agents"], strict=True):
        assert ours["hyperparameters"] == theirs["hyperparameters"]
        assert ours["fitness"] == pytest.approx(theirs["fitness"], abs=1e-5)
        for name, tensor in theirs["adapters"]["actor"].items():
            assert (ours["adapters"]["actor"][name] - tensor).abs().max() < 1e-5


def _decision(record: Mapping[str, Any]) -> Any:
    """What was decided, without figures that are rounded."""
    return {name: value for name, value in record.items() if name not in ("fitness", "error", "tie_break", "metrics")}


def test_a_run_that_is_spread_goes_on_in_one_process(one, tmp_path: Path):
    run_ranks(populations.saved, "population", str(tmp_path), ranks=3)
    resumed = populations.saved(None, str(tmp_path), resume_from=tmp_path / "checkpoints" / "step_18")
    for name in ("agents", "lineage", "selection", "mutation"):
        assert differences(resumed[name], one["tournament"][name]) == []
    elite = DPO.load(tmp_path / "elite", actor_network=work.model())
    best = next(agent for agent in resumed["agents"] if agent["index"] == resumed["elite"])
    assert same_bits(elite.state_dict()["adapters"]["actor"], best["adapters"]["actor"])


def test_a_population_is_not_spread_without_processes_of_its_own():
    with pytest.raises(ValueError, match="parallel='population' spreads the agents over the processes"):
        finetune_llm_preference([work.dpo()], parallel="population")
    with pytest.raises(ValueError, match="parallel='tensor'; use one of 'data', 'population'"):
        finetune_llm_preference([work.dpo()], parallel="tensor")  # type: ignore[arg-type]


def test_deepspeed_keeps_no_whole_agent():
    outcomes = run_ranks_that_may_fail(populations.under_deepspeed, ranks=1, environment=zero_environment(2))
    assert "Launch without DeepSpeed, or pass parallel='data'." in outcomes[0][1]
