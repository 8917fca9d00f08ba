"""The fused LoRA layer against its formula, finite differences and PEFT's own forward pass."""

import pytest
import torch
from torch import nn

from agiledpo.layers import lora

K, N, R = 6, 5, 3


def parts(dtype=torch.float64, *, bias=True, adapter_dtype=None):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, as_dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(as_dtype)

    adapter_dtype = adapter_dtype or dtype
    return (
        draw(2, 4, K).requires_grad_(),
        draw(N, K),
        draw(N) if bias else None,
        draw(R, K, as_dtype=adapter_dtype).requires_grad_(),
        draw(N, R, as_dtype=adapter_dtype).requires_grad_(),
        0.7,
    )


def formula(x, weight, bias, a, b, scaling):
    product = x @ weight.t() + scaling * (x @ a.t()) @ b.t()
    return product if bias is None else product + bias


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_finite_differences(bias):
    arguments = parts(bias=bias)
    torch.testing.assert_close(lora.lora_linear(*arguments), formula(*arguments))
    x, weight, bias_, a, b, scaling = arguments
    assert torch.autograd.gradcheck(lambda x, a, b: lora.lora_linear(x, weight, bias_, a, b, scaling), (x, a, b))


def test_low_precision_products_keep_float32_adapters():
    low = parts(torch.bfloat16, adapter_dtype=torch.float32)
    exact = [x.detach().double().requires_grad_() if isinstance(x, torch.Tensor) else x for x in low]
    result, expected = lora.lora_linear(*low), formula(*exact)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, rtol=2**-7, atol=0.02)
    gradients = torch.autograd.grad(result.float().sum(), (low[0], low[3], low[4]))
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    for one, other in zip(gradients, torch.autograd.grad(expected.sum(), (exact[0], exact[3], exact[4])), strict=True):
        assert (one.double() - other).norm() < 0.01 * other.norm()


def test_a_share_below_the_rounding_of_the_output_is_not_lost_on_the_way():
    """The base gives 256, whose bfloat16 neighbour is 258; twice 0.6 from the adapter must round up, not away."""
    x, weight = torch.ones(1, 2, dtype=torch.bfloat16), torch.full((1, 2), 128.0, dtype=torch.bfloat16)
    a, b = torch.ones(1, 2), torch.full((1, 1), 0.6)
    assert float(lora.lora_linear(x, weight, None, a, b, 1.0)) == 258.0


LAYERS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
}


@pytest.mark.parametrize("config", LAYERS.values(), ids=LAYERS)
def test_peft_layers_give_what_they_give_themselves(lora_model, config):
    layer = lora_model(**config).base_model.model.model.layers[0].mlp.down_proj
    x = torch.randn(1, 7, layer.in_features, generator=torch.Generator().manual_seed(1)).requires_grad_()
    results = [forward(x) for forward in (layer, lambda x: lora.forward(layer, x))]
    torch.testing.assert_close(*results)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), wanted) for y in results), strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_merged_and_disabled_layers_go_peft_s_way(lora_model):
    model = lora_model(lora_dropout=0.5)
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    x = torch.randn(1, 7, layer.in_features, generator=torch.Generator().manual_seed(1))
    layer.train()
    results = []
    for forward in (layer, lambda x: lora.forward(layer, x)):
        torch.manual_seed(3)
        results.append(forward(x))
    torch.testing.assert_close(*results)
    layer.eval()
    with_adapter = layer(x)
    layer.merge()
    torch.testing.assert_close(lora.forward(layer, x), with_adapter, rtol=1e-4, atol=1e-5)
    layer.unmerge()
    with model.disable_adapter():
        torch.testing.assert_close(lora.forward(layer, x), layer.base_layer(x))
        assert not torch.allclose(lora.forward(layer, x), with_adapter)


def test_other_layers_do_not_fit(lora_model):
    layers = [m for m in lora_model("gpt2").modules() if lora.fits(m)]
    assert layers == []  # GPT-2's are Conv1D
    assert not lora.fits(nn.Linear(2, 2))
