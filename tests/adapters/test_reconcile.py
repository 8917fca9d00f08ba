"""Saved adapters of any LoRA configuration compute on an agent what they computed when they were saved."""

import gc
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import nn

from agiledpo.adapters import AgentAdapters, SharedBaseModel
from agiledpo.adapters.contents import content_digest
from agiledpo.adapters.files import AdapterFileError, SavedAdapter, read_adapter
from agiledpo.adapters.reconcile import compare, merged, merged_layout

pytestmark = [
    pytest.mark.filterwarnings("ignore:This agent keeps its own"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]
IDS = torch.arange(3, 12)[None]
ATTENTION = ["q_proj", "v_proj"]
LIVE = {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION}


def agent_on(base, *, seed=0, separate=True, **config):
    made = LoraConfig(**{"task_type": "CAUSAL_LM", **config})
    return AgentAdapters(base, made, separate_reference=separate, seed=seed)


def fill(agent, role="actor", *, seed=1, scale=0.2):
    generator = torch.Generator().manual_seed(seed)
    for parameter in agent.own_parameters(role):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def logits(agent, role="actor"):
    with agent.select(role) as model, torch.no_grad():
        return model.eval()(IDS).logits.clone()


def everything(base):
    """Digest of every tensor of the model, and the type of every module."""
    kinds = [f"{key} {type(module).__name__}" for key, module in base.model.named_modules()]
    return content_digest(dict(base.model.state_dict())), kinds, base.adapter_names, base.active_name


@pytest.fixture
def base(tiny_model):
    return SharedBaseModel.of(tiny_model())


SAVED = {
    "rank up": {"r": 16, "lora_alpha": 16, "target_modules": ATTENTION},
    "rank down": {"r": 4, "lora_alpha": 16, "target_modules": ATTENTION},
    "alpha": {"r": 8, "lora_alpha": 3, "target_modules": ATTENTION},
    "rslora": {"r": 16, "lora_alpha": 5, "use_rslora": True, "target_modules": ATTENTION},
    "patterns": {
        "r": 4,
        "target_modules": ATTENTION,
        "rank_pattern": {"q_proj": 11, r"layers\.1\.self_attn\.v_proj": 2},
        "alpha_pattern": {"v_proj": 5},
    },
    "disjoint": {"r": 4, "target_modules": ["o_proj", "up_proj"]},
    "overlapping": {"r": 12, "target_modules": ["v_proj", "k_proj"]},
    "one layer": {"r": 4, "target_modules": ATTENTION, "layers_to_transform": [1], "layers_pattern": "layers"},
    "regex": {"r": 4, "target_modules": r".*layers\.0.*(q|k)_proj"},
    "all linear": {"r": 16, "target_modules": "all-linear"},
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "q_proj"]},
    "head": {"r": 4, "target_modules": ["lm_head"]},
    "modules_to_save": {"r": 4, "target_modules": ["o_proj"], "modules_to_save": ["lm_head", "norm"]},
}


