"""How long a PreferenceGym takes to its first batch, and how much memory it holds, against the number of rows.

``python benchmarking/gym_start.py --rows 10000 100000 1000000`` writes short synthetic pairs below ``--directory`` and
starts a fresh process per figure: cold tokenises them, warm finds the tokens in the cache. Loading the dataset from
disk counts, imports and loading the model (SmolLM2-135M in bfloat16) do not. Memory is what the process holds beyond
its imports after two batches, before the model is loaded.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agiledpo.algorithms import DPO
from agiledpo.embedded.model import load_embedded_model
from agiledpo.llm_envs import PreferenceGym
from agiledpo.llm_envs.types import PreferenceExperiences

WORDS = 97
TEST_ROWS = 100


def measure(
    rows: int,
    directory: str | Path,
    *,
    group_by_length: bool = False,
    max_context_length: int | None = None,
    num_proc: int | None = 1,
) -> dict[str, Any]:
    """Start a gym on `rows` pairs, in a fresh process without and one with tokens in the cache.

    Args:
        rows: Rows of the training split.
        directory: Where data and tokens are kept; what is there already is used again.
        group_by_length: As for `PreferenceGym`.
        max_context_length: As for `PreferenceGym`; rows have 7 to 16 tokens.
        num_proc: Processes to tokenise with.

    Returns:
        "rows", and under "warm" and "cold" (None if the tokens were there already) "load_seconds", "gym_seconds",
        "batch_seconds" and their sum "seconds"; "next_batch_seconds"; "step_seconds", the first optimizer step on the
        first batch, reference included; and in MB "anonymous" and "file", resident memory
        beyond the imports' after two batches, and "peak", the largest sum of both at any time.
    """
    directory = Path(directory)
    data = directory / f"pairs-{rows}"
    if not data.exists():
        _fresh("write", {"rows": rows, "path": str(data)}, directory)
    arguments = {
        "path": str(data),
        "group_by_length": group_by_length,
        "max_context_length": max_context_length,
        "num_proc": num_proc,
    }
    tokenized = directory / f"tokenized-{rows}"
    cold = None if tokenized.exists() else _fresh("start", arguments, directory)
    tokenized.touch()
    return {"rows": rows, "cold": cold, "warm": _fresh("start", arguments, directory)}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words ``w4`` ... ``w96`` and four special tokens."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write(rows: int, path: str) -> dict[str, Any]:
    generator = np.random.default_rng(0)

    def texts(low: int, high: int, shortest: int, longest: int) -> list[str]:
        lengths = generator.integers(shortest, longest + 1, rows).tolist()
        words = iter([f"w{i}" for i in generator.integers(low, high, sum(lengths)).tolist()])
        return [" ".join(next(words) for _ in range(length)) for length in lengths]

    prompts = [prompt + " " for prompt in texts(4, WORDS, 5, 9)]
    pairs = Dataset.from_dict({"prompt": prompts, "chosen": texts(4, 50, 1, 6), "rejected": texts(50, WORDS, 1, 6)})
    pairs.save_to_disk(f"{path}.part/train")
    pairs.select(range(min(rows, TEST_ROWS))).save_to_disk(f"{path}.part/test")
    Path(f"{path}.part").rename(path)
    return {}


def start(path: str, **options: Any) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the imports does not count
    before = _memory()
    times = [time.perf_counter()]
    train, test = load_from_disk(f"{path}/train"), load_from_disk(f"{path}/test")
    times.append(time.perf_counter())
    env = PreferenceGym(train, test, tokenizer, **options)
    times.append(time.perf_counter())
    batch = env.reset()
    times.append(time.perf_counter())
    env.step()
    times.append(time.perf_counter())
    after = _memory()
    load, gym, first, following = np.diff(times).tolist()
    return {
        "seconds": load + gym + first,
        "load_seconds": load,
        "gym_seconds": gym,
        "batch_seconds": first,
        "next_batch_seconds": following,
        "step_seconds": _step(batch),
        "anonymous": after["RssAnon"] - before["RssAnon"],
        "file": after["RssFile"] - before["RssFile"],
        "peak": after["VmHWM"] - before["VmRSS"],
    }


def _step(batch: PreferenceExperiences) -> float:
    """Seconds of an agent's first optimizer step."""
    model, _ = load_embedded_model(torch.bfloat16)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    agent = DPO(actor_network=model, lora_config=config, batch_size=len(batch["prompt"]), gradient_checkpointing=False)
    started = time.perf_counter()
    agent.learn(batch)
    return time.perf_counter() - started


def _memory() -> dict[str, float]:
    """Resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "VmRSS", "VmHWM")}


def _fresh(task: str, arguments: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Run a task of this file in a process of its own."""
    environment = {**os.environ, "AGILEDPO_CACHE": str(directory / "cache"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, __file__, "--task", task, json.dumps(arguments)]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise RuntimeError(f"{task} failed with exit status {process.returncode}; its output is above.")
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--directory", type=Path, help="keep data and tokens here; by default they are deleted")
    parser.add_argument("--group-by-length", action="store_true")
    parser.add_argument("--max-context-length", type=int)
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps({"write": write, "start": start}[arguments.task[0]](**json.loads(arguments.task[1]))))
        return
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(
        f"{'':>17}{'first batch, s':>16}{'of it: load':>13}{'gym':>8}{'batch':>8}{'next batch':>12}{'first step':>12}",
        end="",
    )
    print(f"{'anonymous, MB':>15}{'file, MB':>10}{'peak, MB':>10}")
    with tempfile.TemporaryDirectory() as temporary:
        for rows in arguments.rows:
            figures = measure(
                rows,
                arguments.directory or temporary,
                group_by_length=arguments.group_by_length,
                max_context_length=arguments.max_context_length,
            )
            for cache in ("cold", "warm"):
                if (figure := figures[cache]) is not None:
                    print(
                        f"{rows:>12,} {cache}{figure['seconds']:>16.3f}{figure['load_seconds']:>13.3f}"
                        f"{figure['gym_seconds']:>8.3f}{figure['batch_seconds']:>8.3f}"
                        f"{figure['next_batch_seconds']:>12.4f}{figure['step_seconds']:>12.3f}"
                        f"{figure['anonymous']:>15.1f}{figure['file']:>10.1f}{figure['peak']:>10.1f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
