"""A whole run as a directory: its agents, each a checkpoint of its own, and what the loop has to know to go on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from agiledpo.checkpoint.attributes import read_attributes
from agiledpo.checkpoint.directory import RUN_STATE, written_atomically
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.identity import identity_of
from agiledpo.checkpoint.load import restore
from agiledpo.checkpoint.manifest import Manifest
from agiledpo.checkpoint.save import write_agent
from agiledpo.checkpoint.state_file import write_state
from agiledpo.data.fingerprint import tokenizer_sha256
from agiledpo.data.tokenization import isolated_copy
from agiledpo.disk import disk_errors

if TYPE_CHECKING:
    from agiledpo.algorithms.core.llm import LLMAlgorithm


def save_run(
    path: Path,
    state: Mapping[str, Any],
    agents: Sequence["LLMAlgorithm"],
    *,
    metrics: Mapping[str, float] | None,
    tokenizer: PreTrainedTokenizerBase,
    run: str,
    created: str,
) -> None:
    """Save a run.

    The directory holds ``agents/agent_<index>/`` for each agent, as :meth:`LLMAlgorithm.save_checkpoint` writes it,
    ``run.pt``, which ``torch.load(weights_only=True)`` reads, and ``tokenizer/``. It is complete or absent.

    Args:
        path: Directory to write.
        state: What the loop has to know, in tensors and plain values.
        agents: The agents, all on one base model.
        metrics: Figures of the fittest agent, for the manifest; None if the agents have not been measured as they are.
        tokenizer: The tokenizer that the agents' rows were made with.
        run: Name of the run, the same in all its checkpoints.
        created: When it is written, ISO 8601; later than in the checkpoints before.

    Raises:
        OSError: It could not be written; what was there before is intact.
    """
    with written_atomically(path, "run") as draft:
        linked: dict[str, Path] = {}
        for agent in agents:
            place = _place(draft, agent.index)
            place.mkdir(parents=True)
            write_agent(agent, place, metrics={} if metrics is None else agent.held_out, linked=linked)
        write_state({**state, "agents": [agent.index for agent in agents]}, draft / RUN_STATE)
        with disk_errors(draft / "tokenizer"):
            tokenizer.save_pretrained(str(draft / "tokenizer"))
        Manifest(
            kind="run",
            algorithm=type(agents[0]).__name__,
            base_model=identity_of(agents[0].base),
            tokenizer=tokenizer_sha256(isolated_copy(tokenizer)),
            metrics=metrics or {},
            run=run,
            created=created,
        ).write(draft)


def read_run(path: Path) -> dict[str, Any]:
    """Read what :func:`save_run` was given, once every file has been checked; ``agents`` are their indices.

    Args:
        path: The directory.

    Raises:
        CheckpointError: It is not a run's checkpoint, or not as it was written; the file is named.
    """
    manifest = Manifest.verify(path)
    if manifest.kind != "run":
        raise CheckpointError(
            f"{path} is the checkpoint of one agent, not of a run, so nothing can be resumed from it. Load it with "
            "agent.load_checkpoint, or pass a directory step_<rows> as resume_from."
        )
    return read_attributes(path / RUN_STATE)


def restore_agents(path: Path, indices: Sequence[int], agents: Sequence["LLMAlgorithm"]) -> None:
    """Bring agents to the state in which a run saved them, bit for bit.

    Args:
        path: The run's directory.
        indices: The saved agents, in the run's order.
        agents: Agents that are built like them, in the same order.

    Raises:
        ValueError: An agent is built otherwise, or on another base model.
    """
    for index, agent in zip(indices, agents, strict=True):
        restore(agent, _place(path, index))


def _place(path: Path, index: int) -> Path:
    return path / "agents" / f"agent_{index}"
