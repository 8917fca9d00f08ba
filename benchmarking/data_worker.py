"""One thing done with a file of preference data: the worker of `benchmarking.data`."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer

from agiledpo.data.checks import check_preferences
from agiledpo.data.loading import load_preferences
from agiledpo.data.rollouts import make_pairs
from agiledpo.llm_envs import PreferenceGym
from benchmarking.data_files import write_pairs, write_rollouts
from benchmarking.processes import read_task, report

_INTERVAL = 0.05


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Do a task.

    Args:
        task: ``action`` (write, pairs, load, tokenise, check), ``directory``, ``rows``, ``seed``, and for tokenise
            ``num_proc``, ``tokenizer`` and ``max_context_length``.

    Returns:
        ``seconds``, without imports and without loading the tokenizer; ``anonymous_mb`` and ``resident_mb``, the peaks
        beyond what there was before, worker processes included: the first without, the second with the pages of files
        that are mapped; and ``facts`` of what came out.
    """
    directory = Path(task["directory"])
    action = {"write": _write, "pairs": _pairs, "load": _load, "tokenise": _tokenise, "check": _check}[task["action"]]
    run = action(directory, task)
    with MemoryPeak() as peak:
        start = time.perf_counter()
        facts = run()
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "anonymous_mb": peak.anonymous_mb,
        "resident_mb": peak.resident_mb,
        "facts": facts,
    }


class MemoryPeak:
    """Peaks of the memory of this process and its children while the context lasts, MB beyond what was at its begin.

    A thread looks every 50 ms: what is taken and given back faster is not seen.
    """

    def __init__(self) -> None:
        self.anonymous_mb = self.resident_mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryPeak":
        self._before = _memory_mb()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            anonymous, resident = _memory_mb()
            self.anonymous_mb = max(self.anonymous_mb, anonymous - self._before[0])
            self.resident_mb = max(self.resident_mb, resident - self._before[1])
            if self._done.wait(_INTERVAL):
                return


def _memory_mb() -> tuple[float, float]:
    """Anonymous and all resident memory of this process and its children, a page of several counted in parts."""
    anonymous = resident = 0
    for process in (os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        fields = dict(line.split(":", 1) for line in lines)
        anonymous += int(fields["Pss_Anon"].split()[0])
        resident += int(fields["Pss"].split()[0])
    return anonymous * 1024 / 1e6, resident * 1024 / 1e6


def _write(directory: Path, task: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        write_pairs(directory / "pairs.jsonl", task["rows"], seed=task["seed"])
        write_pairs(directory / "test.jsonl", min(1000, task["rows"]), seed=task["seed"] + 7)
        write_rollouts(directory / "rollouts.jsonl", task["rows"], seed=task["seed"])
        return {path.name: path.stat().st_size for path in sorted(directory.glob("*.jsonl"))}

    return run


def _pairs(directory: Path, task: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        figures = make_pairs(directory / "rollouts.jsonl", directory / "made.jsonl", overwrite=True)
        return {"pairs": figures.pairs}

    return run


def _load(directory: Path, task: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {"rows": len(load_preferences(directory / "pairs.jsonl").dataset)}


def _tokenise(directory: Path, task: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    # As users have it: tokenizers has its own threads, unless there are several processes.
    os.environ.pop("TOKENIZERS_PARALLELISM", None)
    tokenizer = AutoTokenizer.from_pretrained(task["tokenizer"], local_files_only=True)
    train, test = (load_preferences(directory / f"{name}.jsonl").dataset for name in ("pairs", "test"))

    def run() -> dict[str, Any]:
        env = PreferenceGym(
            train, test, tokenizer, max_context_length=task["max_context_length"], num_proc=task["num_proc"]
        )
        env.reset()
        prompt, chosen, rejected = env.lengths("train").mean(axis=0).tolist()
        return {"rows": len(env), "prompt_tokens": prompt, "chosen_tokens": chosen, "rejected_tokens": rejected}

    return run


def _check(directory: Path, task: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        found = check_preferences(load_preferences(directory / "pairs.jsonl", dataset_name="train"))
        return {"pairs": found.datasets[0].pairs, "findings": len(found.findings)}

    return run


if __name__ == "__main__":
    report(measure(read_task()))
