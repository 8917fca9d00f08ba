"""What a policy answers to held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.randomness import TorchRandomStream
from agiledpo.evaluation.held_out import HeldOutPrompt
from agiledpo.generation import SamplingSettings, TransformersGenerator


@dataclass(frozen=True, eq=False)
class PolicyAnswer:
    """One answer.

    Attributes:
        text: Without special tokens.
        tokens: int64 (tokens,), the end-of-sequence token among them where one was sampled.
        finished: Whether it ended itself within the length limit.
    """

    text: str
    tokens: Tensor
    finished: bool


def sample_policy(
    agent: LLMAlgorithm,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[HeldOutPrompt],
    *,
    settings: SamplingSettings,
    seed: int,
    stream: int,
) -> list[PolicyAnswer]:
    """Let an agent's actor answer each prompt once; nothing of the agent changes.

    Args:
        agent: The agent.
        tokenizer: The model's.
        prompts: The prompts.
        settings: How tokens are drawn.
        seed: Of the randomness.
        stream: Which of the streams of that seed is drawn from; two policies draw from two.
    """
    own = agent.sampling_stream
    agent.sampling_stream = TorchRandomStream(seed, agent.device).branch(stream)
    try:
        completions = TransformersGenerator().generate(
            agent, [prompt.tokens for prompt in prompts], group_size=1, settings=settings, tokenizer=tokenizer
        )
    finally:
        agent.sampling_stream = own
    return [
        PolicyAnswer(str(tokenizer.decode(tokens, skip_special_tokens=True)), tokens, finished)
        for (tokens,), (finished,) in zip(completions.tokens, completions.finished, strict=True)
    ]
