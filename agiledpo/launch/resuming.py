"""What may be another value where a run is taken up again, and what would make another run of it."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from agiledpo.config import Config, load_config
from agiledpo.config.printing import plain_yaml
from agiledpo.launch.directory import RunDirectory
from agiledpo.launch.places import with_absolute_paths

# Everything below these as well. What else an agent is made with is in its checkpoint, from which it is restored.
CHANGEABLE = (
    "train.num_epochs",
    "train.max_steps",
    "train.evaluation_interval",
    "train.checkpoint_steps",
    "train.save_elite",
    "train.verbose",
    "train.parallel",
    "train.retention",
    "evolution.evo_steps",
    "trackers",
    "samples",
    "threads",
    "micro_batch_size_per_gpu",
    "gradient_checkpointing",
    "activation_offload",
    "model.device",
    "model.attn_implementation",
    # With another number of processes, batches of the same rows.
    "env.data_batch_size_per_gpu",
    "env.num_proc",
    # Files may have been moved, and servers; training rows that are others are refused by the environment.
    "data.train",
    "data.test",
    "data.final",
    "data.validation",
    "generator.base_url",
    "generator.adapter_directory",
    "generator.api_key",
    "generator.timeout",
    "generator.concurrency",
)


def check_changes(config: Config, directory: RunDirectory) -> None:
    """Check that a run can be taken up again with a configuration.

    Before its first checkpoint everything may change.

    Args:
        config: What it is to go on with.
        directory: The run's.

    Raises:
        ConfigError: The directory's configuration cannot be read.
        ValueError: Something differs that would be ignored, or make another run of it.
    """
    if not directory.is_run() or not directory.has_checkpoint():
        return
    began = load_config(config.algorithm, [directory.config])
    changes = [
        (path, old, new)
        for path, old, new in _differences(with_absolute_paths(began).values, with_absolute_paths(config).values)
        if not any(path == allowed or path.startswith(f"{allowed}.") for allowed in CHANGEABLE)
    ]
    if not changes:
        return
    was = ", ".join(f"{path}={plain_yaml(old)} (not {plain_yaml(new)})" for path, old, new in changes)
    wanted = " ".join(shlex.quote(f"{path}={plain_yaml(new)}") for path, _, new in changes)
    raise ValueError(
        f"The run in {directory.path} began with {was} and can only go on with that. For a new run: agiledpo train "
        f"{config.algorithm} --config {shlex.quote(str(directory.config))} {wanted}. To let it begin with this run's "
        f"fittest agent, add model.adapter={shlex.quote(str(directory.elite))}."
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*old, *new]):
        one, other = old.get(name), new.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}", one, other
