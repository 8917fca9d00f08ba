"""Answers to a few held-out prompts, before training and whenever agents are measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import override

from agiledpo.adapters.modes import modes
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.randomness import TorchRandomStream
from agiledpo.data.examples import Message, Turns
from agiledpo.data.messages import without_none
from agiledpo.evaluation.kl import kl_of
from agiledpo.generation import SamplingSettings, TransformersGenerator
from agiledpo.journal import Journal
from agiledpo.llm_envs.dataset_gym import DatasetGym
from agiledpo.losses.checks import check_whole_number
from agiledpo.training.metrics_log import json_number
from agiledpo.training.observer import Observer, Outline
from agiledpo.training.population import Population

# Rows that are looked at together in the search for prompts.
_LOOKED_AT = 64


@dataclass(frozen=True)
class _Prompt:
    """A held-out prompt."""

    row: int
    tokens: Tensor
    prompt: str | list[Message]
    chosen: str | None


class Samples(Observer):
    """Lets the model answer some prompts of the test split before training, and the elite at each evaluation.

    Each answer is a line ``{"step", "agent", "row", "prompt", "answer", "tokens", "finished", "kl_per_token",
    "chosen"}``: rows that each agent had been handed; the elite's index, None before training; the prompt's row in the
    test dataset; its messages or text; the answer without special tokens, their number, and whether the model ended it
    itself; the mean over these tokens of KL(actor || reference) over the whole vocabulary, in nats, where the reference
    is the agent's, or the base model; what the row prefers or demonstrates, None if it does not.

    The answers are sampled with random numbers of their own: the run is bit for bit the same with and without. A run
    that goes on from a checkpoint moves what came after it to a file beside.

    Args:
        path: The file.
        env: The environment whose test split the prompts are from: ``PreferenceGym``, ``SFTGym`` or ``ReasoningGym``.
        count: Prompts, 0 for none; fewer if there are no more distinct ones that fit the model. Equal seeds choose the
            same.
        max_new_tokens: Longest answer, tokens.
        temperature: What logits are divided by; 0 takes the most likely token each time.
        seed: Of the choice and of the sampling; not negative.

    Raises:
        ValueError: A number is out of range, the name of the file says that it is compressed, or the environment is
            that of several processes, of which only one would answer.
    """

    def __init__(
        self,
        path: str | Path,
        env: DatasetGym[Any],
        *,
        count: int = 4,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_whole_number("count", count, minimum=0)
        check_whole_number("seed", seed, minimum=0)
        if count and env.accelerator is not None and env.accelerator.num_processes > 1:
            raise ValueError(
                f"Samples are answered in one process, and the environment's accelerator has "
                f"{env.accelerator.num_processes}. Leave Samples out of this run."
            )
        self.count = count
        self.seed = seed
        self.settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature)
        self._journal = Journal(path, holds="samples")
        self._env = env
        self._generator = TransformersGenerator()
        self._prompts: Sequence[_Prompt] = ()
        # Answers of before training, until it is known that the run does not go on from where they are written already.
        self._first = b""

    @property
    def path(self) -> Path:
        """The file."""
        return self._journal.path

    @property
    @override
    def files(self) -> Sequence[Path]:
        return (self.path,)

    @override
    def begins(self, outline: Outline, agents: Sequence[LLMAlgorithm]) -> None:
        self._journal.check_place()
        self._prompts = self._choose(agents[0].lm.max_positions) if self.count else ()
        self._first = self._answers(agents[0], None, 0)

    @override
    def advanced(self, rows_done: int) -> None:
        self._write_first()

    @override
    def evaluated(self, population: Population[Any], rows_done: int) -> None:
        self._write_first()
        if population.elite is not None:
            self._write(self._answers(population.elite, population.elite.index, rows_done))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"file": self._journal.state_dict()}

    @override
    def check_state(self, state: Mapping[str, Any]) -> None:
        self._journal.check_state(state.get("file", {"bytes": 0}))

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self._journal.load_state_dict(state["file"])
            self._first = b""

    def _write_first(self) -> None:
        first, self._first = self._first, b""
        self._write(first)

    def _write(self, lines: bytes) -> None:
        if lines:
            self._journal.write(lines)

    # Prompts --------------------------------------------------------------------------------------------------------

    def _choose(self, longest: int | None) -> list[_Prompt]:
        """Distinct prompts, drawn by the seed, that leave the model room for an answer."""
        rows = len(self._env.lengths("test"))
        order = np.random.default_rng(self.seed).permutation(rows)
        chosen: dict[tuple[int, ...], _Prompt] = {}
        for start in range(0, rows, _LOOKED_AT):
            batch = self._env.rows_at("test", order[start : start + _LOOKED_AT])
            for row, tokens in zip(batch["row"].tolist(), _prompt_tokens(batch), strict=True):
                if len(chosen) == self.count:
                    return list(chosen.values())
                key = tuple(tokens.tolist())
                if key not in chosen and (longest is None or len(key) < longest):
                    chosen[key] = self._prompt(row, tokens)
        return list(chosen.values())

    def _prompt(self, row: int, tokens: Tensor) -> _Prompt:
        example = self._env.example("test", row)
        chosen = self._text(example.completions[0]) if example.completions else None
        prompt = example.prompt
        if isinstance(prompt, list):
            messages = [turn for turn in prompt if isinstance(turn, dict)]
            return _Prompt(row, tokens, without_none(messages) if messages else self._text(prompt), chosen)
        return _Prompt(row, tokens, prompt, chosen)

    def _text(self, turns: Turns) -> str:
        """What a completion says; of messages the contents, one below the other."""
        if isinstance(turns, str):
            return turns
        if messages := [turn for turn in turns if isinstance(turn, dict)]:
            return "\n\n".join(_content(message) for message in messages)
        tokens = [turn for turn in turns if isinstance(turn, int)]
        return str(self._env.tokenizer.decode(tokens, skip_special_tokens=True))

    # Answers --------------------------------------------------------------------------------------------------------

    def _answers(self, agent: LLMAlgorithm, index: int | None, step: int) -> bytes:
        """The lines of an agent's answers."""
        if not self._prompts:
            return b""
        self._generator.check(agent)
        with modes(agent.base, None, training=False, checkpointing=False):
            with agent.adapters.evaluate("actor"):
                completions = self._generator.sample(
                    agent.lm,
                    [prompt.tokens for prompt in self._prompts],
                    group_size=1,
                    settings=self.settings,
                    # Of the step, so that a run that goes on draws what it would have drawn.
                    stream=TorchRandomStream(self.seed, agent.device).branch(step),
                    tokenizer=self._env.tokenizer,
                )
            lines = []
            for prompt, (tokens,), (finished,) in zip(
                self._prompts, completions.tokens, completions.finished, strict=True
            ):
                kl = kl_per_token(agent, prompt.tokens, tokens)
                answer = {
                    "step": step,
                    "agent": index,
                    "row": prompt.row,
                    "prompt": prompt.prompt,
                    "answer": str(self._env.tokenizer.decode(tokens, skip_special_tokens=True)),
                    "tokens": len(tokens),
                    "finished": bool(finished),
                    "kl_per_token": json_number(kl),
                    "chosen": prompt.chosen,
                }
                lines.append(json.dumps(answer, allow_nan=False, default=str).encode() + b"\n")
        return b"".join(lines)


def kl_per_token(agent: LLMAlgorithm, prompt: Tensor, answer: Tensor) -> float:
    """Mean of KL(actor || reference) over the tokens of an answer, over the whole vocabulary at each; nats.

    Args:
        agent: The agent; without a reference of its own the base model is the reference.
        prompt: int64 (prompt tokens,).
        answer: int64 (tokens,), what followed it, at least one token.
    """
    return float(kl_of(agent, [prompt], [answer], against="reference")) / len(answer)


def _prompt_tokens(batch: Mapping[str, Any]) -> list[Tensor]:
    """The prompts of a batch of any environment, int64 (tokens,) each."""
    key = next(key for key in ("prompt_input_ids", "chosen_input_ids", "input_ids") if key in batch)
    return [ids[:length] for ids, length in zip(batch[key], batch["prompt_lengths"].tolist(), strict=True)]


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str) and not message.get("tool_calls"):
        return content
    return json.dumps(dict(message), ensure_ascii=False, default=str)
