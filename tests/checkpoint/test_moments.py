"""An optimizer's state that finds its place in an adapter that has grown."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from agiledpo.checkpoint.moments import check_moments, load_moments, moments_by_name


def adam_after(weights, gradients):
    """AdamW over parameters that have seen some gradients."""
    parameters = {name: nn.Parameter(value.clone()) for name, value in weights.items()}
    optimizer = AdamW(parameters.values(), lr=0.1, weight_decay=0.0, eps=0.0)
    for step in gradients:
        for name, gradient in step.items():
            parameters[name].grad = gradient.clone()
        optimizer.step()
    return parameters, optimizer


def test_moments_of_a_grown_and_rescaled_product_are_those_it_would_have_had():
    """W = s B A: with B' = c B and s' = s / c the gradient of B' is that of B over c, and A's is the same."""
    generator = torch.Generator().manual_seed(0)
    rank, grown, c = 2, 5, 0.25

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    steps = [{"a": draw(rank, 3), "b": draw(4, rank)} for _ in range(3)]
    small, optimizer = adam_after({"a": draw(rank, 3), "b": draw(4, rank)}, steps)
    moments = moments_by_name(optimizer.state_dict(), list(small))
    check_moments(moments, {name: parameter.shape for name, parameter in small.items()})

    def grow(values, factor):
        return {
            "a": torch.cat([values["a"], torch.zeros(grown - rank, 3, dtype=torch.float64)]),
            "b": torch.cat([values["b"] * factor, torch.zeros(4, grown - rank, dtype=torch.float64)], 1),
        }

    _, expected = adam_after(grow(small, c), [grow(step, 1 / c) for step in steps])
    large = {name: nn.Parameter(value) for name, value in grow(small, c).items()}
    fresh = AdamW(large.values(), lr=0.5)
    load_moments(fresh, large, moments, {"b": c})
    found, wanted = fresh.state_dict()["state"], expected.state_dict()["state"]
    for number in (0, 1):
        for kind in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(found[number][kind], wanted[number][kind], rtol=1e-12, atol=0)
    assert fresh.param_groups[0]["lr"] == 0.5


def test_parameters_that_are_new_start_afresh():
    parameters, optimizer = adam_after({"a": torch.ones(2)}, [{"a": torch.ones(2)}])
    more = {"new": nn.Parameter(torch.ones(3)), "a": nn.Parameter(torch.ones(2))}
    fresh = AdamW(more.values())
    load_moments(fresh, more, moments_by_name(optimizer.state_dict(), list(parameters)), {})
    assert list(fresh.state) == [more["a"]]
    more["new"].grad = torch.ones(3)
    fresh.step()
    assert fresh.state[more["new"]]["step"] == 1


def test_state_that_does_not_belong_is_refused():
    _, optimizer = adam_after({"a": torch.ones(2), "b": torch.ones(1)}, [{"a": torch.ones(2), "b": torch.ones(1)}])
    with pytest.raises(ValueError, match="2 parameters and 1 names"):
        moments_by_name(optimizer.state_dict(), ["a"])
    moments = moments_by_name(optimizer.state_dict(), ["a", "b"])
    with pytest.raises(ValueError, match="is of b"):
        check_moments(moments, {"a": torch.Size([2])})
    with pytest.raises(ValueError, match=r"of b does not have its shape, \(2,\)"):
        check_moments(moments, {"a": torch.Size([2]), "b": torch.Size([2])})
