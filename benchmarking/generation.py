"""Tokens per second of sampling: ours, and Transformers' ``generate`` as others call it.

    python -m benchmarking.generation
    python -m benchmarking.generation --prompts 4 --max-new-tokens 48 --rounds 2 --ways ours "one call"

The embedded model in bfloat16 with a LoRA adapter of rank 16 answers prompts of the embedded pairs. All ways sample at
temperature 1 and stop at the model's end-of-sequence token; they take turns, and medians over the rounds count.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from agiledpo.algorithms import DPO
from agiledpo.embedded.model import MODEL_NAME, load_embedded_model
from agiledpo.embedded.preferences import load_embedded_preferences
from agiledpo.generation import SamplingSettings, TransformersGenerator
from agiledpo.generation.batches import left_padded
from benchmarking.machine import PACKAGES, describe_machine, package_versions, sentence
from benchmarking.results import RESULTS, ResultFile, markdown_table

NAME = "generation"
SETTINGS = ("prompts", "group_size", "max_new_tokens")
OURS = "TransformersGenerator"
WAYS = {
    OURS: "agents' generator",
    "one call": "`model.generate(num_return_sequences=G)` of all prompts",
    "a call per prompt": "one such call for each prompt, as AgileRL",
    "continuous batching": "`model.generate_batch(num_return_sequences=G)`",
}


def main() -> None:
    options = parse()
    file = ResultFile(NAME, options.output)
    file.set(machine=describe_machine(), versions=package_versions(PACKAGES))
    file.append(measure(options))
    text = page(file.data)
    file.write_markdown(text)
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All ways in turn; returns the seconds and tokens of each round."""
    prompts = embedded_prompts(options.prompts)
    agent = make_agent()
    limits = {"group_size": options.group_size, "max_new_tokens": options.max_new_tokens}
    runs: dict[str, Callable[[], int]] = {
        OURS: lambda: ours(agent, prompts, **limits),
        "one call": lambda: theirs(agent, [prompts], **limits),
        "a call per prompt": lambda: theirs(agent, [[prompt] for prompt in prompts], **limits),
        "continuous batching": lambda: continuous(agent, prompts, **limits),
    }
    ours(agent, prompts[:1], group_size=1, max_new_tokens=2)  # probes the model
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    for number in range(options.rounds):
        for way in options.ways:
            torch.manual_seed(number)
            started = time.perf_counter()
            tokens = runs[way]()
            rounds[way].append({"seconds": time.perf_counter() - started, "tokens": tokens})
            print(f"{way}: {tokens} tokens in {rounds[way][-1]['seconds']:.1f} s", flush=True)
    return {
        "prompts": options.prompts,
        "prompt_tokens": [len(prompt) for prompt in prompts],
        **limits,
        "rounds": rounds,
    }


def embedded_prompts(count: int) -> list[Tensor]:
    """Chats of the embedded pairs as tokens."""
    tokenizer = load_embedded_model(torch.bfloat16)[1]
    chats = list(dict.fromkeys(row["prompt"][0]["content"] for row in load_embedded_preferences()[0]))[:count]
    return [
        torch.tensor(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": chat}], add_generation_prompt=True, return_dict=False
            )
        )
        for chat in chats
    ]


def make_agent() -> DPO:
    """An agent on the embedded model in bfloat16 whose adapter does something."""
    agent = DPO(
        actor_network=load_embedded_model(torch.bfloat16)[0],
        lora_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        use_separate_reference_adapter=False,
        batch_size=4,
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in agent.base.parameters(agent.adapters.name("actor") or "").items():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 2e-3)
    return agent


def ours(agent: DPO, prompts: Sequence[Tensor], *, group_size: int, max_new_tokens: int) -> int:
    """Sample with the agents' generator; returns the number of tokens."""
    completions = TransformersGenerator().generate(
        agent, prompts, group_size=group_size, settings=SamplingSettings(max_new_tokens=max_new_tokens)
    )
    return sum(len(row) for group in completions.tokens for row in group)


@torch.no_grad()
def theirs(agent: DPO, calls: Sequence[Sequence[Tensor]], *, group_size: int, max_new_tokens: int) -> int:
    """Sample with one call of ``generate`` for each list of prompts; returns the number of tokens."""
    eos, count = int(agent.base.model.generation_config.eos_token_id), 0
    with agent.select_adapter("actor"):
        for prompts in calls:
            ids, mask = left_padded(prompts, agent.device)
            sequences = agent.base.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                num_return_sequences=group_size,
                max_new_tokens=max_new_tokens,
            )
            before = (sequences[:, ids.shape[1] :] == eos).cumsum(1).cumsum(1)
            count += int((before <= 1).sum())  # up to and including the first end
    return count


def continuous(agent: DPO, prompts: Sequence[Tensor], *, group_size: int, max_new_tokens: int) -> int:
    """Sample with Transformers' continuous batching; returns the number of tokens."""
    model = agent.base.model
    attention = model.config._attn_implementation
    with agent.select_adapter("actor"):
        outputs = model.generate_batch(
            inputs=[prompt.tolist() for prompt in prompts],
            generation_config=GenerationConfig(
                do_sample=True,
                top_k=0,
                num_return_sequences=group_size,
                max_new_tokens=max_new_tokens,
                eos_token_id=model.generation_config.eos_token_id,
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                return_logprobs=True, num_blocks=256, page_size=32, max_batch_tokens=1024
            ),
        )
    model.set_attn_implementation(attention)
    return sum(len(output.generated_tokens) for output in outputs.values())


def page(data: dict[str, Any]) -> str:
    """A table for each setting that was run."""
    parts = [
        "# Sampling",
        f"{MODEL_NAME} in bfloat16, LoRA rank 16, {sentence(data['machine'])}, Transformers "
        f"{data['versions']['transformers']}, torch {data['versions']['torch']}. Temperature 1. Medians of rounds in "
        "which the ways take turns, on a machine that others use as well: the ratios count.",
    ]
    settings: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for run in data["runs"]:
        settings.setdefault(tuple(run[key] for key in SETTINGS), []).append(run)
    for (prompts, group_size, max_new_tokens), runs in settings.items():
        lengths = runs[0]["prompt_tokens"]
        parts += [
            f"{prompts} prompts of {min(lengths)} to {max(lengths)} tokens, {group_size} completions of at most "
            f"{max_new_tokens} tokens each. `{runs[-1]['command']}`",
            table({way: [each for run in runs for each in run["rounds"].get(way, [])] for way in WAYS}),
        ]
    parts.append(
        "What ours does otherwise, not measured apart: "
        "each prompt is computed once and not once for each completion, ended rows leave the "
        "batch, and the head gets contiguous rows (for the last positions of a batch of prompts torch copies the "
        "head's weights once per row)."
    )
    return "\n\n".join(parts)


def table(rounds: dict[str, list[dict[str, float]]]) -> str:
    """The ways in the order of ``WAYS``, those that were run."""
    rates = {way: median(one["tokens"] / one["seconds"] for one in found) for way, found in rounds.items() if found}
    rows = [
        [
            f"{way}: {WAYS[way]}",
            len(rounds[way]),
            f"{median(one['seconds'] for one in rounds[way]):.1f}",
            f"{median(one['tokens'] for one in rounds[way]):.0f}",
            f"{rate:.1f}",
            f"{rates[OURS] / rate:.2f}" if OURS in rates else None,
        ]
        for way, rate in rates.items()
    ]
    return markdown_table(["way", "rounds", "seconds", "tokens", "tokens/s", "ours is faster by"], rows)


if __name__ == "__main__":
    main()
