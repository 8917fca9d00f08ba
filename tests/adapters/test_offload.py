"""Offloaded activations: gradients stay the same, weights stay where they are."""

import pytest
import torch

from agiledpo.adapters.offload import activations_offloaded


def test_gradients_are_the_same_and_only_large_activations_move(monkeypatch):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    small, large = torch.ones(2, 64), torch.linspace(-1, 1, 32 * 64).view(32, 64)
    moved = []
    empty = torch.empty

    def watched(shape, **options):
        moved.append(tuple(shape))
        return empty(shape, **options)

    def loss():
        return sum(torch.tanh(x @ weight).square().sum() for x in (small, large))

    (expected,) = torch.autograd.grad(loss(), weight)
    with activations_offloaded([weight], smallest=1024), monkeypatch.context() as patch:
        patch.setattr(torch, "empty", watched)
        value = loss()
    (actual,) = torch.autograd.grad(value, weight)
    assert torch.equal(actual, expected)
    # The large input of the product, the tanh's result and the square's argument, which is the same tensor.
    assert moved == [(32, 64)] * 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_model_takes_the_same_gradients(tiny_model, checkpointing):
    model = tiny_model("llama").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.arange(3, 33)[None]

    def gradients():
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    expected = gradients()
    model.zero_grad()
    with activations_offloaded(model.parameters(), smallest=1):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert torch.equal(torch.cat([p.grad.flatten() for p in model.parameters()]), expected)
