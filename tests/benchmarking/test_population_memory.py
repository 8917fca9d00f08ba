"""Memory of a population: the count of copies, tables worked out by hand, and a real population on a tiny model."""

import copy
from typing import Any

import pytest
import torch

from benchmarking.copies import Recognised, tensors_mb
from benchmarking.pairs import select_pairs, write_pairs
from benchmarking.peers import agiledpo_population
from benchmarking.peers.population import PopulationTask
from benchmarking.population_memory import copies_table, failure, growth_table, marginal_table, page


def reading(phase: str, resident: float, peak: float, tensors: float, copies: int | None = None) -> dict[str, Any]:
    counts = {} if copies is None else {"embeddings": copies, "projections": copies}
    return {"phase": phase, "resident": resident, "file": 10.0, "peak": peak, "tensors": tensors, **counts}


def a_run(system: str, agents: int, held: list[float], copies: int, **more: Any) -> dict[str, Any]:
    """A run whose memory after each generation is ``held``; it peaks at twice that."""
    readings = [reading("libraries", 50, 60, 0), reading("made", 100, 400, 90, copies)]
    readings += [reading("learned", 110, 500, 95, copies)]
    readings += [reading(f"generation {i + 1}", mb, 2 * mb, mb - 5, copies) for i, mb in enumerate(held)]
    return {
        "workload": "w",
        "system": system,
        "dtype": "float32",
        "agents": agents,
        "readings": readings,
        "weights_mb": 70.4,
        "versions": {"torch": "2"},
        "commit": "c",
        "seconds": 1.0,
        **more,
    }


RUNS = [
    a_run("agiledpo", 1, [120, 121, 119], 1),
    a_run("agilerl", 1, [300], 1),
    a_run("agiledpo", 8, [190, 190, 200], 1),
    a_run("agilerl", 8, [1000], 8),
]


def test_memory_is_that_of_the_first_generation_and_the_peak_until_then() -> None:
    header, rows = copies_table(RUNS)
    assert all(len(row) == len(header) for row in rows)
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    ours = cells["AgileDPO, float32, 8 agents"]
    assert (ours["base copies made"], ours["base copies evolved"]) == ("1", "1")
    # Not the 400 of the later generation's peak but the 500 while learning, and 2 x 190 after it.
    assert (ours["held MB made"], ours["held MB evolved"], ours["peak MB"], ours["tensors MB"]) == (
        "100",
        "190",
        "500",
        "185",
    )
    theirs = cells["AgileRL, float32, 8 agents"]
    assert (theirs["base copies evolved"], theirs["peak MB"]) == ("8", "2000")
    assert "AgileDPO, float32, 1 agent" in cells


def test_an_agent_more_costs_the_difference_by_the_agents_between() -> None:
    header, rows = marginal_table(RUNS)
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert [cells[name]["held MB an agent"] for name in ("AgileDPO, float32", "AgileRL, float32")] == ["10", "100"]
    assert cells["AgileRL, float32"]["tensors MB an agent"] == "100"
    assert cells["AgileDPO, float32"]["base weights MB"] == "70"
    assert marginal_table(RUNS[:2])[1] == []


def test_growth_is_from_the_first_generation_to_the_last() -> None:
    header, rows = growth_table(RUNS)
    names = ["population", "libraries", "made", "learned", "generation 1", "generation 2", "generation 3"]
    assert header == [*names, "growth", "tensors' growth"]
    assert rows[0][1:] == ["50", "100", "110", "120", "121", "119", "-1.0", "-1.0"]
    assert rows[2][-2:] == ["+10.0", "+10.0"]
    assert rows[3][-5:] == ["1000", None, None, None, None]


