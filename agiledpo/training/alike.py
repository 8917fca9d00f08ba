"""Processes that are to decide alike have to begin alike."""

from collections.abc import Mapping, Sequence

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.distributed.team import Team
from agiledpo.training.environments import Environments
from agiledpo.training.evolution import Evolution


def check_alike(
    team: Team, agents: Sequence[LLMAlgorithm], environments: Environments, call: Mapping[str, object]
) -> None:
    """Check that all processes have been given the same agents and rows and are asked for the same.

    Args:
        team: The processes.
        agents: This process's.
        environments: This process's.
        call: What this process is asked to do with them, by the names of arguments; values are compared as text.

    Raises:
        ValueError: They have not; in every process.
    """
    if team.is_alone:
        return
    given = {name: repr(value) for name, value in {**environments.settings(), **call}.items()}
    for agent in agents:
        values = {**agent.hyperparameters, "seed": agent.seed}
        given |= {f"agent {agent.index}'s {name}": repr(value) for name, value in values.items()}
    everybody = team.gather(given)
    for rank, theirs in enumerate(everybody):
        for name in {**everybody[0], **theirs}:
            first, other = everybody[0].get(name, "missing"), theirs.get(name, "missing")
            if first != other:
                raise ValueError(
                    f"{name} is {other} in process {rank} and {first} in process 0. Every process has to make the same "
                    "agents and environment and the same call: run the same program in each, with the same seeds and "
                    "data."
                )


def draw_alike(team: Team, evolution: Evolution) -> None:
    """Let all processes draw parents and mutations as the leader does, also where they were made without a seed.

    Args:
        team: The processes.
        evolution: This process's.
    """
    if not team.is_alone:
        evolution.load_state_dict(team.same(evolution.state_dict()))
