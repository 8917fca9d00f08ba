"""Moments follow parameters into larger and scaled ones."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from agiledpo.algorithms.core.optimizers import move_optimizer

SHAPES = {"a": (2, 5), "b": (3, 2), "bias": (3,)}
LARGER = {"a": (4, 5), "new": (2, 2), "b": (3, 4), "bias": (3,)}


def draw(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in shapes.items()
    }


def step(optimizer: Optimizer, gradients):
    for parameter, gradient in gradients:
        parameter.grad = gradient.clone()
    optimizer.step()


@pytest.fixture
def old():
    return draw(SHAPES, 0)


ADAMW = {
    "adamw": lambda p: AdamW(p, lr=0.1, weight_decay=0.3, eps=0.0),
    "amsgrad": lambda p: AdamW(p, lr=0.1, weight_decay=0.3, eps=0.0, amsgrad=True, fused=True),
}
KINDS = {**ADAMW, "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9)}
POWERS = {"exp_avg": -1, "momentum_buffer": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2}


def moved(old, make, factor):
    """An optimizer after two steps and a move in which b was scaled, its new parameters, and its states before."""
    optimizer = make(old.values())
    for seed in (1, 2):
        step(optimizer, zip(old.values(), draw(SHAPES, seed).values(), strict=True))
    new = draw(LARGER, 3)
    for name, parameter in old.items():
        new[name].data[corner(parameter)] = parameter.data * (factor if name == "b" else 1.0)
    states = {name: {key: value.clone() for key, value in optimizer.state[p].items()} for name, p in old.items()}
    move_optimizer(optimizer, old, new, {"b": factor})
    return optimizer, new, states


def corner(tensor):
    return tuple(map(slice, tensor.shape))


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_moments_are_padded_and_scaled_as_gradients_are(old, make, factor):
    optimizer, new, states = moved(old, make, factor)
    for name in old:
        state = optimizer.state[new[name]]
        assert state.keys() == states[name].keys()
        for kind, value in state.items():
            expected = torch.zeros(new[name].shape if kind in POWERS else (), dtype=torch.float64)
            scale = factor ** POWERS.get(kind, 0) if name == "b" else 1.0
            expected[corner(states[name][kind])] = states[name][kind].double() * scale
            assert torch.allclose(value.double(), expected, rtol=1e-14, atol=0), (name, kind)
    assert len(optimizer.state) == len(old)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in new.values()]


@pytest.mark.parametrize("make", ADAMW.values(), ids=ADAMW)
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_what_was_there_goes_on_as_if_it_had_not_moved(old, make, factor):
    # AdamW's step (with epsilon 0) does not depend on the scale of the gradient, which is 1 / c for c B.
    optimizer, new, states = moved(old, make, factor)
    twin = make(old.values())
    twin.state.update({old[name]: state for name, state in states.items()})
    gradients = draw(SHAPES, 4)
    larger = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in LARGER.items()}
    for name, gradient in gradients.items():
        larger[name][corner(gradient)] = gradient.data / (factor if name == "b" else 1.0)
    before = {name: p.detach().clone() for name, p in {**new, **{f"old {name}": p for name, p in old.items()}}.items()}
    step(optimizer, [(new[name], larger[name]) for name in SHAPES])
    step(twin, [(old[name], gradients[name].detach()) for name in SHAPES])
    for name, parameter in old.items():
        decay = 1 - 0.1 * 0.3
        expected = before[name][corner(parameter)] * decay + parameter - before[f"old {name}"] * decay
        assert torch.allclose(new[name][corner(parameter)], expected, rtol=1e-12, atol=1e-14), name


def test_groups_keep_their_parameters_and_settings(old):
    optimizer = AdamW([{"params": [old["a"]], "lr": 0.5}, {"params": [old["b"], old["bias"]], "betas": (0.5, 0.6)}])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    new = draw(LARGER, 3)
    move_optimizer(optimizer, old, new, {})
    first, second = optimizer.param_groups
    assert [id(p) for p in first["params"]] == [id(new["a"]), id(new["new"])]
    assert [id(p) for p in second["params"]] == [id(new["b"]), id(new["bias"])]
    assert (first["lr"], second["betas"]) == (0.5, (0.5, 0.6))
    step(optimizer, [(new["a"], torch.ones(LARGER["a"], dtype=torch.float64))])
    schedule.step()
    assert (first["lr"], second["lr"]) == pytest.approx((0.05, 0.0001))


def test_an_optimizer_of_unknown_scaling_is_refused_only_where_something_is_scaled(old):
    optimizer = RMSprop(old.values())
    step(optimizer, zip(old.values(), draw(SHAPES, 1).values(), strict=True))
    new = draw(LARGER, 3)
    with pytest.raises(ValueError, match="state 'square_avg' cannot be scaled"):
        move_optimizer(optimizer, old, new, {"b": 2.0})
    assert optimizer.param_groups[0]["params"][0] is old["a"]
    assert len(optimizer.state) == 3
    move_optimizer(optimizer, old, new, {})
    assert torch.equal(optimizer.state[new["a"]]["square_avg"][2:], torch.zeros(2, 5, dtype=torch.float64))
