"""Generated rollouts and preference pairs, as long as those of HH-RLHF."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agiledpo.embedded.preferences import load_embedded_preferences

# Medians in words and spreads of log-normal lengths; with SmolLM2's tokenizer about 120, 40 and 50 tokens on average,
# as in HH-RLHF's harmless-base.
LENGTHS = {"prompt": (68, 0.85), "chosen": (22, 0.95), "rejected": (28, 0.95)}
LONGEST = 800
ROLLOUTS_PER_PROMPT = 4
_ROWS = 1000


def write_pairs(path: Path, rows: int, *, seed: int) -> None:
    """Write text pairs, one JSON object per line.

    Args:
        path: The file.
        rows: How many.
        seed: Of lengths and words.
    """
    with path.open("w", encoding="utf-8") as file:
        texts = _texts(tuple(LENGTHS), seed)
        for row, (prompt, chosen, rejected) in zip(range(rows), texts, strict=False):
            if chosen == rejected:  # of a million pairs of few words one or two
                rejected += " or not"
            pair = {
                "prompt": f"Human: {row} {prompt}\n\nAssistant:",
                "chosen": f" {chosen}",
                "rejected": f" {rejected}",
            }
            file.write(json.dumps(pair) + "\n")


def write_rollouts(path: Path, rows: int, *, seed: int) -> None:
    """Write scored rollouts, several of each prompt one after the other, as NeMo Gym does.

    Args:
        path: The file.
        rows: How many rollouts.
        seed: Of lengths, words and rewards.
    """
    rewards = np.random.default_rng(seed + 1)
    with path.open("w", encoding="utf-8") as file:
        prompt = ""
        for row, (asked, answer) in zip(range(rows), _texts(("prompt", "chosen"), seed), strict=False):
            if row % ROLLOUTS_PER_PROMPT == 0:
                prompt = f"{row} {asked}"
            part = {"type": "output_text", "text": answer, "annotations": []}
            rollout = {
                "responses_create_params": {"input": [{"role": "user", "content": prompt}]},
                "output": [{"type": "message", "role": "assistant", "content": [part]}],
                "reward": round(float(rewards.random()), 3),
            }
            file.write(json.dumps(rollout) + "\n")


def _texts(parts: tuple[str, ...], seed: int) -> Iterator[tuple[str, ...]]:
    """Endless texts of real words whose lengths are log-normal."""
    generator = np.random.default_rng(seed)
    train, _ = load_embedded_preferences()
    words = np.array([word for (message,) in train["rejected"] for word in message["content"].split()], dtype=object)
    medians, spreads = np.array([LENGTHS[part] for part in parts]).T
    while True:
        lengths = np.exp(generator.normal(np.log(medians), spreads, (_ROWS, len(parts))))
        lengths = np.clip(np.rint(lengths).astype(int), 1, LONGEST)
        # Beginnings within real answers, so that words follow one another as they do in English.
        starts = generator.integers(0, len(words) - LONGEST, lengths.shape)
        for row_starts, row_lengths in zip(starts, lengths, strict=True):
            yield tuple(
                " ".join(words[start : start + length]) for start, length in zip(row_starts, row_lengths, strict=True)
            )
