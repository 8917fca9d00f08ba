"""Count what processes tell each other: every collective of ``torch.distributed``, whoever called it and how.

All of them pass torch's dispatcher as operators of ``c10d``, where a dispatch mode sees them with their tensors. What a
rank sends for one is the lower bound that ring algorithms reach (Patarasu & Yuan 2009,
https://doi.org/10.1016/j.jpdc.2008.09.002): of n ranks each sends (n - 1) / n of what is gathered or scattered, and
twice that of what is summed everywhere.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Which argument holds the message, and how many times (n - 1) / n of it a rank sends.
_OPERATORS = {
    "allreduce_": (0, 2),
    "allreduce_coalesced_": (0, 2),
    "broadcast_": (0, 1),
    "reduce_": (0, 1),
    "allgather_": (0, 1),
    "_allgather_base_": (0, 1),
    "allgather_coalesced_": (0, 1),
    "allgather_into_tensor_coalesced_": (0, 1),
    "reduce_scatter_": (1, 1),
    "_reduce_scatter_base_": (1, 1),
    "reduce_scatter_tensor_coalesced_": (1, 1),
    "gather_": (0, 1),
    "scatter_": (1, 1),
}
# They carry no data.
_SILENT = ("barrier", "monitored_barrier_")


class Traffic(TorchDispatchMode):
    """Counts messages inside.

    Attributes:
        calls: Number of collectives by name.
        payload: Bytes of their messages by name.
        sent: Bytes that this rank sends for them at least.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.payload: Counter[str] = Counter()
        self.sent = 0.0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "c10d":
            self._note(function._schema.name.removeprefix("c10d::"), arguments)
        return function(*arguments, **(options or {}))

    def _note(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name in _SILENT:
            return
        if name not in _OPERATORS:
            raise RuntimeError(f"c10d::{name} is a collective that is not counted yet; add it to _OPERATORS.")
        place, times = _OPERATORS[name]
        size = sum(t.numel() * t.itemsize for t in tree_leaves(arguments[place]) if isinstance(t, Tensor))
        self.calls[name] += 1
        self.payload[name] += size
        ranks = dist.get_world_size()
        self.sent += times * (ranks - 1) / ranks * size


def bytes_on_the_wire() -> int:
    """Bytes that have gone through this network namespace's loopback so far, headers included (Linux)."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    return 0
