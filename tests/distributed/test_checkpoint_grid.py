"""The checkpoint grid under DeepSpeed ZeRO stage 2: written by two ranks, read by one, two and three."""

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agiledpo.algorithms import DPO
from agiledpo.checkpoint import CheckpointError
from agiledpo.checkpoint.zero_shards import read_shards
from tests.distributed import work, zero_work
from tests.distributed.ranks import run_ranks, zero_environment
from tests.distributed.test_zero import assert_same

Found = Mapping[str, Any]
_WITH_MOMENTS = zero_work.name_of((True, True))
_SECOND = "zero_pp_rank_1_mp_rank_00_optim_states.pt"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def results(directory: Path) -> list[Found]:
    return run_ranks(zero_work.save_grid, directory, environment=zero_environment(2))


@pytest.fixture
def copied(directory: Path, results: list[Found], tmp_path: Path) -> Path:
    """A checkpoint with shards, to be damaged."""
    return Path(shutil.copytree(directory / _WITH_MOMENTS, tmp_path / "copy"))


def test_files_are_those_of_the_cell(directory: Path, results: list[Found]) -> None:
    for lora_only, save_optimizer in zero_work.CELLS:
        path = directory / zero_work.name_of((lora_only, save_optimizer))
        attributes = torch.load(path / "attributes.pt", weights_only=True)
        assert "optimizer" not in attributes
        assert ("base_model" in attributes) is not lora_only
        assert (path / "save_checkpoint").is_dir() is save_optimizer
        assert {"actor", "reference"} <= {entry.name for entry in path.iterdir()}


def assert_gone_on(found: list[Found], results: list[Found]) -> None:
    """Cells with an optimizer go on as the agent that was saved did; those without have its weights."""
    for (_, save_optimizer), after in zip(zero_work.CELLS, found, strict=True):
        for name, tensor in results[0]["saved"]["weights"].items():
            assert after["loaded"]["weights"][name].equal(tensor)
        if save_optimizer:
            for number, entry in results[0]["saved"]["optimizer"]["state"].items():
                for kind, value in entry.items():
                    assert after["loaded"]["optimizer"]["state"][number][kind].equal(value)
            assert_same(after["went_on"], results[0]["went_on"])
        else:
            assert not after["loaded"]["optimizer"]["state"]


def test_two_ranks_go_on(results: list[Found]) -> None:
    for result in results:
        assert_gone_on(result["after"], results)


def test_one_process_without_deepspeed_goes_on(directory: Path, results: list[Found]) -> None:
    assert_gone_on(zero_work.load_grid(directory, parallel=False), results)


def test_three_ranks_go_on(directory: Path, results: list[Found]) -> None:
    for found in run_ranks(zero_work.load_grid, directory, ranks=3, environment=zero_environment(2)):
        assert_gone_on(found, results)


def test_shards_are_the_live_state_to_the_bit(directory: Path, results: list[Found]) -> None:
    state, names = read_shards(directory / _WITH_MOMENTS)
    assert names == list(results[0]["saved"]["weights"])
    expected = results[0]["saved"]["optimizer"]
    assert state["param_groups"] == expected["param_groups"]
    assert state["state"].keys() == expected["state"].keys()
    for number, entry in expected["state"].items():
        for kind, value in entry.items():
            assert state["state"][number][kind].equal(value)


def test_before_the_first_step_there_are_no_moments(directory: Path, results: list[Found]) -> None:
    state, names = read_shards(directory / "fresh")
    assert state["state"] == {}
    assert state["param_groups"][0]["params"] == list(range(len(names)))


def test_deepspeed_itself_reads_the_weights(directory: Path, results: list[Found]) -> None:
    deepspeed = pytest.importorskip("deepspeed.utils.zero_to_fp32")
    path = directory / _WITH_MOMENTS
    read = deepspeed.get_fp32_state_dict_from_zero_checkpoint(str(path / "save_checkpoint"))
    assert read.keys() == results[0]["saved"]["weights"].keys()
    written = load_file(path / "actor" / "adapter_model.safetensors")
    for name, tensor in results[0]["saved"]["weights"].items():
        assert read[name].equal(tensor)
        assert written[name].equal(tensor)


