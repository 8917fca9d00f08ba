"""What ``learn`` computes: numbers, invariances, and what it leaves alone."""

import math

import pytest
import torch
from peft import LoraConfig

from agiledpo.adapters.offload import activations_offloaded
from agiledpo.algorithms.core.errors import NonFiniteLossError

MEASURED = ("loss", "preference_loss", "nll_loss", "sft_loss", "rewards/chosen", "rewards/rejected", "logps/chosen")


def weights(agent, role="actor"):
    return [p.detach().clone() for p in agent.adapters.parameters(role)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def distance(one, other):
    one, other = (torch.cat([x.flatten() for x in xs]) for xs in (one, other))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2", "gemma", "mistral"])
@pytest.mark.parametrize("separate", [True, False])
def test_before_the_first_step_the_loss_is_ln_2_and_rewards_are_0(make_agent, experiences, architecture, separate):
    agent = make_agent(architecture=architecture, use_separate_reference_adapter=separate)
    metrics = agent.learn(experiences)
    assert abs(metrics["mean_loss"] - math.log(2)) < 1e-6
    for name in ("mean_chosen_reward", "mean_rejected_reward", "rewards/margins"):
        assert metrics[name] == 0.0
    assert metrics["rewards/accuracies"] == 0.5


def test_the_dropout_of_the_base_and_of_lora_do_not_move_the_first_loss(tiny_model, make_agent, experiences):
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    model.train()
    dropped = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    agent = make_agent(actor_network=model, lora_config=dropped)
    assert abs(agent.learn(experiences)["mean_loss"] - math.log(2)) < 1e-6


def test_lora_dropout_is_on_in_training_only_and_comes_from_the_agents_own_stream(tiny_model, make_agent, experiences):
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    one, other = (make_agent(moved=True, lora_config=config) for _ in range(2))
    state = torch.get_rng_state()
    measured = one.learn(experiences, training=False)["loss"]
    assert measured == one.learn(experiences, training=False)["loss"]
    assert one.learn(experiences)["loss"] != measured
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12345)
    other.learn(experiences)
    assert same(weights(one), weights(other))


def test_learning_moves_the_actor_only_and_raises_the_margin(make_agent, experiences):
    agent = make_agent()
    base = {name: p.clone() for name, p in agent.base.model.named_parameters() if "lora_" not in name}
    reference, actor = weights(agent, "reference"), weights(agent)
    for _ in range(5):
        metrics = agent.learn(experiences)
    assert not same(weights(agent), actor)
    assert same(weights(agent, "reference"), reference)
    assert all(torch.equal(p, base[n]) for n, p in agent.base.model.named_parameters() if n in base)
    after = agent.learn(experiences, training=False)
    assert after["rewards/accuracies"] == 1.0
    assert after["loss"] < metrics["loss"] < math.log(2)
    assert metrics["grad_norm"] > 0
    assert metrics["tokens_per_second"] > 0
    assert (metrics["lr"], metrics["beta"], metrics["pairs"]) == (1e-3, 0.1, 6.0)
    assert agent.steps == [30]


def test_measuring_changes_nothing(make_agent, experiences):
    agent = make_agent(moved=True)
    before, steps = weights(agent), list(agent.steps)
    one, other = (agent.learn(experiences, training=False) for _ in range(2))
    assert one == other
    assert same(weights(agent), before)
    assert agent.steps == steps
    assert "grad_norm" not in one


@pytest.mark.parametrize("nll_alpha", [0.0, 1.0])
@pytest.mark.parametrize("loss_type", ["sigmoid", ["sigmoid", "sft"], "bco_pair"])
def test_the_split_into_micro_batches_changes_nothing(make_agent, experiences, nll_alpha, loss_type):
    results = []
    for micro in (None, 1, 2, 3):
        agent = make_agent(moved=True, micro_batch_size_per_gpu=micro, nll_alpha=nll_alpha, loss_type=loss_type)
        metrics = agent.learn(experiences)
        results.append((metrics, weights(agent), agent.learn(experiences, training=False)))
    for metrics, moved, after in results[1:]:
        for name in (*MEASURED, "grad_norm"):
            assert metrics[name] == pytest.approx(results[0][0][name], rel=2e-5, abs=2e-6)
        assert after["loss"] == pytest.approx(results[0][2]["loss"], rel=2e-5)
        assert distance(moved, results[0][1]) < 1e-4


