"""Scores, DPO loss and LoRA gradients against one forward per sequence with full logits, on many architectures."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agiledpo.adapters import AgentAdapters, SharedBaseModel
from agiledpo.losses import PreferenceObjective
from agiledpo.scoring import CausalLM, PreferenceBatch, Scorer

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "gpt2", "gemma", "mistral", "gemma2", "cohere", "granite", "phi3", "olmo2", "smollm3"
)  # fmt: skip
LAYOUTS = ("shared", "packed", "padded")
LENGTHS = [(7, 5, 9), (1, 1, 1), (3, 8, 1), (12, 1, 6)]


def score(scorer, batch):
    with scorer.session():
        return scorer.score(batch)


def make(tiny_model, lora, architecture, dtype=torch.float32, layout="shared", fast=True):
    model = tiny_model(architecture, dtype=dtype)
    model.eval()
    adapters = AgentAdapters(SharedBaseModel.of(model), lora, separate_reference=True, seed=0)
    generator = torch.Generator().manual_seed(3)
    for parameter in adapters.parameters("actor"):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    lm = CausalLM.of(model, fast_layers=fast)
    assert (lm.layers is not None) == fast
    assert lm.packs
    if layout == "padded":
        lm = replace(lm, packs=False)
    return adapters, Scorer(lm, pad_token_id=0, prefix_sharing=layout == "shared")


def relative(actual, expected):
    return float((actual - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_full_logits(tiny_model, lora, make_experiences, plain_logps, architecture, layout):
    adapters, scorer = make(tiny_model, lora, architecture, layout=layout)
    assert scorer.lm.head is not None
    batch = PreferenceBatch.from_experiences(make_experiences(LENGTHS))
    with adapters.select("actor") as model, torch.no_grad():
        scores = score(scorer, batch)
        for i, prompt in enumerate(batch.prompts):
            for side, completion in ((scores.chosen, batch.chosen[i]), (scores.rejected, batch.rejected[i])):
                expected = plain_logps(model, prompt, completion)
                assert int(side.mask[i].sum()) == len(completion)
                torch.testing.assert_close(side.logps[i][side.mask[i]], expected, rtol=1e-5, atol=1e-5)
                assert float(side.logps[i][~side.mask[i]].abs().sum()) == 0.0


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_equal_a_plain_implementation(
    tiny_model, lora, make_experiences, plain_logps, architecture, layout, fast
):
    adapters, scorer = make(tiny_model, lora, architecture, layout=layout, fast=fast)
    batch = PreferenceBatch.from_experiences(make_experiences(LENGTHS))
    beta, parameters = 0.3, adapters.parameters("actor")

    with adapters.select("reference"), torch.no_grad():
        reference = score(scorer, batch)
    with adapters.select("actor"):
        policy = score(scorer, batch)
        terms = PreferenceObjective(beta=beta)(policy.chosen, policy.rejected, reference.chosen, reference.rejected)
        loss = terms.loss.mean()
        with scorer.session():
            gradients = torch.autograd.grad(loss, parameters)

    losses = []
    for prompt, chosen, rejected in zip(batch.prompts, batch.chosen, batch.rejected, strict=True):
        with adapters.select("reference") as model, torch.no_grad():
            baseline = plain_logps(model, prompt, chosen).sum() - plain_logps(model, prompt, rejected).sum()
        with adapters.select("actor") as model:
            margin = plain_logps(model, prompt, chosen).sum() - plain_logps(model, prompt, rejected).sum() - baseline
        losses.append(torch.log1p(torch.exp(-beta * margin)))
    expected = torch.stack(losses).mean()
    with adapters.select("actor"):
        expected_gradients = torch.autograd.grad(expected, parameters)

    assert abs(float(expected.detach()) - math.log(2)) > 1e-4  # policy and reference really differ
    assert relative(loss, expected) < 1e-5
    assert relative(_flat(gradients), _flat(expected_gradients)) < 1e-5


def _flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_bfloat16_scores_stay_near_float64(tiny_model, lora, make_experiences, plain_logps, architecture):
    batch = PreferenceBatch.from_experiences(make_experiences(LENGTHS))
    exact, _ = make(tiny_model, lora, architecture, dtype=torch.float64)
    adapters, scorer = make(tiny_model, lora, architecture, dtype=torch.bfloat16)
    with torch.no_grad(), exact.select("reference") as model, adapters.select("reference"):
        scores = score(scorer, batch)
        assert scores.chosen.logps.dtype == torch.float32
        for i, prompt in enumerate(batch.prompts):
            expected = plain_logps(model, prompt, batch.chosen[i])
            error = (scores.chosen.logps[i][scores.chosen.mask[i]].double() - expected).abs().mean()
            assert error < 0.15


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
    left=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    fast=st.booleans(),
)
def test_any_lengths_and_either_padding_side(
    tiny_model, lora, make_experiences, plain_logps, lengths, left, layout, fast
):
    adapters, scorer = make(tiny_model, lora, "llama", layout=layout, fast=fast)
    batch = PreferenceBatch.from_experiences(make_experiences(lengths, left=left))
    with adapters.select("actor") as model, torch.no_grad():
        scores = score(scorer, batch)
        for i, prompt in enumerate(batch.prompts):
            for side, completion in ((scores.chosen, batch.chosen[i]), (scores.rejected, batch.rejected[i])):
                expected = plain_logps(model, prompt, completion)
                torch.testing.assert_close(side.logps[i][side.mask[i]], expected, rtol=1e-5, atol=1e-5)


def test_explicit_positions_change_nothing(tiny_model, lora, make_experiences):
    adapters, scorer = make(tiny_model, lora, "gpt2", layout="padded")
    counted = Scorer(scorer.lm, pad_token_id=0, explicit_positions=False)
    batch = PreferenceBatch.from_experiences(make_experiences(LENGTHS))
    with adapters.select("actor"), torch.no_grad():
        assert torch.equal(score(scorer, batch).chosen.logps, score(counted, batch).chosen.logps)


def test_slices_and_concatenation_of_scores(tiny_model, lora, make_experiences):
    adapters, scorer = make(tiny_model, lora, "llama")
    scorer.collision = True
    batch = PreferenceBatch.from_experiences(make_experiences(LENGTHS))
    with adapters.select("actor"), torch.no_grad():
        whole = score(scorer, batch)
        parts = [score(scorer, batch.slice(start, stop)) for start, stop in batch.spans(3)]
    joined = type(whole).concat(parts)
    for side in ("chosen", "rejected"):
        one, other = vars(whole)[side], vars(joined)[side]
        assert torch.equal(one.mask, other.mask)
        torch.testing.assert_close(one.logps, other.logps, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.log_collision[one.mask], other.log_collision[other.mask], rtol=1e-5, atol=1e-5)
    cut = whole.slice(1, 2)
    assert cut.chosen.logps.shape == (1, 1)
    assert torch.equal(cut.chosen.logps[0], whole.chosen.logps[1, :1])
