"""Put an agent back: its adapters into another one, the whole of it into its like, or a new one like it.

Everything is read, verified and compared before anything changes, so that a checkpoint that is refused leaves the agent
as it was.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from agiledpo.adapters import SharedBaseModel
from agiledpo.adapters.contents import NOTHING, describe_adapter
from agiledpo.adapters.files import SavedAdapter, check_finite, find_actor, read_adapter
from agiledpo.adapters.reconcile import Prospect, config_differences
from agiledpo.algorithms.core.construction import (
    ConstructionDifferences,
    compare_constructions,
    construction,
    warn_of_rounding,
)
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.optimizers import check_scalable
from agiledpo.checkpoint.attributes import read_attributes
from agiledpo.checkpoint.directory import ATTRIBUTES, MANIFEST, settle
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.identity import BaseModelIdentity, check_base, identity_of
from agiledpo.checkpoint.manifest import Manifest
from agiledpo.checkpoint.moments import Moments, check_groups, check_moments, load_moments, moments_by_name
from agiledpo.checkpoint.packing import unpacked
from agiledpo.checkpoint.stored_base import holds_base, loadable, make_base

Agent = TypeVar("Agent", bound=LLMAlgorithm)

# What ``attributes.pt`` holds at least.
_REQUIRED = (
    "applied",
    "construction",
    "hyperparameters",
    "index",
    "init",
    "optimizer_parameters",
    "optimizer_steps",
    "optimizer_type",
    "random_stream",
    "reference_update_tracker",
    "seed",
)


@dataclass(frozen=True)
class SavedAgent:
    """A checkpoint of ours, read and verified."""

    path: Path
    manifest: Manifest
    base: BaseModelIdentity
    adapters: Mapping[str, SavedAdapter]
    attributes: Mapping[str, Any]

    @property
    def attributes_file(self) -> Path:
        """Where ``attributes`` were read."""
        return self.path / ATTRIBUTES


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
        CheckpointError: The checkpoint is damaged, or belongs to another base model.
        ValueError: It does not suit the agent.
    """
    saved = _read(path)
    if saved is None:
        actor, stored = _read_foreign(path, agent)
        algorithm, weights, moments, hyperparameters = None, None, None, {}
    else:
        actor, stored = saved.adapters["actor"], saved.adapters.get("reference")
        algorithm = saved.manifest.algorithm
        weights = _base_weights(agent, saved)
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


def restore(agent: LLMAlgorithm, path: Path) -> None:
    """Put back everything that :meth:`LLMAlgorithm.state_dict` held when an agent was saved, to the bit.

    Args:
        agent: With the objective that the saved one had, on the same base model.
        path: What :func:`agiledpo.checkpoint.save_agent` wrote, with the optimizer.

    Raises:
        CheckpointError: The checkpoint is damaged, incomplete, or of an agent that was made differently; the agent is
            as it was.

    Warns:
        UserWarning: The agent rounds otherwise than the saved one did.
    """
    saved = read_whole(path, type(agent))
    differences = differences_to(agent, saved)
    if differences.objective:
        raise CheckpointError(
            f"{saved.attributes_file}: the agent was made otherwise: {', '.join(differences.objective)}. Make the "
            "agent as it was, or use load_checkpoint, which takes its adapters only."
        )
    restorable = check_restorable(agent, saved)
    if differences.rounding:
        warn_of_rounding(str(path), differences.rounding)
    restorable.put_back(agent)


def read_whole(path: Path, cls: type[LLMAlgorithm]) -> SavedAgent:
    """Read and verify all that an agent of a class was.

    Args:
        path: The checkpoint.
        cls: Its class.

    Raises:
        CheckpointError: The checkpoint is damaged, of another class, or without the optimizer.
    """
    saved = _required(path, cls)
    if "optimizer" not in saved.attributes:
        raise CheckpointError(
            f"{saved.attributes_file} holds no optimizer state, so training cannot go on exactly. Use load_checkpoint, "
            "or a checkpoint that was saved with save_optimizer=True."
        )
    return saved


