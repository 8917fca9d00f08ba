"""Attention of packed rows in one call on a GPU: FlexAttention under a block mask.

The kernels skip the blocks of scores that no query sees, which are nearly all between rows, ask a function who sees
whom only where some do, and let grouped heads share their keys (Dong et al. 2024, https://arxiv.org/abs/2412.05496).
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils._triton import has_triton

BLOCK = 128
"""Queries, and keys, of a block: what FlexAttention's kernels are laid out for."""

# Before 2.8 kernels for lengths that vary do not always compile (https://github.com/pytorch/pytorch/issues/147756).
_OLDEST_TORCH = "2.8"
# A head's vector must be a power of two of numbers for the kernels to waste nothing, and tiles of it fit on the chip.
_LEAST_WIDTH, _MOST_BYTES = 16, 512
# Every model, dtype, and training or not, has its own kernels; torch would stop at 8.
_KERNELS = 64
# Errors that rounding explains, as shares of a norm; float32 products may be TF32.
_TOLERANCES = {torch.bfloat16: 0.03, torch.float16: 0.01, torch.float32: 0.01}
# Queries whose scores' masks exist at the same time while a block mask is made.
_QUERIES_AT_ONCE = 8 * BLOCK


def suits(query: Tensor, value: Tensor) -> bool:
    """Whether FlexAttention has a kernel for these tensors, and something to gain.

    Args:
        query: (1, heads, N, D), in the dtype of ``value`` or a wider one.
        value: (1, key heads, N, E).
    """
    return (
        value.device.type == "cuda"
        and query.shape[2] > BLOCK  # less is a single block
        and value.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and all(_has_kernels(width, value.element_size()) for width in (query.shape[-1], value.shape[-1]))
        and _available()
        and works(value.device, value.dtype)
    )


def _has_kernels(width: int, size: int) -> bool:
    return width.bit_count() == 1 and width >= _LEAST_WIDTH and width * size <= _MOST_BYTES


@cache
def _available() -> bool:
    return torch.__version__ >= _OLDEST_TORCH and has_triton()


def prepare(device: torch.device, dtype: torch.dtype) -> None:
    """Try the kernels now: the first use may lie in a checkpointed layer, whose bookkeeping the trial would disturb.

    Args:
        device: Where.
        dtype: Of queries, keys and values.
    """
    if device.type == "cuda" and _available():
        works(device, dtype)


@cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels compile here and give what a plain softmax gives, forward and backward; tried once.

    Args:
        device: Where.
        dtype: Of queries, keys and values.

    Warns:
        UserWarning: They do not; rows are then attended one by one.
    """
    try:
        # The first pass to ask may be one without gradients.
        with torch.inference_mode(False), torch.enable_grad():
            worst = _error(device, dtype)
    except Exception as error:  # a compiler may raise anything, and there is another way
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        if worst < _TOLERANCES[dtype]:
            return True
        problem = f"its results are off by {worst:.2g} of their norm"
    warnings.warn(f"FlexAttention is left aside on {device} in {dtype}, which costs speed: {problem}.", stacklevel=2)
    return False


def _error(device: torch.device, dtype: torch.dtype) -> float:
    """Largest error of output and gradients over two rows, as a share of their norms."""
    bounds, lengths = ((0, 170), (170, 300)), ((90, 50, 30), (60, 1, 69))
    parts = torch.cat([torch.full((n,), part) for row in lengths for part, n in enumerate(row)]).to(device)
    positions = torch.cat([torch.arange(n) + (part > 0) * row[0] for row in lengths for part, n in enumerate(row)]).to(
        device
    )
    block_mask = make_block_mask(bounds, parts, positions, None)
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (
        torch.randn(1, heads, len(parts), 64, generator=generator).to(device, dtype).requires_grad_()
        for heads in (4, 2, 2, 4)
    )
    index = torch.arange(len(parts), device=device)
    seen = block_mask.mask_mod(index[:1], index[:1], index[:, None], index)
    scores = (query.float() @ key.float().repeat_interleave(2, 1).mT * 0.125).masked_fill(~seen, float("-inf"))
    expected = torch.softmax(scores, -1) @ value.float().repeat_interleave(2, 1)
    attended = flex_rows_attention(query, key, value, block_mask, 0.125, None).transpose(1, 2)
    inputs = (query, key, value)
    pairs = [
        (attended, expected),
        *zip(
            torch.autograd.grad(attended, inputs, grad),
            torch.autograd.grad(expected, inputs, grad.float()),
            strict=True,
        ),
    ]
    return max(float(((one - other).norm() / other.norm()).detach()) for one, other in pairs)


def make_block_mask(
    bounds: Sequence[tuple[int, int]], parts: Tensor, positions: Tensor, window: int | None
) -> BlockMask:
    """Which blocks of keys each block of queries sees nothing, something or everything of.

    N is rounded up to whole blocks; the added tokens are a row of their own.

    Args:
        bounds: First and last + 1 token of each row; together they are all N tokens.
        parts: Part of its row that each token belongs to, 0 for the prompt; (N,).
        positions: Position of each token in its own sequence, (N,).
        window: How many positions back a token sees, itself included; None for all.
    """
    added = -len(parts) % BLOCK
    length, device = len(parts) + added, parts.device
    lengths = torch.tensor([*(stop - start for start, stop in bounds), added])
    row = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(lengths).to(device)
    part, position = (F.pad(x.to(torch.int32), (0, added)) for x in (parts, positions))
    # A tensor, because kernels would be compiled anew for each window that is a number; all positions are above -1.
    beyond = torch.full_like(position, -1) if window is None else position - window

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (part[key] == 0) | (part[key] == part[query])
        return (row[key] == row[query]) & (key <= query) & own & (position[key] > beyond[query])

    # Counted for some queries at a time: the mask of all N x N scores at once could be larger than the model.
    index, none = torch.arange(length, device=device), torch.empty(0)
    seen = torch.cat(
        [
            sees(none, none, queries[:, None], index).view(-1, BLOCK, length // BLOCK, BLOCK).sum((1, 3))
            for queries in index.split(_QUERIES_AT_ONCE)
        ]
    )
    whole = seen == BLOCK**2
    return BlockMask.from_kv_blocks(
        *_listed((seen > 0) & ~whole), *_listed(whole), BLOCK, sees, seq_lengths=(length, length)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many of a boolean row are true, (1, 1, blocks), and which, followed by the others, (1, 1, blocks, blocks)."""
    wanted = blocks.to(torch.int32)[None, None]
    return wanted.sum(-1, dtype=torch.int32), wanted.argsort(dim=-1, descending=True, stable=True).to(torch.int32)


def flex_rows_attention(
    query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask, scale: float, softcap: float | None
) -> Tensor:
    """Softmax attention of packed rows.

    Args:
        query: (1, heads, N, D).
        key: (1, key heads, N, D); the number of heads is a multiple of that of key heads.
        value: (1, key heads, N, E).
        block_mask: From :func:`make_block_mask`.
        scale: Factor on the scores.
        softcap: Cap on the scores (Gemma 2); None for none.

    Returns:
        (1, N, heads, E), through kernels compiled for a GPU; elsewhere through the graphs they are compiled from.
    """
    length = query.shape[2]
    # Whole blocks: kernels have no edge to get wrong (https://github.com/pytorch/pytorch/issues/153799).
    q, k, v = (F.pad(x, (0, 0, 0, block_mask.seq_lengths[0] - length)) for x in (query, key, value))
    backend = "inductor" if value.device.type == "cuda" else "aot_eager"
    with torch._dynamo.config.patch(recompile_limit=_KERNELS):
        attended = _compiled(backend)(q, k, v, block_mask, repr(scale), None if softcap is None else repr(softcap))
    return attended[:, :, :length].transpose(1, 2)


@cache
def _compiled(backend: str) -> Callable[..., Tensor]:
    """For any number of tokens without compiling again."""
    return torch.compile(_attend, backend=backend, dynamic=True, fullgraph=True)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask, scale_text: str, softcap_text: str | None
) -> Tensor:
    # Numbers come as text because torch.compile would make inputs of them, and flex kernels need constants.
    score_mod = None if softcap_text is None else _capped(float(softcap_text))
    return flex_attention(
        query,
        key,
        value,
        score_mod,
        block_mask,
        float(scale_text),
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _capped(softcap: float) -> Callable[..., Tensor]:
    def cap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap
