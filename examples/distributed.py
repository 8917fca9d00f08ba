"""Train one DPO agent, or a population, in however many processes there are.

``python examples/distributed.py`` trains in one, and every launcher in docs/distributed.md starts the same file in
several. Without arguments it is the embedded model and its embedded pairs; ``--resume`` goes on from the last
checkpoint in ``--out``, also with another number of processes.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.data import load_preferences
from agiledpo.data.loaded_rows import LoadedRows
from agiledpo.embedded.model import embedded_model_path
from agiledpo.embedded.preferences import load_embedded_preferences
from agiledpo.hpo import Mutations, TournamentSelection
from agiledpo.llm_envs import PreferenceGym
from agiledpo.training.train_llm import finetune_llm_preference


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="directory or name on the Hub (default: the embedded model)")
    add("--data", help="file, directory or name on the Hub (default: the embedded pairs)")
    add("--dtype", default="bfloat16", help="of the base model (default: %(default)s)")
    add("--population", type=int, default=1, help="agents; more than one evolve (default: %(default)s)")
    add(
        "--parallel",
        choices=["data", "population"],
        default="data",
        help="every agent in all processes, or agents divided among them (default: %(default)s)",
    )
    add("--pairs", type=int, help="training pairs of each agent (default: one epoch)")
    add("--test-pairs", type=int, help="held-out pairs to measure on (default: all)")
    add("--batch-size", type=int, default=16, help="pairs per optimizer step, of all processes (default: %(default)s)")
    add("--micro-batch-size", type=int, default=2, help="pairs per forward pass of a process (default: %(default)s)")
    add("--checkpoint-pairs", type=int, default=1000, help="pairs between two checkpoints (default: %(default)s)")
    add("--lr", type=float, default=1e-5, help="learning rate of the first agent (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/distributed"), help="directory of what is saved (default: %(default)s)")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out, if there is one")
    return parser.parse_args(arguments)


def make_accelerator() -> Accelerator:
    """Accelerate's handle. With GPUs that is ``Accelerator()``; the rest is for trying things out without."""
    if torch.cuda.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Accelerator()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":  # needs DS_ACCELERATOR=cpu too
        return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    return Accelerator(cpu=True)


def pairs(source: str | None) -> tuple[LoadedRows, LoadedRows]:
    if source is not None:
        return load_preferences(source).split_by_prompt(0.1)
    train_pairs, test_pairs = load_embedded_preferences()
    return load_preferences(train_pairs), load_preferences(test_pairs)


def train(given: argparse.Namespace, accelerator: Accelerator) -> None:
    # The accelerator is made before the model: under ZeRO-3 no process ever reads all weights.
    path = embedded_model_path() if given.model is None else given.model
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, given.dtype))
    train_pairs, test_pairs = pairs(given.data)
    if given.test_pairs is not None:
        test_pairs = test_pairs.select(np.arange(min(given.test_pairs, len(test_pairs))))
    env = PreferenceGym(
        train_pairs,
        test_pairs,
        tokenizer,
        data_batch_size_per_gpu=max(1, given.batch_size // accelerator.num_processes),
        max_context_length=1024,
        seed=7,
        accelerator=accelerator,
    )
    agents = DPO.population(
        given.population,
        env.observation_space,
        env.action_space,
        actor_network=model,
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        lora_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        # The founders' learning rates go up by factors of 2.
        hp_config=HyperparameterConfig(
            lr=RLParameter(min=given.lr / 100, max=given.lr * max(100, 2**given.population)),
            beta=RLParameter(min=0.01, max=1.0),
        ),
        batch_size=given.batch_size,
        micro_batch_size_per_gpu=given.micro_batch_size,
        lr=given.lr,
        nll_alpha=0.0,
        seed=7,
        accelerator=accelerator,
    )
    for number, agent in enumerate(agents):
        agent.lr = given.lr * 2**number  # founders that differ give evolution something to choose from
    evolution = {}
    if given.population > 1:
        evolution = {
            "tournament": TournamentSelection(2, True, given.population, rand_seed=7),
            "mutation": Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=7),
            "evo_steps": 5,
            "parallel": given.parallel,
        }
    population, fitnesses = finetune_llm_preference(
        agents,
        env,
        max_steps=given.pairs,
        num_epochs=1 if given.pairs is None else None,
        checkpoint_steps=given.checkpoint_pairs,
        checkpoint_path=given.out / "checkpoints",
        resume_from="latest" if given.resume else None,
        accelerator=accelerator,
        **evolution,
    )
    population[0].save_checkpoint(given.out / "agent")  # all processes call it; one writes
    accelerator.print(f"Accuracy on the held-out pairs: {', '.join(f'{fitness:.3f}' for fitness in fitnesses)}")


def main(arguments: Sequence[str] | None = None) -> None:
    train(options(arguments), make_accelerator())


if __name__ == "__main__":
    main()
