"""Read, recognise, check and tokenise prompts with their completions, or alone."""

from agiledpo.data.convert import convert
from agiledpo.data.demonstrations import Demonstrations, Dialogues, recognise_demonstrations
from agiledpo.data.errors import DatasetError, PreferenceDataError
from agiledpo.data.examples import Example, Form
from agiledpo.data.filtering import FilterCounts
from agiledpo.data.layout import Layout
from agiledpo.data.loaded_rows import LoadedRows
from agiledpo.data.loading import RowSource, load_demonstrations, load_preferences, load_questions
from agiledpo.data.named import NAMED
from agiledpo.data.pairs import PAIRS, ImplicitPairs, Pairs
from agiledpo.data.preparation import PreparedRows, prepare_rows
from agiledpo.data.questions import PromptLayout, Prompts, Questions
from agiledpo.data.ranked import Ranked
from agiledpo.data.recognition import recognise_preferences
from agiledpo.data.token_pairs import TokenPairs
from agiledpo.data.tokenization import TokenizedRow

__all__ = [
    "NAMED",
    "PAIRS",
    "DatasetError",
    "Demonstrations",
    "Dialogues",
    "Example",
    "FilterCounts",
    "Form",
    "ImplicitPairs",
    "Layout",
    "LoadedRows",
    "Pairs",
    "PreferenceDataError",
    "PreparedRows",
    "PromptLayout",
    "Prompts",
    "Questions",
    "Ranked",
    "RowSource",
    "TokenPairs",
    "TokenizedRow",
    "convert",
    "load_demonstrations",
    "load_preferences",
    "load_questions",
    "prepare_rows",
    "recognise_demonstrations",
    "recognise_preferences",
]
