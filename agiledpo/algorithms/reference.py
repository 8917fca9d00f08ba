"""The policy that the actor is held against: each pair scored once under it, and moved only where that is asked for."""

from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm.auto import tqdm

from agiledpo.adapters import AgentAdapters
from agiledpo.algorithms.role_scores import role_scores
from agiledpo.distributed.team import Team
from agiledpo.llm_envs import PreferenceGym
from agiledpo.losses.checks import check_number, check_whole_number
from agiledpo.scoring import PairScores, PreferenceBatch, ReferenceCache, Scorer
from agiledpo.scoring.reference_cache import memory_needed

ReferenceUpdate = Literal["never", "epoch"] | int


class ReferencePolicy:
    """The reference of one agent, and the cache of its log-probabilities.

    What may change while the agent lives, its hyperparameters among it, comes with each call.

    Args:
        adapters: The agent's adapters.
        cache: ``"memory"``: keep log-probabilities for as long as the base model lives; a path: in that directory too;
            None: compute them every time.
        cache_bytes: Most memory that they take, bytes; the agents of one base model share it.

    Attributes:
        cache: Log-probabilities that are known already; None if none are kept.
    """

    def __init__(self, adapters: AgentAdapters, *, cache: str | PathLike[str] | None, cache_bytes: int) -> None:
        self.adapters = adapters
        self.cache: ReferenceCache | None = None
        if cache is not None:
            directory = None if cache == "memory" else Path(cache)
            self.cache = ReferenceCache.shared(adapters.base, memory_bytes=cache_bytes, directory=directory)

    def scores(self, batch: PreferenceBatch, scorer: Scorer, *, pairs_per_pass: int, team: Team) -> PairScores:
        """Log-probabilities of a batch, computed for the pairs that the cache lacks.

        Args:
            batch: B pairs.
            scorer: Scores what has to be computed.
            pairs_per_pass: Most pairs in one forward pass.
            team: The processes that share the work; each has been handed the whole batch.

        Returns:
            Per-token log-probabilities, float32 (B, T) for each side.
        """

        def compute(pairs: PreferenceBatch) -> PairScores:
            return role_scores(self.adapters, "reference", pairs, scorer, pairs_per_pass=pairs_per_pass, team=team)

        cache = self.cache
        if cache is None:
            return compute(batch)
        content = self.adapters.content("reference", portable=cache.directory is not None)
        name = f"{content} computed with {scorer.numerics}"
        # Pass by pass, so that what is scored is kept even if the whole split is never finished.
        return PairScores.concat(
            [
                cache.scores(batch.slice(*span), name, compute, self.adapters.base.device)
                for span in batch.spans(pairs_per_pass * team.size)
            ]
        )

    def precompute(self, env: PreferenceGym, scorer: Scorer, *, pairs_per_pass: int, team: Team, verbose: bool) -> None:
        """Score all training and held-out pairs that the cache lacks, pairs of like length together.

        Args:
            env: The environment; its place in the training split stays.
            scorer: Scores what has to be computed.
            pairs_per_pass: Pairs in one forward pass.
            team: The processes that share the work.
            verbose: Show a progress bar.

        Raises:
            ValueError: There is no cache, it cannot hold all the pairs, or the model cannot read one of them.
        """
        lengths = np.concatenate([env.lengths(split) for split in env.splits])
        cache = self._cache_for(pairs=len(lengths), tokens=int(lengths[:, 1:].sum()))
        shown = verbose and team.leads
        with tqdm(total=len(lengths), desc="reference", unit="pair", disable=not shown, dynamic_ncols=True) as bar:
            for split in env.splits:
                for experiences in env.longest_first(split, pairs_per_pass * team.size):
                    batch = PreferenceBatch.from_experiences(experiences)
                    scorer.check(batch)
                    self.scores(batch, scorer, pairs_per_pass=pairs_per_pass, team=team)
                    bar.update(len(batch))
        cache.flush()

    def follow(self, optimizer_steps: int, *, update: ReferenceUpdate, alpha: float) -> None:
        """Move towards the actor if TR-DPO's soft update is due.

        Args:
            optimizer_steps: Steps that the actor has made.
            update: After how many steps each; ``"never"`` and ``"epoch"`` leave the reference where it is.
            alpha: Weight of the actor, in (0, 1].

        Raises:
            ValueError: ``alpha`` is out of its range; the reference has not moved.
        """
        if isinstance(update, int) and optimizer_steps % update == 0:
            _check_mixup(alpha)
            self.adapters.mix_role("actor", "reference", alpha)

    def flush(self) -> None:
        """Write log-probabilities that are not in the directory yet."""
        if self.cache is not None:
            self.cache.flush()

    def _cache_for(self, *, pairs: int, tokens: int) -> ReferenceCache:
        """The cache, if it can hold so many pairs at once."""
        if self.cache is None:
            raise ValueError(
                "reference_cache=None keeps no reference log-probabilities, so there is nowhere to put them. Make the "
                "agent with reference_cache='memory' or a directory."
            )
        needed = memory_needed(pairs, tokens)
        if self.cache.directory is None and needed > self.cache.memory_limit:
            raise ValueError(
                f"The reference log-probabilities of {pairs} pairs take {needed} bytes, but "
                f"reference_cache_bytes={self.cache.memory_limit}. Raise it, or pass a directory as reference_cache."
            )
        return self.cache


def check_reference(
    *,
    reference_update: ReferenceUpdate,
    reference_mixup_alpha: float,
    reference_cache: str | PathLike[str] | None,
    reference_cache_bytes: int,
    use_separate_reference_adapter: bool,
) -> None:
    """Check an agent's arguments about its reference, which needs no model.

    Raises:
        ValueError: One of them, or two together, make no sense.
    """
    update, cache = reference_update, reference_cache
    if update not in ("never", "epoch") and (not isinstance(update, int) or isinstance(update, bool) or update < 1):
        raise ValueError(f"reference_update={update!r}; use 'never', 'epoch' or a number of steps of at least 1.")
    if update != "never" and not use_separate_reference_adapter:
        raise ValueError(
            f"reference_update={update!r} needs a reference that can move, but "
            "use_separate_reference_adapter=False makes the shared base model the reference. Set one of the two "
            "back to its default."
        )
    _check_mixup(reference_mixup_alpha)
    check_whole_number("reference_cache_bytes", reference_cache_bytes)
    if cache is None or cache == "memory":
        return
    if not isinstance(cache, (str, PathLike)):
        raise ValueError(f"reference_cache={cache!r}; use 'memory', a directory, or None.")
    if Path(cache).expanduser().exists() and not Path(cache).expanduser().is_dir():
        raise ValueError(f"reference_cache={str(cache)!r} is a file; a directory is needed.")
    if isinstance(update, int):
        raise ValueError(
            f"reference_update={update} gives a new reference every {update} steps, of which nothing is worth "
            f"keeping in the directory reference_cache={str(cache)!r}. Use reference_cache='memory'."
        )


def _check_mixup(alpha: float) -> None:
    check_number("reference_mixup_alpha", alpha, minimum=0.0, exclusive=True)
    if alpha > 1:
        raise ValueError(f"reference_mixup_alpha={alpha} must be at most 1, which copies the actor.")
