"""SFT agents in the loop that DPO agents are trained by."""

import pytest

from agiledpo.algorithms import SFT
from agiledpo.hpo.tournament import TournamentSelection
from agiledpo.llm_envs import SFTGym
from agiledpo.training.train_llm import finetune_llm_sft


@pytest.fixture
def env(make_pairs, tiny_tokenizer):
    """Completions of words below w50: something that held-out rows share."""
    return SFTGym(
        make_pairs(24), make_pairs(16, seed=1), tiny_tokenizer, data_batch_size_per_gpu=4, response_column="chosen"
    )


def test_one_agent_learns_what_held_out_rows_share(tiny_model, lora, env):
    agent = SFT(actor_network=tiny_model(), lora_config=lora, batch_size=4, lr=1e-2, max_grad_norm=10.0)
    before = agent.measure(env)
    population, fitness = finetune_llm_sft([agent], env, num_epochs=3, evaluation_interval=6, verbose=False)
    after = agent.measure(env)
    assert population[0] is agent
    assert fitness == [after.fitness("loss").value] == [-after.metrics["loss"]]
    assert agent.steps == [72]
    assert agent.optimizer_steps == 18
    gain = before.metrics["loss"] - after.metrics["loss"]
    assert gain > 3 * max(before.fitness("loss").error, after.fitness("loss").error)


def test_the_better_learning_rate_survives(tiny_model, lora, env):
    model = tiny_model()
    agents = [
        SFT(actor_network=model, lora_config=lora, batch_size=4, lr=lr, max_grad_norm=10.0, index=i)
        for i, lr in enumerate((1e-6, 1e-2))
    ]
    population, fitness = finetune_llm_sft(
        agents,
        env,
        tournament=TournamentSelection(2, True, 2, rand_seed=1),
        evo_steps=6,
        num_epochs=2,
        verbose=False,
    )
    assert population.elite in list(population)
    assert 1 in [agent.index for agent in population]
    assert all(agent.lr == 1e-2 for agent in population)
    assert max(fitness) == population.elite.fitness[-1]
