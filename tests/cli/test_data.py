"""`agiledpo data` as a process: exit statuses, and what is printed where."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from agiledpo.cli.data import FormatName, PairingName
from agiledpo.data.checks import check_preferences
from agiledpo.data.checks.rendering import print_report
from agiledpo.data.convert import FORMATS
from agiledpo.data.ranked import PAIRINGS
from agiledpo.embedded.preferences import load_embedded_preferences

Write = Callable[..., Path]


def run(*arguments: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "agiledpo", "data", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=os.environ | {"COLUMNS": "100"}, check=False
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows of (prompt, chosen, rejected): `write("name.jsonl", rows)`."""

    def rows_to_file(name: str, rows: list[tuple[str, str, str]]) -> Path:
        path = tmp_path / name
        lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) for row in rows]
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return rows_to_file


GOOD = [(f"why {i}?\n", f"yes {i}", f"no {i * 11}") for i in range(4)]


def test_good_data_and_the_statuses_of_findings(write: Write) -> None:
    done = run("check", write("good.jsonl", GOOD), "--strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 errors, 0 warnings, 0 notes." in done.stdout
    twice = write("twice.jsonl", [*GOOD, GOOD[1]])
    assert run("check", twice).returncode == 0
    done = run("check", twice, "--strict")
    assert done.returncode == 1
    assert "the pair repeats an earlier one: 1 of 5 pairs (20.00%)" in " ".join(done.stdout.split())
    assert "row 4 (and row 1): 'why 1?\\n'" in done.stdout
    assert run("check", twice, "--format", "xml").returncode == 2
    assert run("check").returncode == 2


def test_errors_as_json(write: Write, tmp_path: Path) -> None:
    bad = write("bad.jsonl", [*GOOD, ("why?\n", "", "no"), ("why?\n", "so", "so"), ("why?\n", " ", "no")])
    done = run("check", bad, "--test", write("test.jsonl", GOOD[2:3]), "--format", "json", "--examples", 1)
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert (report["errors"], report["warnings"]) == (2, 2)
    empty, equal = report["findings"][:2]
    assert (empty["severity"], empty["count"], empty["total"], empty["unit"]) == ("error", 2, 7, "rows")
    assert empty["problem"] == "column 'chosen': the completion is empty or only whitespace"
    assert empty["examples"] == [{"row": 4, "excerpt": ""}]
    assert empty["remedy"] == "Drop such rows."
    assert equal["examples"] == [{"row": 5, "excerpt": ""}]
    leaks = {finding["check"]: finding["examples"] for finding in report["findings"][2:]}
    like = [{"row": 0, "excerpt": "why 2?\n", "other": {"row": 2}}]
    assert leaks == {"leaked_pairs": like, "leaked_prompts": like}
    assert [(data["name"], data["rows"], data["pairs"]) for data in report["datasets"]] == [
        ("train", 7, 4),
        ("test", 1, 1),
    ]


def test_what_cannot_be_read_is_one_sentence_on_stderr(write: Write, tmp_path: Path) -> None:
    done = run("check", tmp_path / "goood.jsonl")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: train dataset (")
    assert "there is no such file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_row_of_several_files_is_named_by_its_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    write("parts/a.jsonl", GOOD)
    write("parts/b.jsonl", [("why?\n", "yes", "no"), ("why?\n", "", "no"), GOOD[3]])
    report = json.loads(run("check", tmp_path / "parts", "--format", "json").stdout)
    examples = {finding["check"]: finding["examples"][0] for finding in report["findings"] if finding["examples"]}
    b = str(tmp_path / "parts" / "b.jsonl")
    assert examples["unusable"] == {"file": b, "row": 1, "excerpt": ""}
    assert examples["duplicate_pairs"] == {
        "file": b,
        "row": 2,
        "excerpt": "why 3?\n",
        "other": {"file": str(tmp_path / "parts" / "a.jsonl"), "row": 3},
    }


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    path.write_text(json.dumps({"q": "why?\n", "good": "yes", "bad": "no"}) + "\n")
    assert run("check", path).returncode == 1
    done = run("check", path, "--prompt-key", "q", "--chosen-key", "good", "--rejected-key", "bad", "--strict")
    assert done.returncode == 0, done.stderr


def test_options_are_those_of_training(tmp_path: Path) -> None:
    completions = [
        {"rank": rank, "completion": [{"role": "assistant", "content": text}]} for rank, text in enumerate("abc")
    ]
    path = tmp_path / "ranked.jsonl"
    path.write_text(json.dumps({"context": [{"role": "user", "content": "q"}], "completions": completions}) + "\n")
    report = json.loads(run("check", path, "--pairing", "all", "--format", "json").stdout)
    assert report["datasets"][0]["pairs"] == 3
    done = run("check", path, "--config", "x")
    assert done.returncode == 2
    assert "config='x' is of a repository on the Hub" in " ".join(done.stderr.replace("│", "").split())
    done = run("check", path, "--chat-template-kwargs", "{thinking}")
    assert done.returncode == 2
    assert "--chat-template-kwargs is not JSON" in " ".join(done.stderr.replace("│", "").split())


def test_convert_and_back(write: Write, tmp_path: Path) -> None:
    source, ranked, text = write("text.jsonl", GOOD), tmp_path / "ranked.jsonl", tmp_path / "again.jsonl"
    done = run("convert", source, ranked, "--to", "ranked")
    assert (done.returncode, done.stderr) == (0, "")
    first = json.loads(ranked.read_text().splitlines()[0])
    assert [completion["rank"] for completion in first["completions"]] == [0, 1]
    assert run("convert", ranked, text, "--to", "text").returncode == 0
    assert [tuple(json.loads(line).values()) for line in text.read_text().splitlines()] == GOOD
    done = run("convert", ranked, text, "--to", "text")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--overwrite" in done.stderr
    assert run("convert", ranked, text, "--to", "text", "--overwrite").returncode == 0


def test_convert_of_bad_data_writes_nothing(write: Write, tmp_path: Path) -> None:
    bad = write("bad.jsonl", [*GOOD, ("why?\n", "", "no")])
    done = run("convert", bad, tmp_path / "out.jsonl", "--to", "implicit")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: given dataset ({bad}), row 4, column 'chosen': the completion is empty")
    assert not (tmp_path / "out.jsonl").exists()


def test_convert_of_columns_that_json_cannot_hold(tmp_path: Path) -> None:
    row = {"prompt": "why?\n", "chosen": "yes", "rejected": "no", "when": datetime(2024, 1, 1)}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    done = run("convert", tmp_path / "a.parquet", tmp_path / "out.jsonl", "--to", "pairs")
    assert (done.returncode, done.stdout) == (1, "")
    assert "column 'when': the column holds values of type timestamp[us], which JSON cannot hold" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_the_formats_are_the_librarys() -> None:
    assert get_args(FormatName) == FORMATS
    assert get_args(PairingName) == PAIRINGS


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys, agiledpo.cli; print({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_report_fits_the_terminal_and_its_bars_are_in_proportion(width: int) -> None:
    train, test = load_embedded_preferences()
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    print_report(check_preferences(train, test=test), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    (row,) = [line for line in lines if "128-255" in line and "226" in line]
    chosen, rejected = re.findall("[█▉▊▋▌▍▎▏]+", row)
    # 226 pairs are the most there are in a class, so their bar is full.
    assert set(chosen) == {"█"}
    assert len(rejected) == math.ceil(21 / 226 * len(chosen))
