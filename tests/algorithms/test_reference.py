"""The reference of an agent: scored once for everybody, never stale, and moved as TR-DPO says."""

import gc
import math
import subprocess
import sys

import pytest
import torch
from datasets import Dataset

from agiledpo.algorithms import DPO
from agiledpo.llm_envs import PreferenceGym
from agiledpo.scoring import PreferenceBatch
from agiledpo.training.train_llm import finetune_llm_preference

NUMBERS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "grad_norm")


def weights(agent, role="actor"):
    return [p.detach().clone() for p in agent.adapters.parameters(role)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def passes(model):
    """Tokens of each forward pass through the model, as they come."""
    tokens = []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].numel()))
    return tokens


@pytest.fixture
def make_env(make_pairs, tiny_tokenizer):
    def make(train=20, test=7, batch=4, **arguments):
        return PreferenceGym(
            make_pairs(train), make_pairs(test, seed=1), tiny_tokenizer, data_batch_size_per_gpu=batch, **arguments
        )

    return make


# The cache ----------------------------------------------------------------------------------------------------------


def test_the_reference_goes_through_the_model_once(make_agent, experiences):
    agent = make_agent(gradient_checkpointing=False)
    tokens = passes(agent.base.model)
    for expected in (2, 1, 1):
        agent.learn(experiences)
        assert len(tokens) == expected
        tokens.clear()
    twin = agent.clone()
    tokens.clear()  # making an agent tries a few tokens
    twin.learn(experiences)
    twin.learn(experiences, training=False)
    assert len(tokens) == 2
    uncached = make_agent(gradient_checkpointing=False, reference_cache=None)
    tokens = passes(uncached.base.model)
    for _ in range(2):
        uncached.learn(experiences)
    assert len(tokens) == 4


def test_a_population_scores_each_pair_once_whatever_its_ranks_and_seeds(make_agent, tiny_model, experiences):
    from peft import LoraConfig

    model = tiny_model()
    agents = [
        make_agent(
            actor_network=model, index=i, seed=i, gradient_checkpointing=False, use_separate_reference_adapter=i > 0,
            lora_config=LoraConfig(r=2 + i, target_modules="all-linear"),
        )
        for i in range(3)
    ]  # fmt: skip
    tokens = passes(model)
    for _ in range(2):
        for agent in agents:
            agent.learn(experiences)
    assert len(tokens) == 1 + 6
    alone = [agent.learn(experiences, training=False) for agent in agents]
    for agent, cached in zip(agents, alone, strict=True):
        agent._reference.cache = None
        measured = agent.learn(experiences, training=False)
        for name in cached:
            assert cached[name] == pytest.approx(measured[name], abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("update", ["never", "epoch", 3])
@pytest.mark.parametrize("batch_size", [4, 6])
def test_learning_with_the_cache_is_learning_without_it(make_env, make_agent, update, batch_size):
    """Over three epochs in other orders, with evaluations in between."""
    agents = [
        make_agent(batch_size=batch_size, reference_update=update, reference_cache=cache, moved=True)
        for cache in ("memory", None)
    ]
    for agent in agents:
        finetune_llm_preference([agent], make_env(), num_epochs=3, evaluation_interval=2, verbose=False)
    cached, plain = agents
    assert cached.fitness == plain.fitness
    assert cached.scores == pytest.approx(plain.scores, rel=1e-4, abs=1e-6)
    for name, value in plain.held_out.items():
        assert cached.held_out[name] == pytest.approx(value, rel=1e-5, abs=1e-6)
    for one, other in zip(weights(cached), weights(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_the_first_loss_is_ln_2_when_other_batches_filled_the_cache(make_env, make_agent):
    env, agent = make_env(train=40, batch=8), make_agent(batch_size=8, micro_batch_size_per_gpu=1)
    agent.precompute_reference(env, verbose=False)
    agent.micro_batch_size_per_gpu = None
    tokens = passes(agent.base.model)
    assert abs(agent.evaluate(env)["loss"] - math.log(2)) < 1e-6
    first = agent.learn(env.step())
    assert abs(first["loss"] - math.log(2)) < 1e-6
    assert abs(first["rewards/margins"]) < 1e-6
    assert len(tokens) == 2  # the actor's


def change_reference(agent):
    agent.set_reference_policy(1)


def change_reference_in_place(agent):
    for parameter in agent.adapters.own_parameters("reference"):
        parameter.data.mul_(1.1)


def change_base(agent):
    with torch.no_grad():
        agent.base.model.model.norm.weight.mul_(1.1)


def merge_into_base(agent):
    """PEFT writes through .data, which torch does not count."""
    agent.base.model.get_submodule("model.layers.0.mlp.up_proj").get_base_layer().weight.data += 0.05


def change_precision(agent):
    agent.base.model.to(torch.bfloat16)


@pytest.mark.parametrize(
    "change", [change_reference, change_reference_in_place, change_base, merge_into_base, change_precision]
)
def test_nothing_is_stale_after_a_change_of_weights(make_agent, randomise, experiences, tmp_path, change):
    agent = make_agent(moved=True, reference_cache=tmp_path / "references")
    randomise(agent, "reference", seed=8)
    before = agent.learn(experiences, training=False)
    change(agent)
    after = agent.learn(experiences, training=False)
    agent._reference.cache = None
    assert after == agent.learn(experiences, training=False)
    assert abs(after["rewards/margins"] - before["rewards/margins"]) > 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"ld_alpha": 0.3}, {"preference_average_log_probs": True}, {"beta": 0.7}, {"loss_type": ("ipo",)},
        {"use_weighting": True}, {"micro_batch_size_per_gpu": 6},
    ],
)  # fmt: skip
def test_settings_of_the_loss_are_no_part_of_what_is_kept(make_agent, randomise, experiences, change):
    agent = make_agent(moved=True)
    agent.learn(experiences, training=False)
    tokens = passes(agent.base.model)
    for name, value in change.items():
        setattr(agent, name, value)
    cached = agent.learn(experiences, training=False)
    assert len(tokens) == 1
    agent._reference.cache = None
    assert cached == agent.learn(experiences, training=False)