@pytest.mark.parametrize(("micro", "expected_passes"), [(3, 2 + 3), (5, 2 + 2), (100, 1 + 2)])
def test_micro_batches_need_not_divide_the_batch(make_agent, experiences, micro, expected_passes):
    """Steps of 4 and the remaining 2 pairs: by threes in passes of 3, 1 and 2, otherwise whole."""
    (whole, gradients, moved), (split, *others) = (
        learned(make_agent(moved=True, batch_size=4, micro_batch_size_per_gpu=size, nll_alpha=0.5), experiences)
        for size in (None, micro)
    )
    assert split.pop("passes") == expected_passes
    for name, value in split.items():
        assert value == pytest.approx(whole[name], rel=1e-6, abs=1e-6)
    assert distance(others[0], gradients) < 5e-6
    for one, other in zip(others[1], moved, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def learned(agent, experiences):
    """Metrics of ``learn`` and afterwards, forward passes of ``learn``, Adam's mean gradients, and weights."""
    calls = []
    handle = agent.base.model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    metrics = agent.learn(experiences)
    handle.remove()
    del metrics["tokens_per_second"]
    gradients = [state["exp_avg"].clone() for state in agent.optimizer.state.values()]
    after = {f"{name} afterwards": value for name, value in agent.learn(experiences, training=False).items()}
    return metrics | after | {"passes": len(calls)}, gradients, weights(agent)


def test_a_loss_of_the_whole_batch_takes_any_micro_batch_that_holds_it(make_agent, experiences):
    losses = [
        make_agent(moved=True, loss_type="aot", micro_batch_size_per_gpu=micro).learn(experiences)["loss"]
        for micro in (None, 6, 7)
    ]
    assert losses == [losses[0]] * 3


def test_update_epochs_do_not_change_what_is_reported(make_agent, experiences):
    once, thrice = make_agent(moved=True), make_agent(moved=True, update_epochs=3)
    one, other = once.learn(experiences), thrice.learn(experiences)
    for name in (*MEASURED, "grad_norm"):
        assert one[name] == other[name]
    twice_more = [once.learn(experiences) for _ in range(2)]
    assert len(twice_more) == 2
    assert distance(weights(thrice), weights(once)) < 1e-6


def test_one_optimizer_step_per_batch_size_pairs(make_agent, experiences):
    agent = make_agent(moved=True, batch_size=4)
    agent.learn(experiences)
    (step,) = {int(state["step"]) for state in agent.optimizer.state.values()}
    assert step == 2  # 4 pairs, then the remaining 2
    whole, accumulated = make_agent(moved=True), make_agent(moved=True, batch_size=6, micro_batch_size_per_gpu=2)
    for other in (whole, accumulated):
        other.learn(experiences)
        assert {int(state["step"]) for state in other.optimizer.state.values()} == {1}


def test_left_padding_gives_the_same_step(make_agent, make_experiences):
    lengths = [(7, 5, 9), (1, 1, 1), (3, 8, 1)]
    right, left = make_agent(moved=True), make_agent(moved=True)
    one, other = right.learn(make_experiences(lengths)), left.learn(make_experiences(lengths, left=True))
    assert {k: v for k, v in one.items() if k in MEASURED} == {k: v for k, v in other.items() if k in MEASURED}
    assert same(weights(right), weights(left))


def test_the_first_completion_token_is_trained(make_agent, make_experiences):
    """One-token completions: the only token there is must carry the whole gradient."""
    agent = make_agent()
    experiences = make_experiences([(4, 1, 1), (1, 1, 1)])
    first = agent.learn(experiences)
    assert all(math.isfinite(value) for value in first.values())
    assert first["grad_norm"] > 0
    for _ in range(10):
        agent.learn(experiences)
    after = agent.learn(experiences, training=False)
    assert after["logps/chosen"] > first["logps/chosen"]
    assert after["rewards/accuracies"] == 1.0


def test_nll_is_the_mean_over_all_chosen_tokens(make_agent, experiences):
    agent = make_agent(moved=True, nll_alpha=0.5)
    metrics = agent.learn(experiences, training=False)
    chosen_tokens = sum(
        int(mask.sum()) - int(length)
        for mask, length in zip(experiences["chosen_attention_mask"], experiences["prompt_lengths"], strict=True)
    )
    expected = -metrics["logps/chosen"] * 6 / chosen_tokens
    assert metrics["nll_loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["loss"] == pytest.approx(metrics["preference_loss"] + 0.5 * expected, rel=1e-6)


def test_gradient_checkpointing_is_used_and_changes_nothing(make_agent, experiences):
    agents = [make_agent(moved=True, gradient_checkpointing=flag) for flag in (True, False)]
    forwards = []
    for agent in agents:
        layer, calls = agent.base.model.model.layers[0].mlp, []
        handle = layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        agent.learn(experiences)
        handle.remove()
        forwards.append(len(calls))
    assert forwards == [3, 2]  # reference, policy, and with checkpointing policy again in backward
    assert distance(weights(agents[0]), weights(agents[1])) < 1e-6


@pytest.mark.parametrize("checkpointing", [True, False])
def test_sharing_the_prompt_changes_nothing_but_the_work(make_agent, experiences, checkpointing):
    agents = [make_agent(moved=True, prefix_sharing=s, gradient_checkpointing=checkpointing) for s in ("auto", False)]
    results, tokens = [], []
    for agent in agents:
        seen = []
        handle = agent.base.model.model.embed_tokens.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(inputs[0].numel())
        )
        results.append(agent.learn(experiences))
        handle.remove()
        tokens.append(seen[0])
    prompts = int(experiences["prompt_lengths"].sum())
    completions = sum(int(experiences[f"{s}_attention_mask"].sum()) for s in ("chosen", "rejected")) - 2 * prompts
    assert tokens == [prompts + completions, 2 * prompts + completions]
    for name in (*MEASURED, "grad_norm"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-5, abs=1e-6)
    assert distance(weights(agents[0]), weights(agents[1])) < 1e-4


def test_gradients_are_clipped_to_the_norm(make_agent, experiences):
    """After the first step Adam's first moment is 0.1 times the clipped gradient."""
    for limit in (1e-3, 1e9):
        agent = make_agent(moved=True, max_grad_norm=limit)
        norm = agent.learn(experiences)["grad_norm"]
        moments = torch.cat([state["exp_avg"].flatten() for state in agent.optimizer.state.values()])
        assert float(moments.norm()) / 0.1 == pytest.approx(min(norm, limit), rel=1e-3)


def test_a_non_finite_loss_names_the_rows_and_changes_no_weight(make_agent, experiences):
    agent = make_agent(moved=True, micro_batch_size_per_gpu=2)
    experiences |= {"row": torch.tensor([3, 1, 4, 15, 9, 26]), "split": "train"}
    victim = int(experiences["chosen_input_ids"][3, 12])
    others = torch.cat([experiences[f"{s}_input_ids"][torch.arange(6) != 3].flatten() for s in ("chosen", "rejected")])
    experiences["chosen_input_ids"][3, 12] = next(t for t in range(3, 97) if t not in others.tolist() and t != victim)
    agent.base.model.model.embed_tokens.weight.data[experiences["chosen_input_ids"][3, 12]] = float("nan")
    agent.base.model.lm_head.weight.data[experiences["chosen_input_ids"][3, 12]] = 0.0
    # A chosen completion of one token only predicts; make row 3's prompt end in the broken token instead.
    experiences["chosen_input_ids"][3, 11] = experiences["chosen_input_ids"][3, 12]
    experiences["rejected_input_ids"][3, 11] = experiences["chosen_input_ids"][3, 12]
    before, moments = weights(agent), dict(agent.optimizer.state)
    with pytest.raises(NonFiniteLossError, match="not finite on train row 15; the step was not made"):
        agent.learn(experiences)
    assert same(weights(agent), before)
    assert dict(agent.optimizer.state) == moments == {}
    assert all(p.grad is None for p in agent.adapters.parameters("actor"))


def test_a_non_finite_gradient_changes_no_weight(make_agent, experiences):
    agent = make_agent(moved=True)
    before = weights(agent)
    victim = agent.adapters.parameters("actor")[0]
    victim.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError, match="gradient norm is"):
        agent.learn(experiences)
    assert same(weights(agent), before)


