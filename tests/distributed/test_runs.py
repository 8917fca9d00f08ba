"""A run of several processes is a run of one: what it learns, what it writes, how it is stopped and taken up."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from agiledpo.llm_envs import PreferenceGym
from agiledpo.training.train_llm import finetune_llm_preference
from tests.distributed import runs, work
from tests.distributed.ranks import run_ranks, zero_environment

STEP = "step_24"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(place: Path) -> Mapping[str, Any]:
    torch.set_num_threads(1)
    return runs.told(runs.train(None, checkpoint_path=place / "alone"))


@pytest.fixture(scope="module")
def both(place: Path, alone: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return run_ranks(runs.two_ranks, place, place / "alone" / STEP)


@pytest.fixture(scope="module")
def all_three(place: Path, both: Any) -> list[Mapping[str, Any]]:
    saved = {"from_one": place / "alone" / STEP, "from_two": place / "plain" / STEP}
    return run_ranks(runs.three_ranks, place / "three", saved, ranks=3)


def assert_alike(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """The same events, fitness and weights, up to the order of sums."""
    assert actual["elite"] == expected["elite"]
    assert len(actual["lineage"]) == len(expected["lineage"])
    for ours, theirs in zip(actual["lineage"], expected["lineage"], strict=True):
        (numbers, rest), (their_numbers, their_rest) = _flat(ours), _flat(theirs)
        assert rest == their_rest
        assert numbers == pytest.approx(their_numbers, rel=1e-5, abs=1e-5)
    for ours, theirs in zip(actual["fitness"], expected["fitness"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    for ours, theirs in zip(actual["weights"], expected["weights"], strict=True):
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-5


def assert_same(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """To the bit."""
    assert json.dumps(actual["lineage"]) == json.dumps(expected["lineage"])
    for ours, theirs in zip(actual["weights"], expected["weights"], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _flat(record: Any, name: str = "") -> tuple[dict[str, float], dict[str, Any]]:
    """The numbers that have a fraction, and all else, by place."""
    if isinstance(record, float):
        return {name: record}, {}
    if not isinstance(record, (Mapping, list)):
        return {}, {name: record}
    numbers, rest = {}, {}
    for key, value in record.items() if isinstance(record, Mapping) else enumerate(record):
        more, others = _flat(value, f"{name}.{key}")
        numbers |= more
        rest |= others
    return numbers, rest


def test_evolution_of_two_ranks_is_that_of_one_process(
    both: list[Mapping[str, Any]], alone: Mapping[str, Any], place: Path
) -> None:
    assert {record["event"] for record in alone["lineage"]} >= {"born", "evaluated", "selected", "mutated"}
    assert_alike(both[0]["plain"], alone)
    assert_same(both[1]["plain"], both[0]["plain"])
    written = [json.loads(line) for line in (place / "plain.jsonl").read_text().splitlines()]
    assert written == both[0]["plain"]["lineage"]
    assert (place / "elite" / "actor" / "adapter_model.safetensors").is_file()
    assert not Path("/nowhere").exists()


def test_two_ranks_write_the_files_that_one_process_writes(both: Any, place: Path) -> None:
    ours, theirs = (
        {str(file.relative_to(place / name)) for file in (place / name).rglob("*") if file.is_file()}
        for name in ("plain", "alone")
    )
    assert ours == theirs
    assert len(ours) > 20


def test_whoever_saved_a_run_anybody_takes_it_up(
    both: list[Mapping[str, Any]], all_three: list[Mapping[str, Any]], alone: Mapping[str, Any], place: Path
) -> None:
    assert_alike(both[0]["from one"], alone)
    assert_same(both[1]["from one"], both[0]["from one"])
    for name in ("from_one", "from_two"):
        for results in all_three:
            assert_alike(results[name], alone)
            assert results[f"{name} said"] == []
    assert [results["from one said"] for results in both] == [[], []]
    for number, path in enumerate((place / "plain" / STEP, place / "three" / "from_two" / "step_36")):
        with runs.seen() as texts:
            assert_alike(runs.told(runs.train(None, checkpoint_path=place / f"one{number}", resume_from=path)), alone)
        assert texts == []


def test_batches_of_another_size_are_spoken_of(both: Any, place: Path) -> None:
    with runs.seen() as texts:
        runs.train(None, batch=3, checkpoint_path=place / "smaller", resume_from=place / "plain" / STEP)
    assert len(texts) == 1
    assert "had 2 process(es) and batches of 6 rows; from here on it has 1 and batches of 3" in texts[0]
    assert "With data_batch_size_per_gpu=6 it would not." in texts[0]


def test_two_ranks_that_were_killed_end_as_if_they_had_not_been(both: list[Mapping[str, Any]], place: Path) -> None:
    for results in both:
        assert results["killed"] == "'killed'"
        assert_same(results["resumed"], both[0]["dropout"])
    lines = (place / "killed.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == both[0]["dropout"]["lineage"]


def test_an_error_of_one_rank_is_everybodys(both: list[Mapping[str, Any]]) -> None:
    (kind, text, notes), own = both[0]["lost"], both[1]["lost"]
    assert (kind, text) == ("RuntimeError", "LostError: lost in rank 1")
    assert len(notes) == 1
    assert notes[0].startswith("This happened in rank 1 (")
    assert own == ("LostError", "lost in rank 1", [])


def test_a_signal_to_one_rank_stops_all_at_one_batch(both: list[Mapping[str, Any]], place: Path) -> None:
    assert both[0]["stopped"] == both[1]["stopped"]
    code, message = both[0]["stopped"]
    assert code == 128 + 15
    assert "Stopped by SIGTERM after 24 of 48 pairs" in message
    assert [path.name for path in (place / "stopped").glob("step_*")] == ["step_24"]


def test_a_full_disk_of_the_leader_ends_nothing(both: list[Mapping[str, Any]], place: Path) -> None:
    for results in both:
        assert_same(results["full"], both[0]["dropout"])
    spoken = both[0]["full said"]
    assert len(spoken) == 3
    assert all("could not be written" in text and "step_12 is intact; the run goes on" in text for text in spoken)
    assert both[1]["full said"] == []
    assert [path.name for path in (place / "full").iterdir() if path.name.startswith(("step_", ".step_"))] == [
        "step_12"
    ]


@pytest.mark.parametrize("what", ["strict", "strict elite"])
def test_a_warning_that_is_an_error_is_everybodys(both: list[Mapping[str, Any]], what: str) -> None:
    (kind, text, notes), other = both[0][what], both[1][what]
    assert (kind, notes) == ("UserWarning", 0)
    assert "could not be written" in text
    assert other == (kind, text, 1)  # the note says whose it is


def test_what_is_measured_is_what_the_leader_measured(both: list[Mapping[str, Any]]) -> None:
    for results in both:
        assert_same(results["rounding"], both[0]["plain"])
        assert results["rounding"]["fitness"] == both[0]["plain"]["fitness"]
        assert results["rounding"]["elite"] == both[0]["plain"]["elite"]


def test_a_fitness_may_be_a_tensor_and_must_be_a_number(both: list[Mapping[str, Any]]) -> None:
    for rank, results in enumerate(both):
        values, indices = results["tensor"]
        assert values == indices
        assert all(type(value) is float for value in values)
        kind, text, notes = results["no number"]
        assert (kind, notes) == ("TypeError", rank)
        assert "for agent 0; a number is needed, or a number and its standard error." in text


def test_calls_that_differ_between_processes_are_refused(both: list[Mapping[str, Any]]) -> None:
    said = {
        "evaluation_interval": "evaluation_interval is 2 in process 1 and 1 in process 0",
        "fitness": "fitness is 'a function' in process 1 and 'accuracy' in process 0",
        "retention": "in process 0",
        "lineage_path": "lineage_path is missing in process 1 and 'given' in process 0",
        "elite_path": "elite_path is missing in process 1 and 'given' in process 0",
    }
    for results in both:
        for name, (kind, text, _) in results["other calls"].items():
            assert kind == "ValueError"
            assert text.startswith(f"{name} is ")
            assert said[name] in text


@pytest.mark.parametrize("own_elite", [False, True])
def test_shards_are_not_begun_where_only_the_leader_would_see_them(tmp_path: Path, own_elite: bool) -> None:
    outcomes = run_ranks(runs.not_shared, tmp_path, own_elite, environment=zero_environment(2))
    for rank, ((kind, text, _), left) in enumerate(outcomes):
        assert kind == "CheckpointError"
        assert text.startswith("/proc/self/cwd/saved must be on a file system that all processes share")
        assert left == ([] if rank else ["saved"])


def test_the_others_wait_for_a_leader_that_takes_long() -> None:
    assert min(run_ranks(runs.patient)) > 6.0


def several() -> list[str]:
    """Runs whose parts were made for different numbers of processes."""
    handle = work.accelerator()
    said = []
    for with_agent, with_env, with_run in ((False, True, True), (True, False, True), (True, False, False)):
        agent = work.dpo(handle if with_agent else None)
        env = PreferenceGym(
            runs.rows(4, 0),
            runs.rows(4, 1),
            runs.tokenizer(),
            data_batch_size_per_gpu=2,
            accelerator=handle if with_env else None,
        )
        with pytest.raises(ValueError, match="accelerator=accelerator") as refusal:
            finetune_llm_preference([agent], env, verbose=False, accelerator=handle if with_run else None)
        said.append(str(refusal.value))
    return said


def test_parts_for_different_numbers_of_processes_are_refused() -> None:
    agent, *env = run_ranks(several)[1]
    assert agent.startswith("The run has 2 processes and agent 0 was made for one process. Make it with accelerator=")
    assert agent.endswith("DPO(..., accelerator=accelerator).")
    assert len(env) == 2
    for text in env:
        assert text.startswith("The run has 2 processes and the environment was made for one process.")


def test_an_accelerator_of_one_process_is_none() -> None:
    handle = Accelerator(cpu=True)
    assert handle.num_processes == 1
    env = PreferenceGym(runs.rows(4, 0), runs.rows(4, 1), runs.tokenizer(), data_batch_size_per_gpu=2)
    population, _ = finetune_llm_preference([work.dpo()], env, verbose=False, accelerator=handle)
    assert population[0].steps == [4]
