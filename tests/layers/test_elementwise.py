"""Norms and gates against autograd in float64 and against the modules of Transformers."""

import pytest
import torch

from agiledpo.layers import PLAIN, compiled, elementwise, gating, norms


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_rms_norm_and_its_derivative():
    x, weight, grad = draw(5, 8), draw(8, seed=1).detach(), draw(5, 8, seed=2).detach()
    expected = torch.nn.functional.rms_norm(x, (8,), weight, eps=0.1)
    actual, inverse = elementwise.rms_norm(x.detach(), weight, 0.1, torch.float64)
    torch.testing.assert_close(actual, expected.detach())
    (derivative,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(elementwise.rms_norm_grad(grad, x.detach(), weight, inverse), derivative)


def test_gated_silu_and_its_derivatives():
    gate, up, grad = draw(5, 8), draw(5, 8, seed=1), draw(5, 8, seed=2).detach()
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(elementwise.gated_silu(gate.detach(), up.detach()), expected.detach())
    actual = elementwise.gated_silu_grad(grad, gate.detach(), up.detach())
    for one, other in zip(actual, torch.autograd.grad(expected, (gate, up), grad), strict=True):
        torch.testing.assert_close(one, other)


def test_shifted_exp_works_in_place():
    logits = draw(3, 7).detach()
    expected = torch.exp(logits - 0.5)
    weights, total = elementwise.shifted_exp(logits, torch.full((3, 1), 0.5, dtype=torch.float64))
    assert weights.data_ptr() == logits.data_ptr()
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(total, expected.sum(1, keepdim=True))


def test_compiled_formulas_agree():
    fast = compiled("default")
    x, weight = draw(5, 8).detach().float(), draw(8, seed=1).detach().float()
    for ours, theirs in zip(
        fast.rms_norm(x, weight, 1e-5, torch.bfloat16), PLAIN.rms_norm(x, weight, 1e-5, torch.bfloat16), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(fast.gated_silu_grad(x, x, x), PLAIN.gated_silu_grad(x, x, x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "granite", "phi3", "olmo2", "smollm3"]
)
def test_modules_of_transformers(tiny_model, architecture):
    """Every norm and every block with a SiLU gate is known; values and gradients are those of the module."""
    model = tiny_model(architecture).requires_grad_(False)
    for module in model.modules():
        if norms.fits(module):
            module.weight.data += torch.linspace(-0.3, 0.3, len(module.weight))
    known = {norms: 0, gating: 0}
    for module in model.modules():
        for kind in known:
            if not kind.fits(module):
                continue
            known[kind] += 1
            width = len(module.weight) if kind is norms else module.gate_proj.in_features
            x = (draw(1, 4, width).detach() * 3).float().requires_grad_()
            results = [module(x), kind.forward(module, x, elementwise=PLAIN)]
            torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
            one, other = (torch.autograd.grad(y.square().sum(), x)[0] for y in results)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert known[norms] == sum("norm" in type(m).__name__.lower() for m in model.modules()) > 0
    assert known[gating] == (0 if architecture in ("gemma", "gemma2", "phi3") else model.config.num_hidden_layers)
