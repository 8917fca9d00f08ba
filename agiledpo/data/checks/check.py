"""Check preference data before anything is trained on them."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from agiledpo.data.checks.checked import CheckedDataset, read_once
from agiledpo.data.checks.findings import Finding, Severity
from agiledpo.data.checks.leakage import leakage_findings
from agiledpo.data.checks.opened import open_preferences
from agiledpo.data.checks.repeats import repeat_findings
from agiledpo.data.checks.report import CheckReport
from agiledpo.data.checks.shortcuts import shortcut_findings
from agiledpo.data.checks.traps import TRAPS
from agiledpo.data.loaded_rows import LoadedRows
from agiledpo.data.sources import Source

_ORDER = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


def check_preferences(
    data: Source | LoadedRows,
    *,
    test: Source | LoadedRows | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    examples: int = 3,
    show_progress: bool = False,
) -> CheckReport:
    """Look for what training would refuse, and for what it would learn although nobody means it.

    All rows are read once, in batches; of each pair 60 bytes of digests and lengths are remembered. Equality of prompts
    and completions is that of 64-bit digests.

    Args:
        data: The training data: a file, a directory, a name on the Hub, a `datasets.Dataset`, a stream, or what
            `load_preferences` returned, which can be told more of the source.
        test: The test data, which should have nothing in common with them; None for none.
        tokenizer: The model's, for lengths in tokens and errors that only tokenising finds; None for characters.
        chat_template_kwargs: What the chat template is told for all rows, as training is to tell it; needs a tokenizer.
        examples: How many rows to show of everything that is found.
        show_progress: Whether to draw progress bars.

    Raises:
        DatasetError: The data cannot be read at all: no rows, or no columns that are preferences.
        TypeError: `chat_template_kwargs` is not a mapping, or JSON cannot hold it.
        ValueError: The tokenizer lacks an end-of-sequence token or the chat template that the data need, or
            `chat_template_kwargs` has no effect.
    """
    if chat_template_kwargs is not None and tokenizer is None:
        raise ValueError("chat_template_kwargs needs a tokenizer, whose chat template is told of them.")
    sources = {"train": data} if test is None else {"train": data, "test": test}
    # All are looked at before any is read, which may take minutes.
    opened = [open_preferences(source, name) for name, source in sources.items()]
    checked = [
        read_once(one, tokenizer, chat_template_kwargs, examples=examples, show_progress=show_progress)
        for one in opened
    ]
    findings = [finding for one in checked for finding in _findings(one, examples)]
    if test is not None:
        findings += leakage_findings(checked[1], checked[0], examples)
    findings.sort(key=lambda finding: _ORDER.index(finding.severity))
    return CheckReport(tuple(one.figures for one in checked), tuple(findings))


def _findings(checked: CheckedDataset, examples: int) -> list[Finding]:
    """Everything but what concerns another dataset too."""
    found, opened = checked.scan, checked.opened
    findings = found.unusable.findings(found.rows, opened.name, opened.place, opened.data.locate)
    findings += repeat_findings(checked, examples)
    for trap in TRAPS:
        findings += checked.finding(trap.check, trap.severity, found.traps[trap.check], trap.problem, trap.remedy)
    findings += shortcut_findings(checked.figures)
    findings += checked.finding(
        "without_preference",
        Severity.NOTE,
        found.without_preference,
        "the row prefers neither completion and is left out",
        "Nothing needs to be done.",
        unit="rows",
    )
    return findings
