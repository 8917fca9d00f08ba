"""The results as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarking.gpu.measure import Result
from benchmarking.results import markdown_table

_OURS = "agiledpo"
_PEERS = ("trl", "plain")
_GIB = 2**30
_NOTE = (
    "Every system computes the reference in every step. Medians of interleaved repeats, each on a new model. Tokens "
    "count a pair's prompt once. MFU: useful operations (matrix products of the base model, a prompt once, the head at "
    "completions only; no padding, no recomputation, no attention, no adapters) over the matrix rate. Speed and memory "
    "in the last two columns are agiledpo's against that system's."
)


@dataclass(frozen=True)
class MatrixRate:
    """What utilisation is measured by.

    Attributes:
        data_sheet: Dense bf16 FLOP/s of the GPU; None if it is not in the table.
        measured: FLOP/s of a large matrix product.
    """

    data_sheet: float | None
    measured: float

    @property
    def best(self) -> float:
        """The data sheet's rate, or the measured one."""
        return self.measured if self.data_sheet is None else self.data_sheet


def markdown(
    machine: str, versions: Mapping[str, str], workload: str, rate: MatrixRate, results: Sequence[Result]
) -> str:
    """The whole page.

    Args:
        machine: One sentence.
        versions: By package.
        workload: One sentence.
        rate: The device's.
        results: One for each system at each point.
    """
    source = "measured" if rate.data_sheet is None else "data sheet, dense bf16"
    lines = [
        "# DPO on random weights of real shapes",
        "",
        f"{machine}. {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        "",
        f"{workload} Matrix rate: {rate.best / 1e12:.3g} TFLOP/s ({source}); a large product reached "
        f"{rate.measured / 1e12:.3g}. {_NOTE}",
        "",
        "## The best of each system",
        "",
        _table(rate, _fastest(results), named=True),
    ]
    for shape in dict.fromkeys(result.shape for result in results):
        lines += ["", f"## {shape}", "", _table(rate, [result for result in results if result.shape == shape])]
    return "\n".join(lines) + "\n"


def _fastest(results: Sequence[Result]) -> list[Result]:
    """For each shape the fastest result of each system."""
    groups: dict[tuple[str, str], Result] = {}
    for result in results:
        best = groups.get((result.shape, result.system))
        if best is None or result.pairs_per_second > best.pairs_per_second:
            groups[result.shape, result.system] = result
    return list(groups.values())


def _table(rate: MatrixRate, results: Sequence[Result], *, named: bool = False) -> str:
    """Results, one a row; where shapes differ (``named``), each system is compared with agiledpo's best."""
    header = ["shape" if named else "system", *(["system"] if named else []), "batch", "checkpointing"]
    header += ["pairs/s", "tokens/s", "MFU, %", "peak GiB", "speed", "memory"]
    rows = []
    for result in results:
        start = [*([result.shape] if named else []), result.system, result.batch_size]
        start.append("on" if result.checkpointing else "off")
        if result.problem is not None:
            rows.append([*start, result.problem, *[None] * 5])
            continue
        ours = _counterpart(result, results, any_point=named)
        speed = None if ours is None else f"{ours.pairs_per_second / result.pairs_per_second:.2f} x"
        rows.append(
            [
                *start,
                f"{result.pairs_per_second:.2f}",
                f"{result.tokens_per_second:.0f}",
                f"{100 * result.flops_per_second / rate.best:.1f}",
                None if result.peak_bytes is None else f"{result.peak_bytes / _GIB:.2f}",
                speed,
                _memory_ratio(ours, result),
            ]
        )
    return markdown_table(header, rows)


def _counterpart(peer: Result, results: Sequence[Result], *, any_point: bool) -> Result | None:
    """Agiledpo's result that a peer's is compared with."""
    if peer.system not in _PEERS:
        return None
    for result in results:
        if result.system == _OURS and result.shape == peer.shape and result.problem is None:
            same = (result.batch_size, result.checkpointing) == (peer.batch_size, peer.checkpointing)
            if any_point or same:
                return result
    return None


def _memory_ratio(ours: Result | None, peer: Result) -> str | None:
    if ours is None or ours.peak_bytes is None or peer.peak_bytes is None:
        return None
    return f"{ours.peak_bytes / peer.peak_bytes:.2f} x"
