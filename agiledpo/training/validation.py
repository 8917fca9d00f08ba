"""The fittest agent on each validation set: to watch a run and keep checkpoints by, never to select by."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple

from agiledpo.algorithms.core.errors import NonFiniteLossError
from agiledpo.llm_envs.validation import validation_split
from agiledpo.training.environments import Gym
from agiledpo.training.population import Agent
from agiledpo.training.practice import Practice

TOTAL_TIME = "timing/validation/total_validation_time"


class Validation(NamedTuple):
    """What an agent does with the validation sets.

    Attributes:
        metrics: ``validation-<name>_<metric>`` for each set: ``loss`` (the agent's own objective), ``accuracy`` and the
            algorithm's other ``METRICS``.
        failed: Why a set could not be measured, by its name; it has no metrics.
        seconds: Time that measuring took, over all sets.
    """

    metrics: dict[str, float]
    failed: dict[str, str]
    seconds: float

    @property
    def figures(self) -> dict[str, float]:
        """The metrics and, under ``timing/validation/total_validation_time``, the seconds; nothing without sets."""
        return {**self.metrics, TOTAL_TIME: self.seconds} if self.metrics else {}


def validate(practice: Practice[Agent], agent: Agent, env: Gym) -> Validation:
    """Measure an agent on every validation set of an environment.

    Nothing of the agent or of the run changes, not even where a loss is NaN or infinite.

    Args:
        practice: How agents are measured.
        agent: The agent.
        env: The environment.
    """
    started = perf_counter()
    metrics: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name in env.validation_names:
        try:
            measured = practice.measure(agent, env, validation_split(name)).metrics
        except NonFiniteLossError as error:
            failed[name] = str(error)
            continue
        metrics |= {f"{validation_split(name)}_{metric}": measured[of] for metric, of in _reported(practice).items()}
    return Validation(metrics, failed, perf_counter() - started)


def validation_metrics(practice: Practice[Any], names: Sequence[str]) -> list[str]:
    """Names of the metrics that :func:`validate` returns.

    Args:
        practice: How agents are measured.
        names: Names of the validation sets.

    Raises:
        ValueError: Two sets have a metric of one name, such as ``mean_loss`` of ``a`` and ``loss`` of ``a_mean``.
    """
    owner: dict[str, str] = {}
    for name in names:
        for metric in _reported(practice):
            full = f"{validation_split(name)}_{metric}"
            if full in owner:
                raise ValueError(
                    f"The validation sets {owner[full]!r} and {name!r} would both report {full!r}. Rename one of them."
                )
            owner[full] = name
    return list(owner)


def _reported(practice: Practice[Any]) -> dict[str, str]:
    """Names of figures, and the metrics that they are; the two that are always there come first."""
    return {"loss": "loss", "accuracy": practice.accuracy, **{name: name for name in practice.metrics}}
