"""Sample from one actor on a vLLM server of this machine and with Transformers, and compare tokens, scores and time.

python -m benchmarking.gpu.vllm MODEL, where MODEL is a directory or a name that can be loaded.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from agiledpo.algorithms import DPO
from agiledpo.generation import Completions, Generator, SamplingSettings, TransformersGenerator, VLLMGenerator
from agiledpo.scoring import RolloutBatch, Scorer
from benchmarking.gpu.shapes import LORA_RANK
from benchmarking.gpu.systems import lora_config
from benchmarking.machine import describe_machine, sentence


def main() -> None:
    arguments = _parser().parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    agent = _agent(AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).to(device))
    draw = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(agent.lm.vocabulary, (arguments.prompt,), generator=draw) for _ in range(arguments.prompts)
    ]
    print(f"{sentence(describe_machine())}\n{arguments.model}, {dtype}, LoRA of rank {LORA_RANK}")
    with _server(arguments, dtype) as url, VLLMGenerator(url, base_model="base") as vllm:
        generators: dict[str, Generator] = {"vllm": vllm, "transformers": TransformersGenerator()}
        greedy = {
            name: _sample(generator, agent, prompts, 1, arguments.tokens, temperature=0.0)
            for name, generator in generators.items()
        }
        print(f"greedy tokens until the first that differs: {_agreement(*greedy.values()):.1%}")
        for name, generator in generators.items():
            started = time.perf_counter()
            completions = _sample(generator, agent, prompts, arguments.group_size, arguments.tokens)
            seconds = time.perf_counter() - started
            tokens = sum(len(ids) for group in completions.tokens for ids in group)
            error = _largest_error(agent, prompts, completions)
            print(f"{name}: {tokens / seconds:.0f} tokens/s, log-probabilities within {error:.2g} of the scorer's")


def _agent(model: torch.nn.Module) -> DPO:
    """An agent whose actor differs from the base model."""
    agent = DPO(actor_network=model, lora_config=lora_config())
    draw = torch.Generator(model.device).manual_seed(0)
    with torch.no_grad():
        for parameter in agent.adapters.own_parameters("actor"):
            parameter.normal_(std=0.02, generator=draw)
    return agent


def _sample(
    generator: Generator, agent: DPO, prompts: Sequence[Tensor], group_size: int, tokens: int, temperature: float = 1.0
) -> Completions:
    settings = SamplingSettings(max_new_tokens=tokens, temperature=temperature)
    return generator.generate(agent, prompts, group_size=group_size, settings=settings)


def _agreement(one: Completions, other: Completions) -> float:
    """Share of the tokens of the first that come before the first difference of their completion."""
    same = total = 0
    for mine, theirs in zip(one.tokens, other.tokens, strict=True):
        length = min(len(mine[0]), len(theirs[0]))
        same += int((mine[0][:length] == theirs[0][:length]).long().cumprod(0).sum())
        total += len(mine[0])
    return same / total


def _largest_error(agent: DPO, prompts: Sequence[Tensor], completions: Completions) -> float:
    batch = RolloutBatch(
        prompts=prompts,
        completions=completions.tokens,
        rewards=[[0.0] * len(group) for group in completions.tokens],
        advantages=[None] * len(prompts),
        sampling_logps=completions.logps,
        finished=completions.finished,
        labels=[f"prompt {place}" for place in range(len(prompts))],
    )
    scorer = Scorer(agent.lm, pad_token_id=agent.pad_token_id)
    error = 0.0
    with torch.no_grad(), agent.select_adapter("actor"), scorer.session():
        for part, _ in batch.parts(16):
            scores = scorer.score_completions(part)
            given = [logps for group in part.sampling_logps for logps in group or ()]
            for logps, row, mask in zip(given, scores.logps, scores.mask, strict=True):
                error = max(error, float((logps - row[mask].cpu()).abs().max()))
    return error


@contextmanager
def _server(arguments: argparse.Namespace, dtype: torch.dtype) -> Iterator[str]:
    """A vLLM server on this machine's loopback for the time of the context."""
    import httpx2

    command = [arguments.vllm, "serve", arguments.model, "--served-model-name", "base", "--host", "127.0.0.1"]
    command += ["--port", str(arguments.port), "--enable-lora", "--max-lora-rank", str(LORA_RANK)]
    command += ["--dtype", str(dtype).removeprefix("torch."), *arguments.serve]
    environment = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)  # vLLM may be of another environment than this script
    url = f"http://127.0.0.1:{arguments.port}"
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with log.open("w") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + arguments.patience
            while True:
                try:
                    httpx2.get(f"{url}/health").raise_for_status()
                    break
                except httpx2.HTTPError:
                    if process.poll() is not None or time.monotonic() > until:
                        sys.exit(f"vLLM did not start:\n{log.read_text()[-4000:]}")
                    time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarking.gpu.vllm", description=__doc__)
    add = parser.add_argument
    add("model")
    add("--vllm", default="vllm", help="the command, where it is not on the path")
    add("--serve", type=shlex.split, default=[], metavar="ARGUMENTS", help="further ones of vllm serve, in one text")
    add("--port", type=int, default=8123)
    add("--prompts", type=int, default=64)
    add("--prompt", type=int, default=128, help="tokens of each")
    add("--group-size", type=int, default=8)
    add("--tokens", type=int, default=256, help="most tokens of a completion")
    add("--patience", type=float, default=300, help="seconds that the server may take to start")
    return parser


if __name__ == "__main__":
    main()
