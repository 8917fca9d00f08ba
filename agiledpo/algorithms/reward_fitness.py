"""What makes one agent fitter than another on held-out prompts: the rewards of what it answers.

Completions of one prompt are not independent, so standard errors are over prompts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.measured import Estimate
from agiledpo.algorithms.core.randomness import TorchRandomStream
from agiledpo.generation.rollout import JudgingGym, roll_out
from agiledpo.generation.sampling import Generator, SamplingSettings
from agiledpo.llm_envs.types import Split
from agiledpo.scoring import QuestionBatch, RolloutBatch

FITNESS = ("reward", "success_rate")
METRICS = ("loss", "mean_reward", "success_rate", "completion_length", "finished_rate")

# Evaluations that draw tokens all draw from here, so that agents and evaluations differ in nothing but the policy.
_EVALUATION_SEED = 0


class HeldOutGym(JudgingGym, Protocol):
    """What an evaluation asks of an environment."""

    success_reward: float

    def test_batches(self, split: Split = "test") -> Iterable[Mapping[str, Any]]:
        """All rows of a split, batch by batch."""
        ...


@dataclass(frozen=True)
class HeldOutRewards:
    """What the answers of an agent to the prompts of a held-out split were worth.

    Attributes:
        rewards: Reward of each prompt's completions, float64; P tensors (G,).
        lengths: Their tokens, likewise.
        finished: Whether they ended themselves, likewise.
        success_reward: The least reward of a success.
    """

    rewards: Sequence[Tensor]
    lengths: Sequence[Tensor]
    finished: Sequence[Tensor]
    success_reward: float

    @staticmethod
    def of(rollouts: RolloutBatch, success_reward: float) -> "HeldOutRewards":
        """Read what an environment has judged.

        Args:
            rollouts: Completions with their rewards.
            success_reward: The least reward of a success.
        """
        lengths = [[len(ids) for ids in group] for group in rollouts.completions]
        return HeldOutRewards(
            rewards=_tensors(rollouts.rewards),
            lengths=_tensors(lengths),
            finished=_tensors(rollouts.finished),
            success_reward=success_reward,
        )

    def __len__(self) -> int:
        """Prompts."""
        return len(self.rewards)

    @property
    def metrics(self) -> dict[str, float]:
        """Means over completions.

        ``loss`` (minus the mean reward), ``mean_reward``, ``success_rate`` (share of completions with at least
        ``success_reward``), ``completion_length`` (tokens) and ``finished_rate`` (share that ended themselves).
        """
        rewards = torch.cat(list(self.rewards))
        return {
            "loss": -float(rewards.mean()),
            "mean_reward": float(rewards.mean()),
            "success_rate": float((rewards >= self.success_reward).double().mean()),
            "completion_length": float(torch.cat(list(self.lengths)).mean()),
            "finished_rate": float(torch.cat(list(self.finished)).mean()),
        }

    def fitness(self, name: str) -> Estimate:
        """A measure of ``FITNESS``, higher is better; mean over prompts of the mean over a prompt's completions."""
        measure = _MEASURES[name]
        return Estimate.of(torch.stack([measure(group, self.success_reward).mean() for group in self.rewards]))

    @property
    def tie_break(self) -> float:
        """Mean reward; it decides between agents that succeed equally often."""
        return self.fitness("reward").value


def _reward(rewards: Tensor, success_reward: float) -> Tensor:
    return rewards


def _success(rewards: Tensor, success_reward: float) -> Tensor:
    return (rewards >= success_reward).double()


_MEASURES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reward": _reward,  # as the environment gives it
    "success_rate": _success,  # 1 for a reward of at least the environment's success_reward
}


def measure_rewards(
    agent: LLMAlgorithm,
    env: HeldOutGym,
    split: Split = "test",
    *,
    settings: SamplingSettings,
    generator: Generator,
    group_size: int = 1,
) -> HeldOutRewards:
    """Let an agent answer all prompts of a held-out split; nothing that training depends on changes.

    Args:
        agent: Whose actor answers.
        env: The environment, which judges.
        split: ``"test"``, or ``"final"`` or ``"validation-<name>"`` if the environment has it.
        settings: How tokens are drawn; temperature 0 draws none.
        generator: Who draws them.
        group_size: Completions per prompt.
    """
    batches = [QuestionBatch.from_experiences(experiences) for experiences in env.test_batches(split)]
    with fixed_draws(agent):  # all prompts at once, for the generator to batch
        rollouts = roll_out(
            agent,
            QuestionBatch.concat(batches),
            env,
            group_size=group_size,
            settings=settings,
            generator=generator,
        )
    return HeldOutRewards.of(rollouts, env.success_reward)


@contextmanager
def fixed_draws(agent: LLMAlgorithm) -> Iterator[None]:
    """Let an agent sample from the stream of evaluations instead of its own, which goes on afterwards where it was."""
    own = agent.sampling_stream
    agent.sampling_stream = TorchRandomStream(_EVALUATION_SEED, agent.device)
    try:
        yield
    finally:
        agent.sampling_stream = own


def _tensors(groups: Sequence[Sequence[float]]) -> list[Tensor]:
    return [torch.tensor(group, dtype=torch.float64) for group in groups]
