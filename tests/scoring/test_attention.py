"""Attention of packed rows: against plain softmax attention, and which models may use it."""

import math

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from agiledpo.adapters import AgentAdapters, SharedBaseModel
from agiledpo.scoring import CausalLM, PreferenceBatch, Scorer
from agiledpo.scoring.attention import PackedRows, fused_row_attention, packed_attention, row_attention
from agiledpo.scoring.layout import packed_rows

HEADS, KEY_HEADS, W, D = 4, 2, 9, 6


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((HEADS, W, D), (KEY_HEADS, W, D), (KEY_HEADS, W, D))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes)
    mask = torch.rand(W, W, generator=generator) < 0.5
    return q, k, v, mask.tril() | torch.eye(W, dtype=torch.bool)


def plain(q, k, v, mask, scale, softcap):
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.softmax(scores.masked_fill(~mask, -math.inf), -1) @ v


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_values_and_gradients(softcap):
    q, k, v, mask = inputs()
    expected, actual = plain(q, k, v, mask, 0.4, softcap), row_attention(q, k, v, mask, 0.4, softcap)
    torch.testing.assert_close(actual, expected)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    pairs = [torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (actual, expected)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_finite_differences(softcap):
    q, k, v, mask = inputs()
    assert torch.autograd.gradcheck(lambda *qkv: row_attention(*qkv, mask, 0.4, softcap), (q, k, v))


def test_the_fused_kernel_gives_the_same():
    q, k, v, mask = inputs(torch.float32)
    torch.testing.assert_close(fused_row_attention(q, k, v, mask, 0.4), row_attention(q, k, v, mask, 0.4, None))


def test_bfloat16_is_as_near_to_float64_as_the_fused_kernel():
    exact = row_attention(*inputs(), 0.4, None)
    low = inputs(torch.bfloat16)
    ours, fused = row_attention(*low, 0.4, None), fused_row_attention(*low, 0.4)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() < 1.5 * (fused.double() - exact).norm()


def test_who_sees_whom():
    """Row [p p | c c | r]: everyone sees the prompt, nobody the other completion."""
    rows = PackedRows(((0, 5),), torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 3, 2]))
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert rows.masks(None)[0].int().tolist() == expected
    windowed = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]
    assert rows.masks(2)[0].int().tolist() == windowed


def test_packed_rows_hold_each_prompt_once(make_experiences):
    batch = PreferenceBatch.from_experiences(make_experiences([(7, 2, 3), (1, 1, 4)]))
    shared, separate = packed_rows(batch, share_prompts=True), packed_rows(batch, share_prompts=False)
    assert shared.input_ids.shape == (1, 18)
    assert separate.input_ids.shape == (1, 26)
    assert shared.packed.bounds == ((0, 12), (12, 18))
    assert shared.position_ids[0].tolist() == [*range(9), *range(7, 10), 0, 1, *range(1, 5)]
    for layout in (shared, separate):
        assert layout.lengths.tolist() == [2, 1, 3, 4]
        predicted = layout.input_ids[0, layout.predictors[1:2] + 1]  # inside a completion its neighbour predicts
        assert predicted.tolist() == layout.targets[1:2].tolist()


def test_the_models_own_attention_is_restored_also_on_errors(tiny_model):
    model = tiny_model()
    own = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="on purpose"), packed_attention(model):
        raise RuntimeError("on purpose")
    assert model.config._attn_implementation == own


def test_scoring_outside_of_a_session_is_refused(tiny_model, make_experiences):
    scorer = Scorer(CausalLM.of(tiny_model()), pad_token_id=0)
    with pytest.raises(RuntimeError, match=r"outside of `with scorer\.session\(\):`"):
        scorer.score(PreferenceBatch.from_experiences(make_experiences([(2, 2, 2)])))


UNSUITABLE = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # positions are in the attention, not in position ids
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},  # a state runs along the sequence
}


TARGETS = {"bloom": ["query_key_value"], "mamba": ["in_proj"]}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("architecture", UNSUITABLE)
def test_other_models_are_scored_in_padded_rows(make_experiences, plain_logps, architecture):
    config = AutoConfig.for_model(architecture, vocab_size=97, **UNSUITABLE[architecture])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    lm = CausalLM.of(model)
    assert not lm.packs
    config = LoraConfig(r=2, target_modules=TARGETS[architecture], task_type="CAUSAL_LM")
    adapters = AgentAdapters(SharedBaseModel.of(model), config, separate_reference=False, seed=0)
    batch = PreferenceBatch.from_experiences(make_experiences([(5, 3, 7), (2, 6, 1)]))
    scorer = Scorer(lm, pad_token_id=0)
    with adapters.select("actor") as active, torch.no_grad(), scorer.session():
        scores = scorer.score(batch)
        for i, prompt in enumerate(batch.prompts):
            for side, completion in ((scores.chosen, batch.chosen[i]), (scores.rejected, batch.rejected[i])):
                expected = plain_logps(active, prompt, completion)
                torch.testing.assert_close(side.logps[i][side.mask[i]], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cannot share their prompt in"):
        Scorer(lm, pad_token_id=0, prefix_sharing=True)
    with pytest.raises(ValueError, match="prefix_sharing='no'"):
        Scorer(lm, pad_token_id=0, prefix_sharing="no")


def test_a_window_that_attention_is_not_told_of_prevents_packing(tiny_model, lora, make_experiences, plain_logps):
    """Qwen2-MoE applies its sliding window through the mask only."""
    sizes = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "head_dim": 8}
    windowed = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    model = tiny_model("qwen2_moe", shared_expert_intermediate_size=16, **sizes, **windowed).eval()
    lm = CausalLM.of(model)
    assert not lm.packs
    adapters = AgentAdapters(SharedBaseModel.of(model), lora, separate_reference=False, seed=0)
    batch = PreferenceBatch.from_experiences(make_experiences([(9, 6, 3)]))
    scorer = Scorer(lm, pad_token_id=0)
    with adapters.select("actor") as active, torch.no_grad(), scorer.session():
        expected = plain_logps(active, batch.prompts[0], batch.chosen[0])
        torch.testing.assert_close(scorer.score(batch).chosen.logps[0], expected, rtol=1e-5, atol=1e-5)
