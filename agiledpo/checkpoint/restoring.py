"""Put the whole of an agent back, to the bit: into its like, or into a new one.

Everything is read, verified and compared before anything changes, so that a checkpoint that is refused leaves the agent
as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from agiledpo.adapters import SharedBaseModel
from agiledpo.adapters.files import SavedAdapter, check_finite
from agiledpo.adapters.reconcile import config_differences
from agiledpo.algorithms.core.construction import (
    ConstructionDifferences,
    compare_constructions,
    construction,
    warn_of_rounding,
)
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.checkpoint.directory import MANIFEST
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.identity import check_base, identity_of
from agiledpo.checkpoint.moments import check_groups, check_moments, moments_by_name
from agiledpo.checkpoint.saved_agent import SavedAgent, base_weights, required_agent, unfit
from agiledpo.checkpoint.stored_base import holds_base, loadable, make_base
from agiledpo.distributed.sharded import in_parts, sharding_settings
from agiledpo.distributed.team import Team

Agent = TypeVar("Agent", bound=LLMAlgorithm)


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
    with agent.team.speaking_once():
        _restore(agent, path, agent.team.leader_does(lambda: check_whole(required_agent(path, type(agent)))))


def _restore(agent: LLMAlgorithm, path: Path, saved: SavedAgent) -> None:
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


def check_whole(saved: SavedAgent) -> SavedAgent:
    """The same checkpoint, if it holds all that an agent was.

    Args:
        saved: The checkpoint.

    Raises:
        CheckpointError: It is without the optimizer.
    """
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
        raise unfit(saved, error) from error
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
    team = Team.of(accelerator)

    def read() -> SavedAgent:
        saved = required_agent(path, cls)
        for adapter in saved.adapters.values():
            check_finite(adapter)
        return saved

    saved = team.leader_does(read)
    with team.speaking_once():
        # Each process finds the base model for itself, or not.
        base = team.everyone_does(lambda: _base(saved, actor_network, model_config))
        sharding = sharding_settings(accelerator)
        if sharding is not None and in_parts(base.model):
            base.shard(sharding)  # its weights cannot be looked at before
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
    weights = base_weights(agent, saved)
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
        raise unfit(saved, error) from error
    return Restorable({**state, "adapters": adapters}, saved.attributes["seed"], weights)


def _parameters(agent: LLMAlgorithm, role: str, saved: SavedAdapter) -> dict[str, Tensor]:
    """A saved adapter by the names of the live adapter's parameters, which it must have exactly."""
    name = agent.adapters.owned.get(role)
    if name is None:
        return {}  # the roles are compared afterwards
    differing = config_differences(agent.base.config(name), saved.config)
    if differing:
        raise CheckpointError(
            f"{saved.config_file}: the adapter's configuration is not the agent's: "
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
