"""What a step must compute, and what the device could compute in the same time."""

from collections.abc import Sequence

from agiledpo.scoring import PreferenceBatch
from benchmarking.gpu.shapes import Shape, make_config
from benchmarking.workload import matrix_work_of

# Dense bf16 rates of the data sheets, FLOP/s; the first name that the device's name contains counts.
_PEAKS = (
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
)


def peak_rate(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its data sheet; None for one that is not in the table."""
    return next((rate for name, rate in _PEAKS if name.lower() in device_name.lower()), None)


def useful_flops(shape: Shape, batches: Sequence[PreferenceBatch]) -> float:
    """Operations of training on batches, the reference's pass included, as :mod:`benchmarking.workload` counts them.

    Args:
        shape: The model.
        batches: What it is trained on.
    """
    completion_tokens = sum(len(ids) for batch in batches for ids in (*batch.chosen, *batch.rejected))
    return matrix_work_of(make_config(shape)).operations(sum(batch.tokens for batch in batches), completion_tokens)
