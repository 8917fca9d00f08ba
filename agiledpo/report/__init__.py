"""The report of a run: one HTML file that explains itself."""

from agiledpo.report.page import write_report
from agiledpo.report.record import Answer, ReportError, RunRecord
from agiledpo.report.series import Series

__all__ = ["Answer", "ReportError", "RunRecord", "Series", "write_report"]
