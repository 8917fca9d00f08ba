"""What is written, and that nothing of it is lost."""

import subprocess
import sys

import pytest

from benchmarking.machine import REPOSITORY
from benchmarking.processes import WorkerError, run_worker
from benchmarking.results import ResultFile, markdown_table


def test_a_table():
    assert markdown_table(["system", "pairs/s"], [["a|b", 1.5], ["c", None]]) == (
        "| system | pairs/s |\n| --- | ---: |\n| a\\|b | 1.5 |\n| c | – |"
    )
    with pytest.raises(ValueError, match="has 1 cells, the header 2"):
        markdown_table(["system", "pairs/s"], [["a"]])


def test_each_run_is_on_disk_before_the_next_begins(tmp_path):
    file = ResultFile("peers", tmp_path)
    file.set(workloads={"w": 1})
    for number in range(3):
        file.append({"config": "a" if number else "b", "number": number})
        again = ResultFile("peers", tmp_path)
        assert [run["number"] for run in again.runs] == list(range(number + 1))
        assert again.data["workloads"] == {"w": 1}
    assert {"date", "commit", "command"} <= set(file.runs[0])
    assert ResultFile("peers", tmp_path).discard(config="a") == 2
    assert [run["number"] for run in ResultFile("peers", tmp_path).runs] == [0]


def test_the_peak_is_the_workers_own_and_not_that_of_a_larger_parent():
    # This process has torch and more loaded; the child holds 150 MB beside a bare interpreter.
    code = (
        "from benchmarking.memory import peak_resident_mb\n"
        "before = peak_resident_mb()\n"
        "block = bytearray(150_000_000)\n"
        "del block\n"
        "print(before, peak_resident_mb())"
    )
    parent = bytearray(400_000_000)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert len(parent) > 0
    assert before < 100
    assert 149 < after - before < 160


def test_a_worker_that_fails_says_what_it_printed_last():
    with pytest.raises(WorkerError, match=r"ended with code 1 .*\n.*No module named benchmarking.nothing"):
        run_worker("benchmarking.nothing", {}, threads=1)
