"""Load a saved agent's adapters, and what else is asked for, into another agent.

Everything is read, verified and compared before anything changes, so that a checkpoint that is refused leaves the agent
as it was.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agiledpo.adapters.contents import NOTHING, describe_adapter
from agiledpo.adapters.files import SavedAdapter, check_finite, find_actor, read_adapter
from agiledpo.adapters.reconcile import Prospect
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.optimizers import check_scalable
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.moments import Moments, check_moments, load_moments, moments_by_name
from agiledpo.checkpoint.saved_agent import SavedAgent, base_weights, read_agent, unfit
from agiledpo.checkpoint.zero_shards import foreign, has_shards

# Actor, and reference if there is one, of what another library wrote.
Foreign = tuple[SavedAdapter, SavedAdapter | None]


def load_into(
    agent: LLMAlgorithm,
    path: Path,
    *,
    load_optimizer: bool = False,
    overwrite_reference_adapter: bool | None = None,
    overwrite_critic_adapter: bool = True,
    merge_lora_configs: bool = False,
    load_hyperparameters: bool = False,
) -> None:
    """Load the adapters of a checkpoint, and what else is asked for, into an agent.

    Args:
        agent: The agent; if the checkpoint is refused it is as it was.
        path: What :func:`agiledpo.checkpoint.save_agent` wrote for an agent of any algorithm, or what PEFT, TRL or
            AgileRL wrote.
        load_optimizer: Also load moments and count of steps; learning rate and weight decay stay. Without saved
            moments a warning says so and the optimizer starts afresh. False leaves the optimizer alone.
        overwrite_reference_adapter: True: the checkpoint's actor becomes the reference too. False: the checkpoint's
            reference is restored; if it has none the reference becomes the bare base, whatever it was. None: False for
            a checkpoint of the same algorithm, which a subclass or superclass is too; True for another one's, and where
            nothing says who wrote it (a warning then names a stored reference that was not used).
        overwrite_critic_adapter: Accepted: no algorithm has a critic.
        merge_lora_configs: Reconcile LoRA configurations that differ.
        load_hyperparameters: Also take over the hyperparameters that both algorithms have.

    Raises:
        CheckpointError: The checkpoint is damaged, or belongs to another base model; in every process.
        ValueError: It does not suit the agent.
    """
    with agent.team.speaking_once():
        _load_into(
            agent,
            path,
            agent.team.leader_does(lambda: read_agent(path) or _read_foreign(path, agent, load_optimizer)),
            load_optimizer=load_optimizer,
            overwrite_reference_adapter=overwrite_reference_adapter,
            merge_lora_configs=merge_lora_configs,
            load_hyperparameters=load_hyperparameters,
        )


def _load_into(
    agent: LLMAlgorithm,
    path: Path,
    found: SavedAgent | Foreign,
    *,
    load_optimizer: bool,
    overwrite_reference_adapter: bool | None,
    merge_lora_configs: bool,
    load_hyperparameters: bool,
) -> None:
    if isinstance(found, tuple):
        saved, (actor, stored) = None, found
        algorithm, weights, moments, hyperparameters = None, None, None, {}
    else:
        saved = found
        actor, stored = saved.adapters["actor"], saved.adapters.get("reference")
        algorithm = saved.manifest.algorithm
        weights = base_weights(agent, saved)
        moments = _moments(agent, saved) if load_optimizer else None
        hyperparameters = _hyperparameters(agent, saved) if load_hyperparameters else {}
    overwrite = overwrite_reference_adapter
    if overwrite is None:
        overwrite = algorithm not in _related(type(agent))
    reference = actor if overwrite else stored
    moves = agent.USES_REFERENCE and agent.adapters.name("reference") is not None
    for adapter in (actor, reference):
        if adapter is not None:
            check_finite(adapter)
    arriving = {"actor": actor, **({"reference": reference} if moves and reference is not None else {})}
    prospect = agent.adapters.check(arriving, merge=merge_lora_configs)
    _check_optimizer(agent, path, prospect, moments)
    if agent.USES_REFERENCE and not moves:
        _check_bare(agent, path, reference)
    if moves and overwrite and overwrite_reference_adapter is None and stored is not None:
        _warn_of_unused(stored, algorithm)

    if weights is not None:
        agent.base.load_base_state(weights)
    _put(agent, "actor", actor, merge=merge_lora_configs)
    factors = agent.adapters.arrived
    if moves and reference is None:
        agent.adapters.clear_reference()
    elif moves and reference is not None:
        _put(agent, "reference", reference, merge=merge_lora_configs)
    if load_optimizer:
        _put_moments(agent, path, moments, factors)
        agent.optimizer_steps = 0 if saved is None or moments is None else saved.attributes["optimizer_steps"]
    if hyperparameters:
        vars(agent).update(hyperparameters)
        agent.reinit_optimizers()


def _read_foreign(path: Path, agent: LLMAlgorithm, load_optimizer: bool) -> Foreign:
    """Actor, and reference if there is one, of what another library wrote."""
    if load_optimizer and has_shards(path):
        raise foreign(path)
    actor = read_adapter(find_actor(path))
    name, live = actor.config.base_model_name_or_path, agent.base.model.name_or_path
    if name and live and name != live:
        warnings.warn(
            f"{actor.config_file} names the base model {name!r}, and the agent is on {live!r}. That "
            "shapes fit does not make them the same.",
            stacklevel=6,
        )
    reference = path / "reference"
    return actor, read_adapter(find_actor(reference)) if reference.is_dir() else None


def _moments(agent: LLMAlgorithm, saved: SavedAgent) -> Moments | None:
    """The optimizer's saved state by parameter name; None if there is none."""
    attributes = saved.attributes
    if "optimizer" not in attributes:
        return None
    try:
        if attributes["optimizer_type"] != type(agent.optimizer).__name__:
            raise ValueError(f"the optimizer is a {attributes['optimizer_type']}, not {type(agent.optimizer).__name__}")
        moments = moments_by_name(attributes["optimizer"], attributes["optimizer_parameters"])
        # LoRA's factors have one name in the file and in the model; other parameters do not depend on the rank.
        actor = agent.base.parameters(agent.adapters.owned["actor"])
        shapes = {name: tensor.shape for name, tensor in (*actor.items(), *saved.adapters["actor"].tensors.items())}
        check_moments({name: state for name, state in moments.items() if name in shapes}, shapes)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unfit(saved, error) from error
    return moments


