"""Bytes of all tensors that live at one time, at most, on any device."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakOfTensors(TorchDispatchMode):
    """Counts the storages that operators make inside; what was there before does not count.

    Attributes:
        now: Bytes of those that live.
        peak: The most that there were at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        for tensor in tree_leaves((arguments, options)):
            if isinstance(tensor, Tensor) and not self._knows(tensor.untyped_storage()):
                # What an operator reads that none has made was there before.
                self._known[tensor.untyped_storage()._cdata] = weakref.ref(tensor.untyped_storage())
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _knows(self, storage: torch.UntypedStorage) -> bool:
        known = self._known.get(storage._cdata)
        return known is not None and known() is not None

    def _note(self, storage: torch.UntypedStorage) -> None:
        if not self._knows(storage):
            self._known[storage._cdata] = weakref.ref(storage)
            weakref.finalize(storage, self._free, storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size
