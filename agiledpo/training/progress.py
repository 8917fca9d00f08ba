"""What a run shows while it goes on."""

from collections.abc import Sequence
from typing import Self

from tqdm.auto import tqdm


class TrainingProgress:
    """A progress bar over pairs with the latest metrics and the estimated time left.

    Args:
        total_pairs: Pairs that each agent will learn from.
        visible: Show it.
    """

    def __init__(self, total_pairs: int, *, visible: bool) -> None:
        self._bar = tqdm(total=total_pairs, unit="pair", disable=not visible, dynamic_ncols=True)
        self._latest: dict[int, dict[str, float]] = {}
        self._held_out: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._bar.disable:
            self._bar.write(text)

    def advance(self, pairs: int) -> None:
        """Count pairs and redraw."""
        self._bar.set_postfix_str(self._summary(), refresh=False)
        self._bar.update(pairs)

    def learned(self, index: int, metrics: dict[str, float]) -> None:
        """Note the metrics of an agent's last step; means over the agents are shown."""
        self._latest[index] = metrics

    def evaluated(self, fitnesses: Sequence[float]) -> None:
        """Show the best held-out fitness."""
        self._held_out = f"{max(fitnesses):.3f}"
        self._bar.set_postfix_str(self._summary())

    def _summary(self) -> str:
        if not self._latest:
            return ""

        def mean(name: str) -> float:
            return sum(metrics[name] for metrics in self._latest.values()) / len(self._latest)

        shown = {
            "loss": f"{mean('loss'):.4f}",
            "accuracy": f"{mean('rewards/accuracies'):.2f}",
            "margin": f"{mean('rewards/margins'):+.3f}",
            "tokens/s": f"{mean('tokens_per_second'):.0f}",
        }
        if self._held_out is not None:
            shown["held-out"] = self._held_out
        return ", ".join(f"{name}={value}" for name, value in shown.items())
