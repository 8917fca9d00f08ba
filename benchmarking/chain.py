"""SFT, then DPO, then GRPO on the embedded model: does each stage improve held-out figures, across changes of rank?

    python -m benchmarking.chain                      # about half an hour on two cores
    python -m benchmarking.chain --rows 16 --prompts 8 --grpo-prompts 16

Each stage starts from the checkpoint of the one before it, which becomes its actor and its reference. SFT learns chosen
answers with adapters of rank 8. DPO has rank 16: ``merge_lora_configs=True`` pads them, and the logits are compared
before and after that. GRPO samples answers itself, and a program judges them (:mod:`agiledpo.embedded.rule`): the rule
and the topic. After every stage the same examiner measures the actor on topics that no stage has seen.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.algorithms import DPO, GRPO, SFT
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.embedded.measure import measure
from agiledpo.embedded.model import MODEL_NAME, load_embedded_model
from agiledpo.embedded.preferences import held_out_prompts, load_embedded_preferences
from agiledpo.embedded.rule import judge
from agiledpo.llm_envs import PreferenceGym, ReasoningGym, SFTGym
from agiledpo.training.train_llm import finetune_llm_preference, finetune_llm_reasoning, finetune_llm_sft
from benchmarking.machine import PACKAGES, describe_machine, package_versions, sentence
from benchmarking.results import RESULTS, ResultFile, markdown_table

NAME = "chain"
_TEXT = "Why is the sky blue? Because air scatters blue light more than red."


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    file = ResultFile(NAME, options.output)
    file.data["runs"] = []
    file.set(machine=describe_machine(), versions=package_versions(PACKAGES))
    with tempfile.TemporaryDirectory() as directory:
        file.append(Chain(options, Path(directory)).run())
    text = page(file.data)
    file.write_markdown(text)
    print(text)


def reward(completion: str, topic: Sequence[str], question: str) -> float:
    """1 for an answer that satisfies the rule and names its topic; otherwise 0.1 for each of six parts that hold.

    One of the six, that the answer ended itself, is taken for granted: a reward sees only text, and an answer that was
    cut seldom ends with a full stop. So no answer gets less than 0.1, and none but a full success more than 0.5.

    Args:
        completion: The answer.
        topic: The topic words of its prompt.
        question: The prompt, which is not looked at.
    """
    verdict = judge(topic, completion, finished=True)
    if verdict.satisfied and verdict.names_topic:
        return 1.0
    return 0.1 * (5 - len(verdict.broken_parts) + verdict.names_topic)


@dataclass
class Chain:
    """The stages and their examiner.

    Attributes:
        options: The command line.
        directory: Where checkpoints go.
    """

    options: argparse.Namespace
    directory: Path

    def __post_init__(self) -> None:
        options = self.options
        self.model: PreTrainedModel
        self.tokenizer: PreTrainedTokenizerBase
        self.model, self.tokenizer = load_embedded_model(getattr(torch, options.dtype))
        train, held_out = (split.shuffle(seed=options.seed) for split in load_embedded_preferences())
        self.test = held_out.select(range(options.test_rows))
        self.prompts = held_out_prompts(self.test["topic"])[: options.prompts]
        # SFT and DPO learn from a part of the pairs each, GRPO from prompts of the rest.
        self.parts = [
            train.select(range(options.rows)),
            train.select(range(options.rows, 2 * options.rows)),
            _distinct(train.select(range(2 * options.rows, len(train)))),
        ]
        self.pairs = self._pairs(self.parts[1])

    def run(self) -> dict[str, Any]:
        """All stages; returns their figures."""
        options = self.options
        figures: dict[str, Any] = {
            "rows": options.rows,
            "test_rows": len(self.test),
            "prompts": len(self.prompts),
            "grpo_prompts": options.grpo_prompts,
            "examined": {"base": self.examine(None)},
        }

        sft = SFT(lora_config=_lora(8), lr=options.sft_lr, **self.common)
        env = SFTGym(_completions(self.parts[0]), _completions(self.test), self.tokenizer, 8, seed=options.seed)
        before, started = sft.evaluate(env), time.perf_counter()
        finetune_llm_sft([sft], env, num_epochs=options.sft_epochs, evaluation_interval=None)
        figures["sft"] = {"before": before, "after": sft.evaluate(env), "seconds": time.perf_counter() - started}
        figures["examined"]["SFT"] = self.examine(sft)

        dpo = DPO(lora_config=_lora(16), lr=options.dpo_lr, beta=0.3, nll_alpha=1.0, **self.common)
        dpo.load_checkpoint(self.directory / "SFT", merge_lora_configs=True)
        ids = torch.tensor([self.tokenizer(_TEXT)["input_ids"]])
        figures["logits"] = _differences(sft, dpo, ids)
        figures["rank"] = dpo.lora_config.r
        sft.clean_up()
        before, started = dpo.evaluate(self.pairs), time.perf_counter()
        finetune_llm_preference([dpo], self.pairs, evaluation_interval=None)
        figures["dpo"] = {
            "before": before,
            "after": dpo.evaluate(self.pairs),
            "seconds": time.perf_counter() - started,
        }
        figures["examined"]["DPO"] = self.examine(dpo)
        dpo.clean_up()

        grpo = GRPO(
            lora_config=_lora(16),
            lr=options.grpo_lr,
            beta=0.02,
            group_size=8,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_completion_length=options.max_completion_length,
            **{**self.common, "batch_size": 64, "micro_batch_size_per_gpu": 16},
        )
        grpo.load_checkpoint(self.directory / "DPO")
        gym = ReasoningGym(
            self.parts[2],
            Dataset.from_list(self.prompts),
            self.tokenizer,
            reward,
            data_batch_size_per_gpu=8,
            answer_column="topic",
            seed=options.seed,
        )
        before, started = grpo.evaluate(gym), time.perf_counter()
        finetune_llm_reasoning([grpo], gym, max_steps=options.grpo_prompts, evaluation_interval=None)
        figures["grpo"] = {"before": before, "after": grpo.evaluate(gym), "seconds": time.perf_counter() - started}
        figures["examined"]["GRPO"] = self.examine(grpo)
        return figures

    @property
    def common(self) -> dict[str, Any]:
        """Arguments of every agent."""
        return {
            "actor_network": self.model,
            "batch_size": 8,
            "max_grad_norm": 1.0,
            "gradient_checkpointing": False,
            "seed": self.options.seed,
        }

    def examine(self, agent: LLMAlgorithm | None) -> dict[str, float]:
        """Figures of a stage's actor beside the bare base model, the same way for every stage.

        Args:
            agent: The stage's; it is saved under its name. None for the base model itself.
        """
        examiner = DPO(
            lora_config=_lora(16), use_separate_reference_adapter=False, nll_alpha=0.0, beta=0.3, **self.common
        )
        if agent is not None:
            path = self.directory / type(agent).__name__
            agent.save_checkpoint(path, tokenizer=self.tokenizer)
            examiner.load_checkpoint(path / "actor", overwrite_reference_adapter=False, merge_lora_configs=True)
        answers = measure(examiner, self.tokenizer, self.prompts, seed=self.options.seed)
        texts = zip(self.prompts, answers.answers, strict=True)
        verdicts = [judge(prompt["topic"], answer.text, answer.finished) for prompt, answer in texts]
        found = {
            "accuracy": examiner.evaluate(self.pairs)["rewards/accuracies"],
            "success": sum(verdict.satisfied and verdict.names_topic for verdict in verdicts) / len(verdicts),
            "rule": answers.satisfied,
            "topic": answers.names_topic,
            "distinct": answers.distinct,
            "words": answers.words,
            "kl": answers.kl_per_token,
        }
        examiner.clean_up()
        return found

    def _pairs(self, rows: Dataset) -> PreferenceGym:
        return PreferenceGym(rows, self.test, self.tokenizer, 8, seed=self.options.seed)


def _completions(pairs: Dataset) -> Dataset:
    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs])


def _distinct(rows: Dataset) -> Dataset:
    """Each prompt once, with its topic."""
    unique = {row["prompt"][0]["content"]: {"prompt": row["prompt"], "topic": row["topic"]} for row in rows}
    return Dataset.from_list(list(unique.values()))


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
    examined = run["examined"]

    def row(name: str, metric: str, form: str) -> list[str]:
        return [name, *(format(stage[metric], form) for stage in examined.values())]

    def change(stage: str, name: str, metric: str) -> list[str]:
        return [stage.upper(), name, *(format(run[stage][when][metric], ".3f") for when in ("before", "after"))]

    lines = [
        "# SFT to DPO to GRPO through checkpoints",
        "",
        f"{MODEL_NAME}, {sentence(data['machine'])}. `{run['command']}`",
        "",
        f"{run['rows']} rows of the embedded pairs for SFT and as many others for DPO, then {run['grpo_prompts']} "
        "prompts with 8 sampled answers each for GRPO, whose reward is what a program finds. "
        f"{run['test_rows']} held-out pairs and {run['prompts']} held-out prompts, about topics that no stage saw.",
        "",
        "## Every stage's actor beside the base model",
        "",
        markdown_table(
            ["held out", *examined],
            [
                row("preference accuracy against the base", "accuracy", ".1%"),
                row("answers that satisfy rule and topic", "success", ".1%"),
                row("answers that satisfy the rule", "rule", ".1%"),
                row("answers that name the topic", "topic", ".1%"),
                row("distinct answers", "distinct", ".1%"),
                row("mean words", "words", ".0f"),
                row("KL from the base per token, nats", "kl", ".3f"),
            ],
        ),
        "",
        "## Each stage's own figures, held out",
        "",
        markdown_table(
            ["stage", "figure", "before", "after"],
            [
                change("sft", "loss, nats per token", "loss"),
                change("dpo", "loss", "loss"),
                change("dpo", "preference accuracy against the SFT stage", "rewards/accuracies"),
                change("grpo", "mean reward of greedy answers", "mean_reward"),
                change("grpo", "greedy answers with full reward", "success_rate"),
            ],
        ),
        "",
        "Seconds: "
        + ", ".join(f"{stage.upper()} {run[stage]['seconds']:.0f}" for stage in ("sft", "dpo", "grpo"))
        + ".",
        "",
        f"Largest difference of a logit once SFT's checkpoint of rank 8 is in DPO's adapters of rank {run['rank']}, "
        "over the largest logit: "
        + "; ".join(
            f"{dtype}: actor {roles['actor']:.1e}, reference {roles['reference']:.1e}"
            for dtype, roles in run["logits"].items()
        )
        + ".",
    ]
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", type=int, default=64, help="training rows of SFT, and of DPO")
    add("--grpo-prompts", type=int, default=128, help="prompts of GRPO, 8 answers each")
    add("--test-rows", type=int, default=48, help="held-out rows")
    add("--prompts", type=int, default=48, help="held-out prompts to answer, at most")
    add("--max-completion-length", type=int, default=96, help="most tokens of an answer that GRPO samples")
    add("--sft-lr", type=float, default=2e-4)
    add("--sft-epochs", type=int, default=1)
    add("--dpo-lr", type=float, default=2e-4)
    add("--grpo-lr", type=float, default=1e-4)
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the base model")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=RESULTS, help="directory of the result files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
