"""FlexAttention of packed rows: against a softmax written out here, the tiles that CPUs use, and whole models.

Its kernels need a GPU. The graphs they are compiled from, derivatives included, run here in float32 and float64.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from agiledpo.adapters.offload import activations_offloaded
from agiledpo.scoring import CausalLM, PreferenceBatch, Scorer, flex
from agiledpo.scoring.attention import PackedRows, attend_packed, attention_path
from agiledpo.scoring.layout import packed_rows

SCALE = 0.4
# Lengths of the prompt and of the completions of each row, one where prompts are not shared.
Rows = list[tuple[int, list[int]]]


@pytest.fixture(autouse=True, scope="module")
def gradients_on_a_cpu() -> Iterator[None]:
    """Let torch trace FlexAttention's backward pass, which it refuses where it has no kernel for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_flex, "_validate_device", lambda *_: None)
        yield


def lay_out(rows: Rows) -> PackedRows:
    bounds, parts, positions = [], [], []
    for prompt, completions in rows:
        start = len(parts)
        parts += [0] * prompt
        positions += range(prompt)
        for number, length in enumerate(completions, 1):
            parts += [number] * length
            positions += range(prompt, prompt + length)
        bounds.append((start, len(parts)))
    return PackedRows(tuple(bounds), torch.tensor(parts), torch.tensor(positions))


def dense_mask(rows: Rows, window: int | None) -> Tensor:
    """Who sees whom, pair by pair."""
    tokens = [
        (row, part, position)
        for row, (prompt, completions) in enumerate(rows)
        for part, length in enumerate([prompt, *completions])
        for position in range(prompt * (part > 0), prompt * (part > 0) + length)
    ]
    return torch.tensor(
        [
            [
                row == other_row
                and other_part in (0, part)
                and 0 <= position - other < (math.inf if window is None else window)
                for other_row, other_part, other in tokens
            ]
            for row, part, position in tokens
        ]
    )


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float | None) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * SCALE
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (torch.softmax(scores.masked_fill(~mask, -math.inf), -1) @ v).transpose(1, 2)


