"""Scaling: tables against figures worked out by hand, and one point measured on a tiny model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarking.processes import run_worker
from benchmarking.scaling.axes import AXES, full_logits_mb, medians, token_ratio
from benchmarking.scaling.worker import Task, read_token_pairs, write_token_pairs

FIGURES = {"pairs": 10, "tokens": 1000, "peak_mb": 100.0, "resident_mb": 40.0, "step_peak_mb": 90.0, "weights_mb": 30.0}


def runs_of(axis: str, seconds: dict[int, list[float]]) -> list[dict[str, Any]]:
    """Runs at the points of an axis: ``seconds`` of each repeat by the point's number."""
    points = AXES[axis].points(True)
    return [
        {"point": points[number], "figures": {**FIGURES, "seconds": value}}
        for number, values in seconds.items()
        for value in values
    ]


def cells(axis: str, seconds: dict[int, list[float]], **figures: Any) -> list[dict[str, object]]:
    """Rows of an axis's table as dictionaries."""
    header, rows = AXES[axis].table([{**f, **figures} for f in medians(runs_of(axis, seconds))])
    assert all(len(row) == len(header) for row in rows)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_medians_are_taken_point_by_point() -> None:
    runs = [
        {"point": {"agents": 1, "dtype": "float32"}, "figures": {"seconds": 3.0, "cold": None}},
        {"point": {"agents": 2, "dtype": "float32"}, "figures": {"seconds": 9.0, "cold": None}},
        {"point": {"dtype": "float32", "agents": 1}, "figures": {"seconds": 1.0, "cold": 7.0}},
        {"point": {"agents": 1, "dtype": "float32"}, "figures": {"seconds": 2.0, "cold": None}},
    ]
    assert medians(runs) == [
        {"agents": 1, "dtype": "float32", "seconds": 2.0, "cold": 7.0, "repeats": 3},
        {"agents": 2, "dtype": "float32", "seconds": 9.0, "repeats": 1},
    ]


def test_speed_over_batch_sizes() -> None:
    first, second = cells("batch", {0: [5.0, 4.0, 50.0], 1: [2.0]})
    assert (first["batch size"], first["pairs/s"], first["tokens/s"]) == (1, "2.00", "200")
    assert (second["batch size"], second["pairs/s"], second["tokens/s"]) == (8, "5.00", "500")


def test_time_and_memory_of_a_population_are_those_of_one_agent_times() -> None:
    alone, two = cells("population", {0: [5.0], 1: [8.0]})
    assert (alone["pairs/s, all agents"], alone["time per agent"], alone["peak memory"]) == ("2.00", "1.00 x", "1.00 x")
    # Two agents learn from 20 pairs in 8 seconds: 4 seconds each against 5.
    assert (two["pairs/s, all agents"], two["time per agent"]) == ("2.50", "0.80 x")


def test_gain_of_prefix_sharing_against_the_token_ratio() -> None:
    # Points: prompt = completion, shared and apart; then a prompt four times as long.
    equal, long = cells("ratio", {0: [6.0], 1: [8.0], 2: [10.0], 3: [15.0]})
    # 2 x (1 + 1) against 1 + 2 tokens; 2 x (4 + 1) against 4 + 2.
    assert (equal["prompt / completion"], equal["gain"], equal["token ratio"]) == ("1", "1.33", "1.33")
    assert equal["gain / token ratio"] == "100 %"
    assert (long["prompt / completion"], long["gain"], long["token ratio"]) == ("4", "1.50", "1.67")
    assert long["gain / token ratio"] == "90 %"
    # While one of the two is still to be measured there is no gain.
    assert cells("ratio", {0: [6.0]})[0]["gain"] is None


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_token_ratio_lies_between_one_and_two(prompt: int, completion: int) -> None:
    assert 1 < token_ratio(prompt, completion) < 2
    # Token by token: the prompt twice, or once.
    assert token_ratio(prompt, completion) * (prompt + 2 * completion) == pytest.approx(2 * prompt + 2 * completion)


