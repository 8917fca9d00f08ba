"""What a terminal or a notebook shows of a run: a progress bar and a line for each agent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agiledpo.training.observer import Outline
from agiledpo.training.pace import Pace, clock_face
from agiledpo.training.printable import one_line
from agiledpo.training.sample import Sample
from agiledpo.training.standings import Standing, by_rank, value_text

_MOST_AGENTS = 20
_MOST_SETS = 4
_HELD_OUT = "held-out"


@dataclass(frozen=True)
class _Column:
    """A column of the table; one of a high rank is left out first where there is no room."""

    label: str
    cells: Sequence[str]
    rank: int

    @property
    def width(self) -> int:
        return max(map(len, (self.label, *self.cells))) + 2  # a space, and the box's line, which is one


@dataclass(frozen=True)
class LiveView:
    """A moment of a run, drawn to the width and height that there is.

    Args:
        outline: What is known of the run.
        pace: Rows and time; the only thing that moves while this is shown.
        standings: The agents, in the population's order.
        generation: Selections so far.
        validation: By set, the figures of the fittest agent.
        sample: An answer; None where agents do not answer.
    """

    outline: Outline
    pace: Pace
    standings: Sequence[Standing]
    generation: int = 0
    validation: Mapping[str, str] | None = None
    sample: Sample | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw."""
        width, plain = options.max_width, options.ascii_only
        below = list(self._below(width))
        yield self._progress(width)
        yield self._table(width, options.size.height - len(below) - 7, "*" if plain else "★")
        for line in below:
            yield Text(line.encode("ascii", "replace").decode() if plain else line, no_wrap=True, overflow="ellipsis")

    def _progress(self, width: int) -> Table:
        pace = self.pace
        rate = "" if pace.rate is None else f"{_short(pace.rate)} {self.outline.unit}s/s"
        left = f"{clock_face(pace.remaining)} left"
        times = left if width < 76 else f"{clock_face(pace.elapsed)} elapsed, {left}"
        line = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for ratio in (None, 1, None, None, None):
            line.add_column(ratio=ratio, no_wrap=True)
        line.add_row(
            f"{pace.done}/{pace.total} {self.outline.unit}s",
            ProgressBar(total=pace.total, completed=pace.done),
            f"{pace.share:.0%}",
            rate,
            times,
        )
        return line

    # The agents -----------------------------------------------------------------------------------------------------

    def _table(self, width: int, room: int, star: str) -> Table:
        room = max(3, min(room, _MOST_AGENTS))
        if len(self.standings) <= room:
            best, worst = list(self.standings), []
        else:
            ranked, last = by_rank(self.standings), max(1, (room - 1) // 4)
            best, worst = ranked[: room - 1 - last], ranked[-last:]
        columns, left_out = self._columns([*best, *worst], width, star)
        between = len(self.standings) - len(best) - len(worst)
        notes = [f"{between} more agents between them"] if between else []
        if left_out:
            notes.append(f"a wider screen also shows {', '.join(left_out)}")
        generation = f"generation {self.generation}" if self.generation else ""
        table = Table(
            box=box.SIMPLE_HEAD,
            title=", ".join(filter(None, (self.outline.algorithm, generation, self._meaning()))),
            title_justify="left",
            title_style="dim",
            caption="; ".join(notes) or None,
            caption_justify="left",
            caption_style="dim",
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
        )
        for column in columns:
            table.add_column(column.label, justify="left" if column.label == "agent" else "right", no_wrap=True)
        for place, standing in enumerate((*best, *worst)):
            style = "red" if standing.has_diverged else "bold" if standing.is_elite else ""
            cut = between > 0 and place == len(best) - 1
            table.add_row(*(column.cells[place] for column in columns), style=style)
            if cut:
                table.add_row("…" if star == "★" else "...", style="dim")
        return table

    def _meaning(self) -> str:
        return f"{_HELD_OUT}: {self.outline.fitness}" if self.outline.fitness else ""

    def _columns(self, standings: Sequence[Standing], width: int, star: str) -> tuple[list[_Column], list[str]]:
        """Those for which there is room, and the labels of the others."""
        shown, values = list(self.outline.shown), _names(standings)
        first, *others = shown if shown else ("",)
        # Who evolves, and then what was learned, from what is least missed to what is most.
        least = [*reversed(values[2:]), *_by_turns(list(reversed(others)), values[:2])]
        rank = {label: len(least) - place for place, label in enumerate(least)}
        columns = [
            _Column("agent", [f"{s.index}{' ' + star if s.is_elite else ''}" for s in standings], 0),
            *(
                _Column(label, [self._figure(s, label, first) for s in standings], rank.get(label, 0))
                for label in shown
            ),
            *(_Column(name, [_value(s, name) for s in standings], rank[name]) for name in values),
            _Column(_HELD_OUT, [_fitness(s, star) for s in standings], 0),
        ]
        left_out = []
        while sum(column.width for column in columns) > width and any(column.rank for column in columns):
            missed = max((column for column in columns if column.rank), key=lambda column: column.rank)
            columns.remove(missed)
            left_out.append(missed.label)
        return columns, left_out

    def _figure(self, standing: Standing, label: str, first: str) -> str:
        if standing.has_diverged:
            return "diverged" if label == first else ""
        if label not in standing.figures:
            return "-"
        return format(standing.figures[label], self.outline.shown[label][1])

    # Below ----------------------------------------------------------------------------------------------------------

    def _below(self, width: int) -> Iterator[str]:
        sets = [f"{name}: {figures}" for name, figures in (self.validation or {}).items()]
        yield from sets[:_MOST_SETS]
        if len(sets) > _MOST_SETS:
            yield f"and {len(sets) - _MOST_SETS} more validation sets"
        if self.sample is not None:
            reward = f"{self.sample.reward:.3g}"
            for said, text in (
                (f"agent {self.sample.agent} was asked: ", self.sample.prompt),
                (f"and answered (reward {reward}): ", self.sample.answer),
            ):
                yield said + one_line(text, max(10, width - len(said)))


def _names(standings: Sequence[Standing]) -> list[str]:
    return list(dict.fromkeys(name for standing in standings for name in standing.hyperparameters))


def _value(standing: Standing, name: str) -> str:
    return value_text(standing.hyperparameters[name]) if name in standing.hyperparameters else ""


def _fitness(standing: Standing, star: str) -> str:
    if standing.fitness is None or standing.has_diverged:
        return "-"
    return str(standing.fitness) if star == "★" else str(standing.fitness).replace("±", "+-")


def _by_turns(first: Sequence[str], second: Sequence[str]) -> list[str]:
    return [label for pair in zip_longest(first, second) for label in pair if label is not None]


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
