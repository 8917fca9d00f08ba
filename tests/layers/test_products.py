"""Products with frozen weights against float64, also where torch has no oneDNN operator."""

import pytest
import torch

from agiledpo.layers import products
from agiledpo.layers.products import linear


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float64, 1e-12)]
)
def test_values(rows, bias, transposed, dtype, tolerance):
    x, weight = draw(rows, 24).to(dtype), draw(17, 24, seed=1).to(dtype)
    shift = draw(17, seed=2).to(dtype) if bias else None
    given = weight.t().contiguous().t() if transposed else weight
    expected = x.double() @ weight.double().t() + (0 if shift is None else shift.double())
    result = linear(x, given, shift)
    assert result.dtype == dtype
    assert (result.double() - expected).norm() <= tolerance * expected.norm()


def test_blocks_of_a_weight_and_views_of_rows():
    x, weight = draw(9, 12).float(), draw(30, 12, seed=1).float()
    for start in range(0, 30, 7):
        block = weight[start : start + 7]
        torch.testing.assert_close(linear(x[2:5], block), x[2:5] @ block.t(), rtol=1e-5, atol=1e-5)
        grad = draw(3, len(block), seed=2).float()
        torch.testing.assert_close(linear(grad, block.t()), grad @ block, rtol=1e-5, atol=1e-5)


def test_without_the_operator_the_plain_product_is_taken(monkeypatch):
    monkeypatch.setattr(products, "_onednn_works", lambda: False)
    x, weight = draw(9, 12).float(), draw(30, 12, seed=1).float()
    assert not products.has_onednn(x)
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))
