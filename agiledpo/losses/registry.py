"""The preference losses by name, all callable in one way, with what a training loop has to know about each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from torch import Tensor

from agiledpo.losses import margin, pointwise, transport
from agiledpo.losses.divergences import Divergence, reverse_kl
from agiledpo.losses.inputs import PairLogProbs


class LabelSmoothing(Enum):
    """Values of label_smoothing that a loss takes."""

    UNUSED = "0"
    OPTIONAL = "[0, 0.5)"
    REQUIRED = "(0, 0.5)"

    def contains(self, value: float) -> bool:
        """Whether `value` lies in the range."""
        if self is LabelSmoothing.UNUSED:
            return value == 0.0
        if self is LabelSmoothing.OPTIONAL:
            return 0.0 <= value < 0.5
        return 0.0 < value < 0.5


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Everything that some preference loss reads besides the log-probabilities.

    Attributes:
        beta: Strength of the pull towards the reference.
        label_smoothing: Flip probability or label smoothing.
        divergence: Transform of the log-ratios.
        discopop_tau: Temperature of DiscoPOP.
        mean_chosen_tokens: Mean chosen length over the optimizer batch; a scalar.
    """

    beta: float
    label_smoothing: float = 0.0
    divergence: Divergence = reverse_kl
    discopop_tau: float = 0.05
    mean_chosen_tokens: Tensor | float = 1.0


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """A preference loss and its properties.

    Attributes:
        name: What users write in `loss_type`.
        function: From log-probabilities and settings to the (B,) loss of each pair.
        batch_coupled: The loss of a pair depends on the other pairs, so a batch must not be split into micro-batches.
        accepts_f_divergence: The loss sees only the margin, or no log-ratio, so an f-divergence is admissible.
        accepts_weighting: A weight per pair (WPO) is meaningful.
        uses_reference: The reference model changes the loss.
        label_smoothing: Admissible values of label_smoothing.
        normalises_length: The loss divides by the completion lengths itself.
        pools_tokens: The loss is a mean over the tokens of the batch: it takes plain sums and `mean_chosen_tokens`.
    """

    name: str
    function: Callable[[PairLogProbs, LossSettings], Tensor]
    batch_coupled: bool = False
    accepts_f_divergence: bool = False
    accepts_weighting: bool = True
    uses_reference: bool = True
    label_smoothing: LabelSmoothing = LabelSmoothing.UNUSED
    normalises_length: bool = False
    pools_tokens: bool = False

    def __call__(self, pairs: PairLogProbs, settings: LossSettings) -> Tensor:
        """The (B,) loss of each pair."""
        return self.function(pairs, settings)


_LOSSES = (
    PreferenceLoss(
        name="sigmoid",
        function=lambda pairs, s: margin.sigmoid(pairs, beta=s.beta, divergence=s.divergence),
        accepts_f_divergence=True,
    ),
    PreferenceLoss(
        name="hinge",
        function=lambda pairs, s: margin.hinge(pairs, beta=s.beta, divergence=s.divergence),
        accepts_f_divergence=True,
    ),
    PreferenceLoss(
        name="ipo",
        function=lambda pairs, s: margin.ipo(pairs, beta=s.beta, divergence=s.divergence),
        accepts_f_divergence=True,
        normalises_length=True,
    ),
    PreferenceLoss(
        name="exo_pair",
        function=lambda pairs, s: margin.exo_pair(
            pairs, beta=s.beta, label_smoothing=s.label_smoothing, divergence=s.divergence
        ),
        accepts_f_divergence=True,
        label_smoothing=LabelSmoothing.REQUIRED,
    ),
    PreferenceLoss(name="nca_pair", function=lambda pairs, s: pointwise.nca_pair(pairs, beta=s.beta)),
    PreferenceLoss(
        name="robust",
        function=lambda pairs, s: margin.robust(
            pairs, beta=s.beta, label_smoothing=s.label_smoothing, divergence=s.divergence
        ),
        accepts_f_divergence=True,
        label_smoothing=LabelSmoothing.OPTIONAL,
    ),
    PreferenceLoss(name="bco_pair", function=lambda pairs, s: pointwise.bco_pair(pairs, beta=s.beta)),
    PreferenceLoss(name="sppo_hard", function=lambda pairs, s: pointwise.sppo_hard(pairs, beta=s.beta)),
    PreferenceLoss(
        name="aot",
        function=lambda pairs, s: transport.aot(pairs, beta=s.beta, label_smoothing=s.label_smoothing),
        batch_coupled=True,
        accepts_weighting=False,
        label_smoothing=LabelSmoothing.OPTIONAL,
    ),
    PreferenceLoss(
        name="aot_unpaired",
        function=lambda pairs, s: transport.aot_unpaired(pairs, beta=s.beta, label_smoothing=s.label_smoothing),
        batch_coupled=True,
        accepts_weighting=False,
        label_smoothing=LabelSmoothing.OPTIONAL,
    ),
    PreferenceLoss(name="apo_zero", function=lambda pairs, s: pointwise.apo_zero(pairs, beta=s.beta)),
    PreferenceLoss(name="apo_down", function=lambda pairs, s: pointwise.apo_down(pairs, beta=s.beta)),
    PreferenceLoss(
        name="discopop",
        function=lambda pairs, s: margin.discopop(pairs, beta=s.beta, tau=s.discopop_tau, divergence=s.divergence),
        accepts_f_divergence=True,
    ),
    PreferenceLoss(
        name="sft",
        function=lambda pairs, s: pointwise.sft(pairs, mean_chosen_tokens=s.mean_chosen_tokens),
        accepts_f_divergence=True,
        accepts_weighting=False,
        uses_reference=False,
        pools_tokens=True,
    ),
    PreferenceLoss(
        name="sigmoid_norm",
        function=lambda pairs, s: margin.sigmoid_norm(pairs, beta=s.beta, divergence=s.divergence),
        accepts_f_divergence=True,
        normalises_length=True,
    ),
)

PREFERENCE_LOSSES: Mapping[str, PreferenceLoss] = MappingProxyType({loss.name: loss for loss in _LOSSES})