def test_other_tokens_are_other_rows(make_agent, make_pairs, tiny_tokenizer):
    """The case in which TRL's cache is stale: the same rows under another chat template, or cut to another length."""
    pairs = make_pairs(6)
    messages = [{"role": "user"}, {"role": "assistant"}, {"role": "assistant"}]
    chat = Dataset.from_list(
        [
            {
                column: [{**message, "content": row[column].strip()}]
                for column, message in zip(("prompt", "chosen", "rejected"), messages, strict=True)
            }
            for row in pairs
        ]
    )
    agent = make_agent(moved=True)
    seen = []
    for start in ("w4 w5", "w6"):
        tiny_tokenizer.chat_template = (
            f"{{% for m in messages %}}{start} {{{{ m['content'] }}}} </s> {{% endfor %}}"
            "{% if add_generation_prompt %}" + start + " {% endif %}"
        )
        env = PreferenceGym(chat, chat, tiny_tokenizer, data_batch_size_per_gpu=6)
        seen.append(agent.evaluate(env))
        cache, agent._reference.cache = agent._reference.cache, None
        plain = agent.evaluate(env)
        agent._reference.cache = cache
        assert seen[-1] == pytest.approx(plain, rel=1e-6)
    assert abs(seen[0]["rewards/margins"] - seen[1]["rewards/margins"]) > 1e-3


def test_everything_can_be_computed_up_front(make_env, make_agent, capsys):
    env, agent = make_env(), make_agent(moved=True, micro_batch_size_per_gpu=2, gradient_checkpointing=False)
    where = env.state_dict()
    tokens = passes(agent.base.model)
    agent.precompute_reference(env)
    assert env.state_dict() == where
    assert "27/27" in capsys.readouterr().err
    lengths = torch.from_numpy(env.lengths("train").sum(axis=1)).sort(descending=True).values
    assert tokens[:10] == lengths.reshape(10, 2).sum(1).tolist()  # longest pairs first, two at a time
    tokens.clear()
    agent.precompute_reference(env, verbose=False)
    assert tokens == []
    finetune_llm_preference([agent], env, evaluation_interval=None, verbose=False)
    assert len(tokens) == 10 + 4  # the actor's training and evaluation passes


