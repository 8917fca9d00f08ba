"""AgileRL 2.8.4: a population in which every agent has a model of its own.

``DPO.population`` raises for more than one agent ("a PeftModel was passed"), and ``create_population`` with an
``actor_network`` gives all agents but the first a decoder without a head, of random weights. What is left, and what
``create_population`` with a ``model_name`` does, is a model loaded for each agent. Selection then clones every agent
and its model.
"""

# See agilerl_worker: these flags have to be set before any of AgileRL's modules is imported.
import agilerl

agilerl.HAS_LLM_DEPENDENCIES = True
agilerl.HAS_LIGER_KERNEL = False

from typing import Any  # noqa: E402

import agilerl.algorithms.core.base as agilerl_base  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from agilerl.algorithms.core.registry import HyperparameterConfig, RLParameter  # noqa: E402
from agilerl.algorithms.dpo import DPO  # noqa: E402
from agilerl.hpo.mutation import Mutations  # noqa: E402
from agilerl.hpo.tournament import TournamentSelection  # noqa: E402
from agilerl.llm_envs import PreferenceGym  # noqa: E402

from benchmarking.pairs import to_dataset  # noqa: E402
from benchmarking.peers.population import PopulationTask, Watch  # noqa: E402
from benchmarking.processes import read_task, report  # noqa: E402

# Cloning an agent calls this function of DeepSpeed's, which is not there without a GPU: tensors apart from the model's.
agilerl_base.clone_tensors_for_torch_save = lambda state: {
    name: tensor.detach().clone() for name, tensor in state.items()
}


def evolve(task: PopulationTask) -> dict[str, Any]:
    """Do the task."""
    torch.set_num_threads(task.threads)
    np.random.seed(0)  # noqa: NPY002 - what its tournament draws from
    pairs = task.load_pairs()
    watch = Watch()
    population = []
    for index in range(task.agents):
        model, tokenizer = task.load_model()
        if index == 0:
            watch.recognise(model)
        agent = DPO(
            index=index,
            actor_network=model,
            pad_token_id=tokenizer.pad_token_id,
            pad_token=tokenizer.pad_token,
            hp_config=HyperparameterConfig(lr=RLParameter(min=1e-6, max=1e-3)),
            lora_config=task.lora_config(),
            batch_size=task.batch_size,
            micro_batch_size_per_gpu=task.batch_size,
            lr=task.lr,
            beta=task.beta,
            max_grad_norm=task.max_grad_norm,
            nll_alpha=0.0,
            device="cpu",
            gradient_checkpointing=False,
            use_separate_reference_adapter=False,
        )
        population.append(agent)
    del model, agent
    env = PreferenceGym(
        to_dataset(pairs[task.batch_size :]),
        to_dataset(pairs[: task.batch_size]),
        tokenizer,
        data_batch_size_per_gpu=task.batch_size,
        max_context_length=None,
    )
    tournament = TournamentSelection(2, True, task.agents)
    mutations = Mutations(
        no_mutation=0.2, architecture=0, new_layer_prob=0, parameters=0, activation=0, rl_hp=0.8, rand_seed=0
    )
    watch.read("made")
    batch = env.reset()
    for generation in range(1, task.generations + 1):
        for agent in population:
            agent.learn(batch)
        del agent  # or it outlives the selection
        if generation == 1:
            watch.read("learned")
        for agent in population:
            agent.test(env)
        del agent
        elite, population = tournament.select(population)
        del elite
        population = mutations.mutation(population)
        batch = env.step()
        watch.read(f"generation {generation}")
    return watch.answer("agilerl")


if __name__ == "__main__":
    given = PopulationTask(**read_task())
    given.apply_limit()
    report(evolve(given))
