"""A malformed input: how its file is written, and what is said of it."""

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

Row = dict[str, Any]

TEXT: Row = {"prompt": "hello? ", "chosen": "yes", "rejected": "no"}
USER: Row = {"role": "user", "content": "hello?"}
YES: Row = {"role": "assistant", "content": "yes"}
NO: Row = {"role": "assistant", "content": "no"}
CHAT: Row = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
IMPLICIT: Row = {"chosen": [USER, YES], "rejected": [USER, NO]}
RANKED: Row = {"context": [USER], "completions": [{"rank": 0, "completion": [YES]}, {"rank": 1, "completion": [NO]}]}
TOKENS: Row = {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9]}
# In place of a value: the row has no such key.
ABSENT = object()


@dataclass(frozen=True)
class Case:
    """A malformed input.

    Attributes:
        name: Of the test.
        content: Of the file: text; bytes; rows, which are written as the file's name says; or None for no file.
        says: The whole message.
        file: Name of the file.
        tokenizer: Of the chat templates in conftest.py, or "no template", "words" for one without a
            beginning-of-sequence token, and "no end".
        gym: Arguments of the gym.
        load: Arguments of `load_preferences`.
    """

    name: str
    content: str | bytes | Sequence[Row] | pa.Table | None
    says: str = ""
    file: str = "pairs.jsonl"
    tokenizer: str = "chatml"
    gym: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write the file into a directory."""
        if self.content is not None:
            (directory / self.file).write_bytes(_bytes(self.content, self.file))


def rows(good: Row, **changes: Any) -> list[Row]:
    """Three rows, of which the second has other values than the good one."""
    bad = {key: value for key, value in {**good, **changes}.items() if value is not ABSENT}
    return [good, bad, good]


def all_rows(good: Row, **changes: Any) -> list[Row]:
    """Two rows with the same changes."""
    return rows(good, **changes)[1:2] * 2


def _bytes(content: Any, file: str) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    if file.endswith(".parquet"):
        buffer = io.BytesIO()
        pa.parquet.write_table(content if isinstance(content, pa.Table) else pa.Table.from_pylist(content), buffer)
        return buffer.getvalue()
    text = io.StringIO(newline="")
    if ".csv" in file:
        writer = csv.DictWriter(text, list(content[0]))
        writer.writeheader()
        writer.writerows(content)
    else:
        text.writelines(json.dumps(row) + "\n" for row in content)
    return gzip.compress(text.getvalue().encode()) if file.endswith(".gz") else text.getvalue().encode()
