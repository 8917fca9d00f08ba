"""What predicts the labels without reading: length, and the first words."""

from agiledpo.data.checks.findings import Finding, Severity
from agiledpo.data.checks.length_bias import LengthBias
from agiledpo.data.checks.openings import Opening
from agiledpo.data.checks.report import DatasetFigures

# First words whose shares differ by as much are probably what is learned.
_DIFFERENT_OPENINGS = 0.2


def shortcut_findings(figures: DatasetFigures) -> list[Finding]:
    """The shortcuts that a dataset offers.

    Args:
        figures: Of the dataset.
    """
    findings = []
    if figures.length_bias is not None and figures.length_bias.is_biased:
        findings.append(_of_length(figures.name, figures.length_bias))
    for opening in figures.openings:
        if abs(opening.chosen - opening.rejected) >= _DIFFERENT_OPENINGS:
            findings.append(_of_opening(figures, opening))
    return findings


def _of_length(name: str, bias: LengthBias) -> Finding:
    longer = bias.longer_accuracy > 0.5
    return Finding(
        "length_bias",
        Severity.WARNING if bias.is_strong else Severity.NOTE,
        name,
        f"the {'longer' if longer else 'shorter'} completion is the chosen one, where they differ in length",
        "A model can be this good without reading: compare with it, and balance the lengths or use an objective that "
        "normalises them if length is not what is to be learned.",
        bias.chosen_longer if longer else bias.rejected_longer,
        bias.decided,
    )


def _of_opening(figures: DatasetFigures, opening: Opening) -> Finding:
    shares = {"chosen": opening.chosen, "rejected": opening.rejected}
    less, more = sorted(shares, key=lambda side: shares[side])
    return Finding(
        "opening",
        Severity.WARNING,
        figures.name,
        f"the {more} completion begins with {opening.words!r}; of the {less} ones only {shares[less]:.1%} do",
        "Take it off if it is not what is to be learned.",
        round(shares[more] * figures.pairs),
        figures.pairs,
    )
