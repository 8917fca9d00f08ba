"""Supervised fine-tuning on prompts with the completion to be learned."""

import warnings
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from gymnasium import spaces
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from agiledpo.algorithms.completion_fitness import (
    FITNESS,
    METRICS,
    HeldOutCompletions,
    completion_metrics,
)
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.registry import HyperparameterConfig
from agiledpo.algorithms.core.steps import check_finite, gradient_step
from agiledpo.algorithms.role_scores import measuring
from agiledpo.distributed.division import Division
from agiledpo.llm_envs import SFTGym
from agiledpo.llm_envs.types import Split
from agiledpo.losses import CompletionTerms
from agiledpo.losses.checks import check_whole_number
from agiledpo.scoring import CompletionBatch, Scorer


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
        accelerator: Accelerate's handle; its processes share the work of every call.
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
        FITNESS: What :meth:`test` can measure: ``"loss"``: minus the negative log-likelihood per completion token,
            nats; ``"accuracy"``: share of completion tokens than which the model finds none more likely. Ties are
            broken by the log-likelihood per token.

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
    BATCH = CompletionBatch
    FITNESS = tuple(FITNESS)
    USES_REFERENCE = False
    METRICS = METRICS
    ACCURACY = "mean_token_accuracy"
    LEARNS_FROM = "prompts with one completion, from SFTGym (response_column='chosen' takes those of preference pairs)"
    UNIT = "row"
    PROGRESS: ClassVar[Mapping[str, tuple[str, str]]] = {
        "loss": ("loss", ".4f"),
        "accuracy": ("mean_token_accuracy", ".2f"),
        "tokens/s": ("tokens_per_second", ".0f"),
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
            fast_layers=fast_layers,
            use_separate_reference_adapter=use_separate_reference_adapter,
        )
        if not clone:  # a copy is as its original was made or has been set since
            self.check_hyperparameters()

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
            split: ``"test"``, or ``"final"`` or ``"validation-<name>"`` if the environment has it.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite.
        """
        return self._measure(CompletionBatch.concat([self.as_batch(batch) for batch in env.test_batches(split)]))

    def describe_objective(self) -> str:
        """What the agent minimises, in words."""
        return "the negative log-likelihood per completion token"

    def check_settings(self) -> None:
        """Check that the live hyperparameters make sense together.

        Raises:
            ValueError: They do not; the parameters are named, with the way out.
        """
        super().check_settings()
        self._check_settings()

    # The steps of learn ---------------------------------------------------------------------------------------------

    def _measure(self, batch: CompletionBatch) -> HeldOutCompletions:
        """What the agent as it is makes of the batch; nothing changes."""
        scorer = self._scorer()
        scorer.check(batch)
        division = Division(self.team, batch.row_tokens)
        with measuring(self.adapters, "actor", scorer):
            parts = [
                (self._terms(scorer, batch.select(turn.places)), turn.counts)
                for turn in division.turns(self._rows_per_pass)
            ]
        own = [CompletionTerms.concat([terms]) for terms, counts in parts if counts]
        terms = CompletionTerms.concat(division.laid(own)).select(division.order)
        check_finite(terms.nll, batch.labels)
        return HeldOutCompletions(terms)

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

        def loss(places: Sequence[int]) -> tuple[Tensor, CompletionTerms]:
            terms = self._terms(scorer, batch.select(places))
            return terms.nll.sum() / batch.completion_tokens, terms

        def check(places: Sequence[int], terms: CompletionTerms) -> None:
            check_finite(terms.nll, [batch.labels[place] for place in places])

        turns = Division(self.team, batch.row_tokens).turns(self._rows_per_pass)
        return gradient_step(
            self,
            scorer,
            [(turn.places, turn.counts) for turn in turns],
            loss,
            check=check,
            labels=batch.labels,
            remedy=f"Lower lr ({self.lr}), or look at these rows.",
        )

    def _terms(self, scorer: Scorer, batch: CompletionBatch) -> CompletionTerms:
        """Sums over the tokens of each completion, in the scorer's session."""
        (tokens,) = scorer.score_sides(batch)
        return CompletionTerms.of(tokens)

    @property
    def _rows_per_pass(self) -> int:
        return self.micro_batch_size_per_gpu or self.batch_size

    def _scorer(self) -> Scorer:
        return Scorer(
            self._lm, pad_token_id=self.pad_token_id, explicit_positions=self.calc_position_embeddings, hits=True
        )

    def _check_settings(self) -> None:
        check_whole_number("batch_size", self.batch_size)
        check_whole_number("update_epochs", self.update_epochs)
        if self.micro_batch_size_per_gpu is not None:
            check_whole_number("micro_batch_size_per_gpu", self.micro_batch_size_per_gpu)
