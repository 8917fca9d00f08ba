"""Group Relative Policy Optimization (Shao et al. 2024, https://arxiv.org/abs/2402.03300)."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from gymnasium import spaces
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from agiledpo.adapters import Role
from agiledpo.algorithms.actions import ActionResult, action_result
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.registry import HyperparameterConfig
from agiledpo.algorithms.core.steps import check_finite, gradient_step
from agiledpo.algorithms.policy_metrics import PolicyMeter, rollout_metrics
from agiledpo.algorithms.policy_steps import PolicyPart, PolicyStep, larger_advantages, policy_steps
from agiledpo.algorithms.precomputed import rollouts_from_groups
from agiledpo.algorithms.reward_fitness import (
    FITNESS,
    METRICS,
    HeldOutGym,
    HeldOutRewards,
    fixed_draws,
    measure_rewards,
)
from agiledpo.algorithms.role_scores import completion_scores, measuring
from agiledpo.data.trajectories import TrajectoryGroup
from agiledpo.generation.rollout import JudgingGym, roll_out
from agiledpo.generation.sampling import Generator, SamplingSettings
from agiledpo.generation.transformers_generator import TransformersGenerator
from agiledpo.llm_envs.types import Split
from agiledpo.losses import PolicyObjective, PolicyTerms, TokenLogProbs, group_advantages
from agiledpo.losses.advantages import ADV_NORMS
from agiledpo.losses.checks import check_name, check_number, check_whole_number
from agiledpo.losses.policy_gradient import check_clip_coef
from agiledpo.scoring import PrefixSharing, QuestionBatch, RolloutBatch, Scorer, check_prefix_sharing

_DEFAULT_COMPLETION_LENGTH = 256


class GRPO(LLMAlgorithm):
    """A LoRA agent that learns from the rewards of its own completions.

    For each prompt a group of completions is sampled and judged. The advantage of a completion is its reward's distance
    from the mean of the group, in standard deviations. The loss of a token is ``-min(r A, clip(r) A) + beta * KL``: A
    is the advantage of its completion, r its probability over the one it had when ``learn`` was called, and KL the
    estimated divergence from the reference (eq. 3 and 4). It is averaged over the tokens of a completion, then over
    completions.

    Ratios are taken between log-probabilities at the temperature of sampling, and so is the divergence. If a call of
    ``learn`` makes one optimizer step, every ratio is exactly 1; the policy that is left behind is scored only if there
    are more. It is scored without LoRA dropout, which the passes that learn have: with dropout a ratio scatters
    around 1 from the first step on, and more of them are clipped. Use ``lora_dropout=0`` with several steps per call.

    Args:
        observation_space: ``env.observation_space``; optional.
        action_space: ``env.action_space``; optional, checked against the model's vocabulary.
        pad_token_id: Fills padding, which nothing reads; None takes the model's.
        pad_token: Text of the padding token.
        model_name: Name or path of the base model; either this or ``actor_network``.
        actor_network: The base model, which all agents made on it share, or a PeftModel whose active adapter the
            actor (and the reference) start from.
        model_config: Keyword arguments of ``from_pretrained`` for ``model_name``.
        hp_config: Hyperparameters that evolution may change; None for none.
        index: Identity in a population.
        batch_size: Completions per optimizer step. A step is made of whole groups: it takes in one after the other
            until it has that many completions, so with groups that do not divide ``batch_size`` it has a few more.
        beta: Weight of the divergence from the reference; 0 leaves the reference out.
        lr: Learning rate of AdamW.
        clip_coef: c for ratios from 1 - c to 1 + c, or AgileRL's pair of the smallest and the largest ratio, such as
            DAPO's (0.8, 1.28), which becomes ``clip_coef=0.2, clip_coef_high=0.28``: two numbers that can evolve.
        clip_coef_high: Ratios reach up to 1 + this; None takes ``clip_coef``.
        max_grad_norm: Largest gradient norm of a step.
        update_epochs: Passes over the experiences in each call of ``learn``.
        group_size: Completions sampled for each prompt, at least 2.
        temperature: What logits are divided by in sampling, and in learning from it.
        repetition_penalty: As in :class:`agiledpo.generation.SamplingSettings`. This and the next three change what is
            sampled, but not the log-probabilities that are learned from.
        top_p: Only the most likely tokens that together have this probability.
        top_k: Only the k most likely tokens; 0 for all.
        min_p: Only tokens at least this many times as likely as the most likely one.
        calc_position_embeddings: Hand position ids to the model; see :class:`agiledpo.algorithms.DPO`.
        micro_batch_size_per_gpu: Most completions in one forward pass; None takes ``batch_size``. A group that is
            larger is cut, and its prompt computed more than once. It changes memory and speed, and without LoRA
            dropout, whose masks are drawn for each micro-batch, never the result.
        max_output_tokens: AgileRL's name of ``max_completion_length``.
        min_output_tokens: No end-of-sequence token before as many.
        max_completion_length: Most tokens of a completion, its end-of-sequence token included; None for 256.
        max_model_len: Most tokens of a prompt with its completion; None for what the model allows.
        stop: Text, or several texts, behind which a completion ends; None or () for none.
        device: Where to compute; None leaves the model where it is.
        lora_config: LoRA configuration; None takes rank 16 on all linear layers, with a warning.
        accelerator: Accelerate's handle, one process.
        wrap: Accepted for AgileRL's sake; one process needs no wrapping.
        clone: The agent is being made as a copy.
        seed: Seed of the LoRA initialisation, of LoRA dropout and of sampling.
        gradient_checkpointing: Recompute decoder layers in backward: slower, far less memory.
        torch_compiler: Mode of ``torch.compile`` for what runs between the matrix products; None for none.
        use_liger_loss: Accepted for AgileRL's sake, with a warning: our own head holds no full logits either.
        adv_norm: ``"mean_std"``: divide by the group's standard deviation; ``"mean_only"``: do not (Dr. GRPO).
        loss_type: ``"grpo"``; ``"gspo"``: one ratio per completion; ``"cispo"``: clip the weight of a token, not its
            gradient. See :class:`agiledpo.losses.PolicyObjective`.
        loss_normalization: ``"sequence"``: mean over the tokens of a completion, then over completions; ``"token"``:
            mean over all completion tokens of an optimizer step (DAPO); ``"constant"``: sum over tokens divided by
            ``max_completion_length``, then mean over completions (Dr. GRPO).
        importance_sampling_level: ``"token"`` or ``"trajectory"``: what has a ratio of its own; None takes what
            ``loss_type`` says.
        use_separate_reference_adapter: Keep a frozen ``reference`` adapter; False makes the bare base the reference.
        adv_clip_range: Largest size of an advantage; None for no limit.
        filter_zero_adv: Leave completions out whose advantages are at most ``adv_filter_eps`` in size, as if they had
            not been sampled: neither loss nor divergence, nor a place in the means (DAPO's dynamic sampling).
        adv_filter_eps: See there.
        mask_truncated_completions: Leave completions out that were cut at the length limit (DAPO's overlong
            filtering); their rewards count in the advantages of the others. It needs what :meth:`roll_out` returns.
        vllm_importance_sampling_correction: Where completions come from another engine than the model that learns,
            weigh each token by ``min(p / p_sampling, vllm_importance_sampling_cap)``, with p its probability when
            ``learn`` was called, for which it is scored then, and p_sampling the one that the engine gave. That is:
            with ``sampling_logps`` given to ``learn``, with groups of trajectories, and with rollouts of a
            ``generator`` other than ``TransformersGenerator``, as far as they know their ``sampling_logps``. Rollouts
            of the agent's own model need no correction and get none. ``VLLMGenerator`` does not know them at this
            class's defaults: it does at ``temperature=1``, or with ``top_p=1, top_k=0`` and a server that was started
            with ``--logprobs-mode processed_logprobs``. Without any there is no correction, and a warning.
        vllm_importance_sampling_cap: See there.
        activation_offload: Keep what backward needs in CPU memory; see :class:`agiledpo.algorithms.DPO`.
        weight_decay: AdamW's decoupled weight decay.
        fast_layers: Run LoRA layers, norms and gated feed-forward blocks through faster forward passes, and carry the
            residual stream of a bfloat16 model in float32; False runs every layer in its own way.
        prefix_sharing: ``"auto"``: compute the prompt that a group shares once, where that is exact for the model;
            True: or fail; False: compute it for each completion. Memory and speed, never the result.
        generator: What samples completions; None for the model itself, by Transformers' ``generate``.
        eval_temperature: Temperature of held-out answers; 0 takes the most likely token each time. Others draw from a
            stream of their own, the same for all agents and evaluations.
        reference_update: ``"never"``: the reference is fixed; ``"epoch"``: the training loop copies the actor onto it
            after each epoch but the last.

    Attributes:
        FITNESS: What :meth:`test` can measure: ``"reward"``: mean reward of held-out answers; ``"success_rate"``: share
            of them with at least the environment's ``success_reward``. Ties are broken by the mean reward.

    Raises:
        ValueError: A parameter or a combination of parameters makes no sense; it is named, with the way out.
    """

    BATCH = QuestionBatch
    FITNESS = FITNESS
    METRICS = METRICS
    ACCURACY = "success_rate"
    LEARNS_FROM = "the rewards of its answers to prompts, from ReasoningGym"
    UNIT = "prompt"
    PROGRESS: ClassVar[Mapping[str, tuple[str, str]]] = {
        "loss": ("loss", "+.4f"),
        "reward": ("mean_reward", ".3f"),
        "length": ("completion_length", ".0f"),
        "tokens/s": ("tokens_per_second", ".0f"),
    }
    HYPERPARAMETERS: ClassVar[Mapping[str, type]] = {
        "batch_size": int,
        "lr": float,
        "weight_decay": float,
        "max_grad_norm": float,
        "update_epochs": int,
        "beta": float,
        "clip_coef": float,
        "clip_coef_high": float,
        "group_size": int,
        "temperature": float,
        "loss_type": str,
        "loss_normalization": str,
        "adv_norm": str,
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
        beta: float = 0.001,
        lr: float = 5e-7,
        clip_coef: float | tuple[float, float] = 0.2,
        clip_coef_high: float | None = None,
        max_grad_norm: float = 0.1,
        update_epochs: int = 1,
        group_size: int = 8,
        temperature: float = 0.9,
        repetition_penalty: float = 1.0,
        top_p: float = 0.95,
        top_k: int = 50,
        min_p: float = 0.0,
        calc_position_embeddings: bool = True,
        micro_batch_size_per_gpu: int | None = None,
        max_output_tokens: int | None = None,
        min_output_tokens: int = 0,
        max_completion_length: int | None = None,
        max_model_len: int | None = None,
        stop: str | Sequence[str] | None = (),
        device: str | torch.device | None = None,
        lora_config: LoraConfig | None = None,
        accelerator: Accelerator | None = None,
        wrap: bool = True,
        clone: bool = False,
        seed: int = 42,
        gradient_checkpointing: bool = True,
        torch_compiler: str | None = None,
        use_liger_loss: bool = False,
        adv_norm: str = "mean_std",
        loss_type: str = "grpo",
        loss_normalization: str = "sequence",
        importance_sampling_level: str | None = None,
        use_separate_reference_adapter: bool = True,
        adv_clip_range: float | None = None,
        filter_zero_adv: bool = False,
        adv_filter_eps: float = 0.0,
        mask_truncated_completions: bool = False,
        vllm_importance_sampling_correction: bool = True,
        vllm_importance_sampling_cap: float = 2.0,
        activation_offload: bool = False,
        weight_decay: float = 0.0,
        fast_layers: bool = True,
        prefix_sharing: PrefixSharing = "auto",
        generator: Generator | None = None,
        eval_temperature: float = 0.0,
        reference_update: Literal["never", "epoch"] = "never",
    ) -> None:
        self.batch_size = batch_size
        self.beta = beta
        self.clip_coef, self.clip_coef_high = _clip_coefs(clip_coef, clip_coef_high)
        self.update_epochs = update_epochs
        self.group_size = group_size
        self.temperature = temperature
        self.repetition_penalty = repetition_penalty
        self.top_p = top_p
        self.top_k = top_k
        self.min_p = min_p
        self.calc_position_embeddings = calc_position_embeddings
        self.micro_batch_size_per_gpu = micro_batch_size_per_gpu
        self.min_output_tokens = min_output_tokens
        self.max_completion_length = _completion_length(max_completion_length, max_output_tokens)
        self.max_model_len = max_model_len
        self.stop: tuple[str, ...] = (stop,) if isinstance(stop, str) else tuple(stop or ())
        self.adv_norm = adv_norm
        self.loss_type = loss_type
        self.loss_normalization = loss_normalization
        self.importance_sampling_level = importance_sampling_level
        self.adv_clip_range = adv_clip_range
        self.filter_zero_adv = filter_zero_adv
        self.adv_filter_eps = adv_filter_eps
        self.mask_truncated_completions = mask_truncated_completions
        self.vllm_importance_sampling_correction = vllm_importance_sampling_correction
        self.vllm_importance_sampling_cap = vllm_importance_sampling_cap
        self.prefix_sharing: PrefixSharing = prefix_sharing
        self.generator = generator
        self.eval_temperature = eval_temperature
        self.reference_update = reference_update
        self._check_settings(use_separate_reference_adapter)
        if use_liger_loss:
            warnings.warn(
                "use_liger_loss=True has no effect on GRPO; agiledpo's own loss gives the same numbers and holds no "
                "full logits either.",
                stacklevel=2,
            )
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
        self._own_generator = TransformersGenerator()
        self._uncorrected: Generator | None = None  # what was warned of
        self.scorer()  # refuses settings that do not suit the model

    @property
    def objective(self) -> PolicyObjective:
        """The loss as the live hyperparameters define it."""
        high = self.clip_coef if self.clip_coef_high is None else self.clip_coef_high
        return PolicyObjective(
            loss_type=self.loss_type,
            clip_coef=(max(0.0, 1 - self.clip_coef), 1 + high),
            beta=self.beta,
            importance_sampling_level=self.importance_sampling_level,
            loss_normalization=self.loss_normalization,
            max_completion_length=self.max_completion_length,
            sampling_cap=self.vllm_importance_sampling_cap,
        )

    @property
    def sampling_settings(self) -> SamplingSettings:
        """How completions to learn from are sampled."""
        return SamplingSettings(
            max_new_tokens=self.max_completion_length,
            max_model_len=self.max_model_len,
            min_new_tokens=self.min_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop=self.stop,
        )

    @property
    def evaluation_settings(self) -> SamplingSettings:
        """How held-out prompts are answered."""
        return replace(self.sampling_settings, temperature=self.eval_temperature)

    @property
    def max_output_tokens(self) -> int:
        """AgileRL's name of ``max_completion_length``."""
        return self.max_completion_length

    # Sampling -------------------------------------------------------------------------------------------------------

    def roll_out(self, questions: Mapping[str, Any] | QuestionBatch, env: JudgingGym) -> RolloutBatch:
        """Sample a group of completions for each prompt and have them judged.

        Args:
            questions: What ``ReasoningGym`` yields.
            env: The environment that it is from.
        """
        return roll_out(
            self,
            self.as_batch(questions),
            env,
            group_size=self.group_size,
            settings=self.sampling_settings,
            generator=self._sampler,
        )

    def get_action(
        self,
        obs: Mapping[str, Any] | QuestionBatch,
        training: bool = True,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> ActionResult:
        """Sample completions as AgileRL's loops want them, for ``env.step`` and ``learn``.

        These lists do not say which completions ended themselves, so ``learn`` refuses them if
        ``mask_truncated_completions`` is set. :meth:`roll_out` knows.

        Args:
            obs: What ``ReasoningGym.reset`` or ``step`` returns.
            training: A group for each prompt; False: one answer each at ``eval_temperature``.
            tokenizer: Its end-of-sequence token ends completions beside the model's own; stop texts need it.

        Returns:
            ``completion_ids``, ``action_masks`` and ``sampling_logps``. Rows are padded with the pad token of `obs`, or
            if it names none with the agent's: then pass the masks to ``env.step`` too.
        """
        questions: QuestionBatch = self.as_batch(obs)
        if training:
            completions = self._sampler.generate(
                self,
                questions.prompts,
                group_size=self.group_size,
                settings=self.sampling_settings,
                tokenizer=tokenizer,
            )
        else:
            with fixed_draws(self):
                completions = self._sampler.generate(
                    self, questions.prompts, group_size=1, settings=self.evaluation_settings, tokenizer=tokenizer
                )
        # The environment skips its own pad token; the agent's may be a word to it.
        pad = self.pad_token_id if isinstance(obs, QuestionBatch) else obs.get("pad_token_id", self.pad_token_id)
        return action_result(questions.prompts, completions, pad_token_id=pad)

    # Learning -------------------------------------------------------------------------------------------------------

    def learn(
        self,
        experiences: RolloutBatch | tuple[Any, Any, Any] | Mapping[str, Any] | Sequence[TrajectoryGroup],
        training: bool = True,
        *,
        sampling_logps: Sequence[Tensor] | None = None,
    ) -> dict[str, float]:
        """Update the actor from judged completions.

        Completions whose advantages are all 0 have no gradient if ``beta`` is 0: they count in the means, but do not
        go through the model, and a step of nothing else is not made.

        Args:
            experiences: What :meth:`roll_out` returns; or AgileRL's ``(completion_ids, action_masks, rewards)`` as of
                :meth:`get_action` and ``env.step``, or a mapping of those names; or groups of trajectories, whose steps
                may bring advantages (:func:`agiledpo.algorithms.precomputed.rollouts_from_groups`).
            training: False only measures; no weight changes.
            sampling_logps: Those of :meth:`get_action`, to go with AgileRL's lists.

        Returns:
            The metrics of :func:`agiledpo.algorithms.policy_metrics.rollout_metrics`, over all rollouts, and of
            :class:`agiledpo.algorithms.policy_metrics.PolicyMeter`, over those that count. None of them depends on
            micro-batches. When training also ``grad_norm`` (before clipping, mean over the steps of the first pass; 0
            if none was made), ``lr``, ``beta`` and ``tokens_per_second`` (prompt counted once per group).
            ``finished_rate`` is NaN for what is not of :meth:`roll_out`, which does not say it.

        Raises:
            NonFiniteLossError: A loss or gradient is NaN or infinite. The rows are named; the step was not made.
            ValueError: The experiences are malformed or not for this model, or a group without advantages has fewer
                than two completions or a reward that is not finite.

        Warns:
            UserWarning: The completions should be corrected, but nothing says how likely they were where they were
                sampled; once.
        """
        told = isinstance(experiences, RolloutBatch)  # nothing else says which completions ended themselves
        if self.mask_truncated_completions and not told:
            raise ValueError(
                "mask_truncated_completions=True leaves completions out that were cut, which these experiences do not "
                "say. Pass what agent.roll_out(questions, env) returns, or set mask_truncated_completions=False."
            )
        rollouts = self._corrected(
            _rollouts(experiences, sampling_logps, self.adv_norm),
            foreign=sampling_logps is not None or not isinstance(experiences, (RolloutBatch, tuple, Mapping)),
        )
        rollouts = self._with_advantages(rollouts)
        metrics = self._train(rollouts) if training else self._measure(rollouts)
        return metrics if told else {**metrics, "finished_rate": math.nan}

    def measure(self, env: HeldOutGym, split: Split = "test") -> HeldOutRewards:
        """Let the actor answer a whole held-out split; no weight, training cursor or draw in training changes.

        Args:
            env: The environment.
            split: ``"test"``, or ``"final"`` or ``"validation-<name>"`` if the environment has it.
        """
        return measure_rewards(self, env, split, settings=self.evaluation_settings, generator=self._sampler)

    def end_epoch(self) -> None:
        """Copy the actor onto the reference if ``reference_update="epoch"`` asks for it."""
        if self.reference_update == "epoch":
            self.set_reference_policy(self.reference_update_tracker + 1)

    def describe_objective(self) -> str:
        """What the agent minimises, as a formula."""
        return self.objective.describe()

    def check_settings(self) -> None:
        """Check that the live hyperparameters make sense together.

        Raises:
            ValueError: They do not; the parameters are named, with the way out.
        """
        super().check_settings()
        self._check_settings(self.use_separate_reference_adapter)

    @override
    def scorer(self, *, temperature: float = 1.0) -> Scorer:
        """What computes log-probabilities of completions with the model as the agent runs it.

        Args:
            temperature: What logits are divided by, larger than 0.
        """
        return Scorer(
            self._lm,
            pad_token_id=self.pad_token_id,
            prefix_sharing=self.prefix_sharing,
            explicit_positions=self.calc_position_embeddings,
            temperature=temperature,
        )

    # The steps of learn ---------------------------------------------------------------------------------------------

    def _corrected(self, rollouts: RolloutBatch, *, foreign: bool) -> RolloutBatch:
        """The rollouts with the ``sampling_logps`` that tokens are weighed by, and no others.

        Args:
            rollouts: The rollouts.
            foreign: Whether they say themselves that they need correction; otherwise the generator says.
        """
        another = foreign or not isinstance(self._sampler, TransformersGenerator)
        if not (self.vllm_importance_sampling_correction and another):
            return replace(rollouts, sampling_logps=[None] * len(rollouts))
        known = any(logps is not None for logps in rollouts.sampling_logps)
        if not known and not foreign and self._uncorrected is not self._sampler:
            self._uncorrected = self._sampler
            warnings.warn(
                f"vllm_importance_sampling_correction does nothing: {type(self._sampler).__name__} did not say how "
                "likely these completions were, or learn was not told. VLLMGenerator knows at temperature=1, or with "
                "top_p=1, top_k=0, min_p=0 and a server started with --logprobs-mode processed_logprobs; behind "
                "get_action pass its sampling_logps to learn. Or set vllm_importance_sampling_correction=False.",
                stacklevel=3,
            )
        return rollouts

    def _with_advantages(self, rollouts: RolloutBatch) -> RolloutBatch:
        """The rollouts with an advantage for each token: its own, or its completion's within the group."""
        advantages = list(rollouts.advantages)
        places = [place for place, given in enumerate(advantages) if given is None]
        relative = group_advantages(
            [rollouts.rewards[place] for place in places],
            adv_norm=self.adv_norm,
            labels=[rollouts.labels[place] for place in places],
        )
        for place, group in zip(places, relative, strict=True):
            lengths = map(len, rollouts.completions[place])
            advantages[place] = [value.expand(length) for value, length in zip(group, lengths, strict=True)]
        if self.adv_clip_range is not None:
            limit = self.adv_clip_range
            advantages = [[values.clamp(-limit, limit) for values in group or ()] for group in advantages]
        return replace(rollouts, advantages=advantages)

    def _counted(self, rollouts: RolloutBatch) -> RolloutBatch:
        """The rollouts that the loss is the mean over."""
        if self.mask_truncated_completions:
            rollouts = rollouts.where(rollouts.finished)
        return rollouts.where(larger_advantages(rollouts, self.adv_filter_eps)) if self.filter_zero_adv else rollouts

    def _steps(self, counted: RolloutBatch) -> list[PolicyStep]:
        """The rollouts cut into optimizer steps."""
        return list(
            policy_steps(
                counted,
                batch_size=self.batch_size,
                completions_per_pass=self.micro_batch_size_per_gpu or self.batch_size,
                pulled_by_reference=self.beta > 0,
            )
        )

    def _scored(self, scorer: Scorer, steps: Sequence[PolicyStep], *, old: bool) -> list[PolicyStep]:
        """The steps with the log-probabilities that stay the same in all of them.

        Args:
            scorer: Scores them.
            steps: The steps.
            old: Whether those of the policy as it is now are among them.
        """
        olds = self._scores(scorer, "actor", steps, wanted=old)
        references = self._scores(scorer, "reference", steps, wanted=self.beta > 0)
        return [
            replace(step, parts=[replace(part, old=next(olds), reference=next(references)) for part in step.parts])
            for step in steps
        ]

    def _measure(self, rollouts: RolloutBatch) -> dict[str, float]:
        """What the agent as it is makes of the rollouts; nothing changes."""
        scorer = self.scorer(temperature=self.temperature)
        scorer.check(rollouts)
        counted = self._counted(rollouts)
        meter = PolicyMeter(counted, with_reference=self.beta > 0)
        for step in self._scored(scorer, self._steps(counted), old=False):
            with measuring(self.adapters, "actor", scorer):
                measured = [self._terms(scorer, step, part) for part in step.parts]
            for part, terms in zip(step.parts, measured, strict=True):
                check_finite(part.per_row(terms.loss), part.rollouts.labels)
            meter.add(measured)
        return rollout_metrics(rollouts) | meter.result()

    def _train(self, rollouts: RolloutBatch) -> dict[str, float]:
        """``update_epochs`` passes of optimizer steps over the rollouts."""
        started = perf_counter()
        scorer = self.scorer(temperature=self.temperature)
        scorer.check(rollouts)
        counted = self._counted(rollouts)
        steps = self._steps(counted)
        moves = len(steps) * self.update_epochs > 1  # away from what was sampled, before the last step
        corrects = any(logps is not None for logps in counted.sampling_logps)
        steps = self._scored(scorer, steps, old=moves or corrects)
        meter = PolicyMeter(counted, with_reference=self.beta > 0, passes=self.update_epochs)
        grad_norms: list[float] = []
        for epoch in range(self.update_epochs):
            for step in steps:
                measured, grad_norm = self._step(scorer, step)
                meter.add(measured, first=epoch == 0)
                if epoch == 0:
                    grad_norms.append(grad_norm)
        self.steps[-1] += len(rollouts)
        self.follow_hyperparameters()  # no step did if there was none
        seconds = perf_counter() - started
        metrics = (
            rollout_metrics(rollouts)
            | meter.result()
            | {
                "grad_norm": sum(grad_norms) / max(len(grad_norms), 1),
                "lr": float(self.optimizer.param_groups[0]["lr"]),
                "beta": self.beta,
                "tokens_per_second": rollouts.tokens * self.update_epochs / seconds,
            }
        )
        self.scores.append(metrics["mean_reward"])
        return metrics

    def _step(self, scorer: Scorer, step: PolicyStep) -> tuple[list[PolicyTerms], float]:
        """One optimizer step; returns the terms of its micro-batches and the gradient norm."""

        def loss(part: PolicyPart) -> tuple[Tensor, PolicyTerms]:
            terms = self._terms(scorer, step, part)
            return terms.loss.sum() / step.completions, terms

        def check(part: PolicyPart, terms: PolicyTerms) -> None:
            check_finite(part.per_row(terms.loss.detach()), part.rollouts.labels)

        return gradient_step(
            self,
            scorer,
            [(part, True) for part in step.parts],
            loss,
            check=check,
            labels=step.labels,
            remedy=f"Lower lr ({self.lr}) or beta ({self.beta}), or look at these rows.",
        )

    def _terms(self, scorer: Scorer, step: PolicyStep, part: PolicyPart) -> PolicyTerms:
        """The objective of a micro-batch, in the scorer's session."""
        return part.terms(
            self.objective,
            scorer.score_completions(part.rollouts),
            mean_tokens=step.mean_tokens,
        )

    def _scores(
        self, scorer: Scorer, role: Role, steps: Sequence[PolicyStep], *, wanted: bool
    ) -> Iterator[TokenLogProbs | None]:
        """Log-probabilities of the steps' micro-batches, one after the other, under a role; None if not wanted."""
        parts = [part.rollouts for step in steps for part in step.parts]
        return iter(completion_scores(self.adapters, role, parts, scorer) if wanted else [None] * len(parts))

    @property
    def _sampler(self) -> Generator:
        """What samples completions."""
        return self._own_generator if self.generator is None else self.generator

    def _check_settings(self, use_separate_reference_adapter: bool) -> None:
        check_whole_number("batch_size", self.batch_size)
        check_whole_number("update_epochs", self.update_epochs)
        check_whole_number("group_size", self.group_size, minimum=2)
        if self.micro_batch_size_per_gpu is not None:
            check_whole_number("micro_batch_size_per_gpu", self.micro_batch_size_per_gpu)
        check_whole_number("max_completion_length", self.max_completion_length)
        check_whole_number("min_output_tokens", self.min_output_tokens, minimum=0)
        if self.min_output_tokens > self.max_completion_length:
            raise ValueError(
                f"min_output_tokens={self.min_output_tokens} is above "
                f"max_completion_length={self.max_completion_length}."
            )
        check_number("temperature", self.temperature, minimum=0.0, exclusive=True)
        check_number("eval_temperature", self.eval_temperature, minimum=0.0)
        check_number("clip_coef", self.clip_coef, minimum=0.0)
        if self.clip_coef_high is not None:
            check_number("clip_coef_high", self.clip_coef_high, minimum=0.0)
        check_number("vllm_importance_sampling_cap", self.vllm_importance_sampling_cap, minimum=0.0, exclusive=True)
        _ = self.objective, self.sampling_settings  # which check what they are made of
        check_name("adv_norm", self.adv_norm, ADV_NORMS)
        for name in ("filter_zero_adv", "mask_truncated_completions", "vllm_importance_sampling_correction"):
            value = vars(self)[name]
            if not isinstance(value, bool):
                raise ValueError(f"{name}={value!r} must be True or False.")
        if self.adv_clip_range is not None:
            check_number("adv_clip_range", self.adv_clip_range, minimum=0.0, exclusive=True)
        check_number("adv_filter_eps", self.adv_filter_eps, minimum=0.0)
        check_prefix_sharing(self.prefix_sharing)
        check_name("reference_update", self.reference_update, ("never", "epoch"))
        if self.reference_update == "epoch" and not use_separate_reference_adapter:
            raise ValueError(
                "reference_update='epoch' needs a reference that can move, but use_separate_reference_adapter=False "
                "makes the shared base model the reference. Set one of the two back to its default."
            )


def _rollouts(
    experiences: RolloutBatch | tuple[Any, Any, Any] | Mapping[str, Any] | Sequence[TrajectoryGroup],
    sampling_logps: Sequence[Tensor] | None,
    adv_norm: str,
) -> RolloutBatch:
    """What ``learn`` takes, as rollouts."""
    if isinstance(experiences, QuestionBatch):
        raise ValueError(
            "These are prompts that nobody has answered. Pass what agent.roll_out(questions, env) returns to learn."
        )
    if isinstance(experiences, tuple):
        experiences = dict(zip(RolloutBatch.KEYS, experiences, strict=True))
    if isinstance(experiences, Mapping):
        experiences = RolloutBatch.from_experiences(experiences)
    if not isinstance(experiences, RolloutBatch):
        experiences = rollouts_from_groups(experiences, adv_norm=adv_norm)
    if sampling_logps is None:
        return experiences
    if len(sampling_logps) != experiences.completion_count:
        raise ValueError(
            f"sampling_logps are of {len(sampling_logps)} completions, but there are {experiences.completion_count}. "
            "Pass those that get_action returned with these completions."
        )
    remaining = iter(sampling_logps)
    groups = [[next(remaining) for _ in group] for group in experiences.completions]
    return replace(experiences, sampling_logps=groups)


def _clip_coefs(
    clip_coef: float | tuple[float, float] | list[float], clip_coef_high: float | None
) -> tuple[float, float | None]:
    """How far ratios may go below and above 1; None where that is the same."""
    if not isinstance(clip_coef, (tuple, list)):
        return clip_coef, clip_coef_high
    if clip_coef_high is not None:
        raise ValueError(
            f"clip_coef={clip_coef} gives the largest ratio already, and clip_coef_high={clip_coef_high} another one; "
            "pass one of them."
        )
    check_clip_coef(tuple(clip_coef))
    low, high = clip_coef
    return 1 - low, high - 1


def _completion_length(max_completion_length: int | None, max_output_tokens: int | None) -> int:
    """Most tokens of a completion, by either name."""
    given = {length for length in (max_completion_length, max_output_tokens) if length is not None}
    if len(given) > 1:
        raise ValueError(
            f"max_completion_length={max_completion_length} and max_output_tokens={max_output_tokens} are two names of "
            "one setting; pass one of them."
        )
    return given.pop() if given else _DEFAULT_COMPLETION_LENGTH
