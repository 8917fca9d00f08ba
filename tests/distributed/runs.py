"""What the ranks of a test do with whole runs and with checkpoints."""

import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.distributed.team import Team, local_leader_first
from agiledpo.hpo.mutation import Mutations
from agiledpo.hpo.tournament import TournamentSelection
from agiledpo.llm_envs import PreferenceGym
from agiledpo.training import Retention
from agiledpo.training.interruption import TrainingInterrupted
from agiledpo.training.train_llm import finetune_llm_preference
from tests.distributed import work
from tests.distributed.words import rows, tokenizer

ROWS, PER_BATCH = 24, 6


class RoundingDPO(DPO):
    """Agents whose second process finds other figures than the first, and another ranking."""

    def record(self, measured: Any, fitness: str) -> None:
        super().record(measured, fitness)
        if self.team.rank:
            self.fitness[-1] += self.index % 2 - 0.5


def train(
    handle: Accelerator | None,
    *,
    algorithm: type[DPO] = DPO,
    dropout: float = 0.0,
    batch: int | None = None,
    **arguments: Any,
) -> Any:
    """Train a population of two that evolves, on batches of the same rows whatever the number of processes."""
    ranks = 1 if handle is None else handle.num_processes
    if "checkpoint_path" in arguments:
        # With each generation, so that no evaluation is there for a checkpoint only.
        arguments = {"checkpoint_steps": 2 * PER_BATCH, "retention": Retention(keep_last=None), **arguments}
    agents = algorithm.population(
        2,
        actor_network=work.model(),
        lora_config=work.lora(lora_dropout=dropout),
        batch_size=4,
        micro_batch_size_per_gpu=2,
        lr=1e-3,
        hp_config=HyperparameterConfig(lr=RLParameter(1e-4, 1e-2), beta=RLParameter(0.01, 1.0)),
        accelerator=handle,
    )
    env = PreferenceGym(
        rows(ROWS, 0),
        rows(7, 1),
        tokenizer(),
        data_batch_size_per_gpu=PER_BATCH // ranks if batch is None else batch,
        accelerator=handle,
    )
    return finetune_llm_preference(
        agents,
        env,
        tournament=TournamentSelection(2, True, 2, 1, rand_seed=5),
        mutation=Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=6),
        accelerator=handle,
        **{"evo_steps": 2, "num_epochs": 2, "verbose": False, **arguments},
    )[0]


def told(population: Any) -> Mapping[str, Any]:
    """What a run has come to, as plain values and tensors."""
    return {
        "lineage": [record.as_json() for record in population.lineage],
        "fitness": [agent.fitness for agent in population],
        "weights": [work.weights(agent) for agent in population],
        "elite": population.elite.index,
    }


class Held:
    """A fitness that does something at an evaluation, the accuracy otherwise."""

    def __init__(self, evaluation: int = 0, act: Callable[[], Any] = lambda: None) -> None:
        self.left, self.act = evaluation, act

    def __call__(self, agent: DPO, env: Any) -> float:
        self.left -= 1
        if self.left == 0:
            self.act()
        return float(agent.measure(env).fitness("accuracy").value)


