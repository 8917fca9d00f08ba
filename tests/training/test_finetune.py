"""The training loop over real pairs: it learns, it counts right, it refuses nonsense first."""

import math
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel

from agiledpo.algorithms import DPO
from agiledpo.training.train_llm import finetune_llm_preference


@pytest.fixture
def make_env(make_env):
    return partial(make_env, train=20)


@pytest.fixture
def make_agent(tiny_model, lora):
    def make(**arguments):
        arguments.setdefault("actor_network", tiny_model())
        return DPO(**{"lora_config": lora, "batch_size": 4, "lr": 1e-3, "nll_alpha": 0.0, **arguments})

    return make


def test_an_agent_learns_the_preference(make_env, make_agent):
    env, agent = make_env(train=240, test=32), make_agent(lr=5e-3)
    before = agent.evaluate(env)
    population, fitnesses = finetune_llm_preference([agent], env, num_epochs=2, verbose=False)
    after = agent.evaluate(env)
    assert population == [agent]
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["rewards/accuracies"] == 0.5
    assert after["rewards/accuracies"] > 0.9
    assert after["loss"] < 0.5
    assert fitnesses == [after["rewards/accuracies"]] == agent.fitness[-1:]
    assert agent.steps == [480]


def test_every_pair_once_per_epoch_in_steps_of_batch_size(make_env, tiny_model, lora, recorder):
    agent = recorder(actor_network=tiny_model(), lora_config=lora, batch_size=8)
    finetune_llm_preference([agent], make_env(train=20, batch=3), num_epochs=2, verbose=False)
    assert [len(rows) for rows in agent.rows] == [8, 8, 4, 8, 8, 4]
    for epoch in (agent.rows[:3], agent.rows[3:]):
        assert sorted(row for rows in epoch for row in rows) == sorted(f"train row {i}" for i in range(20))


def test_agents_of_different_batch_sizes_see_the_same_pairs_in_the_same_order(make_env, tiny_model, lora, recorder):
    model = tiny_model()
    agents = [
        recorder(actor_network=model, lora_config=lora, batch_size=size, index=i) for i, size in enumerate((2, 5, 16))
    ]
    _, fitnesses = finetune_llm_preference(agents, make_env(), max_steps=13, verbose=False)
    orders = [[row for rows in agent.rows for row in rows] for agent in agents]
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == 13
    assert [[len(rows) for rows in agent.rows] for agent in agents] == [[2] * 6 + [1], [5, 5, 3], [13]]
    assert len(fitnesses) == 3


def test_the_whole_held_out_split_is_measured_whatever_the_batch_size(make_env, make_agent):
    agent = make_agent(nll_alpha=1.0)
    generator = torch.Generator().manual_seed(0)
    for parameter in agent.adapters.parameters("actor"):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    results = [agent.evaluate(make_env(batch=size)) for size in (1, 3, 7, 50)]
    for metrics in results[1:]:
        assert metrics["pairs"] == 7
        for name in ("loss", "rewards/margins", "rewards/accuracies", "nll_loss"):
            assert metrics[name] == pytest.approx(results[0][name], rel=1e-5)
    env = make_env()
    env.step()
    where = env.state_dict()
    assert float(agent.test(env)) == float(agent.test(env, loop=2)) == results[0]["rewards/accuracies"]
    assert env.state_dict() == where
    assert len(agent.fitness) == 2
    with pytest.raises(ValueError, match="loop=0"):
        agent.test(env, loop=0)


def test_evaluations_happen_at_the_interval_and_at_the_end(make_env, make_agent):
    for interval, expected in ((2, 3), (None, 1), (1, 5), (5, 1)):
        agent = make_agent()
        finetune_llm_preference([agent], make_env(), evaluation_interval=interval, verbose=False)
        assert len(agent.fitness) == expected  # 20 pairs in 5 batches


def test_num_epochs_takes_precedence(make_env, make_agent):
    agent = make_agent()
    with pytest.warns(UserWarning, match="num_epochs takes precedence"):
        finetune_llm_preference([agent], make_env(), num_epochs=1, max_steps=3, verbose=False)
    assert agent.steps == [20]


def test_the_reference_moves_after_an_epoch_only_when_asked(make_env, make_agent):
    for setting, moves in (("never", False), ("epoch", True)):
        agent = make_agent(reference_update=setting)
        before = [p.clone() for p in agent.adapters.parameters("reference")]
        finetune_llm_preference([agent], make_env(), num_epochs=2, verbose=False)
        after = agent.adapters.parameters("reference")
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) is not moves
        assert agent.reference_update_tracker == int(moves)


