"""The run that is maltreated: a small population that evolves, mutates and saves itself after every batch."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.hpo.mutation import Mutations
from agiledpo.hpo.tournament import TournamentSelection
from agiledpo.llm_envs import PreferenceGym
from agiledpo.training.population import Population
from agiledpo.training.retention import Retention
from agiledpo.training.train_llm import finetune_llm_preference
from benchmarking.evolution_pays.synthetic import make_pairs, make_tiny_model, make_tokenizer

AGENTS = 4
EPOCHS = 2
ROWS = 48


class Job:
    """Everything that the runs of a campaign have in common, made once: a run begins with new agents.

    Attributes:
        model: The shared base.
    """

    def __init__(self) -> None:
        self.model = make_tiny_model()
        rows = make_pairs(100)
        self._train, self._test = Dataset.from_list(rows[:ROWS]), Dataset.from_list(rows[-12:])
        self._tokenizer = make_tokenizer()
        self.env()  # tokenised once

    def env(self) -> PreferenceGym:
        """The environment at its beginning."""
        return PreferenceGym(self._train, self._test, self._tokenizer, data_batch_size_per_gpu=4)

    def agents(self) -> list[DPO]:
        """The founders. Batch sizes that mutate leave pairs waiting between batches."""
        hp_config = HyperparameterConfig(
            lr=RLParameter(1e-4, 1e-1), beta=RLParameter(0.01, 1.0), batch_size=RLParameter(2, 7, dtype=int)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return DPO.population(
                AGENTS,
                actor_network=self.model,
                hp_config=hp_config,
                lora_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear"),
                batch_size=5,
                lr=3e-3,
                reference_update="epoch",
            )

    def run(self, directory: Path, **arguments: Any) -> Population[DPO]:
        """Begin, or go on from what is in the directory.

        Args:
            directory: Checkpoints and lineage go there.
            **arguments: More for ``finetune_llm_preference``.
        """
        settings: dict[str, Any] = {
            "tournament": TournamentSelection(2, True, AGENTS, 1, rand_seed=1),
            "mutation": Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=2),
            "evo_steps": 3,
            "fitness": custom_fitness,
            "num_epochs": EPOCHS,
            "checkpoint_steps": 4,
            "checkpoint_path": directory / "run",
            "lineage_path": directory / "lineage.jsonl",
            "resume_from": "latest",
            "retention": Retention(keep_last=2, keep_best=1),
            "verbose": False,
        }
        torch.manual_seed(3)  # where a process begins; a run that is taken up brings its own state
        population, _ = finetune_llm_preference(self.agents(), self.env(), **{**settings, **arguments})
        return population


def custom_fitness(agent: DPO, env: PreferenceGym) -> float:
    """Margin with noise from torch's own generator, as a fitness that generates would have it."""
    return agent.measure(env).tie_break + 0.01 * float(torch.randn(()))


def fingerprint(population: Population[DPO], lineage: Path) -> str:
    """SHA-256 over all that the agents are (weights, moments, history, random streams) and over the lineage's file."""
    digest = hashlib.sha256(lineage.read_bytes())
    for agent in population:
        for piece in _pieces(agent.state_dict()):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    match value:
        case Tensor():
            yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        case dict():
            for key, part in value.items():
                yield str(key).encode()
                yield from _pieces(part)
        case list() | tuple():
            for part in value:
                yield from _pieces(part)
        case _:
            yield json.dumps(value, default=str).encode()
