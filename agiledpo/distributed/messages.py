"""Values and errors as they go from process to process."""

import io
import pickle
from typing import Any

import torch
from torch import Tensor

# Smaller tensors are not worth a message of their own.
_SMALL = 1 << 14

_KNOWN = "known to all processes"


def packed(value: Any) -> tuple[bytes, list[Tensor]]:
    """A value as bytes without its large tensors, and these.

    A pickled tensor takes all with it that lies in the same memory, and memory twice over. What lies apart is sent as
    it is.

    Args:
        value: Of plain values, of dataclasses, and of tensors on the CPU.

    Returns:
        The bytes, and the tensors as flat uint8.
    """
    apart: list[Tensor] = []
    buffer = io.BytesIO()

    class Packer(pickle.Pickler):
        def persistent_id(self, entry: Any) -> Any:
            if not isinstance(entry, Tensor):
                return None
            flat = _bytes(entry.detach().contiguous())
            if len(flat) < _SMALL:
                return entry.dtype, tuple(entry.shape), flat.numpy().tobytes()
            apart.append(flat)
            return entry.dtype, tuple(entry.shape), None

    Packer(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue(), apart


def unpacked(message: bytes) -> tuple[Any, list[Tensor]]:
    """What :func:`packed` made bytes of; its large tensors are still to be filled.

    Args:
        message: The bytes, of this program's own.

    Returns:
        The value, and the memory of its large tensors as flat uint8, in their order.
    """
    apart: list[Tensor] = []

    class Unpacker(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Tensor:
            dtype, shape, content = pid
            tensor = torch.empty(shape, dtype=dtype)
            flat = _bytes(tensor)
            if content is None:
                apart.append(flat)
            elif content:
                flat.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            return tensor

    return Unpacker(io.BytesIO(message)).load(), apart


class Failure:
    """An error on its way to other processes.

    Args:
        error: The error. Where it cannot travel, what arrives is a RuntimeError that quotes it.
        where: Host and process that it happened in.
    """

    def __init__(self, error: Exception, where: str) -> None:
        self.error = error
        self.where = where

    def __reduce__(self) -> tuple[Any, ...]:
        return Failure, (_portable(self.error), self.where)


def note_known(error: Exception) -> Exception:
    """Note that all processes have this error, each its own copy."""
    vars(error)[_KNOWN] = True
    return error


def is_known(error: Exception) -> bool:
    """Whether all processes have this error already."""
    return vars(error).get(_KNOWN, False)


def _portable(error: Exception) -> Exception:
    try:
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error) and str(copy) == str(error):
            return error
    except Exception:  # whatever a class of somebody's own does when it is copied
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
