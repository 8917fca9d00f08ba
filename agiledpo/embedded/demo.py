"""The main job, start to end, on the embedded model: ``python -m agiledpo.embedded.demo``.

SmolLM2-135M-Instruct rambles. The demo teaches one LoRA agent to give short, complete, direct answers and shows, on
prompts it never trained on, what changed and what did not.
"""

import argparse
import os
import platform
import random
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig

from agiledpo.algorithms import DPO
from agiledpo.embedded.measure import Measurement, measure
from agiledpo.embedded.model import MODEL_NAME, load_embedded_model
from agiledpo.embedded.preferences import held_out_prompts, load_embedded_preferences
from agiledpo.llm_envs import PreferenceGym
from agiledpo.training.train_llm import finetune_llm_preference
from agiledpo.utils.utils import save_llm_checkpoint

_SEED = 7
_SHOWN_PROMPTS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo.

    Args:
        arguments: Command-line arguments; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=128, help="training pairs (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=48, help="held-out prompts to answer (default: %(default)s)")
    parser.add_argument("--test-pairs", type=int, default=64, help="held-out pairs to rank (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="checkpoint directory (default: %(default)s)"
    )
    options = parser.parse_args(arguments)

    print(f"Loading {MODEL_NAME} (converted on first use) ...", flush=True)
    model, tokenizer = load_embedded_model(torch.bfloat16)
    train, test = load_embedded_preferences()
    test = test.shuffle(seed=_SEED).select(range(min(options.test_pairs, len(test))))
    env = PreferenceGym(train, test, tokenizer, data_batch_size_per_gpu=8, seed=_SEED)
    agent = DPO(
        env.observation_space,
        env.action_space,
        actor_network=model,
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        lora_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        batch_size=8,
        lr=1e-4,
        beta=0.3,
        nll_alpha=1.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        seed=_SEED,
    )
    prompts = held_out_prompts()
    prompts = random.Random(_SEED).sample(prompts, min(options.prompts, len(prompts)))

    print(f"Answering {len(prompts)} held-out prompts before training ...", flush=True)
    before = measure(agent, tokenizer, prompts, seed=_SEED)
    agent.test(env)
    started = time.perf_counter()
    finetune_llm_preference([agent], env, max_steps=options.pairs, evaluation_interval=None)
    seconds = time.perf_counter() - started
    print(f"Answering the same prompts after {seconds:.0f} s of training and ranking ...", flush=True)
    after = measure(agent, tokenizer, prompts, seed=_SEED)

    print(
        f"\n{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{_table(before, after, accuracies=agent.fitness, pairs=len(test))}\n")
    for number in range(0, len(prompts), max(1, len(prompts) // _SHOWN_PROMPTS))[:_SHOWN_PROMPTS]:
        print(_comparison(prompts[number]["prompt"][-1]["content"], before, after, number))
    save_llm_checkpoint(agent, options.out)
    print(f"The adapter is in {options.out}/actor; PeftModel.from_pretrained(base, '{options.out}/actor') loads it.")


def _table(before: Measurement, after: Measurement, *, accuracies: Sequence[float], pairs: int) -> str:
    def percent(value: float) -> str:
        return f"{100 * value:.0f} %"

    rows = [
        ("held-out prompts and pairs", "before", "after"),
        (f"preference accuracy ({pairs} pairs)", percent(accuracies[0]), percent(accuracies[-1])),
        (f"answers that satisfy the rule ({len(after.answers)})", percent(before.satisfied), percent(after.satisfied)),
        ("answers that name the prompt's topic", percent(before.names_topic), percent(after.names_topic)),
        ("distinct answers", percent(before.distinct), percent(after.distinct)),
        ("mean length, words", f"{before.words:.0f}", f"{after.words:.0f}"),
        ("KL from the base per token, nats", f"{before.kl_per_token:.3f}", f"{after.kl_per_token:.3f}"),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _comparison(prompt: str, before: Measurement, after: Measurement, number: int) -> str:
    def paragraph(label: str, text: str) -> str:
        flat = " ".join(text.split())
        return textwrap.fill(flat, 100, initial_indent=f"  {label:<7}", subsequent_indent=" " * 9)

    return "\n".join(
        [
            f"> {prompt}",
            paragraph("before", before.answers[number].text),
            paragraph("after", after.answers[number].text),
            "",
        ]
    )


if __name__ == "__main__":
    main()
