"""What a run shows while it goes on: live in a terminal or notebook, line by line elsewhere."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from io import StringIO
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text
from typing_extensions import override

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.training.live_view import LiveView
from agiledpo.training.observer import Observer, Outline
from agiledpo.training.pace import Pace
from agiledpo.training.plain_lines import PlainLines, describe, validation_lines
from agiledpo.training.population import Population
from agiledpo.training.printable import printable
from agiledpo.training.sample import Sample
from agiledpo.training.standings import Standings

if TYPE_CHECKING:
    from agiledpo.scoring import QuestionBatch, RolloutBatch

_PER_SECOND = 1  # drawing takes 5 to 15 ms, of which training shall not notice anything
_NOTEBOOK_WIDTH, _NOTEBOOK_HEIGHT = 110, 40
_HTML = '<pre style="white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace">{code}</pre>'


def display_for(console: Console | None = None) -> Observer:
    """Choose how a run is shown.

    Args:
        console: Where to; None for standard output.

    Returns:
        A live view in a notebook and in a terminal that can move its cursor, plain lines anywhere else.
    """
    console = Console() if console is None else console
    if console.is_jupyter:
        return LiveDisplay(NotebookScreen())
    # FORCE_COLOR makes a console say that it is a terminal, also where a log is written.
    if console.is_interactive and console.file.isatty():
        return LiveDisplay(TerminalScreen(console))
    return PlainLines()


class Screen(ABC):
    """Where a live view is drawn."""

    @abstractmethod
    def show(self, view: LiveView) -> None:
        """Draw a view in the place of the one before."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Print something that stays."""

    @abstractmethod
    def close(self) -> None:
        """Draw the last view, and let go of the screen; without effect if nothing was shown, or the second time."""


class TerminalScreen(Screen):
    """A view at the bottom of a terminal; what is printed meanwhile goes above it.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._view: LiveView | Text = Text()
        self._live = Live(console=console, get_renderable=lambda: self._view, refresh_per_second=_PER_SECOND)

    @override
    def show(self, view: LiveView) -> None:
        self._view = view
        if not self._live.is_started:
            self._live.start()

    @override
    def say(self, text: str) -> None:
        self._console.print(Text(printable(text, self._console.encoding)), soft_wrap=True)

    @override
    def close(self) -> None:
        self._live.stop()


class NotebookScreen(Screen):
    """A view in the output of a cell, replaced in place."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._view: LiveView | None = None
        self._drawn_at = 0.0

    @override
    def show(self, view: LiveView) -> None:
        self._view = view
        if time.monotonic() - self._drawn_at >= 1 / _PER_SECOND:
            self._draw(view)

    @override
    def say(self, text: str) -> None:
        print(printable(text))

    @override
    def close(self) -> None:
        if self._view is not None:
            self._draw(self._view)
        self._view = None

    def _draw(self, view: LiveView) -> None:
        from IPython.display import display  # a notebook has it, and nobody else needs it

        bundle = notebook_output(view)
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
        self._drawn_at = time.monotonic()


def notebook_output(view: LiveView) -> dict[str, str]:
    """A view as HTML, and as text for what shows none, by MIME type."""
    console = Console(file=StringIO(), record=True, force_jupyter=False, width=_NOTEBOOK_WIDTH, height=_NOTEBOOK_HEIGHT)
    console.print(view)
    return {
        "text/plain": console.export_text(clear=False),
        "text/html": console.export_html(inline_styles=True, code_format=_HTML),
    }


class LiveDisplay(Observer):
    """Keeps a :class:`LiveView` up to date.

    Args:
        screen: Where it is drawn.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._outline: Outline
        self._pace = Pace(0)
        self._standings: Standings
        self._generation = 0
        self._validation: dict[str, str] = {}
        self._sample: Sample | None = None

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._screen.close()

    @override
    def begins(self, outline: Outline, agents: Sequence[LLMAlgorithm]) -> None:
        self._outline = outline
        self._pace = Pace(outline.total_rows)
        self._standings = Standings(outline, agents)
        self._draw()

    @override
    def resumed(self, rows_done: int) -> None:
        self._pace.resumed(rows_done)
        self._draw()

    @override
    def said(self, text: str) -> None:
        self._screen.say(text)

    @override
    def answered(self, agent: LLMAlgorithm, questions: "QuestionBatch", rollouts: "RolloutBatch", env: Any) -> None:
        self._sample = Sample.first_of(agent, questions, rollouts, env)

    @override
    def learned(self, agent: LLMAlgorithm, metrics: Mapping[str, float]) -> None:
        self._standings.learned(agent, metrics)

    @override
    def advanced(self, rows_done: int) -> None:
        self._pace.advanced(rows_done)
        self._standings.advanced()
        self._draw()

    @override
    def evaluated(self, population: Population[Any], rows_done: int) -> None:
        self._standings.evaluated(population)
        self._validation = {
            split: f"loss {loss:.4f}, accuracy {accuracy:.3f}"
            for split, loss, accuracy in validation_lines(population, self._outline.validation_names)
        }
        self._draw()

    @override
    def evolved(self, generation: int, population: Population[Any], rows_done: int) -> None:
        self._generation = generation
        self._standings.evolved(population)
        self._screen.say(describe(generation, population))
        self._draw()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"generation": self._generation}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generation = state.get("generation", 0)

    def _draw(self) -> None:
        self._screen.show(
            LiveView(
                outline=self._outline,
                pace=self._pace,
                standings=self._standings.now(),
                generation=self._generation,
                validation=self._validation,
                sample=self._sample,
            )
        )