def test_weight_decay_and_learning_rate_are_read_at_each_step(make_agent, experiences):
    agent = make_agent(moved=True)
    agent.learn(experiences)
    agent.lr = 0.0125
    metrics = agent.learn(experiences)
    assert metrics["lr"] == 0.0125
    assert {group["lr"] for group in agent.optimizer.param_groups} == {0.0125}
    assert {int(state["step"]) for state in agent.optimizer.state.values()} == {2}


def test_wpo_weighting_runs_through_the_agent(make_agent, experiences):
    plain, weighted = (make_agent(moved=True, use_weighting=flag).learn(experiences) for flag in (False, True))
    assert 0 < weighted["preference_loss"] < plain["preference_loss"]


def test_compiled_formulas_give_the_same_steps_and_compile_once_for_all_lengths(make_agent, make_experiences):
    lengths = [[(7, 5, 9), (3, 8, 1)], [(4, 6, 2)], [(9, 3, 5), (2, 2, 7), (6, 1, 1)], [(5, 5, 5)] * 4]
    batches = [make_experiences(part, seed=seed) for seed, part in enumerate(lengths)]
    compiled, plain = (make_agent(moved=True, torch_compiler=mode) for mode in ("default", None))
    pairs = [(compiled.learn(batch), plain.learn(batch)) for batch in batches[:1]]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    pairs += [(compiled.learn(batch), plain.learn(batch)) for batch in batches[1:]]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
    for one, other in pairs:
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert distance(weights(compiled), weights(plain)) < 1e-3