@pytest.mark.parametrize("saved", SAVED.values(), ids=SAVED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_all_functions_are_kept_and_other_agents_are_left_alone(tiny_model, save_with_peft, saved, dtype):
    directory, expected = save_with_peft(base={"dtype": dtype}, **saved)
    base = SharedBaseModel.of(tiny_model(dtype=dtype))
    agent, other = (agent_on(base, **LIVE) for _ in range(2))
    fill(agent)
    agent.copy_role("actor", "reference")
    fill(agent, seed=2)
    fill(other, seed=3)
    reference, others = logits(agent, "reference"), [logits(other, role) for role in ("actor", "reference")]
    bare = logits(agent_on(base, separate=False, **LIVE), "reference")
    agent.load_saved("actor", read_adapter(directory), merge=True)

    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    size = expected.abs().max()  # of the order of 1
    assert (logits(agent) - expected).abs().max() <= tolerance * max(1, size)
    assert (logits(agent, "reference") - reference).abs().max() <= tolerance * max(1, size)
    assert (expected - reference).abs().max() > 0.1
    assert all(torch.equal(logits(other, role), was) for role, was in zip(("actor", "reference"), others, strict=True))
    assert torch.equal(logits(agent_on(base, separate=False, **LIVE), "reference"), bare)


@pytest.mark.parametrize("saved", SAVED.values(), ids=SAVED)
@pytest.mark.parametrize("rslora", [False, True])
def test_the_layout_of_a_merged_configuration_is_foreseen(base, save_with_peft, saved, rslora):
    agent = agent_on(base, **{**LIVE, "use_rslora": rslora, "alpha_pattern": {"v_proj": 3}})
    adapter = read_adapter(save_with_peft(**saved)[0])
    live = base.layout(agent.name("actor"))
    with base.visitor(adapter) as visitor:
        theirs = base.layout(visitor)
    prospect = agent.check({"actor": adapter}, merge=True)
    foreseen = merged_layout(live, theirs, merged(live, theirs, base.module_names))
    if agent.load_saved("actor", adapter, merge=True):
        made = base.layout(agent.name("actor"))
        assert (made.ranks, made.scalings, made.whole) == (foreseen.ranks, foreseen.scalings, foreseen.whole)
    assert prospect.rescales == bool(agent.arrived)
    assert prospect.grows == (agent.move is not None and any(factor != 1 for factor in agent.move.factors.values()))


@pytest.mark.parametrize("saved", SAVED.values(), ids=SAVED)
def test_without_merging_both_configurations_are_shown_and_nothing_changes(base, save_with_peft, saved):
    agent = agent_on(base, **LIVE)
    fill(agent)
    before = everything(base)
    adapter = read_adapter(save_with_peft(**saved)[0])
    for act in (
        lambda: agent.check({"actor": adapter}, merge=False),
        lambda: agent.load_saved("actor", adapter, merge=False),
    ):
        with pytest.raises(ValueError, match=r"this agent +saved\n(.|\n)*merge_lora_configs=True"):
            act()
    assert everything(base) == before
    agent.check({"actor": adapter}, merge=True)
    assert everything(base) == before
    assert agent.lora_config.r == 8


def test_the_text_has_a_line_for_each_field_that_differs(base, save_with_peft):
    agent = agent_on(base, **LIVE)
    saved = read_adapter(save_with_peft(r=16, lora_alpha=2, lora_dropout=0.1, target_modules=["q_proj", "k_proj"])[0])
    with base.visitor(saved) as visitor:
        differences = compare(base.layout(agent.name("actor")), base.layout(visitor))
    lines = [line.split(maxsplit=1) for line in differences.text.splitlines()]
    assert lines == [
        ["this", "agent            saved"],
        ["target_modules", "q_proj x2, v_proj x2  k_proj x2, q_proj x2"],
        ["r", "8                     16"],
        ["lora_alpha", "16                    2"],
        ["lora_dropout", "0.0                   0.1"],
    ]
    assert differences.kept == ("lora_alpha", "lora_dropout")
    assert differences.irreconcilable == ()


@pytest.mark.parametrize(
    "targets", ["all-linear", r".*(q|k|v|o|gate|up|down)_proj", "written out"], ids=["word", "regex", "names"]
)
def test_targets_are_compared_by_what_they_resolve_to(base, save_with_peft, targets):
    agent = agent_on(base, r=4, lora_alpha=8, target_modules="all-linear")
    if targets == "written out":
        targets = [key for key, module in base.model.named_modules() if key.endswith("_proj")]
    directory, expected = save_with_peft(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    assert not agent.load_saved("actor", read_adapter(directory), merge=False)
    assert torch.equal(logits(agent), expected)


def test_scalings_are_compared_by_their_value(base, save_with_peft):
    agent = agent_on(base, r=4, lora_alpha=8, target_modules=ATTENTION)
    directory, expected = save_with_peft(
        r=4, lora_alpha=1, use_rslora=True, alpha_pattern={"q_proj": 4, "v_proj": 4}, target_modules=ATTENTION
    )
    assert not agent.load_saved("actor", read_adapter(directory), merge=False)
    assert torch.equal(logits(agent), expected)


def test_dropout_of_the_agent_is_kept_with_a_warning_also_without_merging(base, save_with_peft):
    agent = agent_on(base, r=4, target_modules=ATTENTION)
    directory, expected = save_with_peft(r=4, lora_dropout=0.5, target_modules=ATTENTION)
    with pytest.warns(UserWarning, match=r"lora_dropout=0.0 \(saved: 0.5\)"):
        agent.load_saved("actor", read_adapter(directory), merge=False)
    assert torch.equal(logits(agent), expected)
    assert base.config(agent.name("actor")).lora_dropout == 0.0


def test_a_value_that_merging_keeps_is_warned_of(base, save_with_peft):
    agent = agent_on(base, **LIVE)
    directory, _ = save_with_peft(r=8, lora_alpha=3, target_modules=ATTENTION)
    with pytest.warns(UserWarning, match=r"lora_alpha=16 \(saved: 3\)"):
        assert not agent.load_saved("actor", read_adapter(directory), merge=True)
    assert agent.move is None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    alphas=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    rslora=st.tuples(st.booleans(), st.booleans()),
)
def test_any_ranks_and_alphas(tiny_model, save_with_peft, ranks, alphas, rslora):
    (live, saved), scale = (
        (
            {"r": r, "lora_alpha": a, "use_rslora": s, "target_modules": ["q_proj", "down_proj"]}
            for r, a, s in zip(ranks, alphas, rslora, strict=True)
        ),
        1 / math.sqrt(max(alphas)),
    )
    directory, expected = save_with_peft(base={"dtype": torch.float64}, **saved)
    agent = agent_on(SharedBaseModel.of(tiny_model(dtype=torch.float64)), **live)
    fill(agent, scale=scale)
    agent.copy_role("actor", "reference")
    reference = logits(agent, "reference")
    rebuilt = agent.load_saved("actor", read_adapter(directory), merge=True)
    size = max(1, expected.abs().max(), reference.abs().max())
    assert (logits(agent) - expected).abs().max() <= 1e-12 * size
    assert (logits(agent, "reference") - reference).abs().max() <= 1e-12 * size
    assert rebuilt is (ranks[1] > ranks[0])
    assert agent.lora_config.r == max(ranks)
    assert agent.lora_config.lora_alpha == alphas[0]


# What a merged adapter looks like ----------------------------------------------------------------------------------


def test_new_slots_have_fresh_rows_in_a_and_nothing_in_b(base, save_with_peft):
    agent = agent_on(base, seed=7, **LIVE)
    fill(agent)
    before = {key: p.detach().clone() for key, p in base.parameters(agent.name("actor")).items()}
    agent.load_saved(
        "reference", read_adapter(save_with_peft(r=16, lora_alpha=16, target_modules=ATTENTION)[0]), merge=True
    )
    for key, parameter in base.parameters(agent.name("actor")).items():
        if "lora_A" in key:
            assert torch.equal(parameter[:8], before[key])
            bound = 1 / math.sqrt(parameter.shape[1])
            assert 0.3 * bound < parameter[8:].std() < bound  # uniform in +-bound
        else:
            assert torch.equal(parameter[:, :8], 2 * before[key])  # alpha / r went from 2 to 1
            assert not parameter[:, 8:].any()
    assert agent.move.factors == {key: 2.0 for key in before if "lora_B" in key}
    fresh = agent_on(base, seed=7, r=16, lora_alpha=16, target_modules=ATTENTION)
    for key, drawn in base.parameters(fresh.name("actor")).items():
        if "lora_A" in key:
            assert torch.equal(base.parameters(agent.name("actor"))[key][8:], drawn[8:])  # by the agent's seed


def test_new_slots_learn(base, save_with_peft):
    agent = agent_on(base, r=2, lora_alpha=4, target_modules=["q_proj", "embed_tokens"])
    fill(agent)
    saved = read_adapter(save_with_peft(r=4, target_modules=["q_proj", "embed_tokens"])[0])
    agent.load_saved("reference", saved, merge=True)
    parameters = base.parameters(agent.name("actor"))
    new = {key: parameter[2:] if parameter.shape[0] == 4 else parameter[:, 2:] for key, parameter in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    moving = []
    for _ in range(2):
        before = {key: part.detach().clone() for key, part in new.items()}
        with agent.select("actor") as model:
            torch.nn.functional.cross_entropy(model(IDS).logits[0, :-1], IDS[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        moving.append({key for key, part in new.items() if not torch.equal(part, before[key])})
    # In the first step only the factor that was zero: the gradient of the other is a product with it.
    zero = {key for key in new if "lora_B" in key or "lora_embedding_A" in key}
    assert moving == [zero, set(new)]


def test_merged_configurations_say_it_in_few_words(base, save_with_peft):
    def after(live, **saved):
        agent = agent_on(base, **live)
        agent.load_saved("actor", read_adapter(save_with_peft(**saved)[0]), merge=True)
        return agent.lora_config

    config = after(LIVE, r=4, target_modules=["k_proj"])
    assert (config.r, config.target_modules, config.rank_pattern) == (8, {"q_proj", "k_proj", "v_proj"}, {})
    config = after(LIVE, r=32, target_modules="all-linear")
    assert config.r == 32
    assert (
        config.target_modules == base.config(agent_on(base, target_modules="all-linear").name("actor")).target_modules
    )
    config = after(LIVE, r=4, target_modules=ATTENTION, rank_pattern={"q_proj": 9})
    assert config.r == 8
    assert set(config.rank_pattern.values()) == {9}
    config = after({**LIVE, "layers_to_transform": [0]}, r=4, target_modules=["k_proj"])
    names = {f"model.layers.0.self_attn.{name}" for name in ATTENTION}
    assert config.target_modules == names | {f"model.layers.{layer}.self_attn.k_proj" for layer in (0, 1)}
    assert config.layers_to_transform is None


def test_modules_that_the_saved_adapter_lacks_are_the_bases_copies(base, save_with_peft):
    agent = agent_on(base, **LIVE, modules_to_save=["lm_head"])
    fill(agent)
    directory, expected = save_with_peft(r=8, lora_alpha=16, target_modules=ATTENTION, modules_to_save=["norm"])
    head = base.base_state()["lm_head.weight"]
    agent.load_saved("actor", read_adapter(directory), merge=True)
    saved = base.state(agent.name("actor"))
    assert torch.equal(saved["base_model.model.lm_head.weight"], head)
    assert not torch.equal(saved["base_model.model.model.norm.weight"], base.base_state()["model.norm.weight"])
    assert (logits(agent) - expected).abs().max() < 1e-6
    assert agent.lora_config.modules_to_save == ["lm_head", "norm"]


# Sharing and company -----------------------------------------------------------------------------------------------


def test_references_that_are_equal_after_merging_are_one_adapter(base, save_with_peft):
    agents = [agent_on(base, **LIVE) for _ in range(3)]
    saved = read_adapter(save_with_peft(r=16, lora_alpha=16, target_modules=ATTENTION)[0])
    for agent in agents[:2]:
        agent.load_saved("actor", saved, merge=True)
    names = [agent.name("reference") for agent in agents]
    assert names[0] == names[1] != names[2]
    for agent in agents[:2]:
        agent.load_saved("reference", saved, merge=True)
    assert agents[0].name("reference") == agents[1].name("reference") != names[0]
    assert len(base.adapter_names) == 3 + 2
    for agent in agents:
        agent.clear_reference()
    assert agents[0].name("reference") == agents[1].name("reference")
    assert agents[2].name("reference") == names[2]  # it added nothing already
    assert torch.equal(logits(agents[0], "reference"), logits(agents[2], "reference"))
    del agents, agent
    gc.collect()
    assert base.adapter_names == ()


@pytest.mark.parametrize("config", [LIVE, {**LIVE, "init_lora_weights": False}, {**LIVE, "use_dora": True}])
def test_a_cleared_reference_adds_nothing(base, config):
    agent = agent_on(base, **config)
    bare = logits(agent_on(base, separate=False, **LIVE), "reference")
    fill(agent, "reference")
    assert not torch.allclose(logits(agent, "reference"), bare, atol=1e-3)
    agent.clear_reference()
    assert torch.allclose(logits(agent, "reference"), bare, atol=1e-6, rtol=0)
    assert base.config(agent.name("reference")) == base.config(agent.name("actor"))


def test_the_bare_base_can_be_neither_loaded_onto_nor_cleared(base, save_with_peft):
    agent = agent_on(base, separate=False, **LIVE)
    saved = read_adapter(save_with_peft(**LIVE)[0])
    for act in (agent.clear_reference, lambda: agent.load_saved("reference", saved, merge=True)):
        with pytest.raises(ValueError, match="use_separate_reference_adapter=True"):
            act()
    assert agent.load_saved("actor", saved, merge=False) is False


@pytest.mark.parametrize("active", ["actor", "reference", None])
def test_what_was_active_stays_active(base, save_with_peft, active):
    agent, other = (agent_on(base, **LIVE) for _ in range(2))
    fill(agent)
    directory, expected = save_with_peft(r=16, target_modules=["q_proj", "o_proj"])
    reference = logits(agent, "reference")
    other.use("actor")
    if active is None:
        base.activate(None)
    else:
        agent.use(active)
    agent.load_saved("actor", read_adapter(directory), merge=True)
    with torch.no_grad():
        now = base.peft(IDS).logits
    assert torch.allclose(now, expected if active == "actor" else reference, atol=1e-5)
    trainable = {id(p) for p in base.model.parameters() if p.requires_grad}
    assert trainable == {id(p) for x in (agent, other) for p in x.parameters("actor")}


def test_an_agent_on_all_linear_layers_leaves_another_agents_copied_head_alone(base):
    first = agent_on(base, **LIVE, modules_to_save=["lm_head"])
    second = agent_on(base, r=2, target_modules="all-linear")
    assert len(second.parameters("actor")) == 2 * 2 * 7
    assert all("lm_head" not in key for key in base.parameters(second.name("actor")))
    for config in ({"target_modules": ["lm_head"]}, {"target_modules": ".*"}):
        with pytest.raises(ValueError, match=r"lm_head has LoRA factors in one adapter and is saved whole"):
            agent_on(base, **config)
    del first
    third = agent_on(base, target_modules=["up_proj"])
    with pytest.raises(ValueError, match="up_proj has LoRA factors in one adapter and is saved whole"):
        agent_on(base, target_modules=["q_proj"], modules_to_save=["up_proj"])
    assert logits(third).isfinite().all()


# Refusals ----------------------------------------------------------------------------------------------------------


def refused(base, agent, saved, message, error=AdapterFileError):
    before = everything(base)
    for act in (
        lambda: agent.check({"actor": saved}, merge=True),
        lambda: agent.load_saved("actor", saved, merge=True),
    ):
        with pytest.raises(error, match=message):
            act()
    assert everything(base) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(min(t)), r"adapter_model.safetensors lacks base_model.model.model.layers.0.*lora_A.weight"),
        (
            lambda t: t.update({"base_model.model.nowhere.lora_A.weight": torch.ones(2, 2)}),
            "nowhere.*does not call for",
        ),
        (lambda t: t.update({min(t): torch.ones(4, 31)}), r"of shape \(4, 31\); .* call for .*\(32, 32\)"),
        (lambda t: t.update({max(t): torch.ones(33, 4)}), r"of shape \(33, 4\); .* call for \(32, 4\)"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(97, 32)}),
            "is not this base model's lm_head",
        ),
    ],
    ids=["missing", "unexpected", "first factor", "second factor", "base weight"],
)
def test_tensors_that_do_not_fit_are_refused_by_name(base, save_with_peft, change, message):
    saved = read_adapter(save_with_peft(r=4, target_modules=["o_proj"])[0])
    tensors = dict(saved.tensors)
    change(tensors)
    refused(base, agent_on(base, **LIVE), SavedAdapter(saved.config, tensors, saved.source), message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 10**12}, r"lora_A.weight of shape \(8, 32\); .*call for rank 1000000000000 "),
        ({"r": 10**6}, r"lora_A.weight of shape \(8, 32\); .*call for rank 1000000 "),
        ({"r": 9}, "call for rank 9 "),
        (
            {"rank_pattern": {r"layers\.1\..*v_proj": 10**6}},
            "layers.1.self_attn.v_proj.lora_A.* call for rank 1000000 ",
        ),
        ({"r": 10**6, "target_modules": "all-linear"}, "rank 1000000 for model.embed_tokens; the largest"),
        (
            {"rank_pattern": {"up_proj": 10**6}, "target_modules": {"q_proj", "v_proj", "up_proj"}},
            "rank 1000000 for model.layers.0.mlp.up_proj; the largest .* is 8",
        ),
        ({"r": 10**6, "target_modules": {"up_proj"}}, "rank 1000000 for model.layers.0.mlp.up_proj; the largest"),
    ],
)
def test_ranks_are_compared_with_the_weights_before_memory_is_taken(base, save_with_peft, settings, message):
    saved = read_adapter(save_with_peft(**LIVE)[0])
    vars(saved.config).update(settings)
    refused(base, agent_on(base, **LIVE), saved, message)


