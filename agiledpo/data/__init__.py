"""Read, recognise, check and tokenise preference data."""

from agiledpo.data.errors import PreferenceDataError
from agiledpo.data.filtering import FilterCounts
from agiledpo.data.formats import Form
from agiledpo.data.preparation import PreparedPreferences, prepare_preferences
from agiledpo.data.tokenization import TokenizedPair

__all__ = ["FilterCounts", "Form", "PreferenceDataError", "PreparedPreferences", "TokenizedPair", "prepare_preferences"]