def test_a_lost_file_is_named(copied: Path) -> None:
    (copied / "save_checkpoint" / "shards" / _SECOND).unlink()
    with pytest.raises(CheckpointError, match=_SECOND):
        work.dpo(None).load_checkpoint(copied, load_optimizer=True)
    with pytest.raises(CheckpointError, match=f"{_SECOND} is missing: 2 processes wrote"):
        read_shards(copied)


def test_a_cut_file_is_named(copied: Path) -> None:
    file = copied / "save_checkpoint" / "shards" / _SECOND
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=_SECOND):
        read_shards(copied)


def test_nothing_is_called_that_a_pickle_asks_for(copied: Path, tmp_path: Path) -> None:
    file, trace = copied / "save_checkpoint" / "shards" / _SECOND, tmp_path / "trace"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    torch.save({"optimizer_state_dict": Evil()}, file)
    with pytest.raises(CheckpointError, match="was not unpickled"):
        read_shards(copied)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # it would have
    assert trace.exists()


def test_fragments_that_do_not_cover_a_parameter_are_refused(copied: Path) -> None:
    shards = copied / "save_checkpoint" / "shards"
    shutil.copyfile(shards / "zero_pp_rank_0_mp_rank_00_optim_states.pt", shards / _SECOND)
    with pytest.raises(CheckpointError, match="are not its"):
        read_shards(copied)


def test_another_librarys_engine_is_refused_and_its_adapters_are_not(copied: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "attributes.pt"):
        (copied / name).unlink()
    (copied / "attributes.pt").write_bytes(pickle.dumps({"lr": 1e-5}))
    agent = work.dpo(None)
    with pytest.raises(CheckpointError, match=r"zero_to_fp32\.py"):
        agent.load_checkpoint(copied, load_optimizer=True)
    agent.load_checkpoint(copied, overwrite_reference_adapter=True)
    written = load_file(copied / "actor" / "adapter_model.safetensors")
    assert all(written[name].equal(tensor) for name, tensor in work.weights(agent).items())


def test_a_disk_that_is_full_for_one_rank_is_everybodys_error_and_the_run_goes_on(tmp_path: Path) -> None:
    results = run_ranks(zero_work.save_with_a_full_disk, tmp_path, environment=zero_environment(2), timeout=60.0)
    for result in results:
        (errno, shard), nothing, (again, latest), still_nothing = result["said"]
        assert (errno, again) == (28, 28)
        assert _SECOND in shard
        assert "latest" in latest
        assert nothing == still_nothing == []
    state, _ = read_shards(tmp_path / "full")
    for number, entry in results[0]["saved"]["optimizer"]["state"].items():
        assert all(state["state"][number][kind].equal(value) for kind, value in entry.items())


@pytest.fixture(scope="module")
def with_base(directory: Path) -> list[Found]:
    environment = {**zero_environment(3, SHARD_FROM="0"), "ZERO3_INIT": "1"}
    return run_ranks(zero_work.save_with_base, directory, environment=environment)


def test_a_sharded_base_is_made_again_in_parts(with_base: list[Found]) -> None:
    weights = len(with_base[0]["state"])
    assert [result["kept"] for result in with_base] == [[weights], [0]]  # only the leader takes a copy
    for result in with_base:
        assert result["same"]
        for name, tensor in work.model().state_dict().items():
            assert result["state"][name].equal(tensor)
        assert_same_to_the_bit(result["loaded"], result["saved"])
        assert_same_to_the_bit(result["went_on"][1], result["went_on"][0])
        assert result["held"] == {}


def test_one_process_without_deepspeed_reads_what_stage_3_saved(directory: Path, with_base: list[Found]) -> None:
    for path, network in ((directory / "whole", None), (directory / "named", work.model())):
        state, _ = read_shards(path)
        agent = DPO.load(path, actor_network=network)
        assert_same_to_the_bit(zero_work.found(agent), with_base[0]["saved"])
        assert state["state"].keys() == with_base[0]["saved"]["optimizer"]["state"].keys()
        zero_work.taught(agent, range(4, 6))
        assert_same(zero_work.found(agent), with_base[0]["went_on"][0])


def assert_same_to_the_bit(actual: Found, expected: Found) -> None:
    for name, tensor in expected["weights"].items():
        assert actual["weights"][name].equal(tensor)
    assert actual["optimizer"]["state"].keys() == expected["optimizer"]["state"].keys() != set()
    for number, entry in expected["optimizer"]["state"].items():
        for kind, value in entry.items():
            assert actual["optimizer"]["state"][number][kind].equal(value)
