"""An evolvable algorithm whose network is a set of LoRA adapters on a shared base model."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from accelerate import Accelerator
from gymnasium import spaces
from peft import LoraConfig, PeftModel
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import SequentialLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.adapters import AgentAdapters, SharedBaseModel
from agiledpo.adapters.modes import set_modes
from agiledpo.adapters.shared_base import starting_adapter
from agiledpo.algorithms.core.arguments import (
    check_ranges,
    constructor_arguments,
    plain_arguments,
    plain_ranges,
    read_ranges,
)
from agiledpo.algorithms.core.construction import compare_constructions, construction, warn_of_rounding
from agiledpo.algorithms.core.errors import NoModelError
from agiledpo.algorithms.core.evolvable import HISTORY, EvolvableAlgorithm
from agiledpo.algorithms.core.measured import Measured, check_fitness_name
from agiledpo.algorithms.core.plain import plain
from agiledpo.algorithms.core.randomness import TorchRandomStream
from agiledpo.algorithms.core.registry import HyperparameterConfig, NetworkGroup, OptimizerConfig
from agiledpo.algorithms.core.schedule import CosineLRScheduleConfig, cosine_schedule
from agiledpo.algorithms.core.setup import (
    can_checkpoint,
    can_offload,
    check_accelerator,
    check_shardable,
    has_fused_adamw,
    place,
    resolve_lora,
    resolve_pad_token_id,
    warn_of_ignored_precision,
)
from agiledpo.algorithms.core.state_checks import check_history
from agiledpo.algorithms.core.stepper import LocalStepper, Stepper, make_stepper
from agiledpo.distributed.sharded import sharding_settings
from agiledpo.distributed.team import Team
from agiledpo.llm_envs.spaces import TokenSpace
from agiledpo.llm_envs.types import Split
from agiledpo.losses.checks import check_number
from agiledpo.scoring.causal_lm import CausalLM
from agiledpo.scoring.engine import Scorer
from agiledpo.scoring.prompt_batch import PromptBatch


class LLMAlgorithm(EvolvableAlgorithm):
    """Adapters, optimizer and randomness of one agent on a shared base model.

    Args:
        observation_space: Checked, otherwise unused.
        action_space: Checked, otherwise unused.
        pad_token_id: Fills padding; None takes the model's.
        pad_token: Text of the padding token, for information.
        model_name: Name or path to load the base model from; shared by agents of the same name and settings.
        actor_network: The base model itself, or a PeftModel whose active adapter the actor starts from.
        model_config: Keyword arguments of ``from_pretrained``.
        hp_config: Hyperparameters that evolution may change.
        index: Identity in a population.
        lr: Learning rate.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: Largest gradient norm of an optimizer step; larger gradients are scaled down.
        lora_config: LoRA configuration; None takes rank 16 on all linear layers, with a warning.
        accelerator: Accelerate's handle: its processes share the work of every call, and its device wins over
            ``device``. All of them call the same methods with the same arguments, in the same order.
        device: Where to compute; None leaves the model where it is.
        wrap: Accepted for AgileRL's sake; the model is never wrapped.
        clone: The agent is a copy, and receives its adapters from the original.
        seed: Seed of the LoRA initialisation, of dropout and of sampling.
        gradient_checkpointing: Recompute decoder layers in backward: about a third slower, far less memory.
        activation_offload: Keep what backward needs in CPU memory.
        torch_compiler: Mode of ``torch.compile`` for what runs between the matrix products; None for none.
        fast_layers: Run LoRA layers, norms and gated feed-forward blocks through faster forward passes.
        use_separate_reference_adapter: Keep a frozen ``reference`` adapter; False makes the bare base the reference.

    Attributes:
        BATCH: What rows become.
        FITNESS: What :meth:`test` can measure, the default first.
        METRICS: What :meth:`evaluate` measures.
        ACCURACY: Which of them is the share of what the agent gets right.
        LEARNS_FROM: What the rows are, for messages.
        UNIT: What a row is called.
        PROGRESS: What a progress bar shows: label, and the metric of ``learn`` with its format.
        USES_REFERENCE: Whether the objective has a reference policy.
        batch_size: Rows per optimizer step.
        micro_batch_size_per_gpu: Most rows in one forward pass of a process; None for ``batch_size``.
        team: The processes that share the agent's work.
        stepper: What moves the actor's parameters.
        optimizer_steps: Steps that the optimizer has made.
        reference_update_tracker: Copies of the actor onto the reference, as :meth:`set_reference_policy` counts them.

    Raises:
        ValueError: Neither or both of ``model_name`` and ``actor_network``, a model or LoRA configuration that cannot
            be shared, a device that differs from the other agents', an unsupported accelerator, or a bad number.
    """

    BATCH: ClassVar[type[PromptBatch]]
    FITNESS: ClassVar[Sequence[str]]
    METRICS: ClassVar[Sequence[str]]
    ACCURACY: ClassVar[str]
    LEARNS_FROM: ClassVar[str]
    UNIT: ClassVar[str]
    PROGRESS: ClassVar[Mapping[str, tuple[str, str]]]

    batch_size: int
    micro_batch_size_per_gpu: int | None
    USES_REFERENCE: ClassVar[bool] = True

    def __init__(
        self,
        observation_space: spaces.Space | None,
        action_space: spaces.Space | None,
        *,
        pad_token_id: int | None,
        pad_token: str | None,
        model_name: str | None,
        actor_network: PreTrainedModel | PeftModel | None,
        model_config: Mapping[str, Any] | None,
        hp_config: HyperparameterConfig | None,
        index: int,
        lr: float,
        weight_decay: float,
        max_grad_norm: float,
        lora_config: LoraConfig | None,
        accelerator: Accelerator | None,
        device: str | torch.device | None,
        wrap: bool,
        clone: bool,
        seed: int,
        gradient_checkpointing: bool,
        activation_offload: bool,
        torch_compiler: str | None,
        fast_layers: bool,
        use_separate_reference_adapter: bool,
    ) -> None:
        check_accelerator(accelerator)
        self.lr = lr
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        LLMAlgorithm.check_settings(self)
        if (model_name is None) == (actor_network is None):
            raise NoModelError("Pass exactly one of actor_network (a loaded model) and model_name (a name or path).")
        if model_name is not None:
            base = SharedBaseModel.load(model_name, model_config)
        else:
            assert actor_network is not None
            base = SharedBaseModel.of(actor_network)
        super().__init__(
            observation_space,
            action_space,
            index=index,
            hp_config=hp_config,
            device=base.device if device is None else device,
            accelerator=accelerator,
            seed=seed,
        )
        if (sharding := sharding_settings(accelerator)) is not None:
            check_shardable(lora_config, activation_offload=activation_offload)
            base.shard(sharding)
        else:
            place(base, self.device)
        warn_of_ignored_precision(accelerator, base.model.dtype)
        self.base = base
        self.wrap = wrap
        self.pad_token = pad_token
        self.pad_token_id = resolve_pad_token_id(base.model, pad_token_id)
        self.use_separate_reference_adapter = use_separate_reference_adapter
        self.torch_compiler = torch_compiler
        self.fast_layers = fast_layers
        self.activation_offload = activation_offload and can_offload(self.device)
        self.gradient_checkpointing = gradient_checkpointing and can_checkpoint(base.model)
        start = starting_adapter(actor_network) if isinstance(actor_network, PeftModel) else None
        self.lora_config = resolve_lora(lora_config, None if start is None else base.config(start))
        self.adapters = AgentAdapters(
            base, self.lora_config, separate_reference=use_separate_reference_adapter, seed=seed, start=start
        )
        self.team = Team.of(accelerator, self.device)
        self.random_stream = TorchRandomStream(seed, self.device)
        # A branch for each index: equal agents of a population do not try the same completions.
        self.sampling_stream = TorchRandomStream(seed, self.device).branch(index)
        self.reference_update_tracker = 0
        self.optimizer_steps = 0
        parameters = base.parameters(self.adapters.owned["actor"])
        optimizer = AdamW(parameters.values(), lr=lr, weight_decay=weight_decay, fused=has_fused_adamw(self.device))
        self.stepper: Stepper = make_stepper(optimizer, parameters, self.team, accelerator)
        self.register_network_group(NetworkGroup("actor", policy=True))
        self._applied = (lr, weight_decay)
        self.recompile()
        self.check_vocabulary(action_space)

    # Networks -------------------------------------------------------------------------------------------------------

    @property
    def actor(self) -> PeftModel:
        """The shared model with this agent's actor adapter active."""
        return self.get_policy()

    def get_policy(self) -> PeftModel:
        """Activate this agent's actor adapter and return the model that carries it.

        The model is shared: using another agent activates that agent's adapter, and the adapter goes when the agent
        does. For a limited time use ``with agent.select_adapter("actor") as model``.
        """
        self.adapters.use("actor")
        return self.base.peft

    @property
    def lm(self) -> CausalLM:
        """The base model taken apart, as the agent runs it, with whatever adapter is active."""
        return self._lm

    def use_adapter(self, adapter_name: str) -> None:
        """Switch the active adapter.

        Args:
            adapter_name: ``"actor"`` or ``"reference"``. The reference never requires gradients; the actor's LoRA
                parameters do, whichever adapter is active.

        Raises:
            ValueError: There is no such role.
        """
        self.adapters.use(adapter_name)

    @contextmanager
    def select_adapter(self, adapter_name: str) -> Iterator[PeftModel]:
        """Switch the active adapter for the time of the context and restore what was active before.

        Args:
            adapter_name: ``"actor"`` or ``"reference"``.
        """
        with self.adapters.select(adapter_name) as model:
            yield model

    def set_training_mode(self, training: bool) -> None:
        """Switch the actor's LoRA dropout for direct use of the model; the frozen base always evaluates.

        ``learn`` and ``test`` set the mode they need themselves and leave everything in evaluation mode.

        Args:
            training: Training mode.
        """
        self.training = training
        set_modes(self.base, self.adapters.name("actor"), training=training)

    def set_reference_policy(self, reference_update_tracker: int) -> None:
        """Copy the actor onto the reference when the tracker has advanced.

        Args:
            reference_update_tracker: Usually the number of epochs done.

        Raises:
            ValueError: The tracker went backwards, or the reference is the bare base model, which all agents share.
        """
        if reference_update_tracker < self.reference_update_tracker:
            raise ValueError(
                f"reference_update_tracker={reference_update_tracker} is below the {self.reference_update_tracker} of "
                "the last update; it only counts up."
            )
        if reference_update_tracker == self.reference_update_tracker:
            return
        self.check_movable_reference()
        self.adapters.copy_role("actor", "reference")
        self.reference_update_tracker = reference_update_tracker

    def check_movable_reference(self) -> None:
        """Check that the reference is the agent's own.

        Raises:
            ValueError: It is the bare base model, which all agents share.
        """
        if not self.use_separate_reference_adapter:
            raise ValueError(
                "The reference is the bare base model, which all agents share and which cannot move. "
                "Make the agent with use_separate_reference_adapter=True."
            )

    def evolvable_attributes(self, networks_only: bool = False) -> dict[str, nn.Module | Optimizer]:
        """The actor, and unless ``networks_only`` its optimizer, by attribute name."""
        networks: dict[str, nn.Module | Optimizer] = {"actor": self.base.peft}
        return networks if networks_only else {**networks, "optimizer": self.optimizer}

    def check_settings(self) -> None:
        """Check that the live hyperparameters make sense together.

        Raises:
            ValueError: They do not; the parameters are named, with the way out.
        """
        check_number("lr", self.lr, minimum=0.0, exclusive=True)
        check_number("max_grad_norm", self.max_grad_norm, minimum=0.0, exclusive=True)
        check_number("weight_decay", self.weight_decay, minimum=0.0)

    def recompile(self) -> None:
        """Take the model apart anew as ``fast_layers`` and ``torch_compiler`` say, after one of them was changed."""
        # Faster forward passes read weights that DeepSpeed gathers for the layers' own.
        fast_layers = self.fast_layers and not self.base.is_sharded
        self._lm = CausalLM.of(self.base.model, fast_layers=fast_layers, torch_compiler=self.torch_compiler)

    def scorer(self, *, temperature: float = 1.0) -> Scorer:
        """What computes log-probabilities of completions with the model as the agent runs it.

        Args:
            temperature: What logits are divided by, larger than 0.
        """
        return Scorer(self._lm, pad_token_id=self.pad_token_id, temperature=temperature)

    def get_action(self, obs: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse, unless the algorithm samples what it learns from: it learns from what is given and does not act.

        Raises:
            RuntimeError: It says how to generate instead.
        """
        raise RuntimeError(
            f"{type(self).__name__} is an offline algorithm: it learns from {self.LEARNS_FROM}, and takes no actions. "
            "To generate, use agent.get_policy().generate(**tokenizer(prompts, return_tensors='pt'))."
        )

    # Processes ------------------------------------------------------------------------------------------------------

    def join(self, team: Team) -> None:
        """Share the work of every call with these processes from here on; each has to hold the agent as it is.

        Args:
            team: The processes.
        """
        self.team = team
        self.stepper = LocalStepper(self.optimizer, self.adapters.parameters("actor"), team)

    # Optimizer ------------------------------------------------------------------------------------------------------

    @property
    def optimizer(self) -> Optimizer:
        """What steps are made with; another one over the actor's parameters may be put in its place."""
        return self.stepper.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        self.stepper.optimizer = optimizer

    def follow_hyperparameters(self) -> None:
        """Bring the optimizer in line with hyperparameters that changed; a schedule's own changes are left alone."""
        if self._applied != (self.lr, self.weight_decay):
            self.reinit_optimizers()

    def reinit_optimizers(self, optimizer: OptimizerConfig | None = None) -> None:
        """Set the optimizer's learning rate and weight decay to the agent's; moments are kept.

        Args:
            optimizer: Which optimizer; None for all. There is one.
        """
        name = "optimizer" if optimizer is None else optimizer.name
        if name != "optimizer":
            raise ValueError(f"There is no optimizer {name!r}; the agent has 'optimizer'.")
        self.update_lr(self.optimizer, self.lr, self.accelerator)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.weight_decay
        self._applied = (self.lr, self.weight_decay)

    @staticmethod
    def update_lr(
        optimizer: Optimizer,
        lr: float | tuple[float, float],
        accelerator: Accelerator | None = None,
        scheduler_config: CosineLRScheduleConfig | None = None,
    ) -> tuple[Accelerator | None, SequentialLR | None]:
        """Set the learning rate of an optimizer.

        Args:
            optimizer: The optimizer.
            lr: One rate for all parameter groups, or one for the first (actor) and one for the others (critic).
            accelerator: Handed back.
            scheduler_config: Also attach this schedule.

        Returns:
            The accelerator, and the schedule or None.
        """
        first, others = lr if isinstance(lr, tuple) else (lr, lr)
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = group["initial_lr"] = others if number else first
        return accelerator, None if scheduler_config is None else cosine_schedule(optimizer, scheduler_config)

    # Evaluation -----------------------------------------------------------------------------------------------------

    @classmethod
    def as_batch(cls, experiences: Mapping[str, Any] | PromptBatch) -> Any:
        """The rows of experiences as a ``BATCH``.

        Args:
            experiences: What the environment yields, or such a batch, which is returned as it is.
        """
        return experiences if isinstance(experiences, PromptBatch) else cls.BATCH.from_experiences(experiences)

    @abstractmethod
    def measure(self, env: Any, split: Split = "test") -> Measured:
        """Measure the actor on a whole held-out split; no weight and no training cursor changes."""

    def evaluate(self, env: Any) -> dict[str, float]:
        """The metrics of :meth:`measure` over the whole test split.

        Args:
            env: The environment.
        """
        return self.measure(env).metrics

    def test(self, env: Any, loop: int = 1, *args: Any, fitness: str | None = None, **kwargs: Any) -> np.ndarray:
        """Evaluate on the whole test split and record the fitness with its standard error.

        Args:
            env: The environment.
            loop: Accepted for AgileRL's sake: every evaluation is over all rows, so one is the mean of any number.
            *args: Ignored.
            fitness: One of ``FITNESS``; None for the first.
            **kwargs: Ignored.

        Returns:
            The fitness, a scalar array; higher is better.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite; no fitness is recorded.
            ValueError: ``loop`` is below 1, or there is no such fitness.
        """
        if loop < 1:
            raise ValueError(f"loop={loop}; at least one evaluation is needed.")
        name = self.FITNESS[0] if fitness is None else fitness
        self.check_fitness(name)
        self.record(self.measure(env), name)
        return np.array(self.fitness[-1])

    def record(self, measured: Measured, fitness: str) -> None:
        """Note what the agent did with a held-out split.

        Args:
            measured: What it did.
            fitness: Which measure of it counts.
        """
        self.held_out = measured.metrics
        estimate = measured.fitness(fitness)
        self.record_fitness(estimate.value, estimate.error, measured.tie_break)

    @classmethod
    def check_fitness(cls, name: object) -> None:
        """Check the name of a fitness.

        Raises:
            ValueError: It is none of ``FITNESS``.
        """
        check_fitness_name(name, cls.FITNESS)

    def check_comparable(self, fitness: str) -> None:
        """Check that a fitness measures this agent and others by the same standard.

        Raises:
            ValueError: There is no such fitness, or it depends on what differs between agents.
        """
        self.check_fitness(fitness)

    def check_environment(self, env: Any) -> None:
        """Check that an environment hands out what this agent learns from, in tokens that are its own.

        Args:
            env: The environment.

        Raises:
            ValueError: It hands out other rows, or its tokenizer makes ids that the model does not embed.
        """
        missing = [name for name in self.BATCH.KEYS if name not in env.observation_space.spaces]
        if missing:
            raise ValueError(
                f"{type(self).__name__} learns from {self.LEARNS_FROM}; the batches of {type(env).__name__} lack "
                f"{', '.join(missing)}."
            )
        self.check_vocabulary(env.action_space)

    def check_vocabulary(self, action_space: spaces.Space | None) -> None:
        """Check that the model embeds all tokens of an environment.

        Args:
            action_space: The environment's.

        Raises:
            ValueError: It does not.
        """
        if isinstance(action_space, TokenSpace) and action_space.size > self._lm.vocabulary:
            raise ValueError(
                f"The tokenizer has {action_space.size} tokens, but {type(self.base.model).__name__} embeds only "
                f"{self._lm.vocabulary}. Load both from the same name, or call "
                "model.resize_token_embeddings(len(tokenizer)) before making the agent."
            )

    # What a training loop tells an agent ----------------------------------------------------------------------------

    @abstractmethod
    def describe_objective(self) -> str:
        """What the agent minimises, as a formula."""

    def end_epoch(self) -> None:
        """Do what follows a complete pass over the training rows, if the run goes on."""

    def flush_caches(self) -> None:
        """Write what is kept for later runs and is not on the disk yet."""

    def _rebuild_after_merge(self) -> None:
        """Bring what depends on the actor's parameters in line with adapters that were rebuilt by a merge."""
        move = self.adapters.move
        if move is not None:
            new = self.base.parameters(self.adapters.owned["actor"])
            self.stepper.move(move.parameters, new, move.factors)
        self.adapters.move = None
        self.lora_config = self.adapters.lora_config
        self.recompile()  # the head may have got an adapter

    # Copies ---------------------------------------------------------------------------------------------------------

    def clone(self, index: int | None = None, wrap: bool = True) -> Self:
        """Return an independent copy on the same base: adapters, optimizer state, hyperparameters, history.

        Args:
            index: Identity of the copy; None keeps this agent's.
            wrap: Accepted for AgileRL's sake.
        """
        arguments = self.inspect_attributes(self, input_args_only=True)
        arguments.update(
            actor_network=self.base.model, index=self.index if index is None else index, wrap=wrap, clone=True
        )
        twin = type(self)(**arguments)
        if twin.team.size != self.team.size:  # it works with other processes than it was made for
            twin.join(self.team)
        twin.inherit(self)
        return twin

    def inherit(self, parent: Self) -> None:
        """Become a copy of another agent on the same base: adapters, optimizer state, hyperparameters, history.

        Everything is written in place, so no memory is taken. The index stays. Mutation hooks are called.

        Args:
            parent: An agent that is built alike.
        """
        self.adapters.copy_from(parent.adapters)
        self.copy_attributes(parent, self)
        self.stepper.copy_from(parent.stepper)
        self._applied = parent._applied
        self.random_stream.load_state_dict(parent.random_stream.state_dict())
        self.sampling_stream.load_state_dict(parent.sampling_stream.state_dict())
        self.reference_update_tracker = parent.reference_update_tracker
        self.optimizer_steps = parent.optimizer_steps
        self.mutation_hook()

    def part_from_parent(self) -> None:
        """Sample other completions from here on than the agent that this one is a copy of."""
        self.sampling_stream = self.sampling_stream.branch(self.index)

    def built_like(self, other: EvolvableAlgorithm) -> bool:
        """Whether the agents are on one base and differ in nothing but hyperparameters, identity and history.

        Args:
            other: Another agent.
        """
        return isinstance(other, LLMAlgorithm) and self.base is other.base and super().built_like(other)

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes, in tensors and plain values that ``torch.load(weights_only=True)`` reads.

        Tensors are the live ones: save or copy them before training goes on.
        """
        return {
            "index": self.index,
            **{name: deepcopy(vars(self)[name]) for name in HISTORY},
            "hyperparameters": plain(self.hyperparameters),
            "optimizer_steps": self.optimizer_steps,
            "reference_update_tracker": self.reference_update_tracker,
            "random_stream": self.random_stream.state_dict(),
            "sampling_stream": self.sampling_stream.state_dict(),
            "optimizer": self.stepper.state_dict(),
            "applied": self._applied,
            "construction": construction(self),
            "hp_config": plain_ranges(self.hp_config),
            "adapters": self.adapters.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken from an agent with the same objective.

        Args:
            state: The state; its tensors are copied.

        Raises:
            ValueError: The state is of other hyperparameters or adapters.

        Warns:
            UserWarning: The agent rounds otherwise than that one did, or the state cannot hold its ``hp_config``.
        """
        self.check_state(state)
        rounding = compare_constructions(state["construction"], construction(self)).rounding
        if rounding:
            warn_of_rounding("The state", rounding)
        self.adapters.load_state_dict(state["adapters"])
        vars(self).update(state["hyperparameters"])
        if "hp_config" in state:
            self.hp_config = read_ranges(state["hp_config"], self.hp_config)
        for name in ("index", *HISTORY, "optimizer_steps", "reference_update_tracker"):
            vars(self)[name] = deepcopy(state[name])
        self.random_stream.load_state_dict(state["random_stream"])
        if "sampling_stream" in state:  # agents of version 0.1 sampled nothing
            self.sampling_stream.load_state_dict(state["sampling_stream"])
        self.stepper.load_state_dict(state["optimizer"])
        self._applied = tuple(state["applied"])

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that :meth:`load_state_dict` would take a state.

        Args:
            state: The state.

        Raises:
            ValueError: It is of an agent with other hyperparameters, or that was made differently, or a value in it is
                none that an agent can have.
        """
        unknown = state["hyperparameters"].keys() ^ self.HYPERPARAMETERS.keys()
        if unknown:
            raise ValueError(
                f"The state is not of a {type(self).__name__} of this version: {', '.join(sorted(unknown))} "
                "are hyperparameters of one of them only."
            )
        differing = compare_constructions(state["construction"], construction(self)).objective
        if differing:
            raise ValueError(
                f"The state is of an agent that was made otherwise than agent {self.index}: {', '.join(differing)}. "
                "Make the agents as they were, in the same order."
            )
        check_history(state)
        check_ranges(state.get("hp_config"), self.HYPERPARAMETERS)
        self.check_values(state["hyperparameters"])
        self.random_stream.check_state_dict(state["random_stream"])
        if "sampling_stream" in state:
            self.sampling_stream.check_state_dict(state["sampling_stream"])

    @classmethod
    def population(
        cls,
        size: int,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        wrapper_cls: Callable[..., Any] | None = None,
        wrapper_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Make agents 0 to ``size - 1`` on one base model.

        Args:
            size: Number of agents.
            observation_space: As in the constructor.
            action_space: As in the constructor.
            wrapper_cls: Called on each agent with ``wrapper_kwargs``; its results are returned instead of the agents.
            wrapper_kwargs: Keyword arguments for ``wrapper_cls``.
            **kwargs: The other arguments of the constructor.

        Raises:
            ValueError: ``size`` is below 1.
        """
        if size < 1:
            raise ValueError(f"size={size}; a population has at least one agent.")
        agents = [cls(observation_space, action_space, index=index, **kwargs) for index in range(size)]
        if wrapper_cls is None:
            return agents
        return [wrapper_cls(agent, **(wrapper_kwargs or {})) for agent in agents]

    def clean_up(self) -> None:
        """Remove the agent's adapters and optimizer state now; otherwise that happens when it is garbage-collected."""
        self.stepper.forget()
        self.adapters.release()

    # Files ----------------------------------------------------------------------------------------------------------

    def plain_arguments(self) -> dict[str, Any]:
        """The constructor's arguments that make an agent like this one, as data that loads without unpickling.

        What belongs to the program or the machine is not among them: model, LoRA configuration, device, spaces.
        """
        return plain_arguments(self)

    @classmethod
    def read_arguments(cls, saved: object) -> dict[str, Any]:
        """What :meth:`plain_arguments` gave, for the constructor.

        Args:
            saved: The data, from a file that may be anybody's.

        Raises:
            ValueError: It is not what this version's constructor takes.
        """
        return constructor_arguments(cls, saved)

    def save_checkpoint(
        self,
        path: str | Path,
        lora_only: bool = True,
        save_optimizer: bool = True,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        team: Team | None = None,
    ) -> None:
        """Save the agent as PEFT adapters plus state; see :func:`agiledpo.checkpoint.save_agent`.

        Args:
            path: Directory to write; a checkpoint that is already there is replaced once the new one is complete.
            lora_only: Save adapters only; False also saves the weights of the base model.
            save_optimizer: Also save the optimizer's state.
            tokenizer: Also saved, for whoever uses the adapter.
            team: The processes that all call this, one of which writes; None for those that share the agent's work.

        Raises:
            FileExistsError: Something is at ``path`` that is not a checkpoint.
        """
        from agiledpo.checkpoint import save_agent  # a layer above, which only these three methods reach up to

        save_agent(self, Path(path), lora_only=lora_only, save_optimizer=save_optimizer, tokenizer=tokenizer, team=team)

    def load_checkpoint(
        self,
        path: str | Path,
        load_optimizer: bool = False,
        overwrite_reference_adapter: bool | None = None,
        overwrite_critic_adapter: bool = True,
        merge_lora_configs: bool = False,
        *,
        load_hyperparameters: bool = False,
    ) -> None:
        """Load adapters, and what else is asked for, from a checkpoint; see :func:`agiledpo.checkpoint.load_into`.

        Seed, random stream, hyperparameters and history of fitness stay the agent's own. If the checkpoint is refused
        the agent is as it was.

        Args:
            path: What :meth:`save_checkpoint` wrote, of this algorithm or another, or what PEFT, TRL or AgileRL wrote.
            load_optimizer: Also load the optimizer's moments; its settings stay. False leaves the optimizer alone.
            overwrite_reference_adapter: True makes the checkpoint's actor the reference too. False restores the
                checkpoint's reference, and makes the reference the bare base if it has none. None does the second if
                this algorithm wrote the checkpoint, or a subclass or superclass (a resume), and the first if another
                one did (the next stage of a chain) or nothing says which; a stored reference that is not used because
                nothing says which is warned of.
            overwrite_critic_adapter: Accepted for AgileRL's sake: no algorithm here has a critic.
            merge_lora_configs: Reconcile LoRA configurations that differ instead of refusing the checkpoint.
            load_hyperparameters: Also take over the hyperparameters that both algorithms have.

        Raises:
            CheckpointError: The checkpoint is damaged, or belongs to another base model.
            ValueError: It does not suit the agent: the LoRA configurations differ, or the reference would have to
                become something else than the bare base with ``use_separate_reference_adapter=False``.
        """
        from agiledpo.checkpoint import load_into

        load_into(
            self,
            Path(path),
            load_optimizer=load_optimizer,
            overwrite_reference_adapter=overwrite_reference_adapter,
            overwrite_critic_adapter=overwrite_critic_adapter,
            merge_lora_configs=merge_lora_configs,
            load_hyperparameters=load_hyperparameters,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        accelerator: Accelerator | None = None,
        *,
        actor_network: PreTrainedModel | None = None,
        model_config: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make the agent that a checkpoint holds, with everything that was saved of it.

        Args:
            path: What :meth:`save_checkpoint` wrote.
            device: Where to compute; None leaves the model where it is loaded.
            accelerator: Accelerate's handle.
            actor_network: The base model. None takes the weights in a checkpoint that was saved with
                ``lora_only=False``, and otherwise loads the base model by the name that the checkpoint gives.
            model_config: Keyword arguments of ``from_pretrained`` for that; None asks for the dtype that it had.

        Raises:
            CheckpointError: The checkpoint is damaged, of another algorithm, or its base model is another one or cannot
                be found.
        """
        from agiledpo.checkpoint import load_agent

        return load_agent(cls, Path(path), device, accelerator, actor_network=actor_network, model_config=model_config)
