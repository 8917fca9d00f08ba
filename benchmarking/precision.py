"""How far bfloat16 can be trusted: the error of what DPO learns from, and whether training ends at the same place.

    python -m benchmarking.precision error --pairs FILE.jsonl.gz
    python -m benchmarking.precision learning --seeds 5

``error`` compares log-probabilities of completions, and their difference between policy and reference, with float64:
the same bfloat16 weights, a small random adapter. "Plain" is Transformers and PEFT as they are: one padded row per
completion, logits of the model. ``learning`` trains on the embedded pairs in both precisions and compares the accuracy
on held-out ones.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.algorithms import DPO
from agiledpo.embedded.model import load_embedded_model
from agiledpo.embedded.preferences import load_embedded_preferences
from agiledpo.llm_envs import PreferenceGym
from agiledpo.scoring import PreferenceBatch
from benchmarking.machine import describe_machine, sentence
from benchmarking.pairs import load_rows, select_pairs
from benchmarking.results import RESULTS, ResultFile, markdown_table

NAME = "precision"
CONFIGURATIONS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16, `fast_layers=False`": (torch.bfloat16, {"fast_layers": False}),
}
PLAIN = "bfloat16, plain"


def main() -> None:
    arguments = parse()
    file = ResultFile(NAME, arguments.output)
    file.set(machine=describe_machine())
    if arguments.what == "error":
        measure_errors(arguments, file)
    else:
        measure_learning(arguments, file)
    text = report(file)
    file.write_markdown(text)
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("error", "learning"))
    parser.add_argument("--pairs", type=Path, help="for error: jsonl or jsonl.gz; default: embedded")
    parser.add_argument("--num-pairs", type=int, default=24, help="pairs that are scored, or learned from per run")
    parser.add_argument("--adapter-scale", type=float, default=2e-3, help="for error: standard deviation of LoRA's B")
    parser.add_argument("--seeds", type=int, default=5, help="for learning: runs in each precision")
    parser.add_argument("--held-out", type=int, default=64, help="for learning: pairs that the accuracy is over")
    parser.add_argument("--lr", type=float, default=2e-4, help="for learning: learning rate")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


# Error ----------------------------------------------------------------------------------------------------------------


def measure_errors(arguments: argparse.Namespace, file: ResultFile) -> None:
    """Score the same completions in every precision and write the distance to float64."""
    tokenizer = load_embedded_model(torch.bfloat16)[1]
    batch = token_batch(arguments.pairs, arguments.num_pairs, tokenizer)
    exact_policy, exact_reference = score_plain(make_agent(torch.float64, arguments.adapter_scale), batch)
    signal = exact_policy - exact_reference
    ways: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        PLAIN: lambda: score_plain(make_agent(torch.bfloat16, arguments.adapter_scale), batch)
    }
    for name, (dtype, options) in CONFIGURATIONS.items():
        ways[name] = lambda dtype=dtype, options=options: score(  # type: ignore[misc]
            make_agent(dtype, arguments.adapter_scale, **options), batch
        )
    file.discard(what="error")
    for name, way in ways.items():
        policy, reference = way()
        file.append(
            {
                "what": "error",
                "config": name,
                "completions": len(signal),
                "signal": rms(signal),
                "log_probability": rms(policy - exact_policy),
                "difference": rms(policy - reference - signal),
            }
        )


def make_agent(dtype: torch.dtype, adapter_scale: float, **options: Any) -> DPO:
    """An agent on the embedded model's bfloat16 weights with a small random adapter, the same in every precision."""
    model = load_embedded_model(torch.bfloat16)[0].to(dtype)
    agent = DPO(
        actor_network=model,
        lora_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        use_separate_reference_adapter=False,
        batch_size=4,
        reference_cache=None,
        **options,
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in agent.base.parameters(agent.adapters.name("actor") or "").items():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * adapter_scale)
    return agent