def _hyperparameters(agent: LLMAlgorithm, saved: SavedAgent) -> dict[str, Any]:
    """Saved values of the agent's hyperparameters, tried on it."""
    live, theirs = agent.hyperparameters, saved.attributes["hyperparameters"]
    try:
        values = {name: theirs[name] for name in live if name in theirs}
        agent.check_values(values)
        vars(agent).update(values)
        agent.check_hyperparameters()
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{saved.attributes_file}: the hyperparameters do not suit the agent: {error} Leave out "
            "load_hyperparameters, or make the agent to suit them."
        ) from error
    finally:
        vars(agent).update(live)
    return values


def _check_optimizer(agent: LLMAlgorithm, path: Path, prospect: Prospect, moments: Moments | None) -> None:
    """Refuse to load what the optimizer cannot follow."""
    try:
        if prospect.grows:
            check_scalable(agent.stepper.state_dict()["state"].values())
        if prospect.rescales and moments is not None:
            check_scalable(moments.values())
    except ValueError as error:
        raise ValueError(
            f"{path} has another LoRA configuration than agent {agent.index}, whose {type(agent.optimizer).__name__} "
            f"cannot follow. {error} Or make the agent with the lora_config of the checkpoint."
        ) from error


def _check_bare(agent: LLMAlgorithm, path: Path, reference: SavedAdapter | None) -> None:
    """Refuse to let the objective change for an agent whose reference cannot be anything but the bare base."""
    if reference is None or describe_adapter(reference.config, reference.tensors) == NOTHING:
        return
    raise ValueError(
        f"{path}: the reference would become the adapter in {reference.source}, but agent {agent.index} was made with "
        "use_separate_reference_adapter=False, so its reference is the bare base model. Make the agent with "
        "use_separate_reference_adapter=True"
        + (
            "."
            if reference.source.name == "reference"
            else ", or, to hold the loaded actor against the bare base, pass overwrite_reference_adapter=False."
        )
    )


def _related(cls: type[LLMAlgorithm]) -> set[str]:
    """Names of the classes that are the same algorithm: a class, those it is made from and those made from it."""
    return {relative.__name__ for relative in (*cls.__mro__, *_descendants(cls))}


def _descendants(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


def _warn_of_unused(stored: SavedAdapter, algorithm: str | None) -> None:
    """Say that a stored reference is left aside, unless it is known to be another algorithm's."""
    if algorithm in {cls.__name__ for cls in _descendants(LLMAlgorithm)}:
        return
    who = "nothing says which algorithm wrote it" if algorithm is None else f"{algorithm} is no algorithm known here"
    warnings.warn(
        f"The reference in {stored.source} was not used: {who}, so its actor became the reference too, as at the start "
        "of a new stage. Pass overwrite_reference_adapter=False to restore the stored one, True if this is meant.",
        stacklevel=5,
    )


def _put(agent: LLMAlgorithm, role: str, adapter: SavedAdapter, *, merge: bool) -> None:
    if agent.adapters.load_saved(role, adapter, merge=merge):
        agent._rebuild_after_merge()


def _put_moments(agent: LLMAlgorithm, path: Path, moments: Moments | None, factors: Mapping[str, float]) -> None:
    if moments is None:
        warnings.warn(
            f"{path} holds no optimizer state (it was saved with save_optimizer=False, or by another library); the "
            "optimizer starts afresh.",
            stacklevel=5,
        )
    parameters = agent.base.parameters(agent.adapters.owned["actor"])
    load_moments(agent.stepper, parameters, moments or {}, factors)
