"""One optimizer step of an agent on the shared base model, micro-batch by micro-batch, whatever the loss."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from agiledpo.adapters.modes import modes
from agiledpo.adapters.offload import activations_offloaded
from agiledpo.algorithms.core.errors import NonFiniteLossError
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.scoring import Scorer

Part = TypeVar("Part")
Terms = TypeVar("Terms")


@contextmanager
def learning(agent: LLMAlgorithm, scorer: Scorer) -> Iterator[None]:
    """Let the agent's actor have the base model to learn on; keep it open until after ``backward``.

    Args:
        agent: Whose adapter is active, in training mode and with its own randomness.
        scorer: What scores with it.
    """
    with (
        agent.adapters.select("actor"),
        modes(agent.base, agent.adapters.name("actor"), training=True, checkpointing=agent.gradient_checkpointing),
        scorer.session(),
        agent.random_stream.active(),
        activations_offloaded(agent.base.model.parameters()) if agent.activation_offload else nullcontext(),
    ):
        yield


def gradient_step(
    agent: LLMAlgorithm,
    scorer: Scorer,
    parts: Iterable[Part],
    loss: Callable[[Part], tuple[Tensor, Terms]],
    *,
    labels: Sequence[str],
    remedy: str,
) -> tuple[list[Terms], float]:
    """Make one optimizer step on the sum of the losses of micro-batches.

    Args:
        agent: Whose actor learns.
        scorer: What scores with it.
        parts: The micro-batches, each for one forward pass.
        loss: Of a micro-batch its share of the step's loss, a scalar, and what shall be kept of it.
        labels: What the rows of the step are called.
        remedy: What to do about a gradient that is not finite, for the message.

    Returns:
        What was kept of each micro-batch, and the gradient norm before clipping.

    Raises:
        NonFiniteLossError: The gradient is NaN or infinite. The rows are named; the step was not made.
    """
    agent.follow_hyperparameters()
    agent.optimizer.zero_grad(set_to_none=True)
    kept = []
    try:
        for part in parts:
            with learning(agent, scorer):
                share, terms = loss(part)
                share.backward()
            kept.append(terms)
        grad_norm = float(clip_grad_norm_(agent.adapters.parameters("actor"), agent.max_grad_norm))
        if not math.isfinite(grad_norm):
            raise NonFiniteLossError(
                f"The gradient norm is {grad_norm} on {', '.join(labels)}; the step was not made. {remedy}"
            )
        agent.optimizer.step()
        agent.optimizer_steps += 1
    finally:
        # Gradients of the shared base's adapters are memory that the next agent needs.
        agent.optimizer.zero_grad(set_to_none=True)
    return kept, grad_norm


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
