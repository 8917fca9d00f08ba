"""The preference pairs that are measured: the same text, and the same tokens, for every system."""

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

COLUMNS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A pair as text.

    Attributes:
        prompt: Text; chat is rendered with the model's template.
        chosen: Text that follows the prompt, ending with the end-of-sequence token's.
        rejected: As `chosen`.
        prompt_tokens: Tokens of `prompt`.
        chosen_tokens: Tokens of `chosen`.
        rejected_tokens: Tokens of `rejected`.
    """

    prompt: str
    chosen: str
    rejected: str
    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int

    @property
    def completion_tokens(self) -> int:
        """Tokens of both completions."""
        return self.chosen_tokens + self.rejected_tokens

    @property
    def tokens(self) -> int:
        """Tokens of the pair, the prompt counted once."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def longest(self) -> int:
        """Tokens of prompt and longer completion."""
        return self.prompt_tokens + max(self.chosen_tokens, self.rejected_tokens)


@dataclass(frozen=True)
class PairStatistics:
    """Sizes of a set of pairs.

    Attributes:
        pairs: How many.
        prompt: Mean prompt tokens.
        chosen: Mean tokens of the chosen completion.
        rejected: Mean tokens of the rejected completion.
        tokens: All tokens, prompts counted once.
        completion_tokens: All tokens of completions.
    """

    pairs: int
    prompt: float
    chosen: float
    rejected: float
    tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "PairStatistics":
        """Measure pairs."""
        return cls(
            pairs=len(pairs),
            prompt=mean(pair.prompt_tokens for pair in pairs),
            chosen=mean(pair.chosen_tokens for pair in pairs),
            rejected=mean(pair.rejected_tokens for pair in pairs),
            tokens=sum(pair.tokens for pair in pairs),
            completion_tokens=sum(pair.completion_tokens for pair in pairs),
        )


def load_rows(path: str | Path | None = None) -> list[dict[str, Any]]:
    """Rows with the columns "prompt", "chosen" and "rejected", text or chat messages.

    Args:
        path: A ``.jsonl`` or ``.jsonl.gz`` file; None takes the embedded training pairs.

    Raises:
        ValueError: A row of the file lacks a column.
    """
    if path is None:
        from agiledpo.embedded.preferences import load_embedded_preferences  # workers of other systems lack it

        return [{column: row[column] for column in COLUMNS} for row in load_embedded_preferences()[0]]
    path = Path(path)
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    for number, row in enumerate(rows):
        missing = [column for column in COLUMNS if column not in row]
        if missing:
            raise ValueError(f"Row {number} of {path} has no column {', '.join(missing)}; it has {', '.join(row)}.")
    return [{column: row[column] for column in COLUMNS} for row in rows]


def select_pairs(
    rows: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    *,
    max_length: int,
    short_prompts: bool = False,
    seed: int = 0,
) -> list[Pair]:
    """Draw pairs that every system tokenises alike and none has to cut.

    Systems differ in where they split the text before they tokenise it, so only pairs are taken whose prompt and
    completions are tokenised as well apart as together.

    Args:
        rows: From `load_rows`.
        tokenizer: The model's.
        count: How many.
        max_length: Largest number of tokens of a prompt and a completion.
        short_prompts: Keep only the end of each prompt, half as long as its completions are on average.
        seed: Of the order in which rows are tried.

    Raises:
        ValueError: There are not as many such pairs.
    """
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    chosen: list[Pair] = []
    for row in order:
        if len(chosen) == count:
            return chosen
        pair = _pair(rows[row], tokenizer, short_prompts=short_prompts)
        if pair is not None and pair.longest <= max_length:
            chosen.append(pair)
    if len(chosen) < count:
        raise ValueError(
            f"Only {len(chosen)} of the {len(rows)} rows are pairs of at most {max_length} tokens, {count} are needed. "
            "Ask for fewer with --num-pairs or hand over more with --pairs."
        )
    return chosen


def write_pairs(pairs: Iterable[Pair], path: str | Path) -> None:
    """Write pairs as JSON lines that `read_pairs` and any other program read."""
    Path(path).write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs), encoding="utf-8")


def read_pairs(path: str | Path) -> list[Pair]:
    """Read what `write_pairs` wrote."""
    return [Pair(**json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def to_dataset(pairs: Sequence[Pair]) -> Dataset:
    """A data set with the three text columns."""
    return Dataset.from_list([{column: getattr(pair, column) for column in COLUMNS} for pair in pairs])


def _pair(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, short_prompts: bool) -> Pair | None:
    """The row as a pair, or None if its tokens depend on where the text is split."""
    prompt, chosen, rejected = _texts(row, tokenizer)
    if chosen == rejected:
        return None
    sizes = [len(tokenizer(text)["input_ids"]) for text in (chosen, rejected)]
    if short_prompts:
        prompt = _end_of(prompt, tokenizer, max(1, round(sum(sizes) / 4)))
    prompt_ids, *completion_ids = (tokenizer(text)["input_ids"] for text in (prompt, chosen, rejected))
    for text, ids in zip((chosen, rejected), completion_ids, strict=True):
        if not prompt_ids or tokenizer(prompt + text)["input_ids"] != prompt_ids + ids:
            return None
    return Pair(prompt, chosen, rejected, len(prompt_ids), *sizes)


def _texts(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """Prompt and completions as text that ends with the end-of-sequence token."""
    end = str(tokenizer.eos_token)
    if isinstance(row["prompt"], str):
        prompt, completions = row["prompt"], [row["chosen"], row["rejected"]]
    else:
        prompt = str(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False))
        rendered = [
            str(tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False))
            for side in ("chosen", "rejected")
        ]
        # What a template writes behind the end of the turn is not the model's to say.
        completions = [text[len(prompt) :].split(end)[0] for text in rendered]
    chosen, rejected = (text.removesuffix(end) + end for text in completions)
    return prompt, chosen, rejected


def _end_of(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """The last `tokens` tokens of a text."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= tokens else text[offsets[-tokens][0] :]
