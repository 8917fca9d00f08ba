"""Direct Preference Optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290)."""

from collections.abc import Mapping, Sequence
from os import PathLike
from time import perf_counter
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from gymnasium import spaces
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from agiledpo.adapters import Role
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.registry import HyperparameterConfig
from agiledpo.algorithms.core.steps import check_finite, gradient_step
from agiledpo.algorithms.fitness import FITNESS, HeldOut
from agiledpo.algorithms.metrics import METRICS, PreferenceMeter
from agiledpo.algorithms.reference import ReferencePolicy, ReferenceUpdate, check_reference
from agiledpo.algorithms.role_scores import role_scores, scores_with_own_gradient
from agiledpo.distributed.division import Division
from agiledpo.llm_envs import PreferenceGym
from agiledpo.llm_envs.types import Split
from agiledpo.losses import ObjectiveTerms, PreferenceObjective
from agiledpo.losses.checks import check_whole_number
from agiledpo.scoring import (
    PairScores,
    PreferenceBatch,
    PrefixSharing,
    Scorer,
    check_prefix_sharing,
)
from agiledpo.scoring.liger import check_liger_model, liger_terms, resolve_liger


class DPO(LLMAlgorithm):
    """A LoRA agent that learns preferences offline.

    The loss of a pair is ``-log sigmoid(beta * ((log p - log p_ref)(chosen) - (log p - log p_ref)(rejected)))``
    (eq. 7), plus ``nll_alpha`` times the negative log-likelihood per chosen token. Log-probabilities are sums over
    completion tokens.

    Args:
        observation_space: ``env.observation_space``; optional, checked against the model's vocabulary.
        action_space: ``env.action_space``; optional.
        pad_token_id: Fills padding, which nothing reads; None takes the model's.
        pad_token: Text of the padding token.
        model_name: Name or path of the base model; either this or ``actor_network``.
        actor_network: The base model, which all agents made on it share, or a PeftModel whose active adapter the
            actor (and the reference) start from.
        model_config: Keyword arguments of ``from_pretrained`` for ``model_name``.
        hp_config: Hyperparameters that evolution may change; None for none.
        index: Identity in a population.
        batch_size: Pairs per optimizer step.
        lr: Learning rate of AdamW.
        beta: Strength of the pull towards the reference policy.
        nll_alpha: Weight of the NLL per chosen token; 0 is plain DPO.
        max_grad_norm: Largest gradient norm of a step.
        update_epochs: Passes over the experiences in each call of ``learn``.
        calc_position_embeddings: Hand position ids to the model. Only for models that are scored in padded rows can
            they be left out: these are padded on the right, so the model counts the same positions itself.
        micro_batch_size_per_gpu: Most pairs in one forward pass, which need not divide ``batch_size``; None takes
            ``batch_size``. It changes memory and speed, never the result.
        device: Where to compute; None leaves the model where it is.
        lora_config: LoRA configuration; None takes rank 16 on all linear layers, with a warning.
        accelerator: Accelerate's handle; its processes share the work of every call.
        wrap: Accepted for AgileRL's sake; one process needs no wrapping.
        clone: The agent is being made as a copy.
        seed: Seed of the LoRA initialisation and of LoRA dropout.
        gradient_checkpointing: Recompute decoder layers in backward: slower, far less memory.
        activation_offload: Keep what backward needs in CPU memory: slower, less memory on an accelerator. For use with
            ``gradient_checkpointing=False``, which keeps little and moves none of it.
        torch_compiler: Mode of ``torch.compile`` (``"default"``, ...) for the formulas between the matrix products:
            norms, gates and the head's softmax. They are compiled once, whatever the lengths of the batches and the
            number of agents. None runs them as they are. A C++ compiler is needed on a CPU.
        use_liger_loss: Train with Liger's fused linear DPO loss, on completion positions only: the same numbers as our
            own loss, which holds no full logits either. Where ``liger-kernel`` is not installed, warn and use our own.
            Liger lacks some losses and options, and takes plain frozen heads only; the others are refused.
        use_separate_reference_adapter: Keep a frozen ``reference`` adapter; False makes the bare base the reference.
        weight_decay: AdamW's decoupled weight decay.
        reference_update: ``"never"``: the reference is fixed; ``"epoch"``: the training loop copies the actor onto it
            after each epoch but the last, as AgileRL does; a number n: after every n optimizer steps of the agent it
            moves towards the actor, TR-DPO (Gorbatovski et al. 2024, https://arxiv.org/abs/2404.09656).
        reference_mixup_alpha: Weight a, in (0, 1], of the actor in each of TR-DPO's moves; 1 copies. Each LoRA factor
            is mixed, ``A_ref <- a A + (1 - a) A_ref`` and likewise B, since the mean of two products has twice the
            rank: the product differs from that mean by ``a (1 - a) (B - B_ref)(A - A_ref)``. ``"epoch"`` copies.
        reference_cache: ``"memory"``: keep reference log-probabilities for as long as the base model lives, for all
            agents whose reference is the same; a path: keep them in that directory too, for later runs and other
            processes; None: compute them every time. Nothing needs to be invalidated: they are found by tokens,
            weights and precision.
        reference_cache_bytes: Most memory that they take, bytes; the agents of one base model share it.
        prefix_sharing: ``"auto"``: compute the prompt that chosen and rejected share once, where that is exact for the
            model; True: or fail; False: compute it twice. Memory and speed, never the result.
        fast_layers: Run LoRA layers, norms and gated feed-forward blocks through faster forward passes, and carry the
            residual stream of a bfloat16 model in float32; False runs every layer in its own way.
        loss_type: Name, or several names, of ``agiledpo.losses.PREFERENCE_LOSSES``.
        loss_weights: Weights of several losses; None weighs each 1.
        label_smoothing: Share of labels believed to be wrong, for the losses that use it.
        f_divergence_type: Divergence that replaces the reverse KL.
        f_alpha_divergence_coef: Coefficient of the alpha divergence.
        ld_alpha: LD-DPO's weight of the tokens beyond the shorter completion's length; None for none.
        use_weighting: WPO's weights.
        discopop_tau: Temperature of DiscoPOP.
        preference_loss_weight: NeMo RL's weight of the preference loss.
        sft_loss_weight: NeMo RL's weight of the NLL of chosen.
        preference_average_log_probs: Average, not sum, over tokens in the preference loss.
        sft_average_log_probs: Average, not sum, over tokens in the NLL of ``sft_loss_weight``.

    Attributes:
        FITNESS: What :meth:`test` can measure: ``"accuracy"``: share of pairs that are ranked correctly, a tie counts
            one half; ``"margin"``: mean difference of log p - log p_ref between chosen and rejected, nats; ``"loss"``:
            minus the DPO loss at beta 0.1, the same for all agents; ``"reward_margin"``: AgileRL's, the margin times
            the agent's own ``beta``, by which selection favours a large one. Ties in fitness are broken by the mean
            margin, in which there is no ``beta``.

    Raises:
        ValueError: A parameter or a combination of parameters makes no sense; it is named, with the way out.
    """

    BATCH = PreferenceBatch
    FITNESS = tuple(FITNESS)
    METRICS = METRICS
    ACCURACY = "rewards/accuracies"
    LEARNS_FROM = "preference pairs, from PreferenceGym"
    UNIT = "pair"
    PROGRESS: ClassVar[Mapping[str, tuple[str, str]]] = {
        "loss": ("loss", ".4f"),
        "accuracy": ("rewards/accuracies", ".2f"),
        "margin": ("rewards/margins", "+.3f"),
        "tokens/s": ("tokens_per_second", ".0f"),
    }
    HYPERPARAMETERS: ClassVar[Mapping[str, type]] = {
        "batch_size": int,
        "lr": float,
        "weight_decay": float,
        "max_grad_norm": float,
        "update_epochs": int,
        "reference_mixup_alpha": float,
        "beta": float,
        "nll_alpha": float,
        "loss_type": tuple,
        "loss_weights": tuple,
        "label_smoothing": float,
        "f_divergence_type": str,
        "f_alpha_divergence_coef": float,
        "ld_alpha": float,
        "use_weighting": bool,
        "discopop_tau": float,
        "preference_loss_weight": float,
        "sft_loss_weight": float,
        "preference_average_log_probs": bool,
        "sft_average_log_probs": bool,
    }

    def __init__(
        self,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        *,
        pad_token_id: int | None = None,
        pad_token: str | None = None,
        model_name: str | None = None,
        actor_network: PreTrainedModel | PeftModel | None = None,
        model_config: Mapping[str, Any] | None = None,
        hp_config: HyperparameterConfig | None = None,
        index: int = 0,
        batch_size: int = 16,
        lr: float = 5e-6,
        beta: float = 0.1,
        nll_alpha: float = 1.0,
        max_grad_norm: float = 0.1,
        update_epochs: int = 1,
        calc_position_embeddings: bool = True,
        micro_batch_size_per_gpu: int | None = None,
        device: str | torch.device | None = None,
        lora_config: LoraConfig | None = None,
        accelerator: Accelerator | None = None,
        wrap: bool = True,
        clone: bool = False,
        seed: int = 42,
        gradient_checkpointing: bool = True,
        activation_offload: bool = False,
        torch_compiler: str | None = None,
        use_liger_loss: bool = False,
        use_separate_reference_adapter: bool = True,
        weight_decay: float = 0.0,
        reference_update: ReferenceUpdate = "never",
        reference_mixup_alpha: float = 0.6,
        reference_cache: str | PathLike[str] | None = "memory",
        reference_cache_bytes: int = 2**30,
        prefix_sharing: PrefixSharing = "auto",
        fast_layers: bool = True,
        loss_type: str | Sequence[str] = "sigmoid",
        loss_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        f_divergence_type: str = "reverse_kl",
        f_alpha_divergence_coef: float = 0.5,
        ld_alpha: float | None = None,
        use_weighting: bool = False,
        discopop_tau: float = 0.05,
        preference_loss_weight: float = 1.0,
        sft_loss_weight: float = 0.0,
        preference_average_log_probs: bool = False,
        sft_average_log_probs: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self.update_epochs = update_epochs
        self.micro_batch_size_per_gpu = micro_batch_size_per_gpu
        self.calc_position_embeddings = calc_position_embeddings
        self.reference_update = reference_update
        self.reference_mixup_alpha = reference_mixup_alpha
        self.reference_cache = reference_cache
        self.reference_cache_bytes = reference_cache_bytes
        self.prefix_sharing: PrefixSharing = prefix_sharing
        self.beta = beta
        self.nll_alpha = nll_alpha
        self.loss_type = (loss_type,) if isinstance(loss_type, str) else tuple(loss_type)
        self.loss_weights = None if loss_weights is None else tuple(loss_weights)
        self.label_smoothing = label_smoothing
        self.f_divergence_type = f_divergence_type
        self.f_alpha_divergence_coef = f_alpha_divergence_coef
        self.ld_alpha = ld_alpha
        self.use_weighting = use_weighting
        self.discopop_tau = discopop_tau
        self.preference_loss_weight = preference_loss_weight
        self.sft_loss_weight = sft_loss_weight
        self.preference_average_log_probs = preference_average_log_probs
        self.sft_average_log_probs = sft_average_log_probs
        self._check_settings(use_separate_reference_adapter)
        self.use_liger_loss = use_liger_loss and resolve_liger(self.objective)
        super().__init__(
            observation_space,
            action_space,
            pad_token_id=pad_token_id,
            pad_token=pad_token,
            model_name=model_name,
            actor_network=actor_network,
            model_config=model_config,
            hp_config=hp_config,
            index=index,
            lr=lr,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            lora_config=lora_config,
            accelerator=accelerator,
            device=device,
            wrap=wrap,
            clone=clone,
            seed=seed,
            gradient_checkpointing=gradient_checkpointing,
            activation_offload=activation_offload,
            torch_compiler=torch_compiler,
            fast_layers=fast_layers,
            use_separate_reference_adapter=use_separate_reference_adapter,
        )
        if not clone:  # a copy is as its original was made or has been set since
            self.check_hyperparameters()
        self._reference = ReferencePolicy(self.adapters, cache=reference_cache, cache_bytes=reference_cache_bytes)
        self._scorer()  # refuses settings that do not suit the model

    @property
    def objective(self) -> PreferenceObjective:
        """The loss as the live hyperparameters define it."""
        return PreferenceObjective(
            loss_type=self.loss_type,
            loss_weights=self.loss_weights,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            f_divergence_type=self.f_divergence_type,
            f_alpha_divergence_coef=self.f_alpha_divergence_coef,
            ld_alpha=self.ld_alpha,
            use_weighting=self.use_weighting,
            discopop_tau=self.discopop_tau,
            nll_alpha=self.nll_alpha,
            preference_loss_weight=self.preference_loss_weight,
            sft_loss_weight=self.sft_loss_weight,
            preference_average_log_probs=self.preference_average_log_probs,
            sft_average_log_probs=self.sft_average_log_probs,
        )

    def learn(self, experiences: Mapping[str, Any] | PreferenceBatch, training: bool = True) -> dict[str, float]:
        """Update the actor from preference pairs.

        One optimizer step is made for every ``batch_size`` pairs; the last may hold fewer.

        Args:
            experiences: What ``PreferenceGym`` yields, or AgileRL's padded dictionary: ``chosen_input_ids``,
                ``chosen_attention_mask``, ``rejected_input_ids``, ``rejected_attention_mask``, each int64 (B, T), and
                ``prompt_lengths`` (B,).
            training: False only measures; no weight changes.

        Returns:
            Means over the pairs as they were met in the first pass: ``mean_loss``, ``mean_chosen_reward``,
            ``mean_rejected_reward``, and the metrics of :class:`agiledpo.algorithms.metrics.PreferenceMeter`. None of
            them depends on how the batch is split or on ``update_epochs``. When training also ``grad_norm`` (before
            clipping, mean over steps), ``lr``, ``beta`` and ``tokens_per_second`` (prompt counted once per pair).

        Raises:
            NonFiniteLossError: A loss or gradient is NaN or infinite. The pairs are named; the step was not made.
            ValueError: The experiences are malformed or not for this model.
        """
        batch = self.as_batch(experiences)
        return self._train(batch) if training else self._measure(batch).metrics

    def measure(self, env: PreferenceGym, split: Split = "test") -> HeldOut:
        """Measure the actor on a whole held-out split; no weight and no training cursor changes.

        Args:
            env: The environment.
            split: ``"test"``, or ``"final"`` or ``"validation-<name>"`` if the environment has it.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite.
        """
        batches = [PreferenceBatch.from_experiences(batch) for batch in env.test_batches(split)]
        return self._measure(PreferenceBatch.concat(batches))

    def precompute_reference(self, env: PreferenceGym, *, verbose: bool = True) -> None:
        """Score all training and held-out pairs under the reference now, instead of each when it is first met.

        Pairs of like length go through the model together, ``micro_batch_size_per_gpu`` (or ``batch_size``) at a time.
        Those that the cache has already cost nothing.

        Args:
            env: The environment; its place in the training split stays.
            verbose: Show a progress bar.

        Raises:
            ValueError: There is no cache, or the rows would not fit into its memory and there is no directory either.
        """
        self.check_environment(env)
        scorer = self._scorer(collision=False)
        self._reference.precompute(env, scorer, pairs_per_pass=self._pairs_per_pass, team=self.team, verbose=verbose)

    def flush_caches(self) -> None:
        """Write reference log-probabilities that are not in the directory yet; the training loop does it at its end."""
        self._reference.flush()

    def end_epoch(self) -> None:
        """Copy the actor onto the reference if ``reference_update="epoch"`` asks for it."""
        if self.reference_update == "epoch":
            self.set_reference_policy(self.reference_update_tracker + 1)

    def check_comparable(self, fitness: str) -> None:
        """Check that a fitness measures this agent and others by the same standard.

        Raises:
            ValueError: There is no such fitness, or each agent would be held against a reference of its own.
        """
        super().check_comparable(fitness)
        if self.reference_update != "never":
            raise ValueError(
                f"fitness={fitness!r} holds each agent against its reference, and with "
                f"reference_update={self.reference_update!r} agent {self.index}'s moves: the one whose reference "
                "lags most would win. Use reference_update='never', or a function as fitness."
            )

    def describe_objective(self) -> str:
        """What the agent minimises, as a formula."""
        return self.objective.describe()

    def score(self, experiences: Mapping[str, Any] | PreferenceBatch, adapter_name: Role = "actor") -> PairScores:
        """Log-probabilities of both completions of each pair; no weight changes.

        Args:
            experiences: As for :meth:`learn`.
            adapter_name: ``"actor"`` or ``"reference"``.

        Returns:
            Per-token log-probabilities, float32 (B, T) for each side.
        """
        batch, scorer = self.as_batch(experiences), self._scorer()
        scorer.check(batch)
        return self._scores(scorer, batch, adapter_name)

    def check_settings(self) -> None:
        """Check that the live hyperparameters make sense together.

        Raises:
            ValueError: They do not; the parameters are named, with the way out.
        """
        super().check_settings()
        self._check_settings(self.use_separate_reference_adapter)
        if self.use_liger_loss:
            resolve_liger(self.objective)

    def recompile(self) -> None:
        """Take the model apart anew, after settings of how to run it or the adapters have changed.

        Raises:
            ValueError: With ``use_liger_loss``: the head has got an adapter, which Liger would not read.
        """
        super().recompile()
        if self.use_liger_loss:
            check_liger_model(self._lm)

    # The steps of learn ---------------------------------------------------------------------------------------------

    def _measure(self, batch: PreferenceBatch) -> HeldOut:
        """What the agent as it is makes of the batch; nothing changes."""
        scorer = self._scorer()
        scorer.check(batch)
        reference, policy = self._reference_scores(batch), self._scores(scorer, batch, "actor")
        terms = self.objective(policy.chosen, policy.rejected, reference.chosen, reference.rejected)
        check_finite(terms.loss, batch.labels)
        meter = PreferenceMeter()
        meter.add(terms)
        margins = terms.chosen_rewards.double() - terms.rejected_rewards.double()
        return HeldOut(meter.result(), margins.cpu() / self.beta, self.beta)

    def _train(self, batch: PreferenceBatch) -> dict[str, float]:
        """``update_epochs`` passes of optimizer steps over the batch; metrics of the first."""
        started = perf_counter()
        objective = self.objective
        scorer = self._scorer()
        scorer.check(batch)
        # A reference that moves between two steps is asked again at each.
        fixed = None if isinstance(self.reference_update, int) else self._reference_scores(batch)
        meter = PreferenceMeter()
        for epoch in range(self.update_epochs):
            for start, stop in batch.spans(self.batch_size):
                part = batch.slice(start, stop)
                reference = self._reference_scores(part) if fixed is None else fixed.slice(start, stop)
                measured, grad_norm = self._step(scorer, objective, part, reference)
                self._reference.follow(
                    self.optimizer_steps, update=self.reference_update, alpha=self.reference_mixup_alpha
                )
                if epoch == 0:
                    meter.add(*measured, grad_norm=grad_norm)
        self.steps[-1] += len(batch)
        seconds = perf_counter() - started
        metrics = meter.result() | {
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "beta": self.beta,
            "tokens_per_second": batch.tokens * self.update_epochs / seconds,
        }
        self.scores.append(metrics["rewards/margins"])
        return metrics

    def _step(
        self, scorer: Scorer, objective: PreferenceObjective, batch: PreferenceBatch, reference: PairScores
    ) -> tuple[list[ObjectiveTerms], float]:
        """One optimizer step on ``batch``; returns the terms of its micro-batches and the gradient norm."""
        mean_chosen_tokens = batch.chosen_tokens / len(batch)
        division = Division(self.team, batch.row_tokens)

        def terms_of(policy: PairScores, baseline: PairScores) -> ObjectiveTerms:
            return objective(
                policy.chosen,
                policy.rejected,
                baseline.chosen,
                baseline.rejected,
                mean_chosen_tokens=mean_chosen_tokens,
            )

        def coupled_loss(places: Sequence[int]) -> tuple[Tensor, ObjectiveTerms]:
            own = scorer.score(batch.select(places))
            terms = terms_of(scores_with_own_gradient(own, division), reference)
            # A process without pairs of its own goes backward with the others all the same.
            share = terms.loss.sum() / len(batch) if division.own else 0 * own.chosen.logps.sum()
            # Every process has the terms of all pairs; those of one are enough.
            return share, terms if self.team.leads else terms.slice(0, 0)

        def loss(places: Sequence[int]) -> tuple[Tensor, ObjectiveTerms]:
            part, baseline = batch.select(places), reference.select(places)
            if self.use_liger_loss:
                terms = liger_terms(scorer, objective, part, baseline, mean_chosen_tokens=mean_chosen_tokens)
            else:
                terms = terms_of(scorer.score(part), baseline)
            return terms.loss.sum() / len(batch), terms

        def check(places: Sequence[int], terms: ObjectiveTerms) -> None:
            labels = batch.labels if joint else [batch.labels[place] for place in places]
            check_finite(terms.loss, labels[: len(terms.loss)])

        joint = objective.batch_coupled and not self.team.is_alone
        turns = division.turns(len(batch) if objective.batch_coupled else self._pairs_per_pass)
        return gradient_step(
            self,
            scorer,
            [(turn.places, turn.counts) for turn in turns],
            coupled_loss if joint else loss,
            check=check,
            labels=batch.labels,
            remedy=f"Lower lr ({self.lr}) or beta ({self.beta}), or look at these pairs.",
        )

    def _reference_scores(self, batch: PreferenceBatch) -> PairScores:
        """Log-probabilities of the batch under the reference."""
        scorer = self._scorer(collision=False)  # WPO weighs by the policy
        return self._reference.scores(batch, scorer, pairs_per_pass=self._pairs_per_pass, team=self.team)

    def _scores(self, scorer: Scorer, batch: PreferenceBatch, role: Role) -> PairScores:
        """Log-probabilities of the batch under the actor or the reference, without gradient or dropout."""
        return role_scores(self.adapters, role, batch, scorer, pairs_per_pass=self._pairs_per_pass, team=self.team)

    @property
    def _pairs_per_pass(self) -> int:
        return self.micro_batch_size_per_gpu or self.batch_size

    def _scorer(self, *, collision: bool | None = None) -> Scorer:
        return Scorer(
            self._lm,
            pad_token_id=self.pad_token_id,
            prefix_sharing=self.prefix_sharing,
            explicit_positions=self.calc_position_embeddings,
            collision=self.use_weighting if collision is None else collision,
        )

    def _check_settings(self, use_separate_reference_adapter: bool) -> None:
        objective = self.objective  # validates its own parameters
        check_whole_number("batch_size", self.batch_size)
        check_whole_number("update_epochs", self.update_epochs)
        micro = self.micro_batch_size_per_gpu
        if micro is not None:
            check_whole_number("micro_batch_size_per_gpu", micro)
            if objective.batch_coupled and micro < self.batch_size:
                raise ValueError(
                    f"loss_type={self.loss_type} compares all pairs of a batch, so micro_batch_size_per_gpu={micro} "
                    f"would change it. Pass micro_batch_size_per_gpu=None, or at least batch_size={self.batch_size}."
                )
        check_prefix_sharing(self.prefix_sharing)
        check_reference(
            reference_update=self.reference_update,
            reference_mixup_alpha=self.reference_mixup_alpha,
            reference_cache=self.reference_cache,
            reference_cache_bytes=self.reference_cache_bytes,
            use_separate_reference_adapter=use_separate_reference_adapter,
        )
