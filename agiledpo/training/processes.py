"""The processes of a run: all that is made for it has to know of them."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.checkpoint.directory import check_writable
from agiledpo.checkpoint.shared_draft import check_shared
from agiledpo.checkpoint.zero_shards import writes_shards
from agiledpo.distributed.team import Team
from agiledpo.training.environments import Environments


def team_of(accelerator: Accelerator | None, agents: Sequence[LLMAlgorithm]) -> Team:
    """The processes that make a run together.

    Args:
        accelerator: The training function's; None for that of the agents.
        agents: The agents.
    """
    theirs = next((agent.accelerator for agent in agents if isinstance(agent, LLMAlgorithm)), None)
    return Team.of(theirs if accelerator is None else accelerator)


def check_agents_share(team: Team, agents: Sequence[LLMAlgorithm]) -> None:
    """Check that the processes of a run share the work of its agents.

    Args:
        team: The processes of the run.
        agents: The agents.

    Raises:
        ValueError: An agent was made without their accelerator, so that each process would train one of its own.
    """
    for agent in agents:
        if agent.team.size != team.size:
            raise ValueError(
                f"The run has {_processes(team.size)} and agent {agent.index} was made for "
                f"{_processes(agent.team.size)}. Make it with accelerator=accelerator, the same that is passed here: "
                f"{type(agent).__name__}(..., accelerator=accelerator)."
            )


def check_environments_share(team: Team, environments: Environments) -> None:
    """Check that environments hand the processes of a run rows for all of them.

    Args:
        team: The processes of the run.
        environments: The environments.

    Raises:
        ValueError: One was made without their accelerator.
    """
    for env in environments.all:
        processes = env.rows_per_batch // env.data_batch_size_per_gpu
        if processes != team.size:
            raise ValueError(
                f"The run has {_processes(team.size)} and the environment was made for {_processes(processes)}. Make "
                f"it with the agents' accelerator: {type(env).__name__}(..., accelerator=accelerator)."
            )


def check_places_shared(team: Team, agents: Sequence[LLMAlgorithm], directories: Sequence[Path]) -> None:
    """Check that all processes see the directories into which each will write its shards, before hours are spent.

    Args:
        team: The processes of the run.
        agents: The agents, of which some may have shards.
        directories: Where checkpoints will be made; the leader's count, and are made if they are not there.

    Raises:
        CheckpointError: A process does not see one; in every process.
        OSError: Nothing can be written there; in every process.
    """
    if team.is_alone or not any(writes_shards(agent.stepper) for agent in agents):
        return

    def make(directory: Path, made: ExitStack) -> Path:
        check_writable(directory)
        return Path(made.enter_context(tempfile.TemporaryDirectory(dir=directory, prefix=".agiledpo-shared-")))

    for directory in directories:
        with ExitStack() as made:  # only the leader's has something in it
            check_shared(team, team.leader_does(lambda: make(directory, made)))  # noqa: B023 - called at once


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"
