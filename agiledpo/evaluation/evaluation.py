"""Evaluate a trained policy on held-out preferences, and on what it answers."""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.algorithms import DPO, GRPO
from agiledpo.data import RowSource
from agiledpo.evaluation.answers import PolicyAnswer, sample_policy
from agiledpo.evaluation.calibration import Calibration, calibration_of, hits
from agiledpo.evaluation.duel import WinRate, compare
from agiledpo.evaluation.held_out import HeldOutPairs, HeldOutPrompt
from agiledpo.evaluation.intervals import Figure, Floats, Groups, difference_of, mean_of, share_of, wilson
from agiledpo.evaluation.judges import CommandJudge, Judge, RewardJudge
from agiledpo.evaluation.kl import Divergence, kl_of
from agiledpo.evaluation.length_control import LengthControl, length_control_of
from agiledpo.evaluation.pairs import ScoredPairs, score_pairs
from agiledpo.evaluation.subjects import DEFAULT_BETA, ReferenceName, Subject, check_device, load_base
from agiledpo.generation import SamplingSettings
from agiledpo.llm_envs.rewards import RewardFunctions
from agiledpo.losses.checks import check_number, check_whole_number
from agiledpo.surroundings import describe_machine, package_versions

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TOKENS = 1024


@dataclass(frozen=True)
class Margins:
    """Margins of pairs: (log p - log p_ref)(chosen) - (log p - log p_ref)(rejected), in which there is no beta.

    Attributes:
        mean: Mean over pairs.
        quantiles: 5, 25, 50, 75 and 95 %.
        accuracy: Share of pairs whose margin is above 0, a tie counts one half.
    """

    mean: Figure
    quantiles: tuple[float, ...]
    accuracy: Figure

    @staticmethod
    def of(margins: Floats, groups: Groups) -> "Margins":
        """Summarise margins (pairs,) of prompts (pairs,)."""
        quantiles = tuple(float(value) for value in np.quantile(margins, QUANTILES))
        return Margins(mean_of(margins, groups), quantiles, share_of(hits(margins), groups))


@dataclass(frozen=True)
class PreferenceFigures:
    """What a policy makes of the pairs of one dataset.

    Intervals are of 95 % and over prompts, as pairs of one prompt are not independent; see
    :func:`agiledpo.evaluation.intervals.share_of`.

    Attributes:
        pairs: How many.
        prompts: Different ones among them.
        accuracy: Share of pairs that are ranked right: log p - log p_ref is larger for chosen than for rejected, a tie
            counts one half. Its interval knows of prompts with several pairs.
        accuracy_wilson: The same with Wilson's interval for independent pairs, for comparison.
        margins: Of log p - log p_ref, nats.
        margins_per_token: The same with each side divided by its tokens, nats per token.
        likelihood_accuracy: Share of pairs whose chosen completion is the likelier one, log p without a reference.
        likelihood_accuracy_per_token: The same with each side divided by its tokens.
        calibration: Of sigmoid(beta * margin) as a probability.
        length_control: Accuracy without the advantage of length.
    """

    pairs: int
    prompts: int
    accuracy: Figure
    accuracy_wilson: Figure
    margins: Margins
    margins_per_token: Margins
    likelihood_accuracy: Figure
    likelihood_accuracy_per_token: Figure
    calibration: Calibration
    length_control: LengthControl

    @staticmethod
    def of(scored: ScoredPairs, beta: float) -> "PreferenceFigures":
        """Measure a policy.

        Args:
            scored: What it makes of the pairs.
            beta: Of the probabilities.
        """
        margins, groups = scored.margins, scored.groups
        accuracy = share_of(hits(margins), groups)
        return PreferenceFigures(
            pairs=len(margins),
            prompts=len(np.unique(groups)),
            accuracy=accuracy,
            accuracy_wilson=wilson(accuracy.value, len(margins)),
            margins=Margins.of(margins, groups),
            margins_per_token=Margins.of(scored.margins_per_token, groups),
            likelihood_accuracy=share_of(hits(scored.likelihoods), groups),
            likelihood_accuracy_per_token=share_of(hits(scored.likelihoods_per_token), groups),
            calibration=calibration_of(margins, groups, beta),
            length_control=length_control_of(margins, scored.length_differences, groups),
        )


