"""Where agents are drawn in a picture of their family."""

import math
from collections.abc import Sequence

from agiledpo.hpo.lineage import AgentHistory


def assign_lanes(agents: Sequence[AgentHistory], end: int) -> dict[int, int]:
    """Give each agent a lane that is its own while it holds its place in the population.

    A child takes the free lane next to its parent's, so that there are as many lanes as places and branches are short.

    Args:
        agents: In order of birth.
        end: Pairs seen at the end.

    Returns:
        Lane by index of the agent, from 0.
    """
    lanes: dict[int, int] = {}
    free_from: list[float] = []
    for agent in agents:
        free = [lane for lane, pairs in enumerate(free_from) if pairs <= agent.birth.pairs]
        if agent.parent is None or not free:
            lane = len(free_from)
            free_from.append(0)
        else:
            home = lanes[agent.parent]
            lane = min(free, key=lambda each: (abs(each - home), each))
        lanes[agent.index] = lane
        free_from[lane] = math.inf if agent.replaced is None else agent.replaced.pairs
    return lanes
