"""Keeping what backward needs in the CPU's memory instead of the accelerator's."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

# Smaller tensors cost more to move than they free.
_SMALLEST = 2**16


@contextmanager
def activations_offloaded(weights: Iterable[Tensor], *, smallest: int = _SMALLEST) -> Iterator[None]:
    """Move the activations that autograd saves inside this context to the CPU, and back when backward asks for them.

    What gradient checkpointing keeps, the inputs of the decoder layers, it keeps itself and is not moved.

    Args:
        weights: Tensors that stay where they are, as they take no memory of their own: the model's parameters.
        smallest: Elements from which on a tensor is moved.
    """
    staying = {weight.untyped_storage().data_ptr() for weight in weights}

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        whole = tensor.is_contiguous() and 0 not in tensor.stride()  # a broadcast view would take more memory moved
        if not whole or tensor.numel() < smallest or tensor.untyped_storage().data_ptr() in staying:
            return tensor.device, tensor
        there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, there.copy_(tensor)

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=True)

    with saved_tensors_hooks(pack, unpack):
        yield
