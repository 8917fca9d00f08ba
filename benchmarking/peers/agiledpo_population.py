"""AgileDPO: a population on one base model."""

from typing import Any

import torch

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.hpo.mutation import Mutations
from agiledpo.hpo.tournament import TournamentSelection
from agiledpo.llm_envs import PreferenceGym
from benchmarking.pairs import to_dataset
from benchmarking.peers.population import PopulationTask, Watch
from benchmarking.processes import read_task, report


def evolve(task: PopulationTask) -> dict[str, Any]:
    """Do the task."""
    torch.set_num_threads(task.threads)
    pairs = task.load_pairs()
    watch = Watch()
    model, tokenizer = task.load_model()
    watch.recognise(model)
    env = PreferenceGym(
        to_dataset(pairs[task.batch_size :]),
        to_dataset(pairs[: task.batch_size]),
        tokenizer,
        data_batch_size_per_gpu=task.batch_size,
        max_context_length=task.max_length,
    )
    population: list[DPO] = DPO.population(
        task.agents,
        actor_network=model,
        pad_token_id=tokenizer.pad_token_id,
        hp_config=HyperparameterConfig(lr=RLParameter(min=1e-6, max=1e-3)),
        lora_config=task.lora_config(),
        batch_size=task.batch_size,
        lr=task.lr,
        beta=task.beta,
        max_grad_norm=task.max_grad_norm,
        nll_alpha=0.0,
        gradient_checkpointing=False,
        use_separate_reference_adapter=False,
    )
    del model
    tournament = TournamentSelection(2, True, task.agents, rand_seed=0)
    mutations = Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=0)
    watch.read("made")
    batch = env.reset()
    for generation in range(1, task.generations + 1):
        for agent in population:
            agent.learn(batch)
        if generation == 1:
            watch.read("learned")
        for agent in population:
            agent.test(env)
        _, population = tournament.select(population)
        population = mutations.mutation(population)
        batch = env.step()
        watch.read(f"generation {generation}")
    return watch.answer("agiledpo")


if __name__ == "__main__":
    given = PopulationTask(**read_task())
    given.apply_limit()
    report(evolve(given))
