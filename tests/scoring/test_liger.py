"""Liger's loss and gradients against our own, from the same hidden states of the same model."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from agiledpo.adapters import AgentAdapters, SharedBaseModel
from agiledpo.losses import PREFERENCE_LOSSES, PreferenceObjective
from agiledpo.scoring import CausalLM, PreferenceBatch, Scorer
from agiledpo.scoring.liger import LIGER_LOSSES, check_liger_model, liger_terms

pytest.importorskip("liger_kernel")

LENGTHS = [(7, 5, 9), (1, 1, 1), (3, 8, 1), (12, 1, 6)]
OPTIONS = {"exo_pair": {"label_smoothing": 0.1}, "robust": {"label_smoothing": 0.2}, "discopop": {"discopop_tau": 0.3}}
TERMS = ("loss", "preference_loss", "sft_loss", "nll_loss", "chosen_logps", "rejected_logps")


def make(tiny_model, lora, architecture="llama", *, dtype=torch.float32, layout="shared"):
    model = tiny_model(architecture, dtype=dtype).eval()
    adapters = AgentAdapters(SharedBaseModel.of(model), lora, separate_reference=True, seed=0)
    generator = torch.Generator().manual_seed(3)
    for parameter in adapters.parameters("actor"):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    lm = CausalLM.of(model)
    if layout == "padded":
        lm = replace(lm, packs=False)
    return adapters, Scorer(lm, pad_token_id=0, prefix_sharing=layout == "shared")


def both(adapters, scorer, objective, batch, mean_chosen_tokens=4.5):
    """Terms and LoRA gradients of the mean loss: our own, and Liger's."""
    with adapters.select("reference"), torch.no_grad(), scorer.session():
        reference = scorer.score(batch)
    results = []
    for use_liger in (False, True):
        with adapters.select("actor"), scorer.session():
            if use_liger:
                terms = liger_terms(scorer, objective, batch, reference, mean_chosen_tokens=mean_chosen_tokens)
            else:
                policy = scorer.score(batch)
                sides = (policy.chosen, policy.rejected, reference.chosen, reference.rejected)
                terms = objective(*sides, mean_chosen_tokens=mean_chosen_tokens)
            gradients = torch.autograd.grad(terms.loss.mean(), adapters.parameters("actor"))
        results.append((terms, torch.cat([gradient.flatten() for gradient in gradients])))
    return results


def assert_same(results, tolerance=1e-5, reward_tolerance=1e-5):
    (ours, our_gradient), (ligers, liger_gradient) = results
    for name in TERMS:
        torch.testing.assert_close(vars(ligers)[name], vars(ours)[name], rtol=tolerance, atol=tolerance)
    for name in ("chosen_rewards", "rejected_rewards"):  # small differences of log-probabilities of tens of nats
        torch.testing.assert_close(vars(ligers)[name], vars(ours)[name], rtol=tolerance, atol=reward_tolerance)
    assert float(our_gradient.norm()) > 0
    assert float((liger_gradient - our_gradient).norm() / our_gradient.norm()) < tolerance


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "phi"])  # phi's head has a bias
def test_loss_gradients_and_metrics_equal_ours(tiny_model, lora, make_experiences, architecture, layout):
    adapters, scorer = make(tiny_model, lora, architecture, layout=layout)
    assert scorer.lm.packs is (layout != "padded")
    head = check_liger_model(scorer.lm)
    assert (head.bias is not None) is (architecture == "phi")
    if head.bias is not None:
        head.bias.data.normal_(generator=torch.Generator().manual_seed(1))
    batch = PreferenceBatch.from_experiences(make_experiences(LENGTHS))
    assert_same(both(adapters, scorer, PreferenceObjective(beta=0.3, nll_alpha=1.0), batch))


@pytest.mark.parametrize("nll_alpha", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("loss_type", LIGER_LOSSES)
def test_every_loss_that_liger_has_equals_ours(tiny_model, lora, make_experiences, loss_type, nll_alpha):
    adapters, scorer = make(tiny_model, lora)
    objective = PreferenceObjective(loss_type=(loss_type,), beta=0.3, nll_alpha=nll_alpha, **OPTIONS.get(loss_type, {}))
    batch = PreferenceBatch.from_experiences(make_experiences(LENGTHS))
    assert_same(both(adapters, scorer, objective, batch))


@pytest.mark.parametrize("average", [False, True])
def test_the_weights_of_the_terms_are_kept(tiny_model, lora, make_experiences, average):
    adapters, scorer = make(tiny_model, lora)
    objective = PreferenceObjective(
        loss_weights=(0.5,),
        preference_loss_weight=3.0,
        sft_loss_weight=0.2,
        sft_average_log_probs=average,
        nll_alpha=0.7,
    )
    batch = PreferenceBatch.from_experiences(make_experiences(LENGTHS))
    assert_same(both(adapters, scorer, objective, batch))


@given(
    lengths=st.lists(st.tuples(*[st.integers(1, 10)] * 3), min_size=1, max_size=4), mean_chosen_tokens=st.floats(1, 20)
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lengths_give_our_numbers(tiny_model, lora, make_experiences, lengths, mean_chosen_tokens):
    adapters, scorer = make(tiny_model, lora)
    batch = PreferenceBatch.from_experiences(make_experiences(lengths))
    assert_same(both(adapters, scorer, PreferenceObjective(nll_alpha=0.5), batch, mean_chosen_tokens))


def test_bfloat16_is_as_close_as_its_rounding(tiny_model, lora, make_experiences):
    adapters, scorer = make(tiny_model, lora, dtype=torch.bfloat16)
    batch = PreferenceBatch.from_experiences(make_experiences(LENGTHS))
    assert_same(
        both(adapters, scorer, PreferenceObjective(nll_alpha=1.0), batch), tolerance=0.02, reward_tolerance=1e-3
    )


def test_the_list_of_losses_is_that_of_the_installed_liger():
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    for name in PREFERENCE_LOSSES:
        if name in LIGER_LOSSES:
            LigerFusedLinearDPOLoss(loss_type=name, label_smoothing=0.1)
        else:
            with pytest.raises(ValueError, match="Unsupported loss_type"):
                LigerFusedLinearDPOLoss(loss_type=name, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("gemma2", "soft-capped"), ("cohere", r"scaled by 0\.25"), ("granite", r"scaled by 0\.25")],
)
def test_heads_that_are_not_linear_are_refused(tiny_model, architecture, reason):
    with pytest.raises(ValueError, match=f"use_liger_loss=True does not work with .*{reason}.*use_liger_loss=False"):
        check_liger_model(CausalLM.of(tiny_model(architecture)))


def test_an_unknown_head_is_refused(tiny_model):
    with pytest.raises(ValueError, match="in a way agiledpo does not know"):
        check_liger_model(replace(CausalLM.of(tiny_model()), head=None))


def test_a_trained_head_is_refused(tiny_model):
    model = tiny_model()
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    adapters = AgentAdapters(SharedBaseModel.of(model), config, separate_reference=True, seed=0)
    with pytest.raises(ValueError, match=r"whose head \(Linear\) is trained.*target_modules"):
        check_liger_model(CausalLM.of(model))
    adapters.release()
