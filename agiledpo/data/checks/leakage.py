"""Test pairs that training has seen."""

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.checks.checked import CheckedDataset
from agiledpo.data.checks.findings import Finding, Severity
from agiledpo.data.checks.pair_table import PairColumns


def shared_pairs(test: PairColumns, train: PairColumns) -> NDArray[np.bool_]:
    """Which test pairs are exactly a training pair, (test pairs,) bool."""
    return np.isin(test.pair, train.pair)


def swapped_pairs(test: PairColumns, train: PairColumns) -> NDArray[np.bool_]:
    """Which test pairs are a training pair with chosen and rejected swapped, (test pairs,) bool."""
    return np.isin(test.swapped, train.pair)


def shared_prompts(test: PairColumns, train: PairColumns) -> NDArray[np.bool_]:
    """Which test pairs have the prompt of a training pair, (test pairs,) bool."""
    return np.isin(test.prompt, train.prompt)


def near_prompts(test: PairColumns, train: PairColumns) -> NDArray[np.bool_]:
    """Which test pairs have a training prompt but for case and whitespace, and none exactly, (test pairs,) bool."""
    return np.isin(test.near_prompt, train.near_prompt) & ~shared_prompts(test, train)


def leakage_findings(test: CheckedDataset, train: CheckedDataset, examples: int) -> list[Finding]:
    """What the test data have in common with the training data.

    Args:
        test: The test data.
        train: The training data.
        examples: How many rows to show of each.
    """
    ours, theirs = test.pairs, train.pairs
    kinds = (
        (
            "leaked_pairs",
            shared_pairs(ours, theirs),
            (ours.pair, theirs.pair),
            "the test pair is a training pair",
            "Take it out of one of the two: what is measured on it says nothing of what was learned.",
        ),
        (
            "swapped_test_pairs",
            swapped_pairs(ours, theirs),
            (ours.swapped, theirs.pair),
            "the test pair is a training pair with chosen and rejected swapped",
            "Decide which of the two is right, and take it out of one of the datasets.",
        ),
        (
            "leaked_prompts",
            shared_prompts(ours, theirs),
            (ours.prompt, theirs.prompt),
            "the test pair has the prompt of a training pair",
            "Split the data by prompt.",
        ),
        (
            "nearly_leaked_prompts",
            near_prompts(ours, theirs),
            (ours.near_prompt, theirs.near_prompt),
            "the test pair has the prompt of a training pair but for upper and lower case and whitespace",
            "Split the data by prompt, without regard to case and whitespace.",
        ),
    )
    return [
        Finding(
            check,
            Severity.WARNING,
            test.opened.name,
            problem,
            remedy,
            int(mask.sum()),
            len(ours),
            examples=test.opened.first_pairs(mask, ours, wanted, (train.opened, theirs, among), examples),
        )
        for check, mask, (wanted, among), problem, remedy in kinds
        if mask.any()
    ]
