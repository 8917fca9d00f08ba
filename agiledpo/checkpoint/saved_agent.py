"""What there is to know of a saved agent: read from its directory and verified, before anything is done with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from agiledpo.adapters import SharedBaseModel
from agiledpo.adapters.files import CONFIG, SavedAdapter, read_adapter
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.checkpoint.attributes import read_attributes
from agiledpo.checkpoint.directory import ATTRIBUTES, MANIFEST, settle
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.identity import BaseModelIdentity, check_base, identity_of
from agiledpo.checkpoint.manifest import Manifest
from agiledpo.checkpoint.packing import unpacked

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


def read_agent(path: Path) -> SavedAgent | None:
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
    return open_agent(path, manifest)


def open_agent(path: Path, manifest: Manifest) -> SavedAgent:
    """An agent's checkpoint whose files have been verified.

    Args:
        path: Its directory.
        manifest: Its manifest.

    Raises:
        CheckpointError: It is incomplete, or not as agiledpo writes it.
    """
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
    roles = [file.parent.name for file in listed if len(file.parts) == 2 and file.name == CONFIG]
    if "actor" not in roles:
        raise CheckpointError(f"{path / 'actor'} is missing from the manifest. Take another checkpoint.")
    # A run goes on with an agent that diverged; whoever loads one adapter checks it.
    adapters = {role: read_adapter(path / role, finite=False) for role in roles}
    return SavedAgent(path, manifest, manifest.base_model, adapters, attributes)


def required_agent(path: Path, cls: type[LLMAlgorithm]) -> SavedAgent:
    """A checkpoint of an agent of this class."""
    saved = read_agent(path)
    if saved is None:
        raise CheckpointError(
            f"{path / MANIFEST} is missing: the directory holds an adapter at most, not an agent. Make an agent and "
            "call its load_checkpoint."
        )
    return check_class(saved, cls)


def check_class(saved: SavedAgent, cls: type[LLMAlgorithm]) -> SavedAgent:
    """The same checkpoint, if an agent of this class wrote it.

    Args:
        saved: The checkpoint.
        cls: The class.

    Raises:
        CheckpointError: Another algorithm wrote it.
    """
    if saved.manifest.algorithm != cls.__name__:
        raise CheckpointError(
            f"{saved.path / MANIFEST}: the agent is a {saved.manifest.algorithm}, not a {cls.__name__}. To start a "
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


def base_weights(agent: LLMAlgorithm, saved: SavedAgent) -> Mapping[str, Tensor] | None:
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
    # All weights are looked at, whatever the first ones say: processes gather them together.
    return base.base_shapes.keys() == weights.keys() and all(
        [
            tensor.shape == weights[key].shape and torch.equal(tensor, weights[key].to(tensor))
            for key, tensor in base.base_weights()
        ]
    )


def unfit(saved: SavedAgent, error: Exception) -> CheckpointError:
    """The error that says why what a checkpoint holds cannot be this agent's.

    Args:
        saved: The checkpoint.
        error: What was found.
    """
    reason = str(error).removesuffix(".")
    return CheckpointError(f"{saved.attributes_file} does not fit the agent: {reason}. Take another checkpoint.")