def differences_to(agent: LLMAlgorithm, saved: SavedAgent) -> ConstructionDifferences:
    """How a saved agent was made otherwise than one that is there.

    Args:
        agent: The agent that is there.
        saved: The saved one.

    Raises:
        CheckpointError: The checkpoint does not say how its agent was made.
    """
    # Of the LoRA configuration there is more to compare than what this text says of it.
    live = {name: text for name, text in construction(agent).items() if name != "lora_config"}
    try:
        differences = compare_constructions(saved.attributes["construction"], live)
    except AttributeError as error:
        raise _unfit(saved, error) from error
    lora = [
        text
        for role, adapter in saved.adapters.items()
        if role in agent.adapters.owned
        for text in config_differences(agent.base.config(agent.adapters.owned[role]), adapter.config)
    ]
    theirs, mine = saved.base.dtype, identity_of(agent.base).dtype
    precision = () if theirs == mine else (f"a base model in {theirs} instead of {mine}",)
    return ConstructionDifferences(
        objective=(*differences.objective, *dict.fromkeys(lora)), rounding=(*differences.rounding, *precision)
    )


def load_agent(
    cls: type[Agent],
    path: Path,
    device: str | torch.device | None = None,
    accelerator: Accelerator | None = None,
    *,
    actor_network: PreTrainedModel | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> Agent:
    """Make the agent that a checkpoint holds; see :meth:`LLMAlgorithm.load`.

    Args:
        cls: Its class.
        path: The checkpoint.
        device: Where to compute; None leaves the model where it is loaded.
        accelerator: Accelerate's handle.
        actor_network: The base model; None loads it.
        model_config: Keyword arguments of ``from_pretrained`` for that.

    Raises:
        CheckpointError: The checkpoint is damaged, of another class, or its base model is another one or cannot be
            found.
    """
    saved = _required(path, cls)
    for adapter in saved.adapters.values():
        check_finite(adapter)
    base = _base(saved, actor_network, model_config)
    check_base(saved.base, identity_of(base), str(path / MANIFEST))
    base.check_ranks(saved.adapters["actor"])
    config = saved.adapters["actor"].config
    config.inference_mode = False
    try:
        agent = cls(
            actor_network=base.model,
            lora_config=config,
            device=device,
            accelerator=accelerator,
            clone=True,  # live hyperparameters may have been set outside the ranges of hp_config since
            **cls.read_arguments(saved.attributes["init"]),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{saved.attributes_file}: a {cls.__name__} cannot be made with the arguments that were saved: {error} "
            "Make the agent yourself and call load_checkpoint."
        ) from error
    # What differs from machine to machine is not the checkpoint's to say; a saved optimizer may be missing.
    fresh = agent.state_dict()
    state = {**saved.attributes, "hp_config": fresh["hp_config"]}
    state.setdefault("optimizer", fresh["optimizer"])
    check_restorable(agent, saved, state).put_back(agent)
    return agent


# Reading ------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> SavedAgent | None:
    """An agent's checkpoint, verified; None if something else than agiledpo wrote the directory."""
    path = Path(path)
    if not path.exists():
        settle(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory. Pass the directory of a checkpoint.")
    if not (path / MANIFEST).exists():
        _check_not_ours(path)
        return None
    manifest = Manifest.verify(path)
    if manifest.kind == "run":
        agents = ", ".join(str(path / directory) for directory in manifest.nested)
        raise CheckpointError(
            f"{path / MANIFEST} is of a whole run. To go on with it pass it as resume_from to the training loop; "
            f"to load one agent pass its directory: {agents}."
        )
    if manifest.base_model is None:
        raise CheckpointError(f"{path / MANIFEST} does not name the base model. Take another checkpoint.")
    attributes = read_attributes(path, required=_REQUIRED)
    if "optimizer" in attributes:
        try:
            attributes["optimizer"] = unpacked(attributes["optimizer"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path / ATTRIBUTES}: the optimizer's state is not as agiledpo writes it: {error}. Take another "
                "checkpoint."
            ) from error
    listed = [PurePosixPath(name) for name in manifest.files]
    roles = [file.parent.name for file in listed if len(file.parts) == 2 and file.name == "adapter_config.json"]
    if "actor" not in roles:
        raise CheckpointError(f"{path / 'actor'} is missing from the manifest. Take another checkpoint.")
    # A run goes on with an agent that diverged; whoever loads one adapter checks it.
    adapters = {role: read_adapter(path / role, finite=False) for role in roles}
    return SavedAgent(path, manifest, manifest.base_model, adapters, attributes)


def _required(path: Path, cls: type[LLMAlgorithm]) -> SavedAgent:
    """A checkpoint of an agent of this class."""
    saved = _read(path)
    if saved is None:
        raise CheckpointError(
            f"{path / MANIFEST} is missing: the directory holds an adapter at most, not an agent. Make an agent and "
            "call its load_checkpoint."
        )
    if saved.manifest.algorithm != cls.__name__:
        raise CheckpointError(
            f"{path / MANIFEST}: the agent is a {saved.manifest.algorithm}, not a {cls.__name__}. To start a "
            f"{cls.__name__} from its adapter make an agent and call load_checkpoint."
        )
    seed = saved.attributes["seed"]
    if type(seed) is not int or not -(2**63) <= seed < 2**64:
        raise CheckpointError(f"{saved.attributes_file}: seed={seed!r} is none. Take another checkpoint.")
    return saved


def _check_not_ours(path: Path) -> None:
    """Refuse a checkpoint of ours that has lost its manifest, with which the checksums are gone."""
    try:
        ours = read_attributes(path).get("format_version", 0) >= 2
    except (CheckpointError, TypeError):
        return  # there is none, or one that another library pickled
    if ours:
        raise CheckpointError(
            f"{path / MANIFEST} is missing, so nothing says whether the rest is whole. Copy it again."
        )


def _read_foreign(path: Path, agent: LLMAlgorithm) -> tuple[SavedAdapter, SavedAdapter | None]:
    """Actor, and reference if there is one, of what another library wrote."""
    actor = read_adapter(find_actor(path))
    name, live = actor.config.base_model_name_or_path, agent.base.model.name_or_path
    if name and live and name != live:
        warnings.warn(
            f"{actor.source / 'adapter_config.json'} names the base model {name!r}, and the agent is on {live!r}. That "
            "shapes fit does not make them the same.",
            stacklevel=4,
        )
    reference = path / "reference"
    return actor, read_adapter(find_actor(reference)) if reference.is_dir() else None


# Comparing ----------------------------------------------------------------------------------------------------------


def _base_weights(agent: LLMAlgorithm, saved: SavedAgent) -> Mapping[str, Tensor] | None:
    """Weights to write into the base model, or None; the wrong base model is an error."""
    live, source = identity_of(agent.base), str(saved.path / MANIFEST)
    weights = saved.attributes.get("base_model")
    if weights is None:
        check_base(saved.base, live, source)
        return None
    if _same_weights(agent.base, weights):
        return None
    check_base(replace(saved.base, weights_sha256=live.weights_sha256, samples=live.samples), live, source)
    if not agent.adapters.alone:
        raise CheckpointError(
            f"{saved.attributes_file} holds other base weights than the agent's, which other agents use too. Load the "
            f"checkpoint with {type(agent).__name__}.load(path), which makes a base model of its own."
        )
    return weights


def _same_weights(base: SharedBaseModel, weights: Mapping[str, Tensor]) -> bool:
    live = base.base_state()
    return live.keys() == weights.keys() and all(
        tensor.shape == weights[key].shape and torch.equal(tensor, weights[key].to(tensor))
        for key, tensor in live.items()
    )


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
        raise _unfit(saved, error) from error
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
            check_scalable(agent.optimizer.state.values())
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
        stacklevel=4,
    )


def _unfit(saved: SavedAgent, error: Exception) -> CheckpointError:
    reason = str(error).removesuffix(".")
    return CheckpointError(f"{saved.attributes_file} does not fit the agent: {reason}. Take another checkpoint.")


# Putting back -------------------------------------------------------------------------------------------------------


def _put(agent: LLMAlgorithm, role: str, adapter: SavedAdapter, *, merge: bool) -> None:
    if agent.adapters.load_saved(role, adapter, merge=merge):
        agent._rebuild_after_merge()


def _put_moments(agent: LLMAlgorithm, path: Path, moments: Moments | None, factors: Mapping[str, float]) -> None:
    if moments is None:
        warnings.warn(
            f"{path} holds no optimizer state (it was saved with save_optimizer=False, or by another library); the "
            "optimizer starts afresh.",
            stacklevel=4,
        )
    parameters = agent.base.parameters(agent.adapters.owned["actor"])
    load_moments(agent.optimizer, parameters, moments or {}, factors)


@dataclass(frozen=True)
class Restorable:
    """A whole state that has been found to suit an agent, and any that is built like it."""

    state: Mapping[str, Any]
    seed: int
    weights: Mapping[str, Tensor] | None

    def put_back(self, agent: LLMAlgorithm) -> None:
        """Give the state to an agent.

        Args:
            agent: The one that it was checked for, or one that is built like that one.
        """
        if self.weights is not None:
            agent.base.load_base_state(self.weights)
        agent.load_state_dict(self.state)
        agent.seed = self.seed
        agent.adapters.share_reference()


def check_restorable(agent: LLMAlgorithm, saved: SavedAgent, state: Mapping[str, Any] | None = None) -> Restorable:
    """Compare everything that could be refused; nothing changes.

    Args:
        agent: An agent with the objective that the saved one had.
        saved: The saved one.
        state: Its state where that is not what was saved.

    Raises:
        CheckpointError: It does not suit the agent.
    """
    # What remains different in how the agents were made has been spoken of.
    state = {**(saved.attributes if state is None else state), "construction": construction(agent)}
    weights = _base_weights(agent, saved)
    adapters = {role: _parameters(agent, role, adapter) for role, adapter in saved.adapters.items()}
    if adapters.keys() != agent.adapters.owned.keys():
        raise CheckpointError(
            f"{saved.path / MANIFEST}: the agent had the adapters {', '.join(adapters)}, and this one has "
            f"{', '.join(agent.adapters.owned)}. Make it with the same use_separate_reference_adapter."
        )
    parameters = agent.base.parameters(agent.adapters.owned["actor"])
    try:
        if list(saved.attributes["optimizer_parameters"]) != list(parameters):
            raise ValueError("the optimizer's parameters are others")
        if "optimizer" in saved.attributes:
            moments = moments_by_name(state["optimizer"], list(parameters))
            check_moments(moments, {key: parameter.shape for key, parameter in parameters.items()})
            check_groups(state["optimizer"]["param_groups"], agent.optimizer.state_dict()["param_groups"])
        agent.check_state({**state, "adapters": adapters})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unfit(saved, error) from error
    return Restorable({**state, "adapters": adapters}, saved.attributes["seed"], weights)


def _parameters(agent: LLMAlgorithm, role: str, saved: SavedAdapter) -> dict[str, Tensor]:
    """A saved adapter by the names of the live adapter's parameters, which it must have exactly."""
    name = agent.adapters.owned.get(role)
    if name is None:
        return {}  # the roles are compared afterwards
    differing = config_differences(agent.base.config(name), saved.config)
    if differing:
        raise CheckpointError(
            f"{saved.source / 'adapter_config.json'}: the adapter's configuration is not the agent's: "
            f"{', '.join(differing)}. Make the agent with the lora_config that it had, or use load_checkpoint."
        )
    keys = agent.base.file_keys(name)
    live = agent.base.parameters(name)
    unfit = sorted(saved.tensors.keys() ^ keys.keys()) or sorted(
        key for key, parameter in keys.items() if saved.tensors[key].shape != live[parameter].shape
    )
    if unfit:
        raise CheckpointError(f"{saved.source}: {unfit[0]} is missing, unexpected or of another shape.")
    return {parameter: saved.tensors[key] for key, parameter in keys.items()}


def _base(
    saved: SavedAgent, actor_network: PreTrainedModel | None, model_config: Mapping[str, Any] | None
) -> SharedBaseModel:
    """The base model that a checkpoint belongs to."""
    if actor_network is not None:
        if model_config is not None:
            raise ValueError("Pass model_config for a base model that is to be loaded, or actor_network, not both.")
        return SharedBaseModel.of(actor_network)
    dtype = loadable(saved.base.dtype)
    if holds_base(saved.attributes):
        return SharedBaseModel.of(make_base(saved.attributes, saved.attributes_file, dtype, model_config))
    if not saved.base.name:
        raise CheckpointError(
            f"{saved.path / MANIFEST}: the base model was made without a name, so it cannot be loaded. Pass it as "
            "actor_network, or save with lora_only=False."
        )
    settings = {"dtype": dtype} if model_config is None else dict(model_config)
    try:
        return SharedBaseModel.load(saved.base.name, settings)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{saved.path / MANIFEST}: the base model {saved.base.name!r} cannot be loaded: {error} Pass it as "
            "actor_network."
        ) from error