@dataclass(frozen=True)
class AnswerFigures:
    """What a policy answers to held-out prompts.

    Attributes:
        answers: How many.
        tokens: Mean length, the end-of-sequence token included.
        finished: Share that ended themselves within the length limit.
        kl: KL(policy || base) on these answers.
    """

    answers: int
    tokens: Figure
    finished: Figure
    kl: Divergence


@dataclass(frozen=True)
class PolicyFigures:
    """A policy and its figures.

    Attributes:
        name: As it was asked for.
        path: Where it was found; None for the base model.
        algorithm: What it was trained with; None where nothing says.
        preferences: By dataset.
        answers: None where none were sampled.
    """

    name: str
    path: str | None
    algorithm: str | None
    preferences: dict[str, PreferenceFigures]
    answers: AnswerFigures | None


@dataclass(frozen=True)
class Evaluation:
    """All figures of an evaluation.

    Attributes:
        policy: The evaluated policy.
        against: The other policy; None without one.
        accuracy_gain: By dataset, the accuracy of the policy minus that of the other on the same pairs, with an
            interval of the paired difference; None without another.
        win_rate: None where nothing was judged.
        settings: What it was measured with.
        machine: On what.
        versions: And with which libraries.
    """

    policy: PolicyFigures
    against: PolicyFigures | None
    accuracy_gain: dict[str, Figure] | None
    win_rate: WinRate | None
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values that JSON can hold: numbers that are not finite are None, "inf" where infinite."""
        plain = _plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain


def evaluate(
    checkpoint: str | Path,
    data: RowSource | Mapping[str, RowSource],
    *,
    against: str | Path | None = None,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    beta: float | None = None,
    reference: ReferenceName = "own",
    samples: int = 0,
    reward: RewardFunctions | None = None,
    judge: str | Judge | None = None,
    judge_each: bool = False,
    judge_timeout: float = 60.0,
    both_orders: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_rows: int | None = None,
    max_length: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a trained policy; what is measured, and how, is in the docstrings of the figures.

    Args:
        checkpoint: The directory of an agent's checkpoint, of an adapter that PEFT, TRL or AgileRL wrote, of a run's
            checkpoint (its fittest agent is taken) or of a run (its elite, or else the fittest agent of its newest
            checkpoint); or "base" for the base model itself.
        data: Preference pairs, in any format that ``load_preferences`` reads; several by name.
        against: Another checkpoint on the same base model, to be compared with; None for none.
        model: The base model: the model itself, its name or path, or "embedded"; None for what the checkpoint names.
        tokenizer: The tokenizer; None for the one in the checkpoint, or the base model's.
        beta: Of the probabilities sigmoid(beta * margin); None for what each policy was trained with by DPO, else 0.1.
        reference: "own": the reference that a policy was trained against, which is the base where none was saved;
            "base": the base model.
        samples: Held-out prompts to answer, each once, for the KL from the base and the win rate; 0 for none.
        reward: Decides who wins, the larger reward: functions as for ``ReasoningGym``.
        judge: Decides who wins: a command, see :class:`agiledpo.evaluation.judges.CommandJudge`, or an object with
            the method ``judge``.
        judge_each: Start the command for each comparison, instead of once.
        judge_timeout: Most seconds without a verdict of the command, counted from its start or its last verdict.
        both_orders: Have each pair of answers judged in both orders.
        max_new_tokens: Most tokens of an answer.
        temperature: Of the sampling; 0 takes the likeliest token. Anything but 1 (and ``top_p`` 1) makes the KL one on
            other answers than the policy's own.
        top_p: Of the sampling.
        max_rows: Only the first so many rows of each dataset.
        max_length: Pairs of more tokens are left out; None for what the model can read.
        chat_template_kwargs: What the chat template is told.
        batch_size: Pairs in a forward pass.
        dtype: Of the base model's weights; None for what the checkpoint was trained with, else that of its files.
        device: Where to compute; None for the first GPU, or the CPU.
        seed: Of prompts, answers and orders.

    Raises:
        CheckpointError: A checkpoint is damaged, or of another base model.
        DatasetError: The data cannot be read.
        ValueError: Arguments are out of range or do not go together; or no base model is known.

    Warns:
        UserWarning: Pairs were left out; there are fewer prompts than samples; or a policy's beta is not that of DPO.
    """
    sources = dict(data) if isinstance(data, Mapping) else {"test": data}
    _check(sources, reference, samples, against, reward, judge, beta, batch_size, max_rows)
    check_device(device)
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    decider = _decider(reward, judge, judge_each, judge_timeout)
    subjects = [Subject.open(name) for name in ((checkpoint,) if against is None else (checkpoint, against))]
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise ValueError("With a model that is loaded already, pass its tokenizer too.")
        base, chosen = model, tokenizer
    else:
        base, found = load_base(subjects, model, dtype=dtype, device=device)
        chosen = found if tokenizer is None else tokenizer
    betas = [_beta(subject, beta) for subject in subjects]
    agents: list[DPO] = []
    try:
        for subject, used in zip(subjects, betas, strict=True):
            agents.append(subject.agent(base, beta=used, batch_size=batch_size, reference=reference))
        limit = _limit(max_length, agents[0].lm.max_positions, samples)
        pairs = [
            HeldOutPairs.load(
                name,
                source,
                chosen,
                max_rows=max_rows,
                max_context_length=limit,
                chat_template_kwargs=chat_template_kwargs,
            )
            for name, source in sources.items()
        ]
        by_dataset = [score_pairs(agents, one.rows, one.groups, name=one.name) for one in pairs]
        scored = list(zip(*by_dataset, strict=True))
        prompts = _prompts(pairs, samples, chosen, seed=seed, told=chat_template_kwargs)
        answers = [
            sample_policy(agent, chosen, prompts, settings=settings, seed=seed, stream=stream) if prompts else []
            for stream, agent in enumerate(agents)
        ]
        figures = [
            PolicyFigures(
                name=subject.name,
                path=None if subject.path is None else str(subject.path),
                algorithm=subject.algorithm,
                preferences={one.name: PreferenceFigures.of(own, used) for one, own in zip(pairs, scores, strict=True)},
                answers=_answer_figures(agent, prompts, given) if given else None,
            )
            for subject, agent, used, scores, given in zip(subjects, agents, betas, scored, answers, strict=True)
        ]
    finally:
        for agent in agents:
            agent.clean_up()
    return Evaluation(
        policy=figures[0],
        against=figures[1] if against is not None else None,
        accuracy_gain=None
        if against is None
        else {one.name: _gain(a, b) for one, a, b in zip(pairs, *scored, strict=True)},
        win_rate=None
        if decider is None
        else compare(decider, prompts, answers[0], answers[1], both_orders=both_orders, seed=seed),
        settings={
            "model": base.name_or_path,
            "dtype": str(base.dtype).removeprefix("torch."),
            "device": str(base.device),
            "data": {one.name: len(one.rows) for one in pairs},
            "beta": betas[0],
            "against_beta": None if against is None else betas[1],
            "reference": reference,
            "samples": len(prompts),
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "max_length": limit,
            "batch_size": batch_size,
            "both_orders": both_orders,
            "seed": seed,
        },
        machine=describe_machine(),
        versions=package_versions(),
    )


