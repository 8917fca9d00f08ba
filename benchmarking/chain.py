"""SFT, then DPO, on the embedded model: does each stage improve its held-out figures, across a change of rank?

    python -m benchmarking.chain                      # about 10 minutes on two cores
    python -m benchmarking.chain --rows 16 --prompts 8

The first stage learns the chosen answers with adapters of rank 8. Its checkpoint becomes actor and reference of the
second, whose adapters have rank 16: ``merge_lora_configs=True`` pads them. The logits are compared before and after
that. Held-out rows are about topics that neither stage has seen.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor

from agiledpo.algorithms import DPO, SFT
from agiledpo.embedded.measure import measure
from agiledpo.embedded.model import MODEL_NAME, load_embedded_model
from agiledpo.embedded.preferences import held_out_prompts, load_embedded_preferences
from agiledpo.llm_envs import PreferenceGym, SFTGym
from agiledpo.training.train_llm import finetune_llm_preference, finetune_llm_sft
from benchmarking.machine import describe_machine, package_versions, sentence
from benchmarking.results import RESULTS, ResultFile, markdown_table

NAME = "chain"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    file = ResultFile(NAME, options.output)
    file.data["runs"] = []
    file.set(machine=describe_machine(), versions=package_versions())
    file.append(chain(options))
    text = page(file.data)
    file.write_markdown(text)
    print(text)


def chain(options: argparse.Namespace) -> dict[str, Any]:
    """Both stages; returns their figures."""
    model, tokenizer = load_embedded_model(getattr(torch, options.dtype))
    train, held_out = (split.shuffle(seed=options.seed) for split in load_embedded_preferences())
    pairs, test = train.select(range(2 * options.rows)), held_out.select(range(options.test_rows))
    prompts = held_out_prompts(test["topic"])[: options.prompts]
    # Either stage learns from its own half of the pairs.
    sft_env = SFTGym(
        _completions(pairs.select(range(options.rows))), _completions(test), tokenizer, 8, seed=options.seed
    )
    dpo_env = PreferenceGym(pairs.select(range(options.rows, 2 * options.rows)), test, tokenizer, 8, seed=options.seed)
    common = {
        "actor_network": model,
        "batch_size": 8,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "seed": options.seed,
    }
    figures: dict[str, Any] = {"rows": options.rows, "test_rows": len(test), "prompts": len(prompts)}

    def judged(agent: DPO) -> dict[str, float]:
        answers = measure(agent, tokenizer, prompts, seed=options.seed)
        return {"rule": answers.satisfied, "topic": answers.names_topic, "words": answers.words}

    plain = DPO(lora_config=_lora(8), use_separate_reference_adapter=False, **common)
    figures["base"] = judged(plain)
    plain.clean_up()

    sft = SFT(lora_config=_lora(8), lr=options.sft_lr, **common)
    figures["sft before"] = sft.evaluate(sft_env)
    started = time.perf_counter()
    finetune_llm_sft([sft], sft_env, num_epochs=options.sft_epochs, evaluation_interval=None)
    figures["sft seconds"] = time.perf_counter() - started
    figures["sft after"] = sft.evaluate(sft_env)
    with tempfile.TemporaryDirectory() as directory:
        sft.save_checkpoint(Path(directory) / "sft", tokenizer=tokenizer)
        dpo = DPO(lora_config=_lora(16), lr=options.dpo_lr, beta=0.3, nll_alpha=0.0, **common)
        dpo.load_checkpoint(Path(directory) / "sft", merge_lora_configs=True)
    ids = torch.tensor([tokenizer("Why is the sky blue? Because air scatters blue light more than red.")["input_ids"]])
    figures["logits"] = _differences(sft, dpo, ids)
    figures["rank"] = dpo.lora_config.r
    sft.clean_up()
    figures["dpo before"] = {**dpo.evaluate(dpo_env), **judged(dpo)}
    started = time.perf_counter()
    finetune_llm_preference([dpo], dpo_env, evaluation_interval=None)
    figures["dpo seconds"] = time.perf_counter() - started
    figures["dpo after"] = {**dpo.evaluate(dpo_env), **judged(dpo)}
    return figures


def _completions(pairs: Dataset) -> Dataset:
    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs])


def _lora(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


@torch.inference_mode()
def _differences(sft: SFT, dpo: DPO, ids: Tensor) -> dict[str, dict[str, float]]:
    """Largest difference of a logit between the SFT stage's actor and each role of the next, over the largest logit.

    In the model's own precision, where another rank is another rounding, and in float64, where it is not.
    """
    found: dict[str, dict[str, float]] = {}
    for model in (sft.base.peft, copy.deepcopy(sft.base.peft).double()):
        logits = {}
        for name in (sft.adapters.name("actor"), dpo.adapters.name("actor"), dpo.adapters.name("reference")):
            assert name is not None
            model.set_adapter(name)
            logits[name] = model(ids).logits.double()
        before, *after = logits.values()
        found[str(next(model.parameters()).dtype).removeprefix("torch.")] = {
            role: float((each - before).abs().max() / before.abs().max())
            for role, each in zip(("actor", "reference"), after, strict=True)
        }
    return found


def page(data: Mapping[str, Any]) -> str:
    """The page with the tables."""
    run = data["runs"][-1]
    sft, dpo = (run["sft before"], run["sft after"]), (run["dpo before"], run["dpo after"])

    def row(name: str, values: Sequence[Mapping[str, float]], metric: str, form: str) -> list[str]:
        return [name, *(format(value[metric], form) for value in values)]

    lines = [
        "# SFT to DPO through a checkpoint",
        "",
        f"{MODEL_NAME}, {sentence(data['machine'])}. `{run['command']}`",
        "",
        f"{run['rows']} rows of the embedded pairs for each stage, {run['test_rows']} held-out rows, "
        f"{run['prompts']} held-out prompts that are answered.",
        "",
        "## SFT on the chosen answers, rank 8",
        "",
        markdown_table(
            ["held out", "before", "after"],
            [row("loss, nats per token", sft, "loss", ".3f"), row("token accuracy", sft, "mean_token_accuracy", ".3f")],
        ),
        "",
        f"{run['sft seconds']:.0f} s.",
        "",
        f"## DPO from there, rank {run['rank']}",
        "",
        "Largest difference of a logit once the checkpoint is in the larger adapters, over the largest logit: "
        + "; ".join(
            f"{dtype}: actor {roles['actor']:.1e}, reference {roles['reference']:.1e}"
            for dtype, roles in run["logits"].items()
        )
        + ".",
        "",
        markdown_table(
            ["held out", "before", "after"],
            [
                row("preference accuracy against the SFT stage", dpo, "rewards/accuracies", ".3f"),
                row("loss", dpo, "loss", ".3f"),
            ],
        ),
        "",
        f"{run['dpo seconds']:.0f} s.",
        "",
        "## Answers to held-out prompts",
        "",
        markdown_table(
            ["answers", "base", "after SFT", "after DPO"],
            [
                row("that satisfy the rule", (run["base"], *dpo), "rule", ".0%"),
                row("that name the topic", (run["base"], *dpo), "topic", ".0%"),
                row("mean words", (run["base"], *dpo), "words", ".0f"),
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", type=int, default=96, help="training rows of each stage")
    add("--test-rows", type=int, default=48, help="held-out rows")
    add("--prompts", type=int, default=32, help="held-out prompts to answer")
    add("--sft-lr", type=float, default=2e-4)
    add("--sft-epochs", type=int, default=1)
    add("--dpo-lr", type=float, default=1e-4)
    add(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="float32",
        help="of the base; in float32 logits compare to 1e-6",
    )
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=RESULTS, help="directory of the result files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
