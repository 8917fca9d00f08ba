"""How fast this machine multiplies matrices: the floor under every training time.

``python -m benchmarking.matrix_rate`` prints the rates for SmolLM2-135M's shapes.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from benchmarking.machine import describe_machine, sentence, usable_cores
from benchmarking.workload import Shape

Product = Callable[[Tensor, Tensor], Tensor]

SMOLLM2_SHAPES: list[Shape] = [(576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152)]
CHUNK = 256


def matrix_products() -> dict[str, Product]:
    """The ways to compute ``x @ W.t()`` that this build of torch offers, by name."""
    products: dict[str, Product] = {"x @ W.t()": lambda x, weight: x @ weight.t()}
    try:
        # Private to torch; it is only measured here, because in float32 it may be twice as fast as the public product.
        linear = torch.ops.mkldnn._linear_pointwise
        linear(torch.ones(2, 2), torch.ones(2, 2), None, "none", [], "")
    except (AttributeError, RuntimeError):
        return products
    products["oneDNN linear"] = lambda x, weight: linear(x, weight, None, "none", [], "")
    return products


def measure(
    shape: Shape,
    rows: Sequence[int],
    dtype: torch.dtype,
    *,
    repeats: int = 9,
    device: str = "cpu",
) -> dict[str, float]:
    """Operations per second of each way to compute a product.

    Args:
        shape: (in, out) of the weight.
        rows: Numbers of rows of the other matrix to try; the best counts.
        dtype: Of both matrices.
        repeats: Times that each is measured, in turn; the median counts.
        device: Where.

    Returns:
        By the names of `matrix_products`.
    """
    columns, out = shape
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(out, columns, generator=generator, device=device).to(dtype)
    products = matrix_products() if device == "cpu" else {"x @ W.t()": lambda x, weight: x @ weight.t()}
    best = dict.fromkeys(products, 0.0)
    for count in rows:
        x = torch.randn(count, columns, generator=generator, device=device).to(dtype)
        operations = 2.0 * count * columns * out
        calls = max(1, round(2e9 / operations))  # a few milliseconds, beyond the clock's noise
        seconds: dict[str, list[float]] = {name: [] for name in products}
        for repeat in range(repeats + 2):
            for name, product in products.items():
                elapsed = _seconds(product, x, weight, calls, device)
                if repeat >= 2:
                    seconds[name].append(elapsed)
        for name, values in seconds.items():
            best[name] = max(best[name], operations / median(values))
    return best


def _seconds(product: Product, x: Tensor, weight: Tensor, calls: int, device: str) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        product(x, weight)
    _wait(device)
    return (time.perf_counter() - started) / calls


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measure_all(
    shapes: Sequence[Shape], rows: int, head_rows: int, dtype: torch.dtype, **options: object
) -> dict[str, dict[str, float]]:
    """`measure` for several shapes, the last of which is the head's; keys are ``"in x out"``."""
    rates = {}
    for shape in shapes:
        count = head_rows if shape == shapes[-1] else rows
        rates[key(shape)] = measure(shape, sorted({count, min(count, CHUNK)}), dtype, **options)  # type: ignore[arg-type]
    return rates


def key(shape: Shape) -> str:
    """A shape as a JSON key."""
    return f"{shape[0]} x {shape[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=800, help="rows of the other matrix: tokens in a batch")
    parser.add_argument("--head-rows", type=int, default=400, help="the same for the head: completion tokens")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(sentence(describe_machine(arguments.threads)))
    for name in arguments.dtypes:
        rates = measure_all(
            SMOLLM2_SHAPES, arguments.rows, arguments.head_rows, getattr(torch, name), device=arguments.device
        )
        for shape, by_product in rates.items():
            text = ", ".join(f"{product} {rate / 1e9:.0f}" for product, rate in by_product.items())
            print(f"{name:<10} {shape:<14} GFLOP/s: {text}")


if __name__ == "__main__":
    main()
