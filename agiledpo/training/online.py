"""Learning from what the current policy itself does: GRPO from rewards, DPO from comparisons."""

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from agiledpo.algorithms import DPO, GRPO
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.reward_fitness import FITNESS, METRICS, HeldOutRewards, measure_rewards
from agiledpo.data.rollouts.log import RolloutLog
from agiledpo.data.trajectories import DPOObjective
from agiledpo.generation import Generator, Rollout, SamplingSettings, TransformersGenerator, roll_out
from agiledpo.llm_envs.types import Split
from agiledpo.losses.checks import check_whole_number
from agiledpo.scoring import QuestionBatch, RolloutBatch
from agiledpo.training.comparisons import compare
from agiledpo.training.practice import FromRows
from agiledpo.training.rollouts import FromRollouts
from agiledpo.training.room import check_room

_SHOWN = {
    "reward": ("mean_reward", ".3f"),
    "pairs": ("pair_rate", ".2f"),
    "length": ("completion_length", ".0f"),
}


class FromRewards(FromRollouts[GRPO], FromRows[GRPO]):
    """Each batch of prompts is answered by the agent and judged, and the agent learns from the rewards.

    All prompts of a batch of the environment are answered before the agent learns from any of them.

    Args:
        rollout: Makes rollouts of an agent, prompts and their environment; None for ``agent.roll_out``.
        log: Where rollouts are noted; None for nowhere.
    """

    def __init__(self, rollout: Rollout | None = None, log: RolloutLog | None = None) -> None:
        FromRows.__init__(self, GRPO)
        FromRollouts.__init__(self, GRPO.roll_out if rollout is None else rollout, log)
        self._own = rollout is None

    @override
    def check(self, agent: GRPO, env: Any) -> None:
        super().check(agent, env)
        _check_generator(agent, agent.sampler)
        check_room(agent, env, agent.max_model_len)

    @override
    def learn(self, agent: GRPO, rows: QuestionBatch, env: Any) -> dict[str, float]:
        return agent.learn(self.answered(agent, rows, env))

    @override
    def settings(self, agents: Sequence[GRPO]) -> dict[str, Any]:
        generators = {type(agent.generator or TransformersGenerator()).__name__ for agent in agents}
        return {
            "rollout": "the agent's own" if self._own else "a function",
            "generator": ", ".join(sorted(generators)),
        }


