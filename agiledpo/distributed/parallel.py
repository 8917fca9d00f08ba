"""The two ways in which several processes train a population."""

from typing import Literal, get_args

from accelerate import Accelerator, DistributedType

from agiledpo.distributed.team import Team

Parallel = Literal["data", "population"]


def homes_of_agents(parallel: Parallel, accelerator: Accelerator | None) -> Team:
    """The processes among which the agents of a population are spread; a team of one where all work on each agent.

    Args:
        parallel: ``"data"``: all processes share the work of every agent; ``"population"``: each has agents of its own.
        accelerator: Accelerate's handle.

    Raises:
        ValueError: There is no such way, or the processes cannot go it.
    """
    if parallel not in get_args(Parallel):
        raise ValueError(f"parallel={parallel!r}; use one of {', '.join(map(repr, get_args(Parallel)))}.")
    if parallel == "data":
        return Team.alone()
    if accelerator is None:
        raise ValueError(
            "parallel='population' spreads the agents over the processes of an accelerator, and there is none. Pass "
            "accelerator=Accelerator(), also to the agents and the environment."
        )
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        raise ValueError(
            "parallel='population' keeps a whole agent in one process, and DeepSpeed spreads each over all of them. "
            "Launch without DeepSpeed, or pass parallel='data'."
        )
    return Team.of(accelerator)