def score(agent: DPO, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all completions under policy and reference, as the agent computes them; float64 (2B,)."""
    policy, reference = (
        torch.cat([(side.logps.double() * side.mask).sum(1) for side in (scores.chosen, scores.rejected)])
        for scores in (agent.score(batch, role) for role in ("actor", "reference"))
    )
    return policy, reference


@torch.no_grad()
def score_plain(agent: DPO, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """The same through the model's own forward pass, one completion at a time."""
    results = []
    for role in ("actor", "reference"):
        with agent.select_adapter(role):
            logps = [
                completion_logp(agent.base.model, prompt, completion)
                for side in (batch.chosen, batch.rejected)
                for prompt, completion in zip(batch.prompts, side, strict=True)
            ]
        results.append(torch.stack(logps))
    return results[0], results[1]


def completion_logp(model: PreTrainedModel, prompt: Tensor, completion: Tensor) -> Tensor:
    """Log-probability of a completion, float64; the softmax in float32 or in the model's higher precision."""
    logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(logits, -1).gather(1, completion[:, None]).sum().double()


def token_batch(path: Path | None, pairs: int, tokenizer: PreTrainedTokenizerBase) -> PreferenceBatch:
    """Pairs as tokens."""
    chosen = select_pairs(load_rows(path), tokenizer, pairs, max_length=512)

    def ids(texts: list[str]) -> list[Tensor]:
        return [torch.tensor(tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    return PreferenceBatch(
        ids([pair.prompt for pair in chosen]),
        ids([pair.chosen for pair in chosen]),
        ids([pair.rejected for pair in chosen]),
        [f"pair {number}" for number in range(len(chosen))],
    )


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


# Learning -------------------------------------------------------------------------------------------------------------


def measure_learning(arguments: argparse.Namespace, file: ResultFile) -> None:
    """Train with several seeds in both precisions, taking turns; every run is written when it ends."""
    identity = {
        "what": "learning",
        "pairs": arguments.num_pairs,
        "held_out": arguments.held_out,
        "lr": arguments.lr,
    }
    for seed in range(arguments.seeds):
        for config in ("float32", "bfloat16"):
            run = {**identity, "config": config, "seed": seed}
            if not any(run.items() <= done.items() for done in file.runs):
                file.append({**run, **train(arguments, CONFIGURATIONS[config][0], seed)})


def train(arguments: argparse.Namespace, dtype: torch.dtype, seed: int) -> dict[str, float]:
    """One run; the seed draws the adapter and the order of the pairs."""
    model, tokenizer = load_embedded_model(dtype)
    train_rows, test_rows = load_embedded_preferences()
    env = PreferenceGym(
        train_rows, test_rows.select(range(arguments.held_out)), tokenizer, data_batch_size_per_gpu=8, seed=seed
    )
    agent = DPO(
        actor_network=model,
        lora_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        use_separate_reference_adapter=False,
        batch_size=8,
        lr=arguments.lr,
        nll_alpha=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        seed=seed,
    )
    for _ in range(arguments.num_pairs // 8):
        agent.learn(env.step())
    held_out = agent.evaluate(env)
    return {name: held_out[f"rewards/{name}"] for name in ("accuracies", "margins")}


# Report ---------------------------------------------------------------------------------------------------------------


def report(file: ResultFile) -> str:
    """The tables of all runs so far."""
    parts = ["# How far bfloat16 can be trusted", sentence(file.data["machine"])]
    errors = [run for run in file.runs if run["what"] == "error"]
    if errors:
        plain = next(run["difference"] for run in errors if run["config"] == PLAIN)
        rows = [
            [
                run["config"],
                f"{run['log_probability']:.4f}",
                f"{run['difference']:.4f}",
                f"{run['difference'] / plain:.2f}",
            ]
            for run in errors
        ]
        parts += [
            f"Root-mean-square error against float64 over {errors[0]['completions']} completions, in nats; the "
            f"difference between policy and reference itself is {errors[0]['signal']:.3f}.",
            markdown_table(["", "log-probability", "policy minus reference", "of plain bfloat16's"], rows),
        ]
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in file.runs:
        if run["what"] == "learning":
            settings.setdefault((run["pairs"], run["lr"], run["held_out"]), []).append(run)
    for (pairs, lr, held_out), learning in sorted(settings.items()):
        rows = []
        for config in ("float32", "bfloat16"):
            runs = [run for run in learning if run["config"] == config]
            accuracies, margins = ([run[name] for run in runs] for name in ("accuracies", "margins"))
            rows.append(
                [
                    config,
                    len(runs),
                    _mean_and_error(accuracies, 3),
                    _mean_and_error(margins, 4),
                    " ".join(f"{value:.3f}" for value in accuracies),
                ]
            )
        parts += [
            f"Held-out accuracy after {pairs} embedded pairs (batch 8, lr {lr:g}, {held_out} held-out pairs).",
            markdown_table(["", "seeds", "accuracy, mean ± se", "reward margin, mean ± se", "accuracy of each"], rows),
        ]
    return "\n\n".join(parts)


def _mean_and_error(values: list[float], digits: int) -> str:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean(values):.{digits}f} ± {error:.{digits}f}" if values else "-"


if __name__ == "__main__":
    main()