def test_a_rank_of_no_module_takes_no_memory(base, save_with_peft):
    saved = read_adapter(save_with_peft(**LIVE)[0])
    saved.config.r, saved.config.rank_pattern = 10**12, {"q_proj": 8, "v_proj": 8}
    saved.config.alpha_pattern = {"q_proj": 16, "v_proj": 16}
    agent = agent_on(base, **LIVE)
    agent.check({"actor": saved}, merge=False)


def test_a_first_factor_that_is_too_narrow_takes_no_memory(base, save_with_peft):
    saved = read_adapter(save_with_peft(**LIVE)[0])
    saved.config.r = 10**6
    tensors = {key: torch.zeros((10**6, 1) if "lora_A" in key else (1, 10**6)) for key in saved.tensors}
    refused(base, agent_on(base, **LIVE), SavedAdapter(saved.config, tensors, saved.source), "call for rank 1000000 ")


def test_whatever_peft_stumbles_over_is_the_files_fault(base, save_with_peft):
    saved = read_adapter(save_with_peft(r=4, target_modules=["q_proj"], trainable_token_indices=[3])[0])
    saved.config.trainable_token_indices = [10**6]
    refused(base, agent_on(base, **LIVE), saved, r"adapter_config.json does not fit the base model.*index")


def test_an_adapter_of_a_wider_base_model_is_refused(base, save_with_peft):
    saved = read_adapter(save_with_peft(base={"hidden_size": 64}, **LIVE)[0])
    saved.config.base_model_name_or_path = "somebody/wide"
    refused(
        base, agent_on(base, **LIVE), saved, r"\(8, 64\).*\(8, 32\).*another base model \(it names 'somebody/wide'\)"
    )


