"""One optimizer step of an agent on the shared base model, micro-batch by micro-batch, whatever the loss."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from agiledpo.adapters.modes import modes
from agiledpo.adapters.offload import activations_offloaded
from agiledpo.algorithms.core.errors import NonFiniteLossError
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.randomness import TorchRandomStream
from agiledpo.scoring import Scorer

Part = TypeVar("Part")
Terms = TypeVar("Terms")


@contextmanager
def learning(agent: LLMAlgorithm, scorer: Scorer, randomness: TorchRandomStream) -> Iterator[None]:
    """Let the agent's actor have the base model to learn on; keep it open until after ``backward``.

    Args:
        agent: Whose adapter is active, in training mode.
        scorer: What scores with it.
        randomness: What dropout draws from.
    """
    with (
        agent.adapters.select("actor"),
        modes(agent.base, agent.adapters.name("actor"), training=True, checkpointing=agent.gradient_checkpointing),
        scorer.session(),
        randomness.active(),
        activations_offloaded(agent.base.model.parameters()) if agent.activation_offload else nullcontext(),
    ):
        yield


def gradient_step(
    agent: LLMAlgorithm,
    scorer: Scorer,
    parts: Sequence[tuple[Part, bool]],
    loss: Callable[[Part], tuple[Tensor, Terms]],
    *,
    check: Callable[[Part, Terms], None],
    labels: Sequence[str],
    remedy: str,
) -> tuple[list[Terms], float]:
    """Make one optimizer step on the sum of the losses of the micro-batches of all processes.

    Args:
        agent: Whose actor learns.
        scorer: What scores with it.
        parts: This process's micro-batches, each for one forward pass, and whether it counts (see
            :class:`agiledpo.distributed.division.Turn`); equally many in every process.
        loss: Of a micro-batch its share of the step's loss, a scalar, and its terms, a dataclass of tensors.
        check: Raises NonFiniteLossError if the terms of a micro-batch are not finite.
        labels: What the rows of the step are called.
        remedy: What to do about a gradient that is not finite, for the message.

    Returns:
        The terms of the micro-batches of all processes and the gradient norm before clipping, the same in every
        process.

    Raises:
        NonFiniteLossError: A loss or the gradient is NaN or infinite, in whichever process. The rows are named; the
            step was not made.
    """
    agent.follow_hyperparameters()
    team, stepper = agent.team, agent.stepper
    kept: list[Terms] = []
    broken: NonFiniteLossError | None = None
    # Dropout is drawn anew in each process, from a place in the agent's stream that is the same in all.
    randomness = agent.random_stream if team.is_alone else agent.random_stream.branch(team.rank)
    stepper.begin()
    try:
        with agent.lm.whole_head():
            for number, (part, counts) in enumerate(parts):
                with learning(agent, scorer, randomness):
                    share, terms = loss(part)
                    stepper.backward(share if counts else 0 * share, last=number + 1 == len(parts))
                if not counts:
                    continue
                kept.append(terms)
                try:
                    check(part, terms)
                except NonFiniteLossError as error:
                    if team.is_alone:
                        raise
                    broken = broken or error  # once the others, who wait for this process's gradients, know of it
        if not team.is_alone:
            agent.random_stream.advance()
            kept = [terms for theirs in team.all_do(lambda: _outcome(kept, broken)) for terms in theirs]
        grad_norm = stepper.finish(agent.max_grad_norm)
        if not math.isfinite(grad_norm):
            raise NonFiniteLossError(
                f"The gradient norm is {grad_norm} on {', '.join(labels)}; the step was not made. {remedy}"
            )
        stepper.step()
        agent.optimizer_steps += 1
    finally:
        stepper.clear()
    return kept, grad_norm


def _outcome(kept: Sequence[Terms], broken: NonFiniteLossError | None) -> list[Terms]:
    """What a process has to tell the others of its micro-batches."""
    if broken is not None:
        raise broken
    return [on_cpu(terms) for terms in kept]


def on_cpu(terms: Any) -> Any:
    """Terms as they can go to other processes: on the CPU and without gradient."""
    return replace(
        terms, **{name: value.detach().cpu() for name, value in vars(terms).items() if isinstance(value, Tensor)}
    )


def check_finite(losses: Tensor, labels: Sequence[str]) -> None:
    """Refuse losses that are not finite.

    Args:
        losses: Loss of each row, (B,).
        labels: What the rows are called.

    Raises:
        NonFiniteLossError: Some are NaN or infinite; these rows are named.
    """
    broken = [label for label, loss in zip(labels, losses.tolist(), strict=True) if not math.isfinite(loss)]
    if broken:
        raise NonFiniteLossError(
            f"The loss is not finite on {', '.join(broken)}; the step was not made. Look at these rows, or lower the "
            "learning rate if earlier steps already went astray."
        )
