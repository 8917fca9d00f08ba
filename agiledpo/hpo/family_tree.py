"""The family tree of a population, as text and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from agiledpo.hpo.lineage import AgentHistory, Lineage
from agiledpo.hpo.records import Born, Mutated, Value


def evolved_parameters(lineage: Lineage) -> list[str]:
    """Return the names of hyperparameters that ever mutated or in which agents differed at birth.

    Args:
        lineage: The lineage.
    """
    births = lineage.of(Born)
    names = list(dict.fromkeys(name for birth in births for name in birth.hyperparameters))
    mutated = list(dict.fromkeys(mutation.parameter for mutation in lineage.of(Mutated)))
    differing = {
        name
        for name in names
        if any(birth.hyperparameters.get(name) != births[0].hyperparameters.get(name) for birth in births)
    }
    return [name for name in names if name in differing or name in mutated] + [n for n in mutated if n not in names]


def value_text(value: Value) -> str:
    """Return a hyperparameter's value in few characters: numbers to three digits, tuples joined by ``+``.

    Args:
        value: The value.
    """
    match value:
        case float():
            return f"{value:.3g}"
        case tuple():
            return "+".join(value_text(part) for part in value)
    return str(value)


def family_tree_text(lineage: Lineage) -> str:
    """Draw the family tree for a terminal.

    Each line is an agent, below its parent: index, the pairs between which it lived, its last fitness and standard
    error, and the hyperparameters that evolved, with an arrow from the value at birth where they changed. A star marks
    the elite.

    Args:
        lineage: The lineage.

    Returns:
        Lines without a trailing line break; a sentence where nothing is recorded.
    """
    agents = lineage.agents
    if not agents:
        return "No agent has been born yet."
    elite = lineage.elite
    parameters = evolved_parameters(lineage)
    rows = [["agent", "pairs", "fitness", *parameters, ""]]
    # Depth first without recursion: a long run descends by thousands of generations.
    waiting = [(agent, "", "") for agent in reversed(agents.values()) if agent.parent is None]
    while waiting:
        agent, branch, below = waiting.pop()
        end = "" if agent.died is None else str(agent.died)
        rows.append(
            [
                f"{branch}{agent.index}{' *' if agent.index == elite else ''}",
                f"{agent.birth.pairs}-{end}",
                _fitness(agent),
                *(_values(agent, parameter) for parameter in parameters),
                _fate(agent),
            ]
        )
        for number, child in enumerate(reversed(agent.children)):
            last = number == 0
            waiting.append((agents[child], below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _fitness(agent: AgentHistory) -> str:
    if not agent.evaluations:
        return "-"
    last = agent.evaluations[-1]
    return f"{last.fitness:.3f}" if math.isnan(last.error) else f"{last.fitness:.3f} ± {last.error:.3f}"


def _values(agent: AgentHistory, parameter: str) -> str:
    values = [value for _, value in agent.values(parameter)]
    if not values:
        return "-"
    first, last = value_text(values[0]), value_text(values[-1])
    return last if first == last else f"{first} → {last}"


def _fate(agent: AgentHistory) -> str:
    if agent.diverged is not None:
        return "diverged"
    return "" if agent.replaced is None else "replaced"


def plot_lineage(lineage: Lineage, path: str | Path, *, parameters: Sequence[str] | None = None) -> None:
    """Draw the family tree, and below it fitness with standard errors and hyperparameters, over the pairs seen.

    The same lineage gives the same file.

    Args:
        lineage: The lineage.
        path: File to write, ``.svg`` or ``.png``; it is replaced.
        parameters: Hyperparameters to show; None for those that evolved.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: Nothing is recorded, the ending of ``path`` is another one, or no agent has a parameter.
    """
    path = Path(path)
    if path.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"path={str(path)!r} must end in .svg or .png.")
    try:
        from agiledpo.hpo.family_picture import draw_lineage, save
    except ImportError as error:
        raise ImportError(
            "Drawing a lineage needs Matplotlib; install it with: pip install 'agiledpo[plots]'. "
            "family_tree_text(lineage) does without."
        ) from error
    save(draw_lineage(lineage, evolved_parameters(lineage) if parameters is None else parameters), path)
