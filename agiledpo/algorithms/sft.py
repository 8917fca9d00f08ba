"""Supervised fine-tuning on prompts with the completion to be learned."""

import warnings
from collections.abc import Mapping
from time import perf_counter
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from accelerate import Accelerator
from gymnasium import spaces
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from agiledpo.algorithms.completion_fitness import (
    FITNESS,
    HeldOutCompletions,
    check_completion_fitness,
    completion_metrics,
)
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.registry import HyperparameterConfig
from agiledpo.algorithms.core.steps import check_finite, gradient_step
from agiledpo.algorithms.role_scores import measuring
from agiledpo.llm_envs import SFTGym
from agiledpo.llm_envs.spaces import TokenSpace
from agiledpo.llm_envs.types import Split
from agiledpo.losses import CompletionTerms
from agiledpo.losses.checks import check_whole_number
from agiledpo.scoring import CausalLM, CompletionBatch, Scorer


class SFT(LLMAlgorithm):
    """A LoRA agent that learns completions by maximum likelihood; usually the stage before DPO.

    The loss of an optimizer step is the negative log-likelihood of its completions divided by their number of tokens:
    every completion token of the step counts the same, prompts count nothing.

    Args:
        observation_space: ``env.observation_space``; optional.
        action_space: ``env.action_space``; optional, checked against the model's vocabulary.
        pad_token_id: Fills padding, which nothing reads; None takes the model's.
        pad_token: Text of the padding token.
        model_name: Name or path of the base model; either this or ``actor_network``.
        actor_network: The base model, which all agents made on it share, or a PeftModel whose active adapter the
            actor starts from.
        model_config: Keyword arguments of ``from_pretrained`` for ``model_name``.
        hp_config: Hyperparameters that evolution may change; None for none.
        index: Identity in a population.
        batch_size: Rows per optimizer step.
        lr: Learning rate of AdamW.
        max_grad_norm: Largest gradient norm of a step.
        update_epochs: Passes over the experiences in each call of ``learn``.
        calc_position_embeddings: Hand position ids to the model; see :class:`agiledpo.algorithms.DPO`.
        micro_batch_size_per_gpu: Most rows in one forward pass, which need not divide ``batch_size``; None takes
            ``batch_size``. It changes memory and speed, never the result.
        device: Where to compute; None leaves the model where it is.
        lora_config: LoRA configuration; None takes rank 16 on all linear layers, with a warning.
        accelerator: Accelerate's handle, one process.
        wrap: Accepted for AgileRL's sake; one process needs no wrapping.
        clone: The agent is being made as a copy.
        seed: Seed of the LoRA initialisation and of LoRA dropout.
        gradient_checkpointing: Recompute decoder layers in backward: slower, far less memory.
        use_liger_loss: Accepted for AgileRL's sake, with a warning: our own head gives the same numbers and holds no
            full logits either.
        use_separate_reference_adapter: Also keep a frozen ``reference`` adapter, which SFT itself does not read.
        activation_offload: Keep what backward needs in CPU memory; see :class:`agiledpo.algorithms.DPO`.
        torch_compiler: Mode of ``torch.compile`` for what runs between the matrix products; None for none.
        weight_decay: AdamW's decoupled weight decay.
        fast_layers: Run LoRA layers, norms and gated feed-forward blocks through faster forward passes, and carry the
            residual stream of a bfloat16 model in float32; False runs every layer in its own way.

    Attributes:
        held_out: Metrics of the last ``test``, over the whole held-out split.

    Raises:
        ValueError: A parameter or a combination of parameters makes no sense; it is named, with the way out.
    """

    HYPERPARAMETERS: ClassVar[Mapping[str, type]] = {
        "batch_size": int,
        "lr": float,
        "weight_decay": float,
        "max_grad_norm": float,
        "update_epochs": int,
    }
    FITNESS: ClassVar[Mapping[str, Any]] = FITNESS
    DEFAULT_FITNESS: ClassVar[str] = "loss"

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
        lr: float = 5e-5,
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
        use_liger_loss: bool = False,
        use_separate_reference_adapter: bool = False,
        activation_offload: bool = False,
        torch_compiler: str | None = None,
        weight_decay: float = 0.0,
        fast_layers: bool = True,
    ) -> None:
        self.batch_size = batch_size
        self.update_epochs = update_epochs
        self.micro_batch_size_per_gpu = micro_batch_size_per_gpu
        self.calc_position_embeddings = calc_position_embeddings
        self.fast_layers = fast_layers
        self._check_settings()
        if use_liger_loss:
            warnings.warn(
                "use_liger_loss=True has no effect on SFT; agiledpo's own loss gives the same numbers and holds no "
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
            use_separate_reference_adapter=use_separate_reference_adapter,
        )
        if not clone:  # a copy is as its original was made or has been set since
            self.check_hyperparameters()
        self.held_out: dict[str, float] = {}
        self.recompile()
        self._check_vocabulary(action_space)

    def learn(self, experiences: Mapping[str, Any] | CompletionBatch, training: bool = True) -> dict[str, float]:
        """Update the actor from prompts with their completions.

        One optimizer step is made for every ``batch_size`` rows; the last may hold fewer.

        Args:
            experiences: What ``SFTGym`` yields, or AgileRL's padded dictionary: ``input_ids`` and ``attention_mask``,
                each int64 (B, T), and ``prompt_lengths`` (B,).
            training: False only measures; no weight changes.

        Returns:
            The metrics of :func:`agiledpo.algorithms.completion_fitness.completion_metrics` over the completion tokens
            as they were met in the first pass. None of them depends on micro-batches. When training also ``grad_norm``
            (before clipping, mean over steps), ``lr`` and ``tokens_per_second`` (prompts included).

        Raises:
            NonFiniteLossError: A loss or gradient is NaN or infinite. The rows are named; the step was not made.
            ValueError: The experiences are malformed or not for this model.
        """
        batch = self.as_batch(experiences)
        return self._train(batch) if training else self._measure(batch).metrics

    def measure(self, env: SFTGym, split: Split = "test") -> HeldOutCompletions:
        """Measure the actor on a whole held-out split; no weight and no training cursor changes.

        Args:
            env: The environment.
            split: ``"test"``, or ``"final"`` if the environment has it.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite.
        """
        return self._measure(CompletionBatch.concat([self.as_batch(batch) for batch in env.test_batches(split)]))

    def evaluate(self, env: SFTGym) -> dict[str, float]:
        """The metrics of :meth:`learn` over all rows of the test split; see :meth:`measure`.

        Args:
            env: The environment.
        """
        return self.measure(env).metrics

    def test(self, env: SFTGym, loop: int = 1, *args: Any, fitness: str = "loss", **kwargs: Any) -> np.ndarray:
        """Evaluate on the whole test split and record the fitness with its standard error.

        Ties in fitness are broken by the log-likelihood per token.

        Args:
            env: The environment.
            loop: Accepted for AgileRL's sake: every evaluation is over all rows, so one is the mean of any number.
            *args: Ignored.
            fitness: ``"loss"``: minus the negative log-likelihood per completion token, nats; ``"accuracy"``: share of
                completion tokens than which the model finds none more likely.
            **kwargs: Ignored.

        Returns:
            The fitness, a scalar array; higher is better.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite; no fitness is recorded.
            ValueError: ``loop`` is below 1, or there is no such fitness.
        """
        if loop < 1:
            raise ValueError(f"loop={loop}; at least one evaluation is needed.")
        self.check_fitness(fitness)
        measured = self.measure(env)
        self.held_out = measured.metrics
        estimate = measured.fitness(fitness)
        self.record_fitness(estimate.value, estimate.error, measured.tie_break)
        return np.array(estimate.value)

    @staticmethod
    def as_batch(experiences: Mapping[str, Any] | CompletionBatch) -> CompletionBatch:
        """The experiences of :meth:`learn` as a batch."""
        if isinstance(experiences, CompletionBatch):
            return experiences
        return CompletionBatch.from_experiences(experiences)

    @staticmethod
    def check_fitness(name: object) -> None:
        """Check the name of a fitness.

        Raises:
            ValueError: There is no such fitness.
        """
        check_completion_fitness(name)

    def objective_text(self) -> str:
        """What the agent minimises, in words."""
        return "minimise the negative log-likelihood per completion token"

    def end_epoch(self) -> None:
        """Nothing of SFT changes between epochs."""

    def flush_caches(self) -> None:
        """SFT keeps no caches."""

    def check_environment(self, env: SFTGym) -> None:
        """Check that an environment hands out what this agent learns from, in tokens that are its own.

        Args:
            env: The environment.

        Raises:
            ValueError: It hands out something else than prompts with one completion, or its tokenizer makes ids that
                the model does not embed.
        """
        if "input_ids" not in env.observation_space.spaces:
            raise ValueError(
                f"{type(env).__name__} does not hand out prompts with one completion, which SFT learns from; use "
                "SFTGym. For preference pairs SFTGym(..., response_column='chosen') learns the chosen completions."
            )
        self._check_vocabulary(env.action_space)

    def check_settings(self) -> None:
        """Check that the live hyperparameters make sense together.

        Raises:
            ValueError: They do not; the parameters are named, with the way out.
        """
        super().check_settings()
        self._check_settings()

    def inherit(self, parent: Self) -> None:
        """Become a copy of another agent on the same base, in place; see :meth:`LLMAlgorithm.inherit`.

        Args:
            parent: An agent that is built alike.
        """
        super().inherit(parent)
        self.held_out = dict(parent.held_out)

    def recompile(self) -> None:
        """Take the model apart anew as ``fast_layers`` and ``torch_compiler`` say, after one of them was changed."""
        self._lm = CausalLM.of(self.base.model, fast_layers=self.fast_layers, torch_compiler=self.torch_compiler)

    def get_action(self, obs: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: SFT learns from given completions and does not act.

        Raises:
            RuntimeError: Always; it says how to generate instead.
        """
        raise RuntimeError(
            "SFT is an offline algorithm: it learns from given completions and takes no actions. To generate, use "
            "agent.get_policy().generate(**tokenizer(prompts, return_tensors='pt'))."
        )

    # The steps of learn ---------------------------------------------------------------------------------------------

    def _measure(self, batch: CompletionBatch) -> HeldOutCompletions:
        """What the agent as it is makes of the batch; nothing changes."""
        scorer = self._scorer()
        scorer.check(batch)
        with measuring(self.adapters, "actor", scorer):
            parts = [self._terms(scorer, batch.slice(*span)) for span in batch.spans(self._rows_per_pass)]
        return HeldOutCompletions(CompletionTerms.concat(parts))

    def _train(self, batch: CompletionBatch) -> dict[str, float]:
        """``update_epochs`` passes of optimizer steps over the batch; metrics of the first."""
        started = perf_counter()
        scorer = self._scorer()
        scorer.check(batch)
        terms: list[CompletionTerms] = []
        grad_norms: list[float] = []
        for epoch in range(self.update_epochs):
            for span in batch.spans(self.batch_size):
                measured, grad_norm = self._step(scorer, batch.slice(*span))
                if epoch == 0:
                    terms += measured
                    grad_norms.append(grad_norm)
        self.steps[-1] += len(batch)
        seconds = perf_counter() - started
        metrics = completion_metrics(CompletionTerms.concat(terms)) | {
            "grad_norm": sum(grad_norms) / len(grad_norms),
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "tokens_per_second": batch.tokens * self.update_epochs / seconds,
        }
        self.scores.append(-metrics["loss"])
        return metrics

    def _step(self, scorer: Scorer, batch: CompletionBatch) -> tuple[list[CompletionTerms], float]:
        """One optimizer step on ``batch``; returns the terms of its micro-batches and the gradient norm."""

        def loss(start: int, stop: int) -> tuple[Tensor, CompletionTerms]:
            terms = self._terms(scorer, batch.slice(start, stop))
            return terms.nll.sum() / batch.completion_tokens, terms

        return gradient_step(
            self,
            scorer,
            batch,
            loss,
            rows_per_pass=self._rows_per_pass,
            remedy=f"Lower lr ({self.lr}), or look at these rows.",
        )

    def _terms(self, scorer: Scorer, batch: CompletionBatch) -> CompletionTerms:
        """Sums over the tokens of each completion, in the scorer's session."""
        (tokens,) = scorer.score_sides(batch)
        terms = CompletionTerms.of(tokens)
        check_finite(terms.nll, batch.labels)
        return terms

    @property
    def _rows_per_pass(self) -> int:
        return self.micro_batch_size_per_gpu or self.batch_size

    def _scorer(self) -> Scorer:
        return Scorer(
            self._lm, pad_token_id=self.pad_token_id, explicit_positions=self.calc_position_embeddings, hits=True
        )

    def _check_vocabulary(self, action_space: spaces.Space | None) -> None:
        if isinstance(action_space, TokenSpace) and action_space.size > self._lm.vocabulary:
            raise ValueError(
                f"The tokenizer has {action_space.size} tokens, but {type(self.base.model).__name__} embeds only "
                f"{self._lm.vocabulary}. Load both from the same name, or call "
                "model.resize_token_embeddings(len(tokenizer)) before making the agent."
            )

    def _check_settings(self) -> None:
        check_whole_number("batch_size", self.batch_size)
        check_whole_number("update_epochs", self.update_epochs)
        if self.micro_batch_size_per_gpu is not None:
            check_whole_number("micro_batch_size_per_gpu", self.micro_batch_size_per_gpu)