class FromComparisons(FromRollouts[DPO]):
    """Each batch of prompts is answered by the agent and judged, and the agent learns pairs of its own answers.

    The best answer to a prompt is preferred to the worst: online DPO (Guo et al. 2024,
    https://arxiv.org/abs/2402.04792), and iterative DPO with a reference that is refreshed. Ties and equal
    answers make no pair. Pairs do not wait for the next batch, by which time the policy would be another one:
    ``agent.batch_size`` of them make an optimizer step, and what is left over makes a smaller one.

    Args:
        group_size: Completions per prompt, at least 2.
        sampling: How they are sampled.
        evaluation: How held-out prompts are answered.
        evaluation_group_size: Completions per held-out prompt.
        min_reward_gap: Smallest difference of rewards in a pair.
        reference_refresh_rounds: Batches of the environment after which the actor is copied onto the reference, again
            and again; None leaves the reference alone.
        mask_truncated_completions: Make no pairs of completions that were cut at the length limit.
        generator: Who samples; None for ``TransformersGenerator()``.
        log: Where rollouts are noted; None for nowhere.

    Raises:
        ValueError: A number is out of range, or there could never be a pair.
    """

    algorithm = DPO
    batch = QuestionBatch
    unit = "prompt"
    shown = _SHOWN
    fitness = FITNESS
    metrics = METRICS
    accuracy = "success_rate"

    def __init__(
        self,
        *,
        group_size: int,
        sampling: SamplingSettings,
        evaluation: SamplingSettings,
        evaluation_group_size: int = 1,
        min_reward_gap: float = 0.0,
        reference_refresh_rounds: int | None = None,
        mask_truncated_completions: bool = False,
        generator: Generator | None = None,
        log: RolloutLog | None = None,
    ) -> None:
        check_whole_number("group_size", group_size, minimum=2)
        check_whole_number("eval_group_size", evaluation_group_size)
        if sampling.temperature == 0:
            raise ValueError(
                "temperature=0 gives a prompt the same completion each time, of which no pair can be made; use a "
                "temperature above 0."
            )
        if reference_refresh_rounds is not None:
            check_whole_number("reference_refresh_rounds", reference_refresh_rounds)
        self.group_size = group_size
        self.sampling = sampling
        self.evaluation = evaluation
        self.evaluation_group_size = evaluation_group_size
        self.objective = DPOObjective(min_reward_gap=min_reward_gap)
        self.reference_refresh_rounds = reference_refresh_rounds
        self.mask_truncated_completions = mask_truncated_completions
        self.generator = TransformersGenerator() if generator is None else generator
        super().__init__(self._roll_out, log)

    def _roll_out(self, agent: DPO, questions: QuestionBatch, env: Any) -> RolloutBatch:
        return roll_out(
            agent,
            questions,
            env,
            group_size=self.group_size,
            settings=self.sampling,
            generator=self.generator,
        )

    @override
    def check(self, agent: DPO, env: Any) -> None:
        missing = [name for name in QuestionBatch.KEYS if name not in env.observation_space.spaces]
        if missing:
            raise ValueError(
                "Online preference learning samples its completions itself, for the prompts of ReasoningGym; the "
                f"batches of {type(env).__name__} lack {', '.join(missing)}. For pairs that are there already use "
                "finetune_llm_preference."
            )
        agent.check_vocabulary(env.action_space)
        _check_generator(agent, self.generator)
        check_room(agent, env, self.sampling.max_model_len)
        if agent.reference_cache not in (None, "memory"):
            raise ValueError(
                f"Agent {agent.index} keeps log-probabilities in the directory "
                f"reference_cache={str(agent.reference_cache)!r}, which would grow with every pair although none comes "
                "again. Make the agents with reference_cache=None."
            )
        if self.reference_refresh_rounds is None:
            return
        if agent.reference_update != "never":
            raise ValueError(
                f"reference_refresh_rounds={self.reference_refresh_rounds} and agent {agent.index}'s "
                f"reference_update={agent.reference_update!r} would both move the reference. Pass "
                "reference_refresh_rounds=None, or make the agents with reference_update='never'."
            )
        agent.check_movable_reference()

    @override
    def describe(self, agent: DPO) -> str:
        return f"{agent.describe_objective()}, best against worst of {self.group_size} sampled completions"

    @override
    def learn(self, agent: DPO, rows: QuestionBatch, env: Any) -> dict[str, float]:
        rollouts = self.answered(agent, rows, env)
        pairs, metrics = compare(rollouts, self.objective, mask_truncated=self.mask_truncated_completions)
        return {**agent.learn(pairs), **metrics} if len(pairs) else metrics

    @override
    def end_batch(self, agent: DPO, iteration: int) -> None:
        rounds = self.reference_refresh_rounds
        if rounds is not None and iteration % rounds == 0:
            agent.set_reference_policy(agent.reference_update_tracker + 1)

    @override
    def measure(self, agent: DPO, env: Any, split: Split) -> HeldOutRewards:
        return measure_rewards(
            agent,
            env,
            split,
            settings=self.evaluation,
            generator=self.generator,
            group_size=self.evaluation_group_size,
        )

    @override
    def settings(self, agents: Sequence[DPO]) -> dict[str, Any]:
        return {
            "group_size": self.group_size,
            **{f"sampling's {name}": value for name, value in vars(self.sampling).items()},
            **{f"evaluation's {name}": value for name, value in vars(self.evaluation).items()},
            "evaluation's group_size": self.evaluation_group_size,
            "min_reward_gap": self.objective.min_reward_gap,
            "reference_refresh_rounds": self.reference_refresh_rounds,
            "mask_truncated_completions": self.mask_truncated_completions,
            "generator": type(self.generator).__name__,
        }


def _check_generator(agent: LLMAlgorithm, generator: Generator) -> None:
    """Check before training that a generator of ours can sample from an agent; one of the user's knows itself."""
    if isinstance(generator, TransformersGenerator):
        generator.check(agent)