def test_computing_up_front_needs_room(make_env, make_agent):
    env = make_env()
    with pytest.raises(ValueError, match="reference_cache=None keeps no reference"):
        make_agent(reference_cache=None).precompute_reference(env)
    with pytest.raises(ValueError, match=r"27 pairs take \d+ bytes, but reference_cache_bytes=5000. Raise it"):
        make_agent(reference_cache_bytes=5000).precompute_reference(env)


def test_clones_carry_the_settings_and_share_the_rows(make_agent, experiences, tmp_path):
    agent = make_agent(
        reference_cache=tmp_path, reference_cache_bytes=12345, reference_update="epoch", reference_mixup_alpha=0.5
    )
    agent.learn(experiences)
    twin = agent.clone()
    assert (twin.reference_cache, twin.reference_cache_bytes) == (tmp_path, 12345)
    assert (twin.reference_update, twin.reference_mixup_alpha) == ("epoch", 0.5)
    assert twin.optimizer_steps == 1
    assert twin._reference.cache is agent._reference.cache


def test_the_rows_go_with_the_base(make_agent, experiences):
    import weakref

    agent = make_agent()
    agent.learn(experiences)
    rows = weakref.ref(agent._reference.cache)
    del agent
    gc.collect()
    assert rows() is None


WRITER = """
import sys, torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
import agiledpo.scoring.reference_files as files
from agiledpo.algorithms import DPO
from agiledpo.llm_envs import PreferenceGym

torch.set_num_threads(1)
files._SHARD_BYTES = 1  # a shard for each pass of two rows, whatever the other process has written by then
folder, part = sys.argv[1:]
train, test = (Dataset.from_json(f"{folder}/{part}_{split}.json") for split in ("train", "test"))
env = PreferenceGym(train, test, PreTrainedTokenizerFast.from_pretrained(folder + "/model"))
agent = DPO(
    actor_network=AutoModelForCausalLM.from_pretrained(folder + "/model"),
    lora_config=LoraConfig(r=4, target_modules="all-linear"),
    reference_cache=folder + "/references",
    batch_size=2,
)
print("ready", flush=True)
sys.stdin.readline()
agent.precompute_reference(env, verbose=False)
for experiences in env.test_batches():
    agent.learn(experiences)  # and one more row, which the end of the process must write
"""


def test_two_processes_write_one_directory_and_a_third_reads_all(
    tiny_model, tiny_tokenizer, make_pairs, lora, tmp_path
):
    """The two have half of their rows in common."""
    pairs, held_out = make_pairs(60), make_pairs(4, seed=1)
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    for part, rows in (("one", range(40)), ("other", range(20, 60))):
        pairs.select(rows).to_json(tmp_path / f"{part}_train.json")
        held_out.to_json(tmp_path / f"{part}_test.json")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), part],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in ("one", "other")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    shards = list((tmp_path / "references").rglob("*.safetensors"))
    assert len(shards) > 20
    assert len({shard.parent for shard in shards}) == 1
    arguments = {"lora_config": lora, "batch_size": 64, "nll_alpha": 0.0, "use_separate_reference_adapter": False}
    reader = DPO(actor_network=tiny_model(), reference_cache=tmp_path / "references", **arguments)
    plain = DPO(actor_network=tiny_model(), reference_cache=None, **arguments)
    env = PreferenceGym(pairs, held_out, tiny_tokenizer, data_batch_size_per_gpu=64)
    tokens = passes(reader.base.model)
    for batch in map(PreferenceBatch.from_experiences, [env.step(), *env.test_batches()]):
        known, computed = reader._reference_scores(batch), plain._reference_scores(batch)
        for side in ("chosen", "rejected"):
            one, other = vars(known)[side], vars(computed)[side]
            assert torch.equal(one.mask, other.mask)
            torch.testing.assert_close(one.logps, other.logps, rtol=1e-5, atol=1e-5)
    assert tokens == []


