"""Helpers under the names that users of AgileRL know; the code lives in :mod:`agiledpo.checkpoint`."""

from pathlib import Path

from agiledpo.algorithms.core.llm import LLMAlgorithm


def save_llm_checkpoint(agent: LLMAlgorithm, path: str | Path | None = None) -> None:
    """Save an agent; ``PeftModel.from_pretrained(base, f"{path}/actor")`` loads the result.

    Args:
        agent: The agent.
        path: Directory to write; None writes ``./saved_checkpoints``.
    """
    agent.save_checkpoint(Path("saved_checkpoints") if path is None else path)
