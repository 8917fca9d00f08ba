"""Attention of packed rows: against plain softmax attention, and which models may use it."""

import math

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from agiledpo.adapters import AgentAdapters, SharedBaseModel
from agiledpo.scoring import CausalLM, PreferenceBatch, Scorer
from agiledpo.scoring.attention import PackedRows, attend_packed, fused_row_attention, packed_attention
from agiledpo.scoring.layout import packed_rows

HEADS, KEY_HEADS, D = 4, 2, 6
# Rows [p p p | c c | r r r r], [p | c | r] and [p p p p p p p | c c | r], whose completions share a tile.
ROWS = PackedRows(
    ((0, 9), (9, 12), (12, 22)),
    torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 0, 1, 2, *[0] * 7, 1, 1, 2]),
    torch.tensor([0, 1, 2, 3, 4, 3, 4, 5, 6, 0, 1, 1, *range(7), 7, 8, 7]),
)
N = len(ROWS.parts)


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((HEADS, N, D), (KEY_HEADS, N, D), (KEY_HEADS, N, D))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def full_mask(window):
    mask = torch.zeros(N, N, dtype=torch.bool)
    for (start, stop), row in zip(ROWS.bounds, ROWS.masks(window), strict=True):
        mask[start:stop, start:stop] = row
    return mask


def plain(q, k, v, softcap, window):
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * 0.4
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (torch.softmax(scores.masked_fill(~full_mask(window), -math.inf), -1) @ v).transpose(0, 1)


def packed(q, k, v, softcap=None, window=None):
    settings = {"packed_rows": ROWS, "scaling": 0.4, "softcap": softcap, "sliding_window": window}
    return attend_packed(torch.nn.Identity(), q[None], k[None], v[None], None, **settings)[0][0]


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_values_and_gradients(softcap, window):
    qkv = inputs()
    expected, actual = plain(*qkv, softcap, window), packed(*qkv, softcap, window)
    torch.testing.assert_close(actual, expected)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    pairs = [torch.autograd.grad((x * weights).sum(), qkv) for x in (actual, expected)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_finite_differences(softcap):
    assert torch.autograd.gradcheck(lambda *qkv: packed(*qkv, softcap), inputs())


def test_tiles_leave_out_what_the_other_completion_holds_where_that_is_much():
    tiles = ROWS.tiles(None)
    assert ROWS.lengths == [3, 2, 4, 1, 1, 1, 7, 2, 1]
    # Apart 2 * 5 + 4 * 7 = 38 scores, together 6 * 9 = 54; in the second row 4 against 6.
    assert [(list(tile.queries), list(tile.keys)) for tile in tiles] == [
        ([0], [0]), ([1], [0, 1]), ([2], [0, 2]), ([3], [3]), ([4], [3, 4]), ([5], [3, 5]),
        ([6], [6]), ([7, 8], [6, 7, 8]),
    ]  # fmt: skip
    assert [tile.bias if tile.bias is None else tuple(tile.bias.shape) for tile in tiles] == [
        None, (2, 5), (4, 7), None, (1, 2), (1, 2), None, (3, 10)
    ]  # fmt: skip


def test_the_fused_kernel_gives_the_same():
    q, k, v = inputs(torch.float32)
    for (start, stop), mask in zip(ROWS.bounds, ROWS.masks(None), strict=True):
        fused = fused_row_attention(*(x[:, start:stop] for x in (q, k, v)), mask, 0.4)
        torch.testing.assert_close(fused.transpose(0, 1), packed(q, k, v)[start:stop])


def test_bfloat16_inputs_cost_only_their_own_rounding():
    low = inputs(torch.bfloat16)
    exact = packed(*(x.detach().double() for x in low))
    ours = packed(*low)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-6)


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
