"""How many copies of a weight this process holds, whoever holds them."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_ROWS = 64


@dataclass(frozen=True)
class Recognised:
    """What a weight is recognised by, without keeping it alive.

    Attributes:
        shape: Of the weight, two numbers.
        corner: Its first numbers in each dimension, float32; no tensor, or it would count as a copy itself.
    """

    shape: tuple[int, int]
    corner: NDArray[np.float32]

    @staticmethod
    def of(weight: Tensor) -> "Recognised":
        """Remember a matrix."""
        rows, columns = weight.shape
        # Copied, because an array that torch makes keeps its tensor.
        return Recognised((rows, columns), _corner(weight).numpy().copy())

    def copies(self) -> int:
        """Distinct storages of live tensors that hold this matrix, in any precision, also transposed."""
        return len({tensor.untyped_storage().data_ptr() for tensor in live_tensors() if self._is(tensor)})

    def _is(self, tensor: Tensor) -> bool:
        if tensor.dim() != 2 or not tensor.is_floating_point():
            return False
        corner = torch.from_numpy(self.corner)
        # A copy in a coarser precision is a copy too.
        wanted = corner.to(tensor.dtype).float()
        return any(
            matrix.shape == self.shape and torch.equal(_corner(matrix), wanted) for matrix in (tensor, tensor.t())
        )


def live_tensors() -> Iterator[Tensor]:
    """Every tensor with memory that the garbage collector knows, those in modules and optimizers among them."""
    gc.collect()
    for candidate in gc.get_objects():
        # By type(): isinstance would ask lazy modules and proxies for their __class__, and what torch.compile traces
        # with, tensors without memory, is of a type of its own.
        if type(candidate) in (Tensor, nn.Parameter) and candidate.device.type != "meta":
            yield candidate.detach()


def tensors_mb() -> float:
    """Memory of all distinct storages of live tensors, in MB (10^6 bytes)."""
    storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in live_tensors())}
    return sum(storages.values()) / 1e6


def _corner(matrix: Tensor) -> Tensor:
    return matrix[:_ROWS, :_ROWS].detach().float().clone()
