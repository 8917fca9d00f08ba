"""The cost of checkpoints: bytes that are counted once, a table worked out by hand, and a real population."""

import os
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarking.checkpoint_cost import PHASES, page, table
from benchmarking.checkpoint_worker import cost, disk_use, timed

RUN: dict[str, Any] = {
    "model": "tiny",
    "dtype": "float32",
    "agents": 8,
    "rank": 16,
    "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "memory_gb": 8, "gpu": None, "python": "3.11"},
    "phases": {
        "agent saved": {"seconds": [0.3, 0.1, 0.2], "extra_mb": 4.4},
        "agent loaded": {"seconds": [0.4], "extra_mb": 5},
        "run saved": {"seconds": [3.0, 1.5, 9.0], "extra_mb": 6},
        "run loaded": {"seconds": [1.0, 2.0], "extra_mb": 7},
    },
    "disk": {"agent": {"bytes": 2_000_000, "files": 6}, "run": {"bytes": 12_340_000, "files": 40}},
    "plain_seconds": [0.5],
    "base_mb": 538.1,
    "versions": {"torch": "2"},
    "commit": "c",
}


def test_a_file_with_two_names_counts_once(tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "one").write_bytes(b"x" * 1000)
    (tmp_path / "deep" / "other").write_bytes(b"y" * 234)
    os.link(tmp_path / "one", tmp_path / "deep" / "again")
    assert disk_use(tmp_path) == {"bytes": 1234, "files": 2}


def test_the_table_has_medians_and_the_share_of_a_minute() -> None:
    header, rows = table(RUN)
    assert all(len(row) == len(header) for row in rows)
    cells = {row[0]: row[1:] for row in rows}
    assert cells["one agent, saved"] == ["0.20 (0.10 to 0.30)", "2.0", 6, "4", "0.3%"]
    assert cells["the run, saved"] == ["3.00 (1.50 to 9.00)", "12.3", 40, "6", "5.0%"]
    assert cells["the run, loaded"] == ["1.50 (1.00 to 2.00)", "12.3", 40, "7", None]
    assert cells["a plain write"] == ["0.50 (0.50 to 0.50)", "12.3", 1, None, None]
    assert "## tiny, float32, 8 agents, rank 16" in page({"runs": [RUN]})


def test_the_first_time_does_not_count() -> None:
    calls: list[int] = []
    assert len(timed(lambda: calls.append(1), 3)["seconds"]) == 3
    assert len(calls) == 4


def test_memory_that_is_taken_and_given_back_is_seen() -> None:
    def take() -> None:
        torch.ones(25_000_000)

    taken = timed(take, 1)
    assert taken["extra_mb"] == pytest.approx(100, abs=20)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, because the tiny models' own knows no word of the embedded pairs."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *letters]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template="<s>{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
    )


def test_a_real_population(tiny_model, tmp_path) -> None:
    model = tiny_model("qwen2", vocab_size=259, max_position_embeddings=2048)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    answer = cost(
        {
            "model": str(tmp_path / "model"),
            "dtype": "float32",
            "agents": 2,
            "rank": 4,
            "repeats": 1,
            "directory": str(tmp_path),
            "threads": 1,
        }
    )
    assert answer["phases"].keys() == PHASES.keys()
    agent, run = answer["disk"]["agent"], answer["disk"]["run"]
    # Two agents have two actors and optimizers but one reference, and the run has a state and a tokenizer besides.
    assert agent["files"] < run["files"] < 2 * agent["files"] + 10
    assert answer["base_mb"] == pytest.approx(4 * model.num_parameters() / 1e6)
    assert not list(tmp_path.glob("agiledpo-checkpoints-*"))
