"""Packing an optimizer's state and back loses nothing, whatever the optimizer keeps."""

import pytest
import torch
from torch import nn

from agiledpo.checkpoint.packing import packed, unpacked

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters),
    "rprop": lambda parameters: torch.optim.Rprop(parameters),
}


def trained(make, *, steps=2):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), (1, 2, 3), ()]
    dtypes = [torch.float32, torch.float32, torch.float64, torch.float32]
    parameters = [
        nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    optimizer = make(parameters)
    for _ in range(steps):
        for parameter in parameters[:3]:  # the last one never learns, so nothing is kept of it
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_there_and_back(name, steps, tmp_path):
    state = trained(OPTIMIZERS[name], steps=steps).state_dict()
    torch.save(packed(state), tmp_path / "state.pt")
    back = unpacked(torch.load(tmp_path / "state.pt", weights_only=True))
    assert back["param_groups"] == state["param_groups"]
    assert back["state"].keys() == state["state"].keys()
    for number, entries in state["state"].items():
        assert back["state"][number].keys() == entries.keys()
        for kind, value in entries.items():
            found = back["state"][number][kind]
            if isinstance(value, torch.Tensor):
                assert found.dtype == value.dtype
                assert found.shape == value.shape
                assert torch.equal(found, value)
            else:
                assert found == value


def test_there_are_few_tensors():
    state = trained(OPTIMIZERS["adamw"]).state_dict()
    assert len(packed(state)["tensors"]) == 5  # steps; both moments, in float32 and float64


def test_what_does_not_add_up_is_named():
    state = packed(trained(OPTIMIZERS["adamw"]).state_dict())
    group = next(group for group in state["tensors"] if group["kind"] == "exp_avg")
    group["elements"] = group["elements"][:-1]
    with pytest.raises(ValueError, match=r"exp_avg has .* elements instead of"):
        unpacked(state)
