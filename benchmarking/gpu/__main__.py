"""Time DPO on random weights of real shapes against TRL, or against a plain baseline where TRL is not installed."""

import argparse
import os
import platform
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

from benchmarking.gpu.environment import REQUIRED, UnsuitableMachineError, check_requirements, installed_version
from benchmarking.machine import describe_machine, sentence
from benchmarking.results import RESULTS, ResultFile

SHAPES = ("tiny", "Qwen2.5-0.5B", "Qwen2.5-3B", "Qwen2.5-7B")
SYSTEMS = ("agiledpo", "agiledpo-separate", "plain", "trl")


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    found = {name: installed_version(name) for name in (*REQUIRED, "trl", "liger_kernel", "flash_attn")}
    print(f"Python {platform.python_version()}, " + ", ".join(f"{n} {v or '-'}" for n, v in found.items()), flush=True)
    # Nothing here is fetched, and no library should try, or tell what it will deprecate.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    warnings.simplefilter("ignore", FutureWarning)
    try:
        systems = _systems(arguments.systems, trl=found["trl"] is not None)
        check_requirements(REQUIRED, any_version=arguments.any_version)
        run(arguments, systems, {name: version for name, version in found.items() if version is not None})
    except UnsuitableMachineError as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace, systems: list[str], versions: dict[str, str]) -> None:
    """Measure, or profile, the whole sweep."""
    # Imported once the requirements are known to be there.
    import torch

    from benchmarking.gpu.flops import peak_rate
    from benchmarking.gpu.measure import Result, Setting, measure, profile, sweep
    from benchmarking.gpu.report import MatrixRate, markdown
    from benchmarking.gpu.shapes import SHAPES as BY_NAME
    from benchmarking.gpu.synthetic import Lengths
    from benchmarking.gpu.systems import attention_of_agiledpo
    from benchmarking.gpu.timing import matrix_rate

    device = torch.device(arguments.device)
    cuda = device.type == "cuda"
    if cuda and not torch.cuda.is_available():
        raise UnsuitableMachineError(
            f"--device {arguments.device}, but torch {torch.__version__} sees no GPU; "
            "`--device cpu --shapes tiny` shows that the benchmark works."
        )
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[arguments.dtype]
    name = torch.cuda.get_device_name(device) if cuda else "cpu"
    data_sheet = peak_rate(name) if cuda and dtype == torch.bfloat16 else None
    rate = MatrixRate(data_sheet, matrix_rate(device, dtype))
    setting = Setting(
        device=device,
        dtype=dtype,
        lengths=Lengths(arguments.prompt, arguments.completion),
        steps=arguments.steps,
        warm_up=arguments.warm_up,
        repeats=arguments.repeats,
    )
    if any(system.startswith("agiledpo") for system in systems):
        tokens = min(arguments.batch_sizes) * (arguments.prompt + 2 * arguments.completion)
        for shape in arguments.shapes:
            path = attention_of_agiledpo(BY_NAME[shape], tokens, device, dtype)
            print(f"{shape}: agiledpo attends by {path} at {tokens} tokens", flush=True)
    points = sweep([BY_NAME[shape] for shape in arguments.shapes], arguments.batch_sizes, arguments.checkpointing)
    if arguments.profile:
        for point in points:
            for system in systems:
                print(f"\n{system}, {point.shape.name}, batch {point.batch_size}, checkpointing {point.checkpointing}")
                print(profile(system, point, setting), flush=True)
        return

    machine = describe_machine(torch.get_num_threads())
    workload = (
        f"{arguments.dtype}, LoRA of rank 16 on all linear layers, prompts of {arguments.prompt} and completions of "
        f"{arguments.completion} random tokens on average, {arguments.steps} steps in each of {arguments.repeats} "
        "repeats."
    )
    file = ResultFile(f"gpu_{arguments.label or _slug(name)}", arguments.output)
    file.discard()
    file.set(machine=machine, versions=versions, workload=workload, matrix_rate=asdict(rate))
    results: list[Result] = []
    started = time.monotonic()
    for point in points:
        if arguments.limit is not None and time.monotonic() - started > arguments.limit:
            print(f"--limit {arguments.limit:g} s is over; the rest of the sweep is not measured.", flush=True)
            break
        for result in measure(point, systems, setting):
            results.append(result)
            file.append({**asdict(result), "mfu": result.flops_per_second / rate.best})
            figures = result.problem or (
                f"{result.pairs_per_second:.2f} pairs/s, {100 * result.flops_per_second / rate.best:.1f} % MFU"
            )
            checkpointing = "with" if point.checkpointing else "without"
            print(
                f"{point.shape.name}, batch {point.batch_size}, {checkpointing} checkpointing, "
                f"{result.system}: {figures}",
                flush=True,
            )
        file.write_markdown(markdown(sentence(machine), versions, workload, rate, results))
    print(f"\n{file.markdown.read_text()}\nWritten to {file.markdown} and {file.json}.")


def _systems(wanted: list[str] | None, *, trl: bool) -> list[str]:
    if wanted is None:
        return ["agiledpo", "trl" if trl else "plain"]
    if "trl" in wanted and not trl:
        raise UnsuitableMachineError("--systems names trl, which is not installed; plain is always there.")
    return wanted


def _slug(name: str) -> str:
    """A device's name as part of a file's."""
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarking.gpu", description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda", help="cuda, cuda:N or cpu")
    add("--dtype", choices=("bf16", "fp32"), default="bf16")
    add("--shapes", nargs="+", choices=SHAPES, default=SHAPES[1:], metavar="SHAPE", help=", ".join(SHAPES))
    add(
        "--systems",
        nargs="+",
        choices=SYSTEMS,
        metavar="SYSTEM",
        help=f"{', '.join(SYSTEMS)}; default: the first and trl, or plain where trl is not installed",
    )
    add("--batch-sizes", nargs="+", type=int, default=[2, 8, 16], metavar="PAIRS")
    add("--checkpointing", nargs="+", type=_switch, default=[False, True], metavar="on|off")
    add("--prompt", type=int, default=384, help="mean length of prompts, tokens")
    add("--completion", type=int, default=128, help="mean length of completions, tokens")
    add("--steps", type=int, default=6, help="timed steps in each repeat")
    add("--warm-up", type=int, default=2, help="steps before them")
    add("--repeats", type=int, default=3)
    add("--limit", type=float, help="start no further point of the sweep after so many seconds")
    add("--profile", action="store_true", help="print the top kernels of each system instead of timing it")
    add("--any-version", action="store_true", help="try packages that are older than agiledpo asks for")
    add("--output", type=Path, default=RESULTS, help="directory of the results")
    add("--label", help="names the files gpu_LABEL.md and gpu_LABEL.json; by default the device's name")
    return parser


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r}; use on or off")
    return text == "on"


if __name__ == "__main__":
    sys.exit(main())
