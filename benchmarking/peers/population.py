"""A population that evolves while its memory is watched: the task and the readings, alike for all systems."""

import resource
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from benchmarking.copies import Recognised, tensors_mb
from benchmarking.machine import LIBRARIES, package_versions
from benchmarking.memory import forget_peak, peak_resident_mb, resident_mb, settle
from benchmarking.peers.task import Task


@dataclass
class PopulationTask(Task):
    """A population on which each agent learns from one batch in every generation.

    The first ``batch_size`` pairs of the file are held out; the batches come after them.

    Attributes:
        agents: How many.
        generations: How many times the agents learn, are evaluated, selected and mutated.
        limit_gb: Memory that the process may have, GB (10^9 bytes); None for no limit.
    """

    agents: int = 1
    generations: int = 1
    limit_gb: float | None = None

    def apply_limit(self) -> None:
        """Let allocations beyond the limit fail."""
        if self.limit_gb is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (int(self.limit_gb * 1e9),) * 2)


class Watch:
    """Reads the process's memory between the phases of a run, once everything unused is freed.

    The first reading, ``libraries``, is taken when the watch is made: before there is a model.

    Attributes:
        readings: For each phase ``phase``, ``resident`` and ``file`` (what of it are mapped files) at its end, ``peak``
            during it, ``tensors`` (of all live tensors), all in MB, and the base copies: ``embeddings`` and
            ``projections``, the token embedding's and the first decoder layer's query projection's.
    """

    def __init__(self) -> None:
        self.readings: list[dict[str, Any]] = []
        self._weights: dict[str, Recognised] = {}
        self._weights_mb = 0.0
        self.read("libraries")

    def recognise(self, model: PreTrainedModel) -> None:
        """Remember the base's weights, which are frozen, before any adapter is put on it."""
        named = dict(model.named_parameters())
        projection = next(weight for name, weight in named.items() if name.endswith("q_proj.weight"))
        embedding = model.get_input_embeddings().weight
        self._weights = {"embeddings": Recognised.of(embedding), "projections": Recognised.of(projection)}
        self._weights_mb = sum(weight.numel() * weight.element_size() for weight in named.values()) / 1e6

    def read(self, phase: str) -> None:
        """End a phase."""
        peak = peak_resident_mb()
        settle()
        memory = resident_mb()
        copies = {name: weight.copies() for name, weight in self._weights.items()}
        self.readings.append({"phase": phase, **memory, "peak": peak, "tensors": tensors_mb(), **copies})
        forget_peak()

    def answer(self, system: str) -> dict[str, Any]:
        """The result of a run, for `benchmarking.processes.report`."""
        return {
            "readings": self.readings,
            "weights_mb": self._weights_mb,
            "versions": package_versions((*LIBRARIES, system)),
        }
