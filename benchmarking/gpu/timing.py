"""Time on a device whose work runs behind the program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch


@dataclass(frozen=True)
class Run:
    """What a system did with some batches.

    Attributes:
        seconds: Time of the batches after the warm-up, until the device was done.
        losses: Mean loss of each batch, before its step; nats.
    """

    seconds: float
    losses: Sequence[float]


def synchronise(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Stopwatch:
    """Counts steps and starts once the warm-up is done.

    Attributes:
        device: Device to wait for.
        warm_up: Steps that do not count.
    """

    device: torch.device
    warm_up: int
    _steps: int = 0
    _started: float = field(default=0.0, repr=False)

    def start(self) -> None:
        """Before the first step; it starts the clock if there is no warm-up."""
        if self.warm_up == 0:
            self._started = self._now()

    def step(self) -> None:
        """After each step."""
        self._steps += 1
        if self._steps == self.warm_up:
            self._started = self._now()

    def seconds(self) -> float:
        """Seconds since the warm-up."""
        return self._now() - self._started

    def _now(self) -> float:
        synchronise(self.device)
        return perf_counter()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured FLOP/s of large matrix products of random numbers: the best of five."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [_seconds(lambda: left @ right, device) for _ in range(8)]
    return 2 * size**3 / min(times[3:])


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    started = perf_counter()
    work()
    synchronise(device)
    return perf_counter() - started
