"""Files of rollouts as NeMo Gym writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def _rollout(prompt: Any, answer: Any, reward: Any = 0.0, **parameters: Any) -> dict[str, Any]:
    if isinstance(answer, str):
        part = {"type": "output_text", "text": answer, "annotations": [], "logprobs": None}
        answer = [{"id": "msg_0", "type": "message", "role": "assistant", "status": "completed", "content": [part]}]
    return {"responses_create_params": {"input": prompt, **parameters}, "output": answer, "reward": reward}


@pytest.fixture(scope="session")
def rollout() -> Callable[..., dict[str, Any]]:
    """Build a line: prompt, answer (a text or the list of output items), reward, further parameters of the request."""
    return _rollout


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write lines, objects or ready texts, to a file."""

    def write_lines(*lines: Any, name: str = "rollouts.jsonl") -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines]
        path.write_text("".join(texts), encoding="utf-8")
        return path

    return write_lines


@pytest.fixture(scope="session")
def read() -> Callable[[Path], list[dict[str, Any]]]:
    """Read a file of pairs."""
    return lambda path: [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
