"""An adapter's optimizer in DeepSpeed's files: every process writes its share, and any number of processes reads all.

DeepSpeed's own way to another number of processes, its universal checkpoint, puts the shares of a parameter together by
the mapping that each file has of its flat partition. That is done here too, without DeepSpeed and without unpickling.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agiledpo.algorithms.core.stepper import Stepper
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.distributed.zero_stepper import ZeroStepper

SHARDS = "save_checkpoint"
_TAG = "shards"
_MODEL = "mp_rank_00_model_states.pt"
_FILE = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_AGAIN = "Take another checkpoint, or load this one with load_optimizer=False."
_FOREIGN = (
    "It is not as agiledpo writes it, but of a whole engine of DeepSpeed's, as AgileRL saves it, perhaps. The adapters "
    "beside it can be loaded, with load_optimizer=False; the optimizer's state cannot. Weights that are only in there "
    "DeepSpeed's zero_to_fp32.py takes out."
)


class _Opaque:
    """Stands for an object of DeepSpeed's that nothing is read from."""


class _Stage(int):
    """Stands for DeepSpeed's name of a ZeRO stage."""


@dataclass
class _Address:
    """Stands for DeepSpeed's note of where a fragment of a parameter is in a flat partition."""

    numel: int
    start: int


# What DeepSpeed's files hold beside tensors and plain values. Nothing of DeepSpeed's is called to read them.
_STAND_INS = [
    (_Opaque, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Opaque, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Stage, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Address, "deepspeed.utils.tensor_fragment.fragment_address"),
]


def has_shards(path: Path) -> bool:
    """Whether a checkpoint has an optimizer in DeepSpeed's files.

    Args:
        path: The checkpoint's directory.
    """
    return (path / SHARDS).is_dir()


def writes_shards(stepper: Stepper) -> bool:
    """Whether a stepper's state goes into DeepSpeed's files: ZeRO stages 2 and 3.

    Args:
        stepper: An agent's.
    """
    return isinstance(stepper, ZeroStepper) and stepper.stage >= 2


def write_shards(stepper: Stepper, path: Path) -> None:
    """Have every process write its share of an optimizer and of the weights that it steps.

    All processes call it, with one directory that they all see. DeepSpeed's ``zero_to_fp32.py``, which it puts there
    too, makes the adapter's weights of it.

    Args:
        stepper: One that shards; see :func:`writes_shards`.
        path: The checkpoint's directory; ``save_checkpoint`` in it is written.

    Raises:
        OSError: A process could not write; in every process.
        TypeError: The stepper does not shard.
    """
    if not isinstance(stepper, ZeroStepper):
        raise TypeError(f"A {type(stepper).__name__} has no shards to write.")
    stepper.save_shards(path / SHARDS, _TAG)


def read_shards(path: Path) -> tuple[dict[str, Any], list[str]]:
    """An optimizer's state from the files of all processes that wrote it, however many.

    Args:
        path: The checkpoint's directory.

    Returns:
        The state as one process's AdamW would give it, with whole moments on the CPU, and the names of the parameters
        in their order.

    Raises:
        CheckpointError: A file is missing, damaged, holds what nothing here reads, or is not as agiledpo writes it;
            it is named.
    """
    directory = path / SHARDS / _TAG
    if not directory.is_dir():
        raise foreign(path)
    try:
        shapes = _shapes(_load(directory / _MODEL), directory / _MODEL)
        partitions = _partitions(directory)
        moments = {name: _moments(name, shape, partitions) for name, shape in shapes.items()}
        group = dict(partitions[0].group)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory} is not as DeepSpeed writes it: {error!r}. {_AGAIN}") from error
    state = {number: entry for number, entry in enumerate(moments.values()) if entry}
    group["params"] = list(range(len(shapes)))
    return {"state": state, "param_groups": [group]}, list(shapes)


def foreign(path: Path) -> CheckpointError:
    """The error that says that another library wrote what is where shards are.

    Args:
        path: The checkpoint's directory.
    """
    return CheckpointError(f"The optimizer's state cannot be read from {path / SHARDS}. {_FOREIGN}")


@dataclass(frozen=True)
class _Partition:
    """What one process held."""

    places: Mapping[str, _Address]
    state: Mapping[str, Any]
    group: Mapping[str, Any]


def _shapes(model: Mapping[str, Any], file: Path) -> dict[str, torch.Size]:
    groups = model["param_shapes"]
    if len(groups) != 1:
        raise CheckpointError(f"{file} has {len(groups)} groups of parameters. {_FOREIGN}")
    return {str(name): torch.Size(shape) for name, shape in groups[0].items()}


def _partitions(directory: Path) -> list[_Partition]:
    found = {int(match[1]): entry for entry in directory.iterdir() if (match := _FILE.fullmatch(entry.name))}
    if not found:
        raise CheckpointError(f"{directory} holds no zero_pp_rank_*_optim_states.pt. {_AGAIN}")
    loaded = {rank: _load(file)["optimizer_state_dict"] for rank, file in sorted(found.items())}
    (count,) = next(iter(loaded.values()))["partition_count"]
    for rank in range(count):
        if rank not in found:
            raise CheckpointError(
                f"{directory / f'zero_pp_rank_{rank}_mp_rank_00_optim_states.pt'} is missing: {count} processes wrote "
                f"this checkpoint, and it takes the files of all. {_AGAIN}"
            )
    partitions = []
    for rank in range(count):
        saved = loaded[rank]
        base = saved["base_optimizer_state"]
        (group,), (places,) = base["param_groups"], saved["param_slice_mappings"]
        partitions.append(_Partition(places, base["state"].get(group["params"][0], {}), group))
    return partitions


def _moments(name: str, shape: torch.Size, partitions: list[_Partition]) -> dict[str, Any]:
    """One parameter's state, put together; empty where no step had been made."""
    held = [partition for partition in partitions if name in partition.places]
    if sum(partition.places[name].numel for partition in held) != shape.numel():
        raise ValueError(f"the fragments of {name} are not its {shape.numel()} elements")
    entry: dict[str, Any] = {}
    for kind, value in held[0].state.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            # A tensor of its own: AdamW counts each parameter's steps in place.
            entry[kind] = value.clone() if isinstance(value, Tensor) else value
            continue
        fragments = [partition.state[kind] for partition in held]
        places = [partition.places[name] for partition in held]
        parts = [flat.narrow(0, at.start, at.numel) for flat, at in zip(fragments, places, strict=True)]
        entry[kind] = torch.cat(parts).view(shape)
    return entry


def _load(file: Path) -> Any:
    try:
        with torch.serialization.safe_globals(list(_STAND_INS)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing. {_AGAIN}") from None
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{file} holds something else than an optimizer's numbers, or is damaged; it was not unpickled. {reason} "
            f"{_AGAIN}"
        ) from error
    except (EOFError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. {_AGAIN}") from error
