"""Does evolution pay? Held-out accuracy of a tournament and of other searches at the same number of pairs trained.

    python -m benchmarking.evolution_pays                               # embedded pairs, both starts, five seeds
    python -m benchmarking.evolution_pays --dataset pairs --pairs FILE.jsonl.gz
    python -m benchmarking.evolution_pays --model-shape tiny            # minutes: a random model, synthetic pairs
    python -m benchmarking.evolution_pays --table-only                  # only write table and picture again

Methods choose by a selection split; the figures are those of the chosen agent on a third split that no choice depended
on. A seed draws splits, order, initialisation and the search's own randomness, the same for all methods. Every run is
saved when it ends and the same command goes on where it stopped, one seed after the other, so ``--minutes`` cuts the
work into pieces. Optuna is in the ``benchmark`` extra; without it that method is left out.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarking.evolution_pays.methods import METHODS, TITLES, available
from benchmarking.evolution_pays.picture import draw
from benchmarking.evolution_pays.plan import STARTS, Plan, Space
from benchmarking.evolution_pays.problem import Problem, Round
from benchmarking.evolution_pays.report import blocks, describe, table, verdicts
from benchmarking.machine import PACKAGES, describe_machine, package_versions, sentence
from benchmarking.results import RESULTS, ResultFile

NAME = "evolution_pays"
TINY = "tiny"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    file = ResultFile(NAME, options.output)
    if not options.table_only and not measure(options, file):
        print("Time is up; the same command goes on from here.", file=sys.stderr)
    text = page(file, options.output)
    file.write_markdown(text)
    print(text)


def measure(options: argparse.Namespace, file: ResultFile) -> bool:
    """Make the runs that are missing; False if time was up before that."""
    deadline = time.monotonic() + 60 * options.minutes
    plan = Plan(options.agents, options.pairs_per_agent, options.generations, options.selection, options.held_out)
    methods = [method for method in options.methods if available(method)]
    if missing := set(options.methods) - set(methods):
        print(f"{', '.join(missing)}: left out, needs pip install 'agiledpo[benchmark]'.", file=sys.stderr)
    torch.set_num_threads(options.threads)
    tiny = options.model_shape == TINY
    problem = Problem.tiny() if tiny else Problem.embedded(options.pairs, options.max_length)
    good_lr = problem.good_lr if options.lr is None else options.lr
    machine = {"machine": describe_machine(options.threads), "versions": package_versions((*PACKAGES, "optuna"))}
    file.set(environments={**file.data.get("environments", {}), _section(problem.model, problem.dataset): machine})
    common = {
        "model": problem.model,
        "dataset": problem.dataset,
        "max_length": options.max_length,
        "good_lr": good_lr,
        "spread": options.spread,
        "factor": options.factor,
        **asdict(plan),
    }
    for seed in range(options.seeds):
        round_: Round | None = None
        for start in options.start:
            space = Space.around(start, good_lr, spread=options.spread, factor=options.factor)
            for method in methods:
                key = {**common, "start": start, "seed": seed, "method": method}
                if any(key.items() <= run.items() for run in file.runs):
                    continue
                if time.monotonic() > deadline:
                    return False
                if round_ is None:
                    round_ = Round(problem, plan, seed)
                    round_.score_reference()
                figures = run(method, round_, space)
                file.append({**key, "start_lr": space.start.lr, "start_beta": space.start.beta, **figures})
                shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                print(f"{problem.dataset}, seed {seed}, {start} start, {method}: {shown}", file=sys.stderr, flush=True)
        if round_ is not None:
            round_.begin()
    return True


def run(method: str, round_: Round, space: Space) -> dict[str, float]:
    """One method on one seed.

    Returns:
        ``accuracy``, ``margin`` (nats) and ``log_loss`` (at beta 0.1) on the final split, each with its standard error
        over the pairs; the same accuracy on the selection split; ``lr`` and ``beta`` of the chosen agent, and the pairs
        that it has learned from; ``pairs`` that all agents have; ``seconds`` without the reference and the final split.
    """
    round_.begin()
    started = time.perf_counter()
    agent = METHODS[method](round_, space)
    seconds = time.perf_counter() - started
    final = agent.measure(round_.judge, "final")
    accuracy, margin, loss = (final.fitness(name) for name in ("accuracy", "margin", "loss"))
    return {
        "accuracy": accuracy.value,
        "accuracy_error": accuracy.error,
        "margin": margin.value,
        "margin_error": margin.error,
        "log_loss": -loss.value,
        "log_loss_error": loss.error,
        "selection_accuracy": agent.fitness[-1],
        "lr": agent.lr,
        "beta": agent.beta,
        "agent_pairs": agent.steps[-1],
        "pairs": round_.pairs_learned,
        "seconds": seconds,
    }


def page(file: ResultFile, directory: Path) -> str:
    """The page with a table and the verdicts for each block, and a picture for each data set."""
    lines = ["# Does evolution pay?", "", _explanation()]
    sections: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
    for block in blocks(file.runs):
        sections.setdefault(_section(block[0]["model"], block[0]["dataset"]), []).append(block)
    for name, found in sorted(sections.items(), key=lambda item: item[0].startswith("A tiny")):
        environment = file.data["environments"][name]
        versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
        lines += ["", f"## {name}", "", f"{sentence(environment['machine'])}; {versions}."]
        for block in found:
            lines += ["", f"### From the {block[0]['start']} start", "", describe(block), "", table(block)]
            if found_verdicts := verdicts(block):
                lines += ["", *(f"- {verdict}" for verdict in found_verdicts)]
        picture = directory / f"{NAME}_{found[0][0]['dataset'].split('.')[0]}.png"
        try:
            draw([(f"{block[0]['start']} start", block) for block in found], picture)
        except ImportError:
            print("Matplotlib is not installed, so there are no pictures.", file=sys.stderr)
        if picture.exists():
            lines += ["", f"![{name}: final accuracy of every run, mean and standard error]({picture.name})"]
    return "\n".join(lines) + "\n"


def _section(model: str, dataset: str) -> str:
    if model == TINY:
        return "A tiny random model on synthetic pairs: a cheap study of the searches, not of language models"
    return f"{model} on {dataset} pairs"


def _explanation() -> str:
    return (
        "Every method learns from the same number of pairs in all, over all its agents, and chooses an agent by the "
        "selection split. The figures are of the chosen agent on the final split, which no choice depended on: mean "
        "and standard error over seeds. Agents of a search learn from the same pairs; the single agent of "
        f"'{TITLES['default']}' gets the whole budget, and so more different pairs. The start is among what random "
        "search and ASHA try, too. The margin is the mean of log p - log p_ref, chosen less rejected; the log-loss is "
        "DPO's at beta 0.1 for all, in nats. Seconds include choosing, without the reference. lr and beta are the "
        "chosen agents' last, geometric means."
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model-shape", choices=("embedded", TINY), default="embedded", help="tiny: random, with synthetic pairs")
    add("--dataset", choices=("embedded", "pairs"), default="embedded", help="pairs: those of --pairs")
    add("--pairs", type=Path, help="jsonl or jsonl.gz with prompt, chosen, rejected")
    add("--max-length", type=int, default=256, help="most tokens of a prompt and a completion")
    add("--start", nargs="+", choices=STARTS, default=list(STARTS))
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--seeds", type=int, default=5, help="seeds 0 to this less 1")
    add("--agents", type=int, default=4)
    add("--pairs-per-agent", type=int, default=32)
    add("--generations", type=int, default=4)
    add("--selection", type=int, default=32, help="pairs of the selection split")
    add("--held-out", type=int, default=96, help="pairs of the final split")
    add("--lr", type=float, help="learning rate of the good start; default: 1e-4, tiny 1e-2")
    add("--spread", type=float, default=50.0, help="hyperparameters lie between the start's over and times this")
    add("--factor", type=float, default=3.0, help="of a mutation")
    add("--minutes", type=float, default=math.inf, help="start no run after this time")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--table-only", action="store_true", help="measure nothing")
    add("--output", type=Path, default=RESULTS, help="directory of the result files")
    options = parser.parse_args(arguments)
    if (options.dataset == "pairs") is not (options.pairs is not None):
        parser.error("--dataset pairs and --pairs FILE belong together.")
    return options


if __name__ == "__main__":
    main()