class LostError(Exception):
    """What cannot be sent to another process as it is."""

    def __init__(self, message: str, *, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


@contextmanager
def seen() -> Iterator[list[str]]:
    """Warnings and what is printed to stderr, as this process gives them."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield texts
        finally:
            texts.extend(str(warning.message) for warning in caught if warning.category is UserWarning)


def _lose() -> None:
    raise LostError("lost in rank 1", needed=1)


def _kill() -> None:
    raise KeyError("killed")


def _stop() -> None:
    for _ in range(2):  # as a launcher that passes on what the terminal has sent already
        os.kill(os.getpid(), signal.SIGTERM)


def _fill_disk() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))


def two_ranks(directory: Path, saved_by_one: Path) -> Mapping[str, Any]:
    """All that two ranks go through together. Paths of rank 1 lead nowhere where only the leader's matter."""
    handle = work.accelerator()
    leads = handle.process_index == 0
    own = directory if leads else Path("/nowhere")
    results: dict[str, Any] = {}

    whole = train(
        handle,
        checkpoint_path=own / "plain",
        lineage_path=own / "plain.jsonl",
        save_elite=True,
        elite_path=own / "elite",
    )
    results["plain"] = told(whole)

    with seen() as texts:
        resumed = train(
            handle, checkpoint_path=own / "from_one", resume_from=saved_by_one if leads else own / "step_24"
        )
    results["from one"], results["from one said"] = told(resumed), texts

    whole = train(handle, dropout=0.2, fitness=Held())
    results["dropout"] = told(whole)
    saving = {"checkpoint_path": own / "killed", "lineage_path": own / "killed.jsonl"}
    try:
        train(handle, dropout=0.2, fitness=Held(6, _kill), **saving)
    except KeyError as error:
        results["killed"] = str(error)
    resumed = train(handle, dropout=0.2, fitness=Held(), resume_from="latest", **saving)
    results["resumed"] = told(resumed)

    try:
        train(handle, fitness=Held(3, (lambda: None) if leads else _lose))
    except Exception as error:
        results["lost"] = type(error).__name__, str(error), getattr(error, "__notes__", [])

    try:
        train(
            handle,
            fitness=Held(3, (lambda: None) if leads else _stop),
            checkpoint_steps=100,
            checkpoint_path=own / "stopped",
        )
    except TrainingInterrupted as stop:
        results["stopped"] = stop.code, stop.message

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with seen() as texts:
        full = train(
            handle,
            dropout=0.2,
            fitness=Held(3, _fill_disk if leads else lambda: None),
            checkpoint_path=own / "full",
        )
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    results["full"], results["full said"] = told(full), texts

    for name, saving in {
        "strict": {"checkpoint_path": own / "strict"},
        "strict elite": {"save_elite": True, "elite_path": own / "strict elite"},
    }.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*could not be written")
            results[name] = refusal(
                lambda saving=saving: train(handle, fitness=Held(3, _fill_disk if leads else lambda: None), **saving)
            )
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    results["rounding"] = told(train(handle, algorithm=RoundingDPO))
    tensor = train(handle, fitness=lambda agent, env: torch.tensor(agent.index + handle.process_index))
    results["tensor"] = [agent.fitness[-1] for agent in tensor], [agent.index for agent in tensor]
    results["no number"] = refusal(lambda: train(handle, fitness=lambda agent, env: (lambda: None) if leads else 1.0))
    results["other calls"] = {name: refusal(lambda call=call: train(handle, **call)) for name, call in _calls(own)}
    return results


def refusal(act: Callable[[], Any]) -> tuple[str, str, int]:
    """What an error says, and with how many notes."""
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error), len(getattr(error, "__notes__", []))
    return "nothing", "", 0


def _calls(own: Path) -> list[tuple[str, dict[str, Any]]]:
    """Arguments that are one thing in the first process and another in the second."""
    leads = own != Path("/nowhere")
    return [
        ("evaluation_interval", {"evaluation_interval": 1 if leads else 2}),
        ("fitness", {"fitness": "accuracy" if leads else Held()}),
        ("retention", {"checkpoint_path": own / "other", "retention": Retention(keep_last=1 if leads else 2)}),
        ("lineage_path", {"lineage_path": own / "other.jsonl"} if leads else {}),
        ("elite_path", {"save_elite": True, "elite_path": own / "other"} if leads else {}),
    ]


def not_shared(directory: Path, own_elite: bool) -> tuple[tuple[str, str, int], list[str]]:
    """A run under ZeRO-2 whose directory is another one in each process; and what it leaves there."""
    handle = work.accelerator()
    place = directory / str(Team.of(handle).rank)  # the handle says 0 with DeepSpeed on CPUs
    place.mkdir()
    os.chdir(place)
    path = Path("/proc/self/cwd/saved")  # of the same name everywhere
    saving = {"save_elite": True, "elite_path": path / "elite"} if own_elite else {"checkpoint_path": path}
    said = refusal(lambda: train(handle, fitness=Held(1, _lose), **saving))
    return said, [str(file.relative_to(place)) for file in place.rglob("*")]


def patient() -> float:
    """Wait for the leader for longer than collective operations may take; seconds that it took."""
    handle = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=4))])
    begun = time.monotonic()
    with local_leader_first(handle):
        if handle.process_index == 0:
            time.sleep(6)
    return time.monotonic() - begun


def three_ranks(directory: Path, saved: Mapping[str, Path]) -> Mapping[str, Any]:
    """Three ranks go on with runs that others saved, and save one of their own."""
    handle = work.accelerator()
    own = directory if handle.process_index == 0 else Path("/nowhere")
    results: dict[str, Any] = {}
    for name, path in saved.items():
        with seen() as texts:
            resumed = train(handle, checkpoint_path=own / name, resume_from=path)
        results[name], results[f"{name} said"] = told(resumed), texts
    return results
