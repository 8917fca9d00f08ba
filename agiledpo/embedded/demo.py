"""The main job, start to end, on the embedded model: ``python -m agiledpo.embedded.demo``.

SmolLM2-135M-Instruct rambles. The demo lets a population of LoRA agents, all on this one model, learn to give short,
complete, direct answers. The agents start with different learning rates and evolve. What the fittest has learned is
shown on prompts that no agent trained on and no selection looked at: what changed and what did not.
"""

import argparse
import os
import platform
import random
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.embedded.measure import Measurement, measure
from agiledpo.embedded.model import MODEL_NAME, load_embedded_model
from agiledpo.embedded.preferences import held_out_prompts, load_embedded_preferences, split_by_topic
from agiledpo.hpo import Mutations, TournamentSelection
from agiledpo.hpo.family_tree import family_tree_text
from agiledpo.launch.directory import RunDirectory
from agiledpo.llm_envs import PreferenceGym
from agiledpo.report import RunRecord, write_report
from agiledpo.training.samples import Samples
from agiledpo.training.train_llm import finetune_llm_preference

_SEED = 7
_SHOWN_PROMPTS = 3
_BATCH_SIZE = 8
# Learning rates of the founders, from one that learns next to nothing to one that learns fast.
_LEARNING_RATES = (2e-5, 2e-4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo.

    Args:
        arguments: Command-line arguments; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--agents", type=int, default=4, help="agents in the population (default: %(default)s)")
    add("--pairs", type=int, default=96, help="training pairs of each agent (default: %(default)s)")
    add("--generations", type=int, default=3, help="generations (default: %(default)s)")
    add("--test-pairs", type=int, default=40, help="held-out pairs to select by (default: %(default)s)")
    add("--final-pairs", type=int, default=64, help="held-out pairs for the final figure (default: %(default)s)")
    add("--prompts", type=int, default=48, help="held-out prompts to answer (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/demo"), help="directory of what is saved (default: %(default)s)")
    options = parser.parse_args(arguments)

    print(f"Loading {MODEL_NAME} (converted on first use) ...", flush=True)
    model, tokenizer = load_embedded_model(torch.bfloat16)
    train, held_out = load_embedded_preferences()
    test, final = split_by_topic(held_out, 0.4, seed=_SEED)
    env = PreferenceGym(
        train,
        test.select(range(min(options.test_pairs, len(test)))),
        tokenizer,
        data_batch_size_per_gpu=_BATCH_SIZE,
        seed=_SEED,
        final_dataset=final.select(range(min(options.final_pairs, len(final)))),
    )
    agents = DPO.population(
        options.agents,
        env.observation_space,
        env.action_space,
        actor_network=model,
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        lora_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        hp_config=HyperparameterConfig(
            lr=RLParameter(min=1e-6, max=1e-3, shrink_factor=0.7, grow_factor=1.5),
            beta=RLParameter(min=0.03, max=1.0, shrink_factor=0.7, grow_factor=1.5),
        ),
        batch_size=_BATCH_SIZE,
        beta=0.3,
        nll_alpha=1.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        seed=_SEED,
    )
    for agent, lr in zip(agents, np.geomspace(*_LEARNING_RATES, options.agents), strict=True):
        agent.lr = float(lr)
    prompts = held_out_prompts(final["topic"])
    prompts = random.Random(_SEED).sample(prompts, min(options.prompts, len(prompts)))

    print(f"Answering {len(prompts)} held-out prompts before training ...", flush=True)
    before = measure(agents[0], tokenizer, prompts, seed=_SEED)
    accuracy_before = agents[0].measure(env, "final").fitness("accuracy")
    directory = RunDirectory(options.out)
    directory.path.mkdir(parents=True, exist_ok=True)
    for file in (directory.lineage, directory.metrics, directory.samples):
        file.unlink(missing_ok=True)  # of the demo before this one
    started = time.perf_counter()
    with directory.recorded("dpo", processes=1) as about:
        about.values["model"] = {"name": MODEL_NAME, "parameters": model.num_parameters()}
        about.values["data"] = {split: {"rows": len(env.lengths(split))} for split in ("train", "test", "final")}
        population, _ = finetune_llm_preference(
            agents,
            env,
            max_steps=options.pairs,
            evo_steps=max(1, options.pairs // _BATCH_SIZE // options.generations),
            evaluation_interval=None,
            tournament=TournamentSelection(2, True, options.agents, rand_seed=_SEED),
            mutation=Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=_SEED),
            save_elite=True,
            elite_path=directory.elite,
            lineage_path=directory.lineage,
            log_path=directory.metrics,
            observers=[Samples(directory.samples, env)],
        )
    seconds = time.perf_counter() - started
    elite, accuracy = population.elite, population.final
    assert elite is not None
    assert accuracy is not None
    print(f"Answering the same prompts after {seconds:.0f} s of training, ranking and evolving ...", flush=True)
    after = measure(elite, tokenizer, prompts, seed=_SEED)

    print(f"\n{family_tree_text(population.lineage)}\n")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}")
    pairs = len(env.lengths("final"))
    print(f"{_table(before, after, accuracies=(accuracy_before.value, accuracy.value), pairs=pairs)}\n")
    for number in range(0, len(prompts), max(1, len(prompts) // _SHOWN_PROMPTS))[:_SHOWN_PROMPTS]:
        print(_comparison(prompts[number]["prompt"][-1]["content"], before, after, number))
    population.lineage.plot(directory.path / "family_tree.svg")
    report = write_report(RunRecord.load(directory.path))
    print(f"Open {report} in a browser: curves, family tree, and answers before and after, side by side.")
    print(f"The fittest agent's adapter is in {directory.elite}/actor; PeftModel.from_pretrained(base, path) loads it.")


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
