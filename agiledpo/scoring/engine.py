"""Score completions: from a batch to per-token log-probabilities under the active adapter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from agiledpo.losses import TokenLogProbs
from agiledpo.scoring.attention import PACKED_ATTENTION
from agiledpo.scoring.batch import PreferenceBatch
from agiledpo.scoring.causal_lm import CausalLM
from agiledpo.scoring.head import completion_hits, completion_logps
from agiledpo.scoring.layout import Layout, packed_rows, separate_rows
from agiledpo.scoring.prompt_batch import PromptBatch, SidedBatch

PrefixSharing = Literal["auto"] | bool


def check_prefix_sharing(value: object) -> None:
    """Check a ``prefix_sharing`` argument, which needs no model.

    Raises:
        ValueError: It is none of the three choices.
    """
    if value not in ("auto", True, False):
        raise ValueError(f"prefix_sharing={value!r}; use 'auto', True or False.")


@dataclass(frozen=True)
class PairScores:
    """Per-token log-probabilities of both completions of B pairs."""

    chosen: TokenLogProbs
    rejected: TokenLogProbs

    def slice(self, start: int, stop: int) -> "PairScores":
        """Scores of pairs ``start`` to ``stop``, padded no wider than they need."""
        return PairScores(_slice(self.chosen, start, stop), _slice(self.rejected, start, stop))

    def select(self, places: Sequence[int]) -> "PairScores":
        """Scores of the pairs at some places, in that order."""
        first, last = places[0], places[-1]
        if list(places) == list(range(first, last + 1)):
            return self.slice(first, last + 1)  # views, without asking the device where places are
        return PairScores(_select(self.chosen, places), _select(self.rejected, places))

    def detach(self) -> "PairScores":
        """The same without gradient."""
        return PairScores(*(replace(side, logps=side.logps.detach()) for side in (self.chosen, self.rejected)))

    def to(self, device: torch.device | str) -> "PairScores":
        """The same on a device."""
        return PairScores(_to(self.chosen, device), _to(self.rejected, device))

    @staticmethod
    def concat(scores: Sequence["PairScores"]) -> "PairScores":
        """Put the scores of consecutive batches one after the other."""
        return PairScores(_concat([s.chosen for s in scores]), _concat([s.rejected for s in scores]))


class Scorer:
    """Computes log-probabilities of completions with whatever adapter is active on the model.

    Args:
        lm: The causal language model, taken apart.
        pad_token_id: Fills the padding, which nothing reads.
        prefix_sharing: ``"auto"``: compute the prompt of a pair once where that is exact for the model; True: or fail;
            False: compute it for each completion.
        explicit_positions: Hand position ids to the model instead of letting it count (the same numbers).
        collision: Also compute the per-token collision terms that WPO weighting needs.
        hits: Also find out which completion tokens are the model's own choice; not together with ``collision``.
        temperature: What logits are divided by before the softmax, larger than 0: that of sampling, where the policy is
            what was sampled from.

    Raises:
        ValueError: ``prefix_sharing=True`` with a model for which it is not exact, or both extras.
    """

    def __init__(
        self,
        lm: CausalLM,
        *,
        pad_token_id: int,
        prefix_sharing: PrefixSharing = "auto",
        explicit_positions: bool = True,
        collision: bool = False,
        hits: bool = False,
        temperature: float = 1.0,
    ) -> None:
        check_prefix_sharing(prefix_sharing)
        if collision and hits:
            raise ValueError("collision=True and hits=True: a scorer computes one of them.")
        if prefix_sharing is True and not lm.packs:
            raise ValueError(
                f"prefix_sharing=True, but the completions of a pair cannot share their prompt in "
                f"{type(lm.model).__name__}: more than attention carries information along the sequence, or its "
                "attention is not Transformers' interface. Use prefix_sharing='auto' or False."
            )
        self.lm = lm.at_temperature(temperature)
        self.temperature = temperature
        self.share_prompts = prefix_sharing is not False
        self.pad_token_id = pad_token_id
        self.explicit_positions = explicit_positions
        self.collision = collision
        self.hits = hits

    @property
    def numerics(self) -> str:
        """How scores are computed, as far as it shows in their last digits; weights and tokens apart."""
        model = self.lm.model
        layout = f"packed, shared prompts {self.share_prompts}" if self.lm.packs else "padded"
        attention = PACKED_ATTENTION if self.lm.packs else model.config._attn_implementation
        return (
            f"{model.dtype} on {model.device.type}, {torch.get_float32_matmul_precision()} products, {layout}, "
            f"{attention} attention, explicit positions {self.explicit_positions}, own head {self.lm.head is not None}"
            f", layers {'their own' if self.lm.layers is None else self.lm.layers.numerics}"
            f", compiled {self.lm.torch_compiler}"
        )

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt whose completions go through the model together is computed once."""
        return self.share_prompts and self.lm.packs

    def check(self, batch: PromptBatch) -> None:
        """Refuse a batch the model cannot read, before anything is computed.

        Raises:
            ValueError: A token is outside the model's vocabulary, or a sequence is longer than the model allows.
        """
        if batch.largest_token_id >= self.lm.vocabulary:
            raise ValueError(
                f"The batch holds token id {batch.largest_token_id}, but {type(self.lm.model).__name__} embeds only "
                f"{self.lm.vocabulary} tokens: the tokenizer is not this model's. Load both from the same name, or "
                "call model.resize_token_embeddings(len(tokenizer)) before making the agent."
            )
        if self.lm.max_positions is None:
            return
        for place, completion in batch.numbered:
            length = len(batch.prompts[place]) + len(completion)
            if length > self.lm.max_positions:
                raise ValueError(
                    f"{batch.labels[place]} has {length} tokens; {type(self.lm.model).__name__} allows "
                    f"{self.lm.max_positions}. Pass max_context_length={self.lm.max_positions} to the environment."
                )

    @contextmanager
    def session(self) -> Iterator[None]:
        """Prepare the model for scoring; keep it open until after ``backward``, which may run the forward again."""
        with self.lm.prepared():
            yield

    def score(self, batch: PreferenceBatch) -> PairScores:
        """Log-probabilities of every completion token of a batch of pairs, inside a :meth:`session`.

        Args:
            batch: B pairs.

        Returns:
            Per-token log-probabilities (B, T), T the longest completion of each side; float32.
        """
        return PairScores(*self.score_sides(batch))

    def score_sides(self, batch: SidedBatch) -> list[TokenLogProbs]:
        """Log-probabilities of every completion token of a batch, inside a :meth:`session`.

        Args:
            batch: B prompts with k completions.

        Returns:
            Per-token log-probabilities of each side (B, T), T its longest completion; float32.
        """
        layout = self._layout(batch)
        tokens = self._token_logps(layout)
        sides = layout.lengths.split(len(batch))
        borders = [int(lengths.sum()) for lengths in sides]
        columns = [[None] * len(sides) if values is None else values.split(borders) for values in tokens]
        return [_pad(*side) for side in zip(*columns, sides, strict=True)]

    def score_completions(self, batch: PromptBatch) -> TokenLogProbs:
        """Log-probabilities of every completion token of a batch, inside a :meth:`session`.

        Args:
            batch: Prompts with any number of completions, N in all.

        Returns:
            Per-token log-probabilities (N, T) in the order of ``batch.numbered``, T the longest completion; float32.
        """
        layout = self._layout(batch)
        return _pad(*self._token_logps(layout), layout.lengths)

    def completion_states(self, batch: PromptBatch) -> tuple[Tensor, Layout]:
        """Final hidden states that predict the completion tokens of a batch, inside a :meth:`session`.

        Args:
            batch: B prompts with k completions.

        Returns:
            The states (M, H), completion by completion, and the layout that says which is which.
        """
        layout = self._layout(batch)
        return self._predicting_states(layout), layout

    def _layout(self, batch: PromptBatch) -> Layout:
        if not self.lm.packs:
            return separate_rows(batch, self.pad_token_id).to(self.lm.model.device)
        if self.lm.model.config._attn_implementation != PACKED_ATTENTION:
            raise RuntimeError("A batch was scored outside of `with scorer.session():`.")
        return packed_rows(batch, share_prompts=self.share_prompts).to(self.lm.model.device)

    def _predicting_states(self, layout: Layout) -> Tensor:
        return self.lm.hidden_states(layout, positions=self.explicit_positions).flatten(0, 1)[layout.predictors]

    def _token_logps(self, layout: Layout) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities, collision terms and hits of the completion tokens, (M,) each; None unless asked for."""
        if self.lm.head is not None:
            hidden = self._predicting_states(layout)
            if self.hits:
                logps, hits = completion_hits(hidden, layout.targets, self.lm.head)
                return logps, None, hits
            return *completion_logps(hidden, layout.targets, self.lm.head, collision=self.collision), None
        logits = self.lm.logits(layout, positions=self.explicit_positions).flatten(0, 1)[layout.predictors].float()
        logits = logits / self.temperature
        log_probs = torch.log_softmax(logits, dim=-1)
        collision = torch.logsumexp(2 * log_probs.detach(), dim=-1) if self.collision else None
        logps = log_probs.gather(1, layout.targets[:, None])[:, 0]
        return logps, collision, logps.detach() >= log_probs.detach().amax(1) if self.hits else None


def _pad(logps: Tensor, collision: Tensor | None, hits: Tensor | None, lengths: Tensor) -> TokenLogProbs:
    sizes = lengths.tolist()

    def pad(values: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(values.split(sizes)), batch_first=True)

    mask = torch.arange(max(sizes))[None] < lengths[:, None]
    return TokenLogProbs(
        logps=pad(logps),
        mask=mask.to(logps.device),
        log_collision=None if collision is None else pad(collision),
        hits=None if hits is None else pad(hits),
    )


def _slice(tokens: TokenLogProbs, start: int, stop: int) -> TokenLogProbs:
    width = int(tokens.mask[start:stop].sum(1).max())
    collision = None if tokens.log_collision is None else tokens.log_collision[start:stop, :width]
    return TokenLogProbs(
        logps=tokens.logps[start:stop, :width], mask=tokens.mask[start:stop, :width], log_collision=collision
    )


def _select(tokens: TokenLogProbs, places: Sequence[int]) -> TokenLogProbs:
    chosen = list(places)
    width = int(tokens.mask[chosen].sum(1).max())
    collision = None if tokens.log_collision is None else tokens.log_collision[chosen, :width]
    return TokenLogProbs(logps=tokens.logps[chosen, :width], mask=tokens.mask[chosen, :width], log_collision=collision)


def _to(tokens: TokenLogProbs, device: torch.device | str) -> TokenLogProbs:
    return TokenLogProbs(
        logps=tokens.logps.to(device),
        mask=tokens.mask.to(device),
        log_collision=None if tokens.log_collision is None else tokens.log_collision.to(device),
    )


def _concat(tokens: Sequence[TokenLogProbs]) -> TokenLogProbs:
    width = max(t.mask.shape[1] for t in tokens)

    def cat(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    collisions = [t.log_collision for t in tokens if t.log_collision is not None]
    return TokenLogProbs(
        logps=cat([t.logps for t in tokens]),
        mask=cat([t.mask for t in tokens]),
        log_collision=cat(collisions) if collisions else None,
    )
