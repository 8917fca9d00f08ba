"""What is wrong with preference data, and what they teach although nobody means it."""

from agiledpo.data.checks.check import check_preferences
from agiledpo.data.checks.findings import Finding, Place, Severity, Sighting
from agiledpo.data.checks.report import CheckReport, DatasetFigures

__all__ = ["CheckReport", "DatasetFigures", "Finding", "Place", "Severity", "Sighting", "check_preferences"]