def _check(
    sources: Mapping[str, RowSource],
    reference: str,
    samples: int,
    against: object,
    reward: object,
    judge: object,
    beta: float | None,
    batch_size: int,
    max_rows: int | None,
) -> None:
    """Refuse what makes no sense before a model is loaded."""
    if not sources:
        raise ValueError("data (--data) names no dataset; pass at least one.")
    if reference not in get_args(ReferenceName):
        raise ValueError(f"reference={reference!r}; use 'own' or 'base'.")
    check_whole_number("samples", samples, minimum=0)
    check_whole_number("batch_size", batch_size)
    if max_rows is not None:
        check_whole_number("max_rows", max_rows)
    if beta is not None:
        check_number("beta", beta, minimum=0.0, exclusive=True)
    if reward is not None and judge is not None:
        raise ValueError("reward (--reward) and judge (--judge) each decide who wins; pass one of them.")
    if reward is not None or judge is not None:
        if against is None:
            raise ValueError("A win rate needs another policy: pass against (--against), a checkpoint or 'base'.")
        if samples == 0:
            raise ValueError("A win rate needs answers: pass samples (--samples), the number of prompts to answer.")


def _decider(reward: RewardFunctions | None, judge: str | Judge | None, each: bool, timeout: float) -> Judge | None:
    if reward is not None:
        return RewardJudge(reward)
    return CommandJudge(judge, each=each, timeout=timeout) if isinstance(judge, str) else judge