def test_an_adapter_of_a_deeper_base_model_is_refused(base, save_with_peft):
    saved = read_adapter(save_with_peft(base={"num_hidden_layers": 3}, **LIVE)[0])
    refused(base, agent_on(base, **LIVE), saved, r"layers\.2\..*does not call for on this base model")


def test_an_adapter_of_other_modules_is_refused(base, save_with_peft):
    saved = read_adapter(save_with_peft(base={"architecture": "gpt2"}, target_modules=["c_attn"])[0])
    refused(base, agent_on(base, **LIVE), saved, r"adapter_config.json does not fit the base model.*c_attn")


def test_a_layer_that_peft_cannot_adapt_leaves_nothing_behind(base, save_with_peft):
    saved = read_adapter(save_with_peft(**LIVE)[0])
    saved.config.target_modules = {"o_proj", "up_proj", "post_attention_layernorm"}
    refused(base, agent_on(base, **LIVE), saved, r"adapter_config.json does not fit the base model.*not supported")


@pytest.mark.parametrize(
    ("live", "saved", "message"),
    [
        ({}, {"use_dora": True}, r"differs from this agent's in use_dora, which merging cannot reconcile"),
        ({"lora_bias": True}, {}, r"lora_bias"),
        ({"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}, "lm_head has LoRA factors in one adapter"),
        ({"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}, "lm_head has LoRA factors in one adapter"),
        ({"trainable_token_indices": [3]}, {"r": 9, "trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
    ids=["dora", "bias", "live whole", "saved whole", "tokens"],
)
def test_what_no_configuration_has_room_for_is_refused(base, save_with_peft, live, saved, message):
    refused(
        base,
        agent_on(base, **{**LIVE, **live}),
        read_adapter(save_with_peft(**{**LIVE, **saved})[0]),
        message,
        error=ValueError,
    )


@pytest.mark.parametrize(
    ("field", "value"), [("init_lora_weights", "pissa"), ("bias", "all"), ("layer_replication", [(0, 2), (0, 2)])]
)
def test_configurations_that_change_the_base_are_refused(base, save_with_peft, field, value):
    saved = read_adapter(save_with_peft(**LIVE)[0])
    setattr(saved.config, field, value)
    refused(base, agent_on(base, **LIVE), saved, field, error=ValueError)


@pytest.mark.parametrize("kind", ["use_dora", "lora_bias"])
def test_dora_and_bias_are_kept_through_another_rank(tiny_model, save_with_peft, kind):
    # Neither the magnitudes nor the norm of W + s B A changes with the padding; a bias is scaled with the product.
    directory, expected = save_with_peft(r=12, lora_alpha=5, target_modules=["q_proj", "up_proj"], **{kind: True})
    base = SharedBaseModel.of(tiny_model())
    agent = agent_on(base, **LIVE, **{kind: True})
    generator = torch.Generator().manual_seed(1)
    for parameter in agent.own_parameters("reference"):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    reference = logits(agent, "reference")
    assert agent.load_saved("actor", read_adapter(directory), merge=True)
    assert (logits(agent) - expected).abs().max() < 2e-6
    assert (logits(agent, "reference") - reference).abs().max() < 2e-6


def test_layers_with_transposed_weights_are_reconciled(tiny_model, save_with_peft):
    # GPT-2's Conv1D.
    directory, expected = save_with_peft(base={"architecture": "gpt2"}, r=6, target_modules=["c_fc", "c_attn"])
    agent = agent_on(SharedBaseModel.of(tiny_model("gpt2")), r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    agent.load_saved("actor", read_adapter(directory), merge=True)
    assert (logits(agent) - expected).abs().max() < 1e-5


def test_merging_a_layout_with_itself_changes_nothing(base):
    layout = base.layout(agent_on(base, **LIVE).name("actor"))
    assert merged(layout, layout, base.module_names) == layout.config
    differences = compare(layout, layout)
    assert differences.blocking == differences.kept == differences.irreconcilable == ()
    assert isinstance(base.model.lm_head, nn.Linear)
