"""Pairs that are there twice, and pairs that say the opposite of each other."""

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.checks.checked import CheckedDataset
from agiledpo.data.checks.findings import Finding, Severity
from agiledpo.data.checks.pair_table import PairColumns


def repeats(digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which digests occurred before, (n,) bool.

    Args:
        digests: (n,) uint64.
    """
    repeated = np.ones(len(digests), dtype=np.bool_)
    repeated[np.unique(digests, return_index=True)[1]] = False
    return repeated


def duplicates(pairs: PairColumns) -> NDArray[np.bool_]:
    """Which pairs are exactly an earlier one, (pairs,) bool."""
    return repeats(pairs.pair)


def near_duplicates(pairs: PairColumns) -> NDArray[np.bool_]:
    """Which pairs are an earlier one but for case and whitespace, and no exact duplicates, (pairs,) bool."""
    return repeats(pairs.near_pair) & ~repeats(pairs.pair)


def contradictions(pairs: PairColumns) -> NDArray[np.bool_]:
    """Which pairs are there with chosen and rejected swapped as well, (pairs,) bool."""
    return np.isin(pairs.pair, pairs.swapped)


def repeat_findings(checked: CheckedDataset, examples: int) -> list[Finding]:
    """What is there twice, is contradicted, or has completions that hardly differ.

    Args:
        checked: The dataset.
        examples: How many rows to show of each.
    """
    pairs = checked.pairs
    kinds = (
        (
            "contradictory_pairs",
            Severity.WARNING,
            contradictions(pairs),
            (pairs.swapped, pairs.pair),
            "the pair is there with chosen and rejected swapped as well",
            "Decide which of the two is right, or drop both.",
        ),
        (
            "duplicate_pairs",
            Severity.WARNING,
            duplicates(pairs),
            (pairs.pair, pairs.pair),
            "the pair repeats an earlier one",
            "Drop the repetitions, which otherwise count several times.",
        ),
        (
            "near_duplicate_pairs",
            Severity.NOTE,
            near_duplicates(pairs),
            (pairs.near_pair, pairs.near_pair),
            "the pair repeats an earlier one but for upper and lower case and whitespace",
            "Drop it if it says nothing new.",
        ),
    )
    findings = checked.finding(
        "nearly_identical_pairs",
        Severity.WARNING,
        checked.scan.nearly_identical,
        "chosen and rejected differ in nothing but upper and lower case and whitespace",
        "Drop the pair, unless that is what is to be learned.",
    )
    opened, name = checked.opened, checked.opened.name
    for check, severity, mask, (wanted, among), problem, remedy in kinds:
        if mask.any():
            found = opened.first_pairs(mask, pairs, wanted, (opened, pairs, among), examples)
            count = int(mask.sum())
            findings.append(Finding(check, severity, name, problem, remedy, count, len(pairs), examples=found))
    return findings
