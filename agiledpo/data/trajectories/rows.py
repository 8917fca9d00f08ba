"""Preference pairs of token ids as rows of a dataset."""

from collections.abc import Iterable
from typing import Any

from datasets import Dataset, Features, List, Value

from agiledpo.data.trajectories.types import PreferencePair

_TOKENS = List(Value("int64"))
_FEATURES = Features(
    {
        "prompt_ids": _TOKENS,
        "chosen_ids": _TOKENS,
        "rejected_ids": _TOKENS,
        "group_id": Value("string"),
        "task_id": Value("string"),
        "role": Value("string"),
        "reward_gap": Value("float64"),
    }
)


def pairs_to_rows(pairs: Iterable[PreferencePair]) -> list[dict[str, Any]]:
    """One row per pair: prompt_ids, chosen_ids and rejected_ids, and where it comes from.

    Args:
        pairs: From :func:`build_preference_pairs`.
    """
    return [
        {
            "prompt_ids": list(pair.chosen.steps[0].prompt_ids),
            "chosen_ids": list(pair.chosen.steps[0].response_ids),
            "rejected_ids": list(pair.rejected.steps[0].response_ids),
            "group_id": pair.group_id,
            "task_id": pair.task_id,
            "role": pair.role,
            "reward_gap": pair.reward_gap,
        }
        for pair in pairs
    ]


def pairs_to_dataset(pairs: Iterable[PreferencePair]) -> Dataset:
    """The same rows as a dataset, with the same columns if there are none."""
    rows = pairs_to_rows(pairs)
    return Dataset.from_dict({name: [row[name] for row in rows] for name in _FEATURES}, features=_FEATURES)
