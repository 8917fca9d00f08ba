"""A named stream of randomness for code that can only draw from torch's global generators (dropout)."""

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor


class TorchRandomStream:
    """Global torch randomness that belongs to one owner.

    Args:
        seed: Seed of the stream.
        device: Device whose generator is streamed beside the CPU's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._device = device if device.type == "cuda" else None
        self._states: list[Tensor] = []
        with self._fork():
            # Not torch.manual_seed, which seeds every device of the machine, also those that are not restored.
            torch.default_generator.manual_seed(seed)
            if self._device is not None:
                with torch.cuda.device(self._device):
                    torch.cuda.manual_seed(seed)
            self._states = self._read()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Draw from this stream inside; outside the global state is as if nothing had happened."""
        with self._fork():
            torch.set_rng_state(self._states[0])
            if self._device is not None:
                torch.cuda.set_rng_state(self._states[1], self._device)
            try:
                yield
            finally:
                self._states = self._read()

    def branch(self, number: int) -> "TorchRandomStream":
        """Another stream, which depends on where this one is and on a number; this one stays where it is.

        Args:
            number: Which branch.
        """
        digest = blake2b(self._states[0].numpy().tobytes() + str(number).encode(), digest_size=7).digest()
        return TorchRandomStream(int.from_bytes(digest), self.device)

    def advance(self) -> None:
        """Go on by one draw, as whoever has used branches does so that the next ones are others."""
        with self.active():
            torch.rand(())

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The stream's state, one uint8 tensor per generator."""
        return {"states": [state.clone() for state in self._states]}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Continue a stream where :meth:`state_dict` was taken; a generator that there was none of goes on as it is."""
        given = [tensor.clone() for tensor in state["states"]]
        self._states = given[: len(self._states)] + self._states[len(given) :]

    def check_state_dict(self, state: object) -> None:
        """Check that :meth:`load_state_dict` would take a state.

        Raises:
            ValueError: It is none of such a stream.
        """
        states = state.get("states") if isinstance(state, dict) else None
        if not isinstance(states, list) or not states or not all(map(_is_state, states)):
            raise ValueError("random_stream does not hold the states of generators")
        try:
            torch.Generator().set_state(states[0])
            if self._device is not None and len(states) > 1:
                torch.Generator(self._device).set_state(states[1])
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"random_stream holds no state of a generator ({error})") from error

    def _fork(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[] if self._device is None else [self._device])

    def _read(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device is not None:
            states.append(torch.cuda.get_rng_state(self._device))
        return states


def _is_state(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 1


def global_random_state() -> dict[str, Any]:
    """State of the process's own generators: nothing here draws from them, but a user's fitness function may.

    Returns:
        Tensors and plain values that ``torch.load(weights_only=True)`` reads.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (theirs, not ours)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_global_random_state(state: Mapping[str, Any]) -> None:
    """Set the process's own generators.

    Args:
        state: What :func:`global_random_state` returned.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