def test_a_run_without_figures_says_why() -> None:
    assert failure("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate") == "out of memory"
    assert failure("benchmarking.peers.x took more than 90 s with the task {}.") == "out of time"
    assert failure("ValueError: no") == "failed"
    broken = {**a_run("agilerl", 8, [1.0], 8), "error": "first\nRuntimeError: can't allocate memory\n"}
    header, rows = copies_table([broken])
    assert len(rows[0]) == len(header)
    assert rows[0][1] == "out of memory"
    machine = {"cpu": "a CPU", "cores": 2, "threads": 2, "memory_gb": 8, "gpu": None, "python": "3.11"}
    workload = {"model": "tiny", "source": "s", "tokens_per_pair": 9, "pairs": 8, "batch_size": 2, "limit_gb": 20}
    text = page({"workloads": {"w": {**workload, "machine": machine}}, "runs": [*RUNS[:3], broken]})
    assert "## tiny, 3 batches" in text
    assert "AgileRL, float32, 8 agents: out of memory after 1 s. Last line: `RuntimeError: can't allocate" in text
    assert "| AgileDPO, float32, 8 agents | 1 | 1 | 100 | 190 | 500 | 185 |" in text


def test_copies_are_counted_by_storage_in_any_precision_and_orientation() -> None:
    weight = torch.randn(96, 80, generator=torch.Generator().manual_seed(1234))
    known = Recognised.of(weight)
    assert known.copies() == 1
    views = [weight[:], weight.t(), weight.detach()]  # the same storage
    assert known.copies() == 1
    before = tensors_mb()
    more = [weight.clone(), weight.bfloat16(), weight.t().contiguous(), torch.nn.Parameter(weight.double())]
    assert known.copies() == 5
    assert tensors_mb() - before == pytest.approx(96 * 80 * (4 + 2 + 4 + 8) / 1e6)
    others = [weight + 1, weight[:90].clone(), torch.empty(96, 80, device="meta")]
    assert known.copies() == 5
    del more, views, others
    assert known.copies() == 1
    # What was rounded is recognised when it is widened again; the weight it comes from is another matrix.
    rounded = Recognised.of(weight.bfloat16())
    assert rounded.copies() == 0
    wide = weight.bfloat16().float()
    assert rounded.copies() == 1
    del wide


def test_a_population_has_one_base_and_a_deep_copy_makes_two(tiny_model, tiny_tokenizer, make_pairs, tmp_path) -> None:
    # Another seed than other tests' models, which may still be alive, have.
    model = tiny_model("llama", seed=4321)
    known = Recognised.of(model.get_input_embeddings().weight)
    twin = copy.deepcopy(model)
    assert known.copies() == 2
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    del model, twin
    assert known.copies() == 0
    pairs = select_pairs(make_pairs(8).to_list(), tiny_tokenizer, 8, max_length=40)
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    answer = agiledpo_population.evolve(
        PopulationTask(
            pairs=str(tmp_path / "pairs.jsonl"),
            model=str(tmp_path / "model"),
            dtype="float32",
            batch_size=2,
            max_length=40,
            threads=1,
            agents=4,
            generations=3,
        )
    )
    phases = {entry["phase"]: entry for entry in answer["readings"]}
    assert list(phases) == ["libraries", "made", "learned", "generation 1", "generation 2", "generation 3"]
    for phase in list(phases)[1:]:
        assert (phases[phase]["embeddings"], phases[phase]["projections"]) == (1, 1)
    # Embedding and head (97 x 32), norms, and two layers of q, o (32 x 32), k, v (32 x 16), gate, up, down (32 x 48).
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert answer["weights_mb"] == pytest.approx((2 * 97 * 32 + 32 + 2 * layer) * 4 / 1e6)
    # LoRA of rank 16 on these: 16 x (in + out) numbers each; Adam keeps two more for each.
    adapter = 2 * 16 * (2 * 64 + 2 * 48 + 3 * 80) * 4 / 1e6
    moments = phases["learned"]["tensors"] - phases["made"]["tensors"]
    assert moments == pytest.approx(4 * 2 * adapter, rel=0.05)
    assert phases["generation 3"]["tensors"] == pytest.approx(phases["generation 1"]["tensors"], rel=0.01)
    assert phases["generation 3"]["peak"] >= phases["generation 3"]["resident"] > 50