def test_checkpoints_and_the_elite(make_env, make_agent, tiny_model, tmp_path):
    model = tiny_model()
    # The slow agent's accuracy may tie; then the larger margin decides.
    agents = [make_agent(actor_network=model, index=i, lr=lr) for i, lr in enumerate((1e-5, 3e-3))]
    _, fitnesses = finetune_llm_preference(
        agents, make_env(train=40), checkpoint_steps=8, checkpoint_path=tmp_path / "checkpoints",
        save_elite=True, elite_path=tmp_path / "elite", verbose=False,
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*")) == ["step_32", "step_40"]
    agents_of = tmp_path / "checkpoints" / "step_40" / "agents"
    assert sorted(path.name for path in agents_of.iterdir()) == ["agent_0", "agent_1"]
    attributes = torch.load(tmp_path / "elite" / "attributes.pt", weights_only=True)
    assert attributes["index"] == 1
    assert fitnesses[1] == max(fitnesses)
    assert agents[1].held_out["rewards/margins"] > agents[0].held_out["rewards/margins"] > 0
    ids = torch.arange(1, 9)[None]
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "elite" / "actor").eval()
    with agents[1].select_adapter("actor") as active:
        assert torch.equal(loaded(ids).logits, active(ids).logits)


def test_checkpoints_have_a_place_by_default(make_env, make_agent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finetune_llm_preference([make_agent()], make_env(), checkpoint_steps=6, verbose=False)
    attributes = torch.load("saved_checkpoints/step_20/agents/agent_0/attributes.pt", weights_only=True)
    assert attributes["steps"] == [20]


def test_two_runs_give_the_same_weights_bit_for_bit(make_env, make_agent):
    agents = [make_agent(), make_agent()]
    for agent in agents:
        torch.manual_seed(torch.seed() % 1000)  # the global state must not matter
        finetune_llm_preference([agent], make_env(), verbose=False)
    pairs = zip(*(agent.adapters.parameters("actor") for agent in agents), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_progress_shows_what_was_promised(make_env, make_agent, capsys):
    finetune_llm_preference([make_agent(index=4)], make_env(), accelerator=Accelerator(cpu=True))
    out, err = capsys.readouterr()
    assert "agent 4: minimise 1 * sigmoid(beta=0.1)" in out + err
    for part in ("20/20", "loss=", "accuracy=", "margin=", "tokens/s=", "held-out accuracy=", "0:00:00 left"):
        assert part in out
    assert "kept" not in out + err  # all rows are, whole


def test_what_was_left_out_is_shown_once_at_the_start(make_env, make_agent, capsys):
    lengths = make_env().lengths("train")
    middle = int(sorted(lengths[:, 0] + lengths[:, 1:].max(axis=1))[len(lengths) // 2])
    with pytest.warns(UserWarning, match="filtered out of the train dataset"):
        env = make_env(max_context_length=middle)
    finetune_llm_preference([make_agent()], env, accelerator=Accelerator(cpu=True))
    out, err = capsys.readouterr()
    assert (out + err).count(env.filter_table()) == 1
    assert out.index("kept") < out.index("minimise")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_epochs": 0}, "num_epochs=0 must be at least 1"),
        ({"max_steps": -1}, "max_steps=-1"),
        ({"evaluation_interval": 0}, "evaluation_interval=0"),
        ({"checkpoint_steps": 0}, "checkpoint_steps=0"),
        ({"save_elite": True}, "save_elite=True needs elite_path"),
    ],
)
def test_nonsense_is_refused_before_training(make_env, make_agent, arguments, message):
    agent = make_agent()
    with pytest.raises(ValueError, match=message):
        finetune_llm_preference([agent], make_env(), **arguments)
    assert agent.steps == [0]


def test_unsuitable_agents_are_refused(make_env, make_agent, tiny_model, lora):
    env = make_env()
    with pytest.raises(ValueError, match="pop is empty"):
        finetune_llm_preference([], env)
    with pytest.raises(ValueError, match="holds a str"):
        finetune_llm_preference(["agent"], env)
    with pytest.raises(ValueError, match=r"indices \[0, 0\] are not distinct"):
        finetune_llm_preference([make_agent(), make_agent()], env)
    small = DPO(actor_network=tiny_model(vocab_size=50), lora_config=lora)
    with pytest.raises(ValueError, match="The tokenizer has 97 tokens, but LlamaForCausalLM embeds only 50"):
        finetune_llm_preference([small], env)
    with pytest.raises(ValueError, match="embeds only 50"):
        DPO(env.observation_space, env.action_space, actor_network=tiny_model(vocab_size=50), lora_config=lora)


def test_destinations_are_checked_before_training(make_env, make_agent, tiny_model, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    agent = make_agent()
    with pytest.raises(FileExistsError, match="not a checkpoint"):
        finetune_llm_preference([agent], make_env(), save_elite=True, elite_path=tmp_path / "notes")
    with pytest.raises(FileExistsError, match=r"mine.txt is a file"):
        finetune_llm_preference([agent], make_env(), checkpoint_path=tmp_path / "notes" / "mine.txt")
    assert agent.steps == [0]


def test_the_reference_keeps_moving_in_a_second_run(make_env, make_agent):
    agent = make_agent(reference_update="epoch")
    for updates in (2, 3):
        finetune_llm_preference([agent], make_env(), num_epochs=3 if updates == 2 else 2, verbose=False)
        assert agent.reference_update_tracker == updates
