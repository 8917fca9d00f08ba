"""On-policy self-distillation: the policy that has read the solution teaches the policy that has not.

Student and teacher are the same model. The student answers the question; the teacher, whose prompt says more, gives its
log-probability of every token that the student chose, and the difference is the advantage of the token. Sources: Zhao
et al. 2026, Self-Distilled Reasoner (https://arxiv.org/abs/2601.18734); Hübotter et al. 2026, Reinforcement Learning
via Self-Distillation (https://arxiv.org/abs/2601.20802).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor

from agiledpo.adapters import AgentAdapters, Role
from agiledpo.algorithms.policy_steps import own_parts
from agiledpo.algorithms.role_scores import completion_scores
from agiledpo.distributed.team import Team
from agiledpo.generation.privileged import Privileged
from agiledpo.generation.rollout import Rollout
from agiledpo.losses.distillation import DistillationObjective
from agiledpo.scoring import QuestionBatch, RolloutBatch, Scorer

Teacher = Literal["reference", "actor"]


class SamplingAgent(Protocol):
    """What self-distillation asks of an agent, such as GRPO."""

    adapters: AgentAdapters
    temperature: float
    batch_size: int
    micro_batch_size_per_gpu: int | None
    team: Team

    def scorer(self, *, temperature: float = 1.0) -> Scorer:
        """What computes log-probabilities of completions."""
        ...


class SelfDistillation:
    """A rollout whose tokens have the advantages that a teacher gives them; see :func:`self_distillation`.

    Args:
        rollout: Samples completions.
        privileged: Writes the teacher's prompts.
        teacher: Whose weights the teacher has.
        objective: How log-probabilities become advantages.

    Attributes:
        last: Metrics of the latest call, over all tokens: ``distillation/reverse_kl``, an estimate of the student's
            reverse KL from its teacher, nats per token; ``distillation/clipped``, the share of tokens whose difference
            was clipped; ``distillation/advantage_std``. None before the first call.

    Raises:
        ValueError: There is no such teacher.
    """

    def __init__(
        self, rollout: Rollout, privileged: Privileged, *, teacher: Teacher, objective: DistillationObjective
    ) -> None:
        if teacher not in ("reference", "actor"):
            raise ValueError(f"teacher={teacher!r}; use 'reference' or 'actor'.")
        self.rollout = rollout
        self.privileged = privileged
        self.teacher = teacher
        self.objective = objective
        self.last: dict[str, float] | None = None

    def __call__(self, agent: SamplingAgent, questions: QuestionBatch, env: Any) -> RolloutBatch:
        """Sample completions and let the teacher judge their tokens.

        Both sets of log-probabilities are computed here, in the same way and at ``agent.temperature``: those that came
        with the samples may be of another implementation, whose rounding would be taken for the teacher's opinion.

        Args:
            agent: Whose actor answers.
            questions: The prompts.
            env: Their environment.

        Returns:
            What the rollout returned, with advantages.

        Raises:
            ValueError: The teacher's prompts are not one per question, are empty or longer than the model allows with
                their completions; or the rollout answers other questions or brings advantages. The row is named.
        """
        # By one process: a function that draws or asks a service may not say the same twice.
        prompts = agent.team.leader_does(lambda: self._prompts(env, questions))
        rollouts = self.rollout(agent, questions, env)
        _check_rollouts(rollouts, questions)
        labels = [f"{label} with the teacher's prompt" for label in rollouts.labels]
        taught = replace(rollouts, prompts=prompts, labels=labels)
        scorer = agent.scorer(temperature=agent.temperature)
        _check_room(scorer, taught)
        scorer.check(taught)
        student = _logps(agent, "actor", rollouts, scorer)
        teacher = _logps(agent, self.teacher, taught, scorer)
        advantages = [
            [self.objective.advantages(*pair) for pair in zip(*groups, strict=True)]
            for groups in zip(student, teacher, strict=True)
        ]
        self.last = self._metrics(_flat(student), _flat(teacher), _flat(advantages))
        return replace(rollouts, advantages=advantages)

    def _prompts(self, env: Any, questions: QuestionBatch) -> list[Tensor]:
        prompts = [torch.as_tensor(prompt, dtype=torch.int64).cpu() for prompt in self.privileged(env, questions)]
        if len(prompts) != len(questions):
            raise ValueError(
                f"privileged gave {len(prompts)} prompts for {len(questions)} questions; one each is needed."
            )
        for prompt, label in zip(prompts, questions.labels, strict=True):
            if prompt.ndim != 1 or not len(prompt):
                raise ValueError(
                    f"{label}: privileged gave a prompt of shape {tuple(prompt.shape)}; token ids (tokens,) are needed."
                )
        return prompts

    def _metrics(self, student: Tensor, teacher: Tensor, advantages: Tensor) -> dict[str, float]:
        differences = student - teacher
        clip = self.objective.clip
        return {
            "distillation/reverse_kl": float(differences.mean()),
            "distillation/clipped": 0.0 if clip is None else float((differences.abs() > clip).double().mean()),
            "distillation/advantage_std": float(advantages.std(correction=0)),
        }


@overload
def self_distillation(
    rollout: Rollout,
    privileged: Privileged,
    *,
    teacher: Teacher = ...,
    kl_coef: float = ...,
    discount: float = ...,
    clip: float | None = ...,
) -> SelfDistillation: ...


@overload
def self_distillation(
    rollout: None = None,
    *,
    privileged: Privileged,
    teacher: Teacher = ...,
    kl_coef: float = ...,
    discount: float = ...,
    clip: float | None = ...,
) -> Callable[[Rollout], SelfDistillation]: ...


def self_distillation(
    rollout: Rollout | None = None,
    privileged: Privileged | None = None,
    *,
    teacher: Teacher = "reference",
    kl_coef: float = 1.0,
    discount: float = 0.0,
    clip: float | None = None,
) -> SelfDistillation | Callable[[Rollout], SelfDistillation]:
    """Give the tokens of a rollout the advantages ``kl_coef * (log p_teacher - log p_student)``.

    The rewards of the rollout stay, to be reported; they have no influence on learning any more.

    Args:
        rollout: Agent, questions and environment to rollouts, such as ``GRPO.roll_out``. Left away, the result is a
            decorator: ``@self_distillation(privileged=...)``.
        privileged: Environment and questions to the teacher's prompt for each question, int64 (tokens,);
            :func:`agiledpo.generation.privileged.privileged_prompts` makes one from a function of question and answer.
        teacher: ``"reference"``: the agent's reference policy, which is fixed but for what the agent does to it;
            ``"actor"``: the policy as it is at each rollout.
        kl_coef: Factor of the advantages.
        discount: Weight of later tokens' differences, in [0, 1]; 0 for the token's own alone.
        clip: Largest difference of log-probabilities that counts, nats; None for no limit.

    Raises:
        ValueError: A number is none or out of range, there is no such teacher, or ``privileged`` is missing.
    """
    if privileged is None:
        raise ValueError("privileged is missing: say what the teacher's prompts are.")
    source = privileged
    objective = DistillationObjective(kl_coef=kl_coef, discount=discount, clip=clip)

    def wrap(rollout: Rollout) -> SelfDistillation:
        return SelfDistillation(rollout, source, teacher=teacher, objective=objective)

    return wrap if rollout is None else wrap(rollout)


def _check_rollouts(rollouts: RolloutBatch, questions: QuestionBatch) -> None:
    if len(rollouts) != len(questions):
        raise ValueError(f"The rollout answers {len(rollouts)} prompts, but there are {len(questions)} questions.")
    for asked, answered, advantages, label in zip(
        questions.prompts, rollouts.prompts, rollouts.advantages, questions.labels, strict=True
    ):
        if not torch.equal(asked, answered):
            raise ValueError(
                f"{label}: the rollout answers another prompt; it must keep the questions and their order, by which "
                "the teacher's prompts are found."
            )
        if advantages is not None:
            raise ValueError(
                f"{label}: the rollout brings advantages, which self-distillation would replace. Wrap one "
                "that does not."
            )


def _check_room(scorer: Scorer, taught: RolloutBatch) -> None:
    limit = scorer.lm.max_positions
    for place, completion in taught.numbered:
        length = len(taught.prompts[place]) + len(completion)
        if limit is not None and length > limit:
            raise ValueError(
                f"{taught.labels[place]} and its completion has {length} tokens; {type(scorer.lm.model).__name__} "
                f"allows {limit}. Shorten what privileged writes, or drop the row."
            )


def _logps(agent: SamplingAgent, role: Role, batch: RolloutBatch, scorer: Scorer) -> list[list[Tensor]]:
    """For each prompt, for each of its completions, the log-probabilities of its tokens, float32 on the CPU."""
    size = agent.micro_batch_size_per_gpu or agent.batch_size
    parts = own_parts(batch, size, team=agent.team, shares_prompts=scorer.shares_prompts)
    scores = completion_scores(agent.adapters, role, (part.rollouts for part in parts), scorer)
    own = [
        (values.logps[values.mask].cpu(), values.lengths.tolist())
        for part, values in zip(parts, scores, strict=True)
        if part.counts
    ]
    everybody = (rows for theirs in agent.team.gather(own) for rows in theirs)
    found = (row for values, lengths in everybody for row in values.split(lengths))
    return [[next(found) for _ in group] for group in batch.completions]


def _flat(groups: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([values for group in groups for values in group]).double()