@pytest.mark.parametrize("checkpointing", [True, False])
def test_offloaded_activations_and_fast_layers_change_no_step(make_agent, experiences, checkpointing, monkeypatch):
    settings = {"moved": True, "gradient_checkpointing": checkpointing}
    plain = make_agent(**settings, fast_layers=False)
    fast = make_agent(**settings)
    offloaded = make_agent(**settings)
    offloaded.activation_offload = True  # on the CPU the argument is ignored with a warning
    weights_that_stay = []

    def from_one_element_on(parameters):  # a tiny model has no large activations
        weights_that_stay.append(list(parameters))
        return activations_offloaded(weights_that_stay[-1], smallest=1)

    monkeypatch.setattr("agiledpo.algorithms.core.steps.activations_offloaded", from_one_element_on)
    losses = [agent.learn(experiences)["loss"] for agent in (plain, fast, offloaded)]
    assert [len(parameters) for parameters in weights_that_stay] == [len(list(offloaded.base.model.parameters()))]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    assert distance(weights(offloaded), weights(fast)) == 0
    assert distance(weights(fast), weights(plain)) < 1e-3


def test_offloading_on_a_cpu_is_said_to_have_no_effect(make_agent):
    with pytest.warns(UserWarning, match="activation_offload=True has no effect: the model computes on the CPU"):
        agent = make_agent(activation_offload=True)
    assert agent.activation_offload is False


def test_generation_after_learning_uses_the_cache_correctly(make_agent, experiences):
    """Learning must leave no layer in a mode in which generation goes wrong."""
    agent = make_agent(lr=1e-9, gradient_checkpointing=True)
    prompt = torch.arange(5, 11)[None]

    def generate():
        return agent.get_policy().generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()

    before = generate()
    agent.learn(experiences)
    assert generate() == before
    assert not any(module.training for module in agent.base.model.modules())


def test_layers_that_drop_out_by_themselves_do_not(make_agent, tiny_model, experiences):
    """OPT's decoder layers call dropout with their own training flag."""
    sizes = {"word_embed_proj_dim": 32, "ffn_dim": 48, "do_layer_norm_before": True, "dropout": 0.5}
    agent = make_agent(actor_network=tiny_model("opt", **sizes), gradient_checkpointing=True)
    assert abs(agent.learn(experiences)["mean_loss"] - math.log(2)) < 1e-6


def test_a_schedule_is_followed_and_hyperparameters_are_too(make_agent, experiences):
    from agiledpo.algorithms import DPO
    from agiledpo.algorithms.core.schedule import CosineLRScheduleConfig

    agent = make_agent(lr=1e-3)
    _, schedule = DPO.update_lr(agent.optimizer, 1e-3, scheduler_config=CosineLRScheduleConfig(8, 0.5))
    rates = []
    for _ in range(4):
        rates.append(agent.learn(experiences)["lr"])
        schedule.step()
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4])
    agent.weight_decay = 0.5
    agent.learn(experiences)
    assert {group["weight_decay"] for group in agent.optimizer.param_groups} == {0.5}
    assert {group["weight_decay"] for group in agent.clone().optimizer.param_groups} == {0.5}


def test_measuring_a_batch_coupled_loss_goes_through_the_model_in_parts(make_agent, make_experiences):
    experiences = make_experiences([(3, 4, 5)] * 12)
    agent = make_agent(moved=True, loss_type="aot", batch_size=2)
    sizes = []
    agent.base.model.model.embed_tokens.register_forward_hook(lambda m, args, out: sizes.append(args[0].numel()))
    measured = agent.learn(experiences, training=False)["loss"]
    assert sizes == [2 * 12] * 12
    whole = make_agent(moved=True, loss_type="aot", batch_size=12)
    assert measured == pytest.approx(whole.learn(experiences, training=False)["loss"], rel=1e-5)