def make_inputs(tokens: int, heads: tuple[int, int], dtype: torch.dtype, width: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(1, n, tokens, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (heads[0], heads[1], heads[1])
    ]


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


lengths = st.integers(1, 9)
some_rows = st.lists(st.tuples(lengths, st.lists(lengths, min_size=1, max_size=2)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(
    rows=some_rows,
    window=st.none() | st.integers(1, 6),
    softcap=st.sampled_from([None, 1.5]),
    heads=st.sampled_from([(4, 2), (2, 2), (3, 1)]),
)
def test_values_and_gradients(rows: Rows, window: int | None, softcap: float | None, heads: tuple[int, int]) -> None:
    packed = lay_out(rows)
    exact = make_inputs(len(packed.parts), heads, torch.float64)
    actual = flex.flex_rows_attention(*exact, packed.block_mask(window), SCALE, softcap)
    expected = dense(*exact, dense_mask(rows, window), softcap)
    for ours, theirs in zip(with_gradients(actual, exact), with_gradients(expected, exact), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

    single = make_inputs(len(packed.parts), heads, torch.float32)
    actual = flex.flex_rows_attention(*single, packed.block_mask(window), SCALE, softcap)
    sizes = {"packed_rows": packed, "scaling": SCALE, "softcap": softcap, "sliding_window": window}
    tiled = attend_packed(torch.nn.Identity(), *single, None, **sizes)[0]
    for ours, theirs in zip(with_gradients(actual, single), with_gradients(tiled, single), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 300), st.lists(st.integers(1, 200), min_size=1, max_size=2)), min_size=1, max_size=6
    ),
    window=st.none() | st.integers(1, 300),
)
def test_blocks_are_those_that_torch_finds(rows: Rows, window: int | None) -> None:
    mask = lay_out(rows).block_mask(window)
    tokens = sum(prompt + sum(completions) for prompt, completions in rows)
    whole = mask.seq_lengths[0]
    assert mask.seq_lengths == (whole, whole)
    assert whole == -(-tokens // 128) * 128
    expected = torch_flex.create_block_mask(mask.mask_mod, None, None, whole, whole, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        numbers, theirs = (getattr(x, f"{name}_num_blocks") for x in (mask, expected))
        torch.testing.assert_close(numbers, theirs)
        indices, theirs = (getattr(x, f"{name}_indices") for x in (mask, expected))
        torch.testing.assert_close(indices, theirs)


def test_added_tokens_see_each_other_and_nobody_else() -> None:
    """A row of the softmax without any score would be not-a-number in one kernel or another."""
    rows = [(5, [3, 2]), (4, [2])]
    sees = lay_out(rows).block_mask(None).mask_mod
    index = torch.arange(128)
    mask = sees(index, index, index[:, None], index)
    torch.testing.assert_close(mask[:16, :16], dense_mask(rows, None))
    assert not mask[:16, 16:].any()
    assert not mask[16:, :16].any()
    torch.testing.assert_close(mask[16:, 16:], torch.ones(112, 112, dtype=torch.bool).tril())


# Three, four and ten blocks.
BATCHES: list[Rows] = [
    [(200, [60, 50]), (20, [1])],
    [(300, [100, 30]), (20, [9, 9])],
    [(300, [100, 30])] * 2 + [(1, [1, 300])],
]


def test_lengths_and_windows_compile_once() -> None:
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    for rows in BATCHES:
        for window in (None, 20):
            packed = lay_out(rows)
            inputs = make_inputs(len(packed.parts), (4, 2), torch.float32)
            with torch.no_grad():
                without = flex.flex_rows_attention(*inputs, packed.block_mask(window), SCALE, 1.5)
            actual = flex.flex_rows_attention(*inputs, packed.block_mask(window), SCALE, 1.5)
            torch.testing.assert_close(without, actual.detach())
            expected = dense(*inputs, dense_mask(rows, window), 1.5)
            for ours, theirs in zip(with_gradients(actual, inputs), with_gradients(expected, inputs), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # With gradients and without.
    assert counters["stats"]["unique_graphs"] - before == 2


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("activations", ["kept", "recomputed", "offloaded"])
@pytest.mark.parametrize("share", [True, False])
def test_models_score_the_same(
    tiny_model, make_experiences, monkeypatch: pytest.MonkeyPatch, architecture: str, activations: str, share: bool
) -> None:
    batch = PreferenceBatch.from_experiences(make_experiences([(9, 6, 3), (1, 1, 4), (12, 1, 1)]))
    torch._dynamo.reset()  # tracing must not disturb what watches over saved tensors, nor be disturbed
    results = []
    for suits in (False, True):
        monkeypatch.setattr(flex, "suits", lambda query, value, answer=suits: answer)
        model = tiny_model(architecture, dtype=torch.float64).train()
        if activations == "recomputed":
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        lm = CausalLM.of(model)
        layout = packed_rows(batch, share_prompts=share)
        moved = model.parameters() if activations == "offloaded" else None
        with lm.prepared(), nullcontext() if moved is None else activations_offloaded(moved, smallest=64):
            hidden = lm.hidden_states(layout)[0]
            weights = torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).view_as(hidden)
            grads = torch.autograd.grad((hidden * weights).sum(), list(lm.body.parameters()))
        assert bool(layout.packed._block_masks) == suits
        assert bool(layout.packed._tiles) != suits
        scorer = Scorer(lm, pad_token_id=0, prefix_sharing=share)
        with torch.no_grad(), scorer.session():
            scores = scorer.score(batch)
        results.append([scores.chosen.logps, scores.rejected.logps, hidden.detach(), *grads])
    for tiled, flexible in zip(*results, strict=True):
        torch.testing.assert_close(flexible, tiled, rtol=1e-9, atol=1e-9)


def test_models_are_found_to_pack(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe, which looks for the window that layers were told of, passes through FlexAttention as well."""
    monkeypatch.setattr(flex, "suits", lambda query, value: True)
    assert all(CausalLM.of(tiny_model(architecture)).packs for architecture in ("llama", "mistral", "gemma2"))


@pytest.mark.parametrize(
    ("tokens", "width", "dtype", "suits"),
    [
        (129, 64, torch.bfloat16, True),
        (128, 64, torch.bfloat16, False),  # a single block
        (500, 256, torch.float16, True),
        (500, 256, torch.float32, False),
        (500, 128, torch.float32, True),
        (500, 96, torch.bfloat16, False),
        (500, 8, torch.bfloat16, False),
        (500, 64, torch.float64, False),
    ],
)
def test_when_it_is_used(
    monkeypatch: pytest.MonkeyPatch, tokens: int, width: int, dtype: torch.dtype, suits: bool
) -> None:
    monkeypatch.setattr(flex, "_available", lambda: True)
    monkeypatch.setattr(flex, "works", lambda device, kind: True)
    with FakeTensorMode():
        query, value = (torch.empty(1, n, tokens, width, dtype=dtype, device="cuda") for n in (4, 2))
        assert attention_path(query, value, None) == ("flex" if suits else "rows")
        assert attention_path(query, value, 50.0) == ("flex" if suits else "tiles")
    on_a_cpu = torch.empty(1, 2, tokens, width, dtype=dtype)
    assert attention_path(on_a_cpu, on_a_cpu, None) == "tiles"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_are_tried_before_they_are_trusted(dtype: torch.dtype) -> None:
    for context in (nullcontext, torch.no_grad, torch.inference_mode):
        with context():
            assert flex.works.__wrapped__(torch.device("cpu"), dtype)
    assert flex._error(torch.device("cpu"), dtype) < (1e-5 if dtype == torch.float32 else 0.02)


def test_kernels_that_are_wrong_or_do_not_compile_are_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    original = flex.flex_rows_attention

    def without_its_mask(query: Tensor, key: Tensor, value: Tensor, mask: object, *args: float) -> Tensor:
        rows = ((0, query.shape[2]),)
        everything = flex.make_block_mask(rows, torch.zeros(query.shape[2]), torch.arange(query.shape[2]), None)
        return original(query, key, value, everything, *args)

    def refused(*_: object) -> Tensor:
        raise RuntimeError("no kernel for this chip\nand a thousand lines of log")

    for broken, message in ((without_its_mask, "off by"), (refused, "RuntimeError: no kernel for this chip.")):
        monkeypatch.setattr(flex, "flex_rows_attention", broken)
        with pytest.warns(UserWarning, match=f"FlexAttention is left aside on cpu.*{message}"):
            assert not flex.works.__wrapped__(torch.device("cpu"), torch.float32)