def _beta(subject: Subject, beta: float | None) -> float:
    """Of a policy's probabilities: the user's, its own, or else the default."""
    if beta is not None:
        return beta
    if subject.beta is None and subject.algorithm == GRPO.__name__:
        warnings.warn(
            f"{subject.name} was trained by GRPO, whose beta weighs the KL and is no scale of preferences: its "
            f"calibration is measured at beta {DEFAULT_BETA}; pass beta (--beta) for another.",
            stacklevel=3,
        )
    return DEFAULT_BETA if subject.beta is None else subject.beta


def _limit(max_length: int | None, positions: int | None, samples: int) -> int | None:
    """Most tokens of a pair."""
    if max_length is not None and positions is not None and samples and max_length > positions:
        raise ValueError(
            f"max_length (--max-length) is {max_length}, and the model reads {positions} tokens: to longer prompts "
            f"there is no answer to sample. Pass at most {positions}, or no samples (--samples)."
        )
    return positions if max_length is None else max_length


def _prompts(
    pairs: Sequence[HeldOutPairs],
    samples: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    told: Mapping[str, Any] | None,
) -> list[HeldOutPrompt]:
    """As many prompts of all datasets together, as evenly as they have them."""
    if not samples:
        return []
    sizes = [one.different_prompts for one in pairs]
    shares = [0] * len(pairs)
    # The smallest first, so that the others can make up for it.
    for number, place in enumerate(sorted(range(len(pairs)), key=sizes.__getitem__)):
        shares[place] = min(sizes[place], -(-(samples - sum(shares)) // (len(pairs) - number)))
    prompts = [
        prompt
        for one, share in zip(pairs, shares, strict=True)
        if share
        for prompt in one.prompts(share, tokenizer, seed=seed, chat_template_kwargs=told)
    ]
    if len(prompts) < samples:
        warnings.warn(f"The data have {len(prompts)} different prompts, fewer than samples={samples}.", stacklevel=3)
    return prompts


def _answer_figures(agent: DPO, prompts: Sequence[HeldOutPrompt], answers: Sequence[PolicyAnswer]) -> AnswerFigures:
    own = np.arange(len(answers))
    lengths = np.array([len(answer.tokens) for answer in answers], dtype=np.float64)
    totals = kl_of(agent, [prompt.tokens for prompt in prompts], [answer.tokens for answer in answers])
    return AnswerFigures(
        answers=len(answers),
        tokens=mean_of(lengths, own),
        finished=share_of(np.array([answer.finished for answer in answers], dtype=np.float64), own),
        kl=Divergence.of(totals.numpy(), lengths, own),
    )


def _gain(policy: ScoredPairs, other: ScoredPairs) -> Figure:
    """The difference of accuracies; over a policy that is its own reference, and so ties always, it is less by 0.5."""
    own, others = hits(policy.margins), hits(other.margins)
    if not other.margins.any():
        accuracy = share_of(own, policy.groups)
        return Figure(accuracy.value - 0.5, accuracy.low - 0.5, accuracy.high - 0.5)
    if not policy.margins.any():
        accuracy = share_of(others, policy.groups)
        return Figure(0.5 - accuracy.value, 0.5 - accuracy.high, 0.5 - accuracy.low)
    return difference_of(own - others, policy.groups)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