def test_start_time_is_compared_with_ten_thousand_rows() -> None:
    figures = {"warm_seconds": 0.5, "cold_seconds": None, "anonymous_mb": 20.0, "file_mb": 3.0}
    points = AXES["rows"].points(False)
    runs = [
        {
            "point": point,
            "figures": {**figures, "warm_seconds": 0.1 * 2**i, "to_first_step_seconds": 1 + 0.5 * i},
        }
        for i, point in enumerate(points)
    ]
    header, rows = AXES["rows"].table(medians(runs))
    first_batch, first_step = (i for i, name in enumerate(header) if name == "against 10,000 rows")
    assert [row[first_batch] for row in rows] == ["0.50 x", "1.00 x", "2.00 x", "4.00 x"]
    assert [row[first_step] for row in rows] == ["0.67 x", "1.00 x", "1.33 x", "1.67 x"]
    assert [row[0] for row in rows] == ["1,000", "10,000", "100,000", "1,000,000"]
    assert all(row[1] is None for row in rows)


def test_memory_of_a_step_is_told_apart_from_the_weights() -> None:
    row = cells("vocabulary", {0: [1.0]}, batch_size=4)[0]
    assert (row["tokens per sequence"], row["peak MB"], row["of it the step's MB"]) == (96, 90, 50)
    # 8 rows x 96 tokens x 32,000 numbers of 4 bytes.
    assert row["full logits MB"] == 98
    wide = full_logits_mb({"batch_size": 2, "prompt": 3, "completion": 2, "vocabulary": 1_000_000})
    assert wide == 2 * 2 * 5 * 4


@pytest.mark.parametrize("axis", [name for name in AXES if name != "rows"])
def test_every_picture_shows_every_point(axis: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarking.scaling.pictures import draw

    points = AXES[axis].points(False)
    runs = [{"point": point, "figures": {**FIGURES, "seconds": 2.0}} for point in points]
    figures = [{"batch_size": 4, **point} for point in medians(runs)]
    panels = AXES[axis].panels(figures)
    assert len(panels) == 2
    drawn = {x for panel in panels for line in panel.lines.values() for x, _ in line}
    names = {"batch": "batch_size", "population": "agents", "vocabulary": "vocabulary"}
    expected = {p["prompt"] / p["completion"] for p in points} if axis == "ratio" else {p[names[axis]] for p in points}
    assert drawn == expected
    picture = tmp_path / "picture.png"
    draw(panels, AXES[axis].label, axis, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_point_on_a_tiny_model(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [tuple(torch.randint(3, 90, (n,), generator=generator).tolist() for n in (6, 2, 4)) for _ in range(5)]
    write_token_pairs(pairs, tmp_path / "pairs.jsonl")
    batch = read_token_pairs(tmp_path / "pairs.jsonl")
    for row, pair in zip(zip(batch.prompts, batch.chosen, batch.rejected, strict=True), pairs, strict=True):
        assert tuple(ids.tolist() for ids in row) == pair
    task = Task(
        pairs=str(tmp_path / "pairs.jsonl"),
        warm_up=1,
        model=None,
        vocabulary=90,
        dtype="float32",
        batch_size=2,
        agents=2,
        prefix_sharing="auto",
        threads=1,
    )
    # In a process of its own, as the benchmark has it: one that ran other tests holds memory that nobody can tell.
    figures = run_worker("benchmarking.scaling.worker", task.as_json(), threads=1, timeout=120)
    # Four pairs of 12 tokens come after the warm-up.
    assert (figures["pairs"], figures["tokens"]) == (4, 48)
    assert figures["seconds"] > 0
    assert figures["resident_mb"] > figures["weights_mb"]
    # Two agents' moments and gradients of adapters of rank 16 are what the steps add for certain.
    adapter = 4 * 16 * (2 * (512 + 512) + 2 * (512 + 256) + 3 * (512 + 1536))
    assert figures["step_peak_mb"] > figures["resident_mb"] + 2 * adapter * 3 * 4 / 1e6
    assert figures["peak_mb"] >= figures["step_peak_mb"]
    # Four layers of q, o (512 x 512), k, v (512 x 256) and gate, up, down (512 x 1536), the norms, the embedding.
    layer = 2 * 512**2 + 2 * 512 * 256 + 3 * 512 * 1536 + 2 * 512
    assert figures["weights_mb"] == pytest.approx((4 * layer + 512 + 90 * 512) * 4 / 1e6)
