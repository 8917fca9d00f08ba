"""Metrics of preference learning, kept as sums and divided once."""

from collections import defaultdict

from agiledpo.losses import ObjectiveTerms, preference_accuracy

METRICS = (
    "loss",
    "preference_loss",
    "sft_loss",
    "nll_loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "mean_loss",
    "mean_chosen_reward",
    "mean_rejected_reward",
    "pairs",
)


class PreferenceMeter:
    """Collects loss terms over any number of batches.

    The result holds, as means over pairs: ``loss`` and ``mean_loss`` (the whole objective), ``preference_loss``,
    ``sft_loss`` and ``nll_loss`` (its terms, without their weights), ``rewards/chosen`` and ``mean_chosen_reward``,
    ``rewards/rejected`` and ``mean_rejected_reward`` (``beta`` times log p - log p_ref, in nats), ``rewards/margins``
    (their difference), ``rewards/accuracies`` (share of pairs whose chosen reward is larger, a tie counts one half),
    ``logps/chosen`` and ``logps/rejected`` (summed log-probability of a completion under the policy, in nats),
    ``pairs`` (their number), and ``grad_norm`` if steps were made (mean over steps, before clipping).
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._pairs = 0
        self._grad_norms: list[float] = []

    def add(self, *parts: ObjectiveTerms, grad_norm: float | None = None) -> None:
        """Add the terms of some pairs.

        Args:
            *parts: Per-pair terms, (B,) each.
            grad_norm: Gradient norm of the step made on them; None if none was.
        """
        for terms in parts:
            self._add(terms)
        if grad_norm is not None:
            self._grad_norms.append(grad_norm)

    def _add(self, terms: ObjectiveTerms) -> None:
        columns = {
            "loss": terms.loss,
            "preference_loss": terms.preference_loss,
            "sft_loss": terms.sft_loss,
            "nll_loss": terms.nll_loss,
            "rewards/chosen": terms.chosen_rewards,
            "rewards/rejected": terms.rejected_rewards,
            "rewards/margins": terms.chosen_rewards - terms.rejected_rewards,
            "rewards/accuracies": preference_accuracy(terms.chosen_rewards, terms.rejected_rewards),
            "logps/chosen": terms.chosen_logps,
            "logps/rejected": terms.rejected_logps,
        }
        for name, column in columns.items():
            self._sums[name] += float(column.detach().double().sum())
        self._pairs += len(terms.loss)

    def result(self) -> dict[str, float]:
        """Means over everything added."""
        if not self._pairs:
            raise ValueError("No pairs were measured.")
        means = {name: total / self._pairs for name, total in self._sums.items()}
        means |= {
            "mean_loss": means["loss"],
            "mean_chosen_reward": means["rewards/chosen"],
            "mean_rejected_reward": means["rewards/rejected"],
            "pairs": float(self._pairs),
        }
        if self._grad_norms:
            means["grad_norm"] = sum(self._grad_norms) / len(self._grad_norms)
        return means
