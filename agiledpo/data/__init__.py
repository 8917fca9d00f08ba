"""Read, recognise, check and tokenise prompts with their completions."""

from agiledpo.data.columns import PAIRS, RowColumns, demonstration_columns
from agiledpo.data.errors import DatasetError, PreferenceDataError
from agiledpo.data.filtering import FilterCounts
from agiledpo.data.formats import Form
from agiledpo.data.preparation import PreparedRows, prepare_rows
from agiledpo.data.tokenization import TokenizedRow

__all__ = [
    "PAIRS",
    "DatasetError",
    "FilterCounts",
    "Form",
    "PreferenceDataError",
    "PreparedRows",
    "RowColumns",
    "TokenizedRow",
    "demonstration_columns",
    "prepare_rows",
]
