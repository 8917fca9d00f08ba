"""The embedded preference data: pairs that teach short, complete, direct answers, packaged with the library."""

import json
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


def held_out_prompts() -> list[dict[str, Any]]:
    """The held-out prompts, each once: ``prompt`` (chat messages) and ``topic``, in file order.

    To sample answers to them and `judge` these is the check that does not look at the pairs.
    """
    unique = {row["prompt"][0]["content"]: row for row in _rows(TEST_FILE)}
    return [{"prompt": row["prompt"], "topic": row["topic"]} for row in unique.values()]


def _rows(name: str) -> list[dict[str, Any]]:
    text = files("agiledpo.embedded").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
