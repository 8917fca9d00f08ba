"""DPO with ``use_liger_loss``: the same steps, what is refused, and the way without the package."""

from importlib import metadata

import pytest
import torch
from peft import LoraConfig

from agiledpo.algorithms import DPO

MEASURED = (
    "loss", "preference_loss", "nll_loss", "sft_loss", "rewards/chosen", "rewards/rejected", "rewards/margins",
    "rewards/accuracies", "logps/chosen", "logps/rejected", "grad_norm",
)  # fmt: skip
UNSUPPORTED = [
    ({"loss_type": "ipo"}, "loss_type='ipo'"),
    ({"loss_type": "sigmoid_norm"}, "loss_type='sigmoid_norm'"),
    ({"loss_type": "aot"}, "loss_type='aot'"),
    ({"loss_type": "sft"}, "loss_type='sft'"),
    ({"loss_type": ("sigmoid", "bco_pair")}, r"loss_type=\('sigmoid', 'bco_pair'\)"),
    ({"preference_loss_weight": 0.0, "sft_loss_weight": 1.0}, "weight 0"),
    ({"f_divergence_type": "js_divergence"}, "f_divergence_type='js_divergence'"),
    ({"ld_alpha": 0.5}, r"ld_alpha=0\.5"),
    ({"use_weighting": True}, "use_weighting=True"),
    ({"preference_average_log_probs": True}, "preference_average_log_probs=True"),
]


@pytest.fixture
def liger():
    pytest.importorskip("liger_kernel")


@pytest.fixture
def without_liger(monkeypatch):
    """The metadata of the installed packages, without Liger's."""
    pretend(monkeypatch, None)


def pretend(monkeypatch, liger_version):
    version = metadata.version

    def lookup(name):
        if name != "liger-kernel":
            return version(name)
        if liger_version is None:
            raise metadata.PackageNotFoundError(name)
        return liger_version

    monkeypatch.setattr(metadata, "version", lookup)


def flat(agent):
    return torch.cat([p.detach().flatten() for p in agent.adapters.parameters("actor")])


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("nll_alpha", [0.0, 1.0])
@pytest.mark.parametrize("micro", [None, 1, 2, 3])
def test_a_step_is_ours_however_it_is_split(make_agent, experiences, architecture, nll_alpha, micro):
    arguments = {"moved": True, "architecture": architecture, "nll_alpha": nll_alpha, "max_grad_norm": 1e6}
    own = make_agent(**arguments)
    agent = make_agent(use_liger_loss=True, micro_batch_size_per_gpu=micro, **arguments)
    assert agent.use_liger_loss
    before, expected, metrics = flat(agent), own.learn(experiences), agent.learn(experiences)
    for name in MEASURED:
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5, abs=2e-6), name
    # AdamW's first step divides each gradient by its own size, which magnifies rounding where that is nearly 0.
    moved, wanted = flat(agent) - before, flat(own) - before
    assert float((moved - wanted).norm() / wanted.norm()) < 1e-3


@pytest.mark.usefixtures("liger")
def test_measuring_and_prompts_computed_twice_give_the_same(make_agent, experiences):
    agents = [make_agent(moved=True, use_liger_loss=True, prefix_sharing=sharing) for sharing in (True, False)]
    shared, separate = (agent.learn(experiences) for agent in agents)
    measured = make_agent(moved=True, use_liger_loss=True).learn(experiences, training=False)
    for name in MEASURED:
        assert separate[name] == pytest.approx(shared[name], rel=1e-5, abs=2e-6), name
        if name != "grad_norm":
            assert measured[name] == pytest.approx(shared[name], rel=1e-5, abs=2e-6), name


@pytest.mark.usefixtures("liger")
def test_a_clone_goes_on_with_liger(make_agent, experiences):
    agent = make_agent(use_liger_loss=True)
    twin = agent.clone()
    assert twin.use_liger_loss
    assert twin.learn(experiences)["loss"] == agent.learn(experiences)["loss"]


@pytest.mark.parametrize(("settings", "named"), UNSUPPORTED)
@pytest.mark.parametrize("installed", [True, False])
def test_what_liger_lacks_is_refused_before_the_model_is_loaded(monkeypatch, settings, named, installed):
    pretend(monkeypatch, "0.8.5" if installed else None)
    with pytest.raises(ValueError, match=f"use_liger_loss=True does not work with .*{named}.*use_liger_loss=False"):
        DPO(model_name="there/is-no-such-model", use_liger_loss=True, **settings)


@pytest.mark.usefixtures("liger")
def test_a_setting_that_turns_unsupported_is_refused_before_a_step(make_agent, experiences):
    agent = make_agent(use_liger_loss=True)
    before = flat(agent)
    agent.loss_type = ("ipo",)
    with pytest.raises(ValueError, match="loss_type='ipo', which Liger lacks"):
        agent.learn(experiences)
    assert torch.equal(flat(agent), before)


def test_a_head_that_liger_cannot_have_is_refused_in_the_constructor(make_agent, monkeypatch):
    pretend(monkeypatch, "0.8.5")
    with pytest.raises(ValueError, match="soft-capped"):
        make_agent(architecture="gemma2", use_liger_loss=True)
    trained = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="whose head"):
        make_agent(lora_config=trained, use_liger_loss=True)


@pytest.mark.usefixtures("without_liger")
def test_without_the_package_our_own_loss_is_used_with_a_warning(make_agent, experiences):
    with pytest.warns(UserWarning, match="liger-kernel is not installed"):
        agent = make_agent(moved=True, use_liger_loss=True)
    assert agent.use_liger_loss is False
    own = make_agent(moved=True)
    assert agent.learn(experiences)["loss"] == own.learn(experiences)["loss"]
    assert torch.equal(flat(agent), flat(own))


def test_an_old_liger_is_as_good_as_none(make_agent, monkeypatch):
    pretend(monkeypatch, "0.6.2")
    with pytest.warns(UserWarning, match=r"liger-kernel 0\.6\.2 is older than 0\.8\.5"):
        assert make_agent(use_liger_loss=True).use_liger_loss is False