# The moving reference -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "alpha"), [(1, 0.6), (2, 0.25), (3, 1.0)])
def test_every_n_steps_the_reference_moves_towards_the_actor(make_agent, experiences, n, alpha):
    agent = make_agent(moved=True, batch_size=2, reference_update=n, reference_mixup_alpha=alpha)
    expected = [p.double() for p in weights(agent, "reference")]
    steps = 0
    original, actors = agent.optimizer.step, []

    def step():
        original()
        actors.append(weights(agent))

    agent.optimizer.step = step
    for _ in range(3):
        agent.learn(experiences)  # three steps each
    for steps, actor in enumerate(actors, start=1):
        if steps % n == 0:
            expected = [alpha * a.double() + (1 - alpha) * e for a, e in zip(actor, expected, strict=True)]
    assert steps == agent.optimizer_steps == 9
    for reference, value in zip(weights(agent, "reference"), expected, strict=True):
        torch.testing.assert_close(reference.double(), value, rtol=0, atol=1e-6)
    if alpha == 1.0:
        assert same(weights(agent, "reference"), actors[8])
    agent_after = agent.learn(experiences, training=False)
    agent._reference.cache = None
    assert agent_after == pytest.approx(agent.learn(experiences, training=False), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("update_epochs", [1, 2])
def test_each_step_of_one_call_sees_the_reference_of_its_time(make_agent, make_experiences, update_epochs):
    lengths = [(7, 5, 9), (1, 1, 1), (3, 8, 1), (12, 1, 6), (4, 4, 4), (2, 9, 3)]
    at_once = make_agent(moved=True, batch_size=2, reference_update=1, update_epochs=update_epochs)
    at_once.learn(make_experiences(lengths))
    one_by_one = make_agent(moved=True, batch_size=2, reference_update=1)
    whole = PreferenceBatch.from_experiences(make_experiences(lengths))
    for _ in range(update_epochs):
        for start, stop in whole.spans(2):
            one_by_one.learn(whole.slice(start, stop))
    for role in ("actor", "reference"):
        assert same(weights(at_once, role), weights(one_by_one, role))


def test_a_clone_counts_on(make_agent, experiences):
    agent = make_agent(moved=True, reference_update=2)
    start = weights(agent, "reference")
    agent.learn(experiences)
    twin = agent.clone()
    assert same(weights(agent, "reference"), start)
    twin.learn(experiences)
    assert twin.optimizer_steps == 2
    assert not same(weights(twin, "reference"), start)
    assert same(weights(agent, "reference"), start)
    agent.learn(experiences)
    assert same(weights(agent, "reference"), weights(twin, "reference"))
    assert agent.optimizer_steps == 2


def test_a_full_copy_after_every_step_keeps_the_loss_at_ln_2(make_agent, experiences):
    agent = make_agent(reference_update=1, reference_mixup_alpha=1.0, lr=1e-2)
    for _ in range(3):
        assert abs(agent.learn(experiences)["loss"] - math.log(2)) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference_update": 0}, "reference_update=0; use 'never', 'epoch' or a number of steps"),
        ({"reference_update": True}, "reference_update=True"),
        ({"reference_update": 1.5}, "reference_update=1.5"),
        ({"reference_update": 5, "use_separate_reference_adapter": False}, "reference_update=5 needs a reference that"),
        ({"reference_mixup_alpha": 0.0}, "reference_mixup_alpha=0"),
        ({"reference_mixup_alpha": 1.1}, "reference_mixup_alpha=1.1 must be at most 1"),
        ({"reference_cache": False}, "reference_cache=False; use 'memory', a directory, or None"),
        ({"reference_cache": __file__}, "is a file; a directory is needed"),
        ({"reference_cache": "references", "reference_update": 5}, "Use reference_cache='memory'"),
        ({"reference_cache_bytes": 0}, "reference_cache_bytes=0"),
        ({"reference_cache_bytes": 1e9}, "reference_cache_bytes=1000000000.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_a_model_is_loaded(arguments, message):
    with pytest.raises(ValueError, match=message):
        DPO(model_name="there is no such model", **arguments)


def test_a_weight_that_left_its_range_stops_before_the_reference_moves(make_agent, experiences):
    agent = make_agent(reference_update=1, moved=True)
    agent.reference_mixup_alpha = 1.5
    before = weights(agent, "reference")
    with pytest.raises(ValueError, match=r"reference_mixup_alpha=1\.5 must be at most 1"):
        agent.learn(experiences)
    assert same(weights(agent, "reference"), before)
