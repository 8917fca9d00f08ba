"""The machine's matrix rate for a model's shapes, measured in a process like those of the systems."""

import torch

from benchmarking.matrix_rate import measure_all
from benchmarking.processes import read_task, report


def main() -> None:
    task = read_task()
    torch.set_num_threads(task["threads"])
    shapes = [(shape[0], shape[1]) for shape in task["shapes"]]
    report({"rates": measure_all(shapes, task["rows"], task["head_rows"], getattr(torch, task["dtype"]))})


if __name__ == "__main__":
    main()
