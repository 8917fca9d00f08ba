"""The training of examples/distributed.py in the workers of a Ray cluster.

From the root of this repository, on a cluster that runs (one line)::

    ray job submit --address http://HEAD:8265 --working-dir . --
        python -m examples.ray_train --workers 16 --
        --model Qwen/Qwen2.5-7B-Instruct --data /shared/pairs.jsonl --out /shared/runs/first

What follows the last ``--`` is for examples/distributed.py; ``--out`` has to be a directory that all nodes share.
Without a cluster ``python -m examples.ray_train --cpu --workers 2`` starts one on this machine. Needs ``ray[train]``.

Ray makes the process group; the workers are ordinary ranks in it. When one dies, all end within a minute and say so,
and Ray starts them again, up to ``--failures`` times: they go on from the last checkpoint.
"""

import argparse
import sys

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from examples import distributed


def worker(config: dict[str, list[str]]) -> None:
    distributed.main(["--resume", *config["arguments"]])


def main() -> None:
    ours, theirs = sys.argv[1:], []
    if "--" in ours:
        theirs = ours[ours.index("--") + 1 :]
        ours = ours[: ours.index("--")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8, help="processes, each with a GPU (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="processes without a GPU")
    parser.add_argument("--failures", type=int, default=3, help="restarts before giving up (default: %(default)s)")
    parser.add_argument("--storage", help="directory that all nodes share, for Ray's own records (default: Ray's)")
    options = parser.parse_args(ours)
    trainer = TorchTrainer(
        worker,
        train_loop_config={"arguments": theirs},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=not options.cpu),
        run_config=RunConfig(
            name="agiledpo",
            storage_path=options.storage,
            failure_config=FailureConfig(max_failures=options.failures),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
