"""The embedded preference data: pairs that teach short, complete, direct answers, packaged with the library."""

import json
import random
from collections.abc import Collection, Sequence
from importlib.resources import files
from typing import Any

from datasets import Dataset

TRAIN_FILE = "preferences.jsonl"
TEST_FILE = "preferences_test.jsonl"


def load_embedded_preferences() -> tuple[Dataset, Dataset]:
    """The training pairs and the held-out pairs; no prompt and no topic occurs in both.

    Returns:
        Two in-memory data sets with the columns ``prompt``, ``chosen``, ``rejected`` (chat messages), ``topic`` (words
        that an answer on topic mentions) and ``id``. `DATA_CARD.md` beside the files says where they come from.
    """
    return Dataset.from_list(_rows(TRAIN_FILE)), Dataset.from_list(_rows(TEST_FILE))


def split_by_topic(rows: Dataset, share: float, *, seed: int) -> tuple[Dataset, Dataset]:
    """Split a data set in two that have no topic in common, in an order that the seed decides.

    Args:
        rows: With a column ``topic``.
        share: Share of the topics whose rows make the first part, in (0, 1).
        seed: Of the order of rows and topics.
    """
    rows = rows.shuffle(seed=seed)
    of_rows = [tuple(topic) for topic in rows["topic"]]
    topics = sorted(set(of_rows))
    random.Random(seed).shuffle(topics)
    first = set(topics[: round(share * len(topics))])
    return (
        rows.select([number for number, topic in enumerate(of_rows) if topic in first]),
        rows.select([number for number, topic in enumerate(of_rows) if topic not in first]),
    )


def held_out_prompts(topics: Collection[Sequence[str]] | None = None) -> list[dict[str, Any]]:
    """The held-out prompts, each once: ``prompt`` (chat messages) and ``topic``, in file order.

    To sample answers to them and `judge` these is the check that does not look at the pairs.

    Args:
        topics: Only prompts about these; None for all.
    """
    wanted = {tuple(topic) for topic in topics or ()}
    unique = {row["prompt"][0]["content"]: row for row in _rows(TEST_FILE)}
    return [
        {"prompt": row["prompt"], "topic": row["topic"]}
        for row in unique.values()
        if topics is None or tuple(row["topic"]) in wanted
    ]


def _rows(name: str) -> list[dict[str, Any]]:
    text = files("agiledpo.embedded").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
