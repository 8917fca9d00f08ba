"""Does evolution pay: the budget is the same for all, the table is right, nothing is measured twice."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agiledpo.hpo.selection import rank
from benchmarking.evolution_pays import __main__ as script
from benchmarking.evolution_pays.methods import METHODS, _score, available
from benchmarking.evolution_pays.plan import Plan, Point, Space
from benchmarking.evolution_pays.problem import Problem, Round, split
from benchmarking.evolution_pays.report import Mean, blocks, table, verdicts
from benchmarking.results import ResultFile

PLAN = Plan(agents=3, pairs_per_agent=16, generations=2, selection=12, final=20)
SPACE = Space.around("good", 3e-3, spread=50, factor=3)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem.tiny()


@pytest.fixture(scope="module")
def round_(problem: Problem) -> Round:
    return Round(problem, PLAN, 1)


def made_up(method: str, seed: int, accuracy: float, **values: Any) -> dict[str, Any]:
    """A run of a block of the plan above."""
    common = {**vars(PLAN), "model": "m", "dataset": "d", "max_length": 9, "good_lr": 1e-4, "spread": 50, "factor": 3}
    figures = {"margin": 1.0, "log_loss": 0.5, "pairs": 48, "seconds": 2.0, "lr": 1e-4, "beta": 0.1}
    key = {"start": "good", "start_lr": 1e-4, "start_beta": 0.1, "method": method, "seed": seed}
    return {**common, **key, "accuracy": accuracy, **figures, **values}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_the_same_number_of_pairs(method: str, round_: Round) -> None:
    if not available(method):
        pytest.skip("Optuna is not installed.")
    figures = script.run(method, round_, SPACE)
    assert figures["pairs"] == PLAN.budget == 48
    # The chosen agent of a search has learned for a whole number of generations, the one without a search everything.
    assert figures["agent_pairs"] in ({48} if method == "default" else {8, 16})
    assert SPACE.lr[0] <= figures["lr"] <= SPACE.lr[1]
    assert SPACE.beta[0] <= figures["beta"] <= SPACE.beta[1]
    # 20 final pairs of which a tie counts a half.
    assert 40 * figures["accuracy"] == pytest.approx(round(40 * figures["accuracy"]))
    again = script.run(method, round_, SPACE)
    assert {**again, "seconds": 0} == {**figures, "seconds": 0}


def test_a_trial_that_diverges_does_not_end_the_others(problem: Problem) -> None:
    pytest.importorskip("optuna")
    # From a sound start nearly all draws are absurd: gradients overflow, or weights do.
    plan = Plan(agents=10, pairs_per_agent=16, generations=2, selection=12, final=20)
    round_ = Round(problem, plan, 0)
    figures = script.run("optuna", round_, Space(Point(3e-3, 0.1), spread=1e40, factor=3))
    assert figures["pairs"] < plan.budget  # steps that were not made do not count
    round_.begin()
    assert math.isfinite(figures["margin"])


def test_the_splits_have_no_prompt_in_common_and_are_the_same_for_the_same_seed() -> None:
    rows = [{"prompt": f"p{number // 3}", "chosen": "a", "rejected": "b"} for number in range(90)]
    sizes = {"final": 20, "selection": 10, "train": 40}
    first, again, other = (split(rows, **sizes, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert {name: len(part) for name, part in first.items()} == sizes
    prompts = [{row["prompt"] for row in part} for part in first.values()]
    assert len(set.union(*prompts)) == sum(map(len, prompts))
    # More training pairs than there are: what is left after 7 and 4 prompts of the 30.
    assert len(split(rows, final=20, selection=10, train=1000, seed=0)["train"]) == 3 * (30 - 7 - 4)
    with pytest.raises(ValueError, match="90 pairs are too few for 80 final and 11 selection"):
        split(rows, final=80, selection=11, train=1, seed=0)


def test_generations_are_whole_steps() -> None:
    assert (PLAN.steps, PLAN.budget) == (1, 48)
    with pytest.raises(ValueError, match=r"pairs_per_agent=20 is not a multiple of generations=2 .*take 16"):
        Plan(3, 20, 2, 12, 20)


def test_the_bad_start_is_what_the_issue_says_and_its_ranges_reach_the_good_one() -> None:
    bad = Space.around("bad", 1e-4, spread=50, factor=3)
    assert (bad.start.lr, bad.start.beta) == (pytest.approx(1e-4 / 30), pytest.approx(1.0))
    assert bad.lr[0] < 1e-4 < bad.lr[1]
    assert bad.beta[0] < 0.1 < bad.beta[1]


def test_optuna_is_told_the_order_in_which_selection_ranks(round_: Round) -> None:
    agents = [round_.agent(number, SPACE.start) for number in range(5)]
    measured = [(10 / 24, 1e6), (11 / 24, -1e6), (11 / 24, 0.0), (11 / 24, 3.0), (12 / 24, -5.0)]
    for agent, (fitness, margin) in zip(agents, measured, strict=True):
        agent.record_fitness(fitness, tie_break=margin)
    assert [rank(agent) for agent in agents] == sorted(rank(agent) for agent in agents)
    scores = [_score(agent, 12) for agent in agents]
    assert scores == sorted(scores)
    assert len(set(scores)) == 5
    round_.begin()


def test_the_table_of_made_up_results() -> None:
    runs = [made_up("tournament", 0, 0.70, lr=1e-4, beta=0.04), made_up("tournament", 1, 0.80, lr=1e-2, beta=0.01)]
    runs += [made_up("tournament", 2, 0.90, lr=1e-3, beta=0.02), made_up("random", 0, 0.5, margin=-1.0)]
    lines = table(runs).splitlines()
    # Deviations of 0.1, 0 and 0.1: s = 0.1, divided by the root of 3.
    assert Mean.of([0.7, 0.8, 0.9]).error == pytest.approx(0.1 / math.sqrt(3), rel=1e-12)
    assert lines[2] == ("| tournament | 0.800 ± 0.058 | 3 | 1.000 ± 0.000 | 0.500 ± 0.000 | 48 | 2 | 1.0e-03 | 0.02 |")
    assert lines[3].startswith("| random search | 0.500 | 1 | -1.000 |")
    assert len(lines) == 4


def test_the_verdict_names_the_winner_also_when_evolution_loses() -> None:
    runs = [made_up("tournament", seed, accuracy) for seed, accuracy in enumerate((0.70, 0.80, 0.90))]
    runs += [made_up("random", seed, accuracy) for seed, accuracy in enumerate((0.60, 0.60, 0.60))]
    against_random = (
        "The tournament (0.800 ± 0.058) is ahead of the best other method, random search (0.600 ± 0.000) by 0.200, "
        "more than the combined standard error of 0.058; seed by seed it won 3, lost 0 and tied 0, with a mean "
        "difference of 0.200 ± 0.058."
    )
    assert verdicts(runs) == [against_random]
    runs += [made_up("default", seed, accuracy) for seed, accuracy in enumerate((0.70, 0.85, 0.94))]
    # Errors of 0.0577 and, of deviations -0.13, 0.02 and 0.11, 0.0700; the root of the sum of squares is 0.091.
    assert verdicts(runs) == [
        "The tournament (0.800 ± 0.058) is behind the best other method, no search, one agent (0.830 ± 0.070) by "
        "0.030, within the combined standard error of 0.091; seed by seed it won 0, lost 2 and tied 1, with a mean "
        "difference of -0.030 ± 0.015.",
        against_random.replace("best other method", "best other search"),
    ]
    assert "says nothing yet" in verdicts([made_up("tournament", 0, 0.7), made_up("optuna", 0, 0.7)])[0]
    assert verdicts([made_up("tournament", 0, 0.7)]) == []


def test_only_runs_of_one_block_are_compared() -> None:
    runs = [made_up("tournament", 0, 0.9), made_up("random", 0, 0.8, start="bad"), made_up("random", 0, 0.8, agents=2)]
    assert [len(block) for block in blocks(runs)] == [1, 1, 1]


def test_the_same_command_goes_on_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        "--model-shape", "tiny", "--output", str(tmp_path), "--threads", "1", "--agents", "2", "--pairs-per-agent",
        "16", "--generations", "2", "--selection", "8", "--held-out", "8", "--start", "bad",
    ]  # fmt: skip
    script.main([*command, "--methods", "tournament", "--seeds", "1"])
    first = ResultFile("evolution_pays", tmp_path).runs
    assert [(run["method"], run["seed"]) for run in first] == [("tournament", 0)]
    script.main([*command, "--methods", "tournament", "default", "--seeds", "2"])
    second = ResultFile("evolution_pays", tmp_path).runs
    assert second[:1] == first
    assert [(run["method"], run["seed"]) for run in second[1:]] == [
        ("default", 0),
        ("tournament", 1),
        ("default", 1),
    ]
    monkeypatch.setattr(script, "Round", None)  # whoever made another round would call it
    script.main([*command, "--methods", "tournament", "default", "--seeds", "2"])
    script.main([*command, "--methods", "random", "--seeds", "1", "--minutes", "0"])
    assert ResultFile("evolution_pays", tmp_path).runs == second
    text = (tmp_path / "evolution_pays.md").read_text()
    assert "## A tiny random model" in text
    assert "### From the bad start" in text
    assert text.count("| tournament |") == 1
    if find_spec("matplotlib") is not None:
        assert (tmp_path / "evolution_pays_synthetic.png").read_bytes().startswith(b"\x89PNG")
