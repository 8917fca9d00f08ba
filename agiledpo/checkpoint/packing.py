"""An optimizer's state as a few long tensors: a file of thousands of small ones takes many times as long to write."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def packed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Join the tensors of an optimizer's state.

    Args:
        state: What an optimizer's ``state_dict`` gave.

    Returns:
        ``param_groups`` as they are, ``values`` by parameter (what is no tensor), and ``tensors``: for each kind and
        dtype the parameters' numbers, the shapes, and all elements one after the other.
    """
    values: dict[int, dict[str, Any]] = {}
    tensors: defaultdict[tuple[str, torch.dtype], list[tuple[int, Tensor]]] = defaultdict(list)
    for number, entries in state["state"].items():
        values[number] = {kind: value for kind, value in entries.items() if not isinstance(value, Tensor)}
        for kind, value in entries.items():
            if isinstance(value, Tensor):
                tensors[kind, value.dtype].append((number, value.detach()))
    return {
        "param_groups": state["param_groups"],
        "values": values,
        "tensors": [
            {
                "kind": kind,
                "numbers": [number for number, _ in members],
                "shapes": [list(tensor.shape) for _, tensor in members],
                "elements": torch.cat([tensor.reshape(-1) for _, tensor in members]).cpu(),
            }
            for (kind, _), members in tensors.items()
        ],
    }


def unpacked(state: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`packed` was given; tensors are views of those in ``state``.

    Args:
        state: What it returned.

    Raises:
        KeyError, TypeError, ValueError: It is something else.
    """
    entries: dict[int, dict[str, Any]] = {number: dict(values) for number, values in state["values"].items()}
    for group in state["tensors"]:
        shapes = [torch.Size(shape) for shape in group["shapes"]]
        sizes = [shape.numel() for shape in shapes]
        if sum(sizes) != group["elements"].numel():
            raise ValueError(f"{group['kind']} has {group['elements'].numel()} elements instead of {sum(sizes)}")
        parts = group["elements"].split(sizes)
        for number, shape, part in zip(group["numbers"], shapes, parts, strict=True):
            entries[number][group["kind"]] = part.view(shape)
    return {"state": entries, "param_groups": state["param_groups"]}
