"""The cost of data: a table worked out by hand, files that are what they should be, and memory that is seen."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agiledpo.data import DatasetError
from agiledpo.embedded.model import embedded_model_path
from benchmarking.data import STEPS, page, table
from benchmarking.data_files import ROLLOUTS_PER_PROMPT, write_pairs, write_rollouts
from benchmarking.data_worker import MemoryPeak, measure

STEP: dict[str, Any] = {
    "seconds": 4.0, "anonymous_mb": 30.0, "resident_mb": 45.4, "facts": {"pairs": 250}, "commit": "c"
}  # fmt: skip
TOKENS = {"prompt_tokens": 120.4, "chosen_tokens": 40.0, "rejected_tokens": 50.0}
RUN: dict[str, Any] = {
    "rows": 1_000_000,
    "tokenizer": "tiny",
    "files": {"pairs.jsonl": 1_050_000_000, "rollouts.jsonl": 800_000_000},
    "steps": {"rollouts to pairs": STEP, "tokenise, 1 process": {**STEP, "seconds": 0.5, "facts": TOKENS}},
    "disk_bytes": 7_000_000_000,
    "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "memory_gb": 8, "gpu": None, "python": "3.11"},
    "versions": {"torch": "2"},
}


def test_the_table_by_hand() -> None:
    header, (pairs, tokenise) = table(RUN)
    assert len(header) == len(pairs)
    assert pairs == ["rollouts to pairs", "4.00", "250,000", "30", "45", "30"]
    assert tokenise[:3] == ["tokenise, 1 process", "0.50", "2,000,000"]
    text = page({"runs": [RUN]})
    assert "## 1,000,000 rows" in text
    assert "120 prompt, 40 chosen and 50 rejected tokens" in text
    assert "1,050 MB; rollouts 800 MB" in text
    assert "250 pairs made of the rollouts" in text
    assert "commit c." in text
    only_pairs = page({"runs": [{**RUN, "steps": {"rollouts to pairs": STEP}}]})
    assert "tokens on average" not in only_pairs


def test_files_come_out_the_same_and_are_as_long_as_they_should(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pairs(tmp_path / name, 2500, seed=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert len(rows) == 2500
    words = np.array([[len(row[part].split()) for part in ("prompt", "chosen", "rejected")] for row in rows])
    # The median of a log-normal length is the one it is made with; a prompt has three words more.
    assert np.median(words, axis=0) == pytest.approx([71, 22, 28], rel=0.1)
    assert len({row["prompt"] for row in rows}) == 2500


def test_rollouts_of_a_prompt_follow_one_another(tmp_path: Path) -> None:
    write_rollouts(tmp_path / "rollouts", 4 * ROLLOUTS_PER_PROMPT, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "rollouts").read_text().splitlines()]
    prompts = [row["responses_create_params"]["input"][0]["content"] for row in rows]
    assert [prompts.index(prompt) // ROLLOUTS_PER_PROMPT for prompt in prompts] == [
        row // ROLLOUTS_PER_PROMPT for row in range(len(rows))
    ]
    assert all(0 <= row["reward"] < 1 for row in rows)


def test_memory_that_is_taken_and_given_back_is_seen() -> None:
    with MemoryPeak() as peak:
        taken = np.ones(12_500_000)
        time.sleep(0.3)
        del taken
    assert peak.anonymous_mb == pytest.approx(100, abs=20)


def test_the_memory_of_a_child_counts() -> None:
    code = "import time; taken = bytearray(b'x') * 100_000_000; time.sleep(0.4)"
    with MemoryPeak() as peak:
        subprocess.run([sys.executable, "-S", "-c", code], check=True)
    assert peak.anonymous_mb == pytest.approx(105, abs=15)


def test_every_step_on_a_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = {
        "directory": str(tmp_path),
        "rows": 120,
        "seed": 0,
        "tokenizer": str(embedded_model_path()),
        "max_context_length": None,
    }
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path / "cache"))
    files = measure({**task, "action": "write"})["facts"]
    assert files == {path.name: os.path.getsize(path) for path in tmp_path.glob("*.jsonl")}
    facts = {}
    for label, _, action, _, num_proc in STEPS:
        done = measure({**task, "action": action, "num_proc": num_proc})
        assert done["seconds"] > 0
        facts[label] = done["facts"]
    assert facts["load the file"] == {"rows": 120}
    assert facts["check"]["pairs"] == 120
    assert 0 < facts["rollouts to pairs"]["pairs"] <= 120 // ROLLOUTS_PER_PROMPT
    assert facts["tokenise, 1 process"] == facts["tokenise, 2 processes"]
    assert facts["tokenise, 1 process"]["prompt_tokens"] == pytest.approx(120, rel=0.35)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a ", "chosen": "", "rejected": "b"}\n')
    with pytest.raises(DatasetError, match="empty"):
        measure({**task, "action": "tokenise", "num_proc": 1})
