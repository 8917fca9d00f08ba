"""What it saves to compute the prompt of a group once when its completions are scored.

    python -m benchmarking.group_sharing
    python -m benchmarking.group_sharing --prompt-lengths 64 --rounds 1

One prompt of random tokens with G completions, on the embedded model in bfloat16 with a LoRA adapter of rank 16:
forward alone, as for the reference or the old policy, and forward with backward, as for a gradient step. Shared:
``[prompt | completion 1 | ... | completion G]`` in one row. Separate: the same packed layout with the prompt before
each completion. Padded: a row per completion, the model's own
attention and layers. The ways take turns; medians count.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from agiledpo.algorithms import DPO
from agiledpo.embedded.model import MODEL_NAME
from agiledpo.scoring import RolloutBatch, Scorer
from benchmarking.generation import make_agent
from benchmarking.machine import PACKAGES, describe_machine, package_versions, sentence
from benchmarking.results import RESULTS, ResultFile, markdown_table

NAME = "group_sharing"
WAYS = ("shared", "separate", "padded")


def main() -> None:
    options = parse()
    file = ResultFile(NAME, options.output)
    file.set(machine=describe_machine(), versions=package_versions(PACKAGES))
    agent = make_agent()
    for length in options.prompt_lengths:
        settings = {
            "prompt_length": length,
            "group_size": options.group_size,
            "completion_length": options.completion_length,
        }
        seconds = measure(agent, options, length)
        file.discard(**settings)
        file.append({**settings, "seconds": seconds})
    text = page(file.data)
    file.write_markdown(text)
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-lengths", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--completion-length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def measure(agent: DPO, options: argparse.Namespace, length: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round, by what is computed and by way."""
    batch = random_group(length, options.group_size, options.completion_length)
    scorers = {
        "shared": Scorer(agent.lm, pad_token_id=0, prefix_sharing=True),
        "separate": Scorer(agent.lm, pad_token_id=0, prefix_sharing=False),
        "padded": Scorer(replace(agent.lm, packs=False, layers=None), pad_token_id=0),
    }
    seconds: dict[str, dict[str, list[float]]] = {
        what: {way: [] for way in WAYS} for what in ("forward", "forward and backward")
    }
    for _ in range(options.rounds):
        for what, taken in seconds.items():
            for way in WAYS:
                taken[way].append(run(agent, scorers[way], batch, backward=what != "forward"))
                print(f"{length} {what} {way}: {taken[way][-1]:.2f} s", flush=True)
    return seconds


def run(agent: DPO, scorer: Scorer, batch: RolloutBatch, *, backward: bool) -> float:
    """Seconds of one pass."""
    started = time.perf_counter()
    with torch.set_grad_enabled(backward), agent.select_adapter("actor"), scorer.session():
        logps = scorer.score_completions(batch).logps
        if backward:
            logps.sum().backward()
    elapsed = time.perf_counter() - started
    for parameter in agent.adapters.parameters("actor"):
        parameter.grad = None
    return elapsed


def random_group(prompt: int, group_size: int, completion: int) -> RolloutBatch:
    """One prompt with a group of completions, all of random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = [
        torch.randint(100, 40_000, (length,), generator=generator) for length in (prompt, *[completion] * group_size)
    ]
    return RolloutBatch(
        prompts=ids[:1],
        completions=[ids[1:]],
        rewards=[[0.0] * group_size],
        advantages=[None],
        sampling_logps=[None],
        finished=[[True] * group_size],
        labels=["row 0"],
    )


def page(data: dict[str, Any]) -> str:
    """The table of all prompt lengths."""
    rows = []
    for one in sorted(
        data["runs"], key=lambda one: (one["group_size"], one["completion_length"], one["prompt_length"])
    ):
        for what, taken in one["seconds"].items():
            shared, separate, padded = (median(taken[way]) for way in WAYS)
            rows.append(
                [
                    f"prompt {one['prompt_length']}, {one['group_size']} x {one['completion_length']}, {what}",
                    f"{shared:.2f}",
                    f"{separate:.2f}",
                    f"{padded:.2f}",
                    f"{separate / shared:.2f}",
                    f"{padded / shared:.2f}",
                ]
            )
    return "\n\n".join(
        [
            "# Scoring a group with its prompt computed once",
            f"{MODEL_NAME} in bfloat16, LoRA rank 16, {sentence(data['machine'])}. `{data['runs'][-1]['command']}`",
            f"Tokens; median seconds of {len(data['runs'][-1]['seconds']['forward']['shared'])} rounds in which the "
            "ways take turns, on a machine that others use as well: the ratios count.",
            markdown_table(
                ["", "shared, s", "separate, s", "padded rows, s", "faster than separate by", "than padded by"], rows
            ),
        ]
    )


if __name__ == "__main__":
    main()
