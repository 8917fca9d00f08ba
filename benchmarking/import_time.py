"""How much longer importing the trainer takes than importing torch, transformers and peft, in fresh processes.

``python benchmarking/import_time.py`` runs both in turn and prints medians.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

THEIRS = "import torch, transformers, peft; from transformers import PreTrainedModel; from peft import PeftModel"
OURS = (
    "from agiledpo.algorithms import DPO; from agiledpo.llm_envs import PreferenceGym; "
    "from agiledpo.training.train_llm import finetune_llm_preference"
)
BARE = "import agiledpo"


def seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    codes = {"torch, transformers, peft": THEIRS, "agiledpo's trainer": OURS, "import agiledpo": BARE}
    for code in codes.values():
        seconds(code)  # warm the file cache
    times = {name: [] for name in codes}
    for _ in range(repeats):
        for name, code in codes.items():
            times[name].append(seconds(code))
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, median of {repeats}")
    for name, values in times.items():
        print(f"{name:<28} {statistics.median(values):6.2f} s")


if __name__ == "__main__":
    main()
