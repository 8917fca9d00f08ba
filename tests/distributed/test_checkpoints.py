"""Agents that several processes save, load and score for: the leader's disk is enough, and an error is everybody's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from agiledpo.algorithms import DPO
from tests.distributed import checkpoints, work
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def alone(place: Path) -> DPO:
    torch.set_num_threads(1)
    agent = checkpoints.learned(None)
    agent.save_checkpoint(place / "one")
    return agent


@pytest.fixture(scope="module")
def both(place: Path, alone: DPO) -> list[Mapping[str, Any]]:
    return run_ranks(checkpoints.two_ranks, place)


def files(directory: Path) -> set[str]:
    return {str(file.relative_to(directory)) for file in directory.rglob("*")}


def test_two_ranks_save_what_one_process_saves(both: Any, alone: DPO, place: Path) -> None:
    assert files(place / "two") == files(place / "one")
    assert [path.name for path in place.iterdir() if path.name.startswith(".two")] == []
    loaded = PeftModel.from_pretrained(work.model(), str(place / "two" / "actor"))
    ours = {name.replace(".default", ""): tensor for name, tensor in loaded.state_dict().items() if "lora_" in name}
    theirs = PeftModel.from_pretrained(work.model(), str(place / "one" / "actor")).state_dict()
    for name, tensor in theirs.items():
        if "lora_" in name:
            assert (ours[name.replace(".default", "")] - tensor).abs().max() < 1e-5
    assert max(float(tensor.abs().max()) for name, tensor in ours.items() if "lora_B" in name) > 1e-3
    # What two saved one goes on with.
    agent = DPO.load(place / "two", actor_network=work.model())
    metrics, expected = (one.learn(work.pairs(5, seed=7)) for one in (agent, alone))
    assert metrics["mean_loss"] == pytest.approx(expected["mean_loss"], abs=1e-5)
    assert agent.optimizer_steps == alone.optimizer_steps


def test_two_ranks_load_from_the_leaders_disk(both: list[Mapping[str, Any]]) -> None:
    for results in both:
        for name in ("loaded", "made", "made with its base"):
            assert results[name]["steps"] == 3
            for key, tensor in both[0]["saved"]["weights"].items():
                assert torch.equal(results[name]["weights"][key], tensor), (name, key)
            for number, state in both[0]["saved"]["moments"].items():
                assert all(torch.equal(results[name]["moments"][number][kind], value) for kind, value in state.items())
        assert torch.equal(results["base"], both[0]["base"])


@pytest.mark.parametrize("name", ["nothing there", "not a checkpoint", "cannot be made", "not shared", "shard"])
def test_an_error_is_the_same_in_both(both: list[Mapping[str, Any]], name: str) -> None:
    assert both[0][name][:2] == both[1][name][:2]
    kind, text = both[0][name][:2]
    expected = {
        "nothing there": ("CheckpointError", "missing is not a directory"),
        "not a checkpoint": ("FileExistsError", "exists and is not a checkpoint"),
        "cannot be made": ("FileExistsError", "File exists"),
        "not shared": ("CheckpointError", "must be on a file system that all processes share"),
        "shard": ("OSError", "No space left on device"),
    }[name]
    assert kind == expected[0]
    assert expected[1] in text


def test_what_failed_left_nothing_behind(both: Any, place: Path) -> None:
    assert not (place / "unfinished").exists()
    assert [path.name for path in place.iterdir() if "draft" in path.name] == []
    assert sorted(path.name for path in (place / "shards").iterdir()) == ["0", "1"]


def test_rows_that_one_rank_knows_are_not_scored_again(both: list[Mapping[str, Any]]) -> None:
    """The cache of rank 0 holds half of the rows on its disk, rank 1's directory is empty."""
    ours, theirs = both
    assert torch.equal(ours["scores"], theirs["scores"])
    assert torch.equal(ours["scores"][:4], ours["known"])
    assert torch.allclose(ours["scores"], ours["fresh"], atol=1e-5)
    assert ours["asked"] == theirs["asked"] == [4]
    assert (ours["shards"], theirs["shards"]) == (2, 0)


def test_a_large_value_with_views_arrives(both: list[Mapping[str, Any]]) -> None:
    for results in both:
        assert torch.equal(results["views"][3], torch.arange(300_000.0, 400_000.0))
        assert results["views"][10] == "the end"
