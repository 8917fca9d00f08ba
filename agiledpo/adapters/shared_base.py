"""One frozen base model that carries the LoRA adapters of every agent.

This is the only module that calls PEFT's functions for adding, activating and deleting adapters. Agents own adapters by
physical name; roles such as ``actor`` and ``reference`` are the business of :mod:`agiledpo.adapters.roles`.
"""

import itertools
import json
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar, cast

import torch
from peft import LoraConfig, LoraModel, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, set_peft_model_state_dict
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from agiledpo.adapters.contents import NOTHING, WatchedTensors, describe_adapter, describe_model
from agiledpo.adapters.files import AdapterFileError, SavedAdapter
from agiledpo.adapters.fitting import check_ranks, fill
from agiledpo.adapters.layout import AdapterLayout, base_key, layout_of, targets
from agiledpo.adapters.transplant import check_transplantable, transplant
from agiledpo.distributed.sharded import Shards, shape_of, whole, write

_ADAPTER_NUMBERS = itertools.count()

# Initialisations that rewrite the base weights (PiSSA, OLoRA, LoftQ, ...) would change the base of every other agent.
_INITS_THAT_KEEP_THE_BASE = (True, False, "gaussian", "orthogonal")


class SharedBaseModel:
    """A frozen causal language model and the named LoRA adapters on it.

    Made through :meth:`of`, which returns the same object for the same model as long as anything uses it.

    Attributes:
        model: The Transformers model, with PEFT's layers injected.
        peft_model: The PEFT view of the same model.
    """

    _by_model_id: ClassVar["weakref.WeakValueDictionary[int, SharedBaseModel]"] = weakref.WeakValueDictionary()
    _by_name: ClassVar["weakref.WeakValueDictionary[str, SharedBaseModel]"] = weakref.WeakValueDictionary()

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self.peft_model: PeftModel | None = model if isinstance(model, PeftModel) else None
        self.model = _base_of(model)
        _check_causal_lm(self.model)
        if self.peft_model is None and any(isinstance(module, BaseTunerLayer) for module in self.model.modules()):
            raise ValueError("actor_network already carries PEFT layers; pass the PeftModel that put them there.")
        self.model.requires_grad_(False)
        self._trainable: dict[str, bool] = {}
        self._holders: dict[str, int] = {}
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}
        self._base_tensors = _base_tensors(self.model, self.peft_model)
        # They must not refer to this object, which goes when its last agent does.
        self._weights = WatchedTensors(
            partial(_parts, self._base_tensors), partial(_described, self.model, self._base_tensors)
        )
        self._adapter_weights: dict[str, WatchedTensors] = {}
        self._orphans: list[str] = []
        self._file_keys: dict[tuple[str, ...], dict[str, str]] = {}
        # What is active when no agent is: the adapter of a PeftModel that was handed over, or the bare base.
        self._idle: str | None = None
        if self.peft_model is not None:
            self._idle = starting_adapter(self.peft_model)
            weakref.finalize(self, _hand_back, self.peft_model, self._trainable, self._idle)
        self._active: str | None = self._idle

    @classmethod
    def of(cls, model: PreTrainedModel | PeftModel) -> "SharedBaseModel":
        """Return the shared base of ``model``, made on first use.

        Args:
            model: A Transformers causal language model, or a PeftModel over one. Parameters are frozen in place.

        Raises:
            ValueError: The model has no language-model head, is an encoder-decoder, is a PeftModel whose active adapter
                is not one LoRA adapter, or carries PEFT layers that another PeftModel owns.
        """
        base = _base_of(model)
        known = cls._by_model_id.get(id(base))
        if known is None:
            known = cls._by_model_id[id(base)] = cls(model)
        elif isinstance(model, PeftModel) and known.peft_model is not model:
            raise ValueError("actor_network is a second PeftModel over one base model; pass the base model itself.")
        return known

    @classmethod
    def load(cls, model_name: str, model_config: Mapping[str, Any] | None = None) -> "SharedBaseModel":
        """Load a causal language model by name or path, once per process for the same name and settings.

        Args:
            model_name: What ``AutoModelForCausalLM.from_pretrained`` takes.
            model_config: Its keyword arguments (``dtype``, ``attn_implementation``, ...).
        """
        settings = dict(model_config or {})
        key = json.dumps([model_name, settings], sort_keys=True, default=str)
        known = cls._by_name.get(key)
        if known is None:
            known = cls._by_name[key] = cls.of(AutoModelForCausalLM.from_pretrained(model_name, **settings))
        return known

    # Adapters -------------------------------------------------------------------------------------------------------

    def add(self, role: str, config: LoraConfig, *, trainable: bool, seed: int) -> str:
        """Add a freshly initialised adapter and return its physical name.

        Args:
            role: Readable part of the name.
            config: LoRA configuration; it is copied, the caller's object is not changed.
            trainable: Whether the adapter's parameters require gradients.
            seed: Seed of the initialisation; the global random state is left as it was.

        Raises:
            ValueError: The configuration would change the shared base weights.
        """
        _check_keeps_base(config)
        self.sweep()
        name = f"agiledpo{next(_ADAPTER_NUMBERS)}_{role}"
        with torch.random.fork_rng(devices=_cuda_devices(self.model)), warnings.catch_warnings():
            # PEFT 0.21 asks Transformers 5.23 for a property by its old name; users can do nothing about it.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            torch.manual_seed(seed)
            if self.peft_model is None:
                self.peft_model = PeftModel(self.model, deepcopy(config), adapter_name=name)
                self._active = name
                # When the last user of this base is gone the caller's model is a plain Transformers model again.
                weakref.finalize(self, self.peft_model.unload)
            else:
                self._inject(name, deepcopy(config))
        self._trainable[name] = trainable
        self._holders[name] = 1
        parameters = self._parameters[name] = self._find_parameters(name)
        self._adapter_weights[name] = WatchedTensors(lambda: parameters, partial(describe_adapter, self.config(name)))
        self._restore_requires_grad()
        return name

    def _inject(self, name: str, config: LoraConfig) -> None:
        """Put an adapter's layers into the model, or leave it as it was."""
        self._keep_apart(config)
        try:
            self.peft.add_adapter(name, config)
        except Exception:
            # PEFT leaves the layers that it had put in place.
            self.peft.peft_config.pop(name, None)
            for module in self.model.modules():
                if isinstance(module, LoraLayer):
                    module.delete_adapter(name)
                elif isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
                    del module.modules_to_save[name]
            self._unwrap()
            self._reactivate()
            raise

    def _keep_apart(self, config: LoraConfig) -> None:
        """Keep PEFT from adapting another agent's copy of a module, or copying another agent's adapter.

        Raises:
            ValueError: A module would have LoRA factors for one agent and be copied whole for another.
        """
        named = dict(self.model.named_modules())
        whole = [key for key, module in named.items() if isinstance(module, ModulesToSaveWrapper)]
        if whole and config.target_modules == "all-linear":
            # PEFT would find the linear layers inside the copies.
            head = self.model.get_output_embeddings()
            config.target_modules = cast(
                list[str], {key for key in self.module_names if named[key] is not head and _is_linear(named[key])}
            )
        torn = [key for key in whole if targets(config, key)]
        copied = tuple(config.modules_to_save or ())
        torn += [key for key, module in named.items() if isinstance(module, LoraLayer) and key.endswith(copied)]
        if torn:
            raise ValueError(
                f"{torn[0]} has LoRA factors in one adapter and is saved whole in another (modules_to_save) on this "
                "base model. Use the same kind for all adapters, or load the base model once more."
            )

    def add_neutral(self, role: str, config: LoraConfig, *, trainable: bool, seed: int) -> str:
        """Add an adapter as :meth:`add` does that adds nothing to the base, however the configuration initialises.

        Args:
            role: Readable part of the name.
            config: LoRA configuration.
            trainable: Whether the adapter's parameters require gradients.
            seed: Seed of the factors that are not zero.
        """
        neutral = deepcopy(config)
        if config.init_lora_weights in (False, "orthogonal"):
            neutral.init_lora_weights = True
        name = self.add(role, neutral, trainable=trainable, seed=seed)
        self.config(name).init_lora_weights = config.init_lora_weights
        return name

    @contextmanager
    def visitor(self, saved: SavedAdapter) -> Iterator[str]:
        """Have a saved adapter on the model for a time, and know it by the physical name that the context gives.

        Args:
            saved: The adapter. Its initialisation does not count; dropout does not matter.

        Raises:
            AdapterFileError: It does not fit the base model.
            ValueError: Its configuration would change the shared base weights.
        """
        _check_keeps_base(saved.config)
        self.check_ranks(saved)
        config = deepcopy(saved.config)
        config.init_lora_weights, config.inference_mode = True, False
        try:
            name = self.add("visitor", config, trainable=False, seed=0)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a stranger's configuration can make PEFT raise almost anything
            raise AdapterFileError(f"{saved.config_file} does not fit the base model: {error}") from error
        try:
            fill(self.state(name), saved, self.base_state)
            yield name
        finally:
            self._remove(name)
            self._unwrap()

    def check_ranks(self, saved: SavedAdapter) -> None:
        """Check that a saved adapter takes no more memory than its weights do; see :mod:`agiledpo.adapters.fitting`.

        Raises:
            AdapterFileError: A rank of its configuration is not that of its weights.
        """
        check_ranks(saved, self.module_names, self.base_shapes)

    def transplant(self, source: str, target: str) -> dict[str, float]:
        """Make an adapter that adds nothing compute what another does; see :mod:`agiledpo.adapters.transplant`."""
        return transplant(self.peft, source, target)

    def check_transplantable(self, name: str) -> None:
        """Check that :meth:`transplant` can move an adapter.

        Raises:
            ValueError: It is of a kind that cannot be moved.
        """
        check_transplantable(self.peft, name)

    def layout(self, name: str) -> AdapterLayout:
        """What an adapter's configuration comes to on this model."""
        return layout_of(self.model, name, self.config(name))

    @property
    def module_names(self) -> list[str]:
        """Names of the base model's own modules."""
        tuners = tuple(
            f"{key}."
            for key, module in self.model.named_modules()
            if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        )
        return [key for key, _ in self.model.named_modules() if key and not key.startswith(tuners)]

    def _unwrap(self) -> None:
        """Put the base's own modules back where no adapter is any more."""
        for parent in list(self.model.modules()):
            for key, child in list(parent.named_children()):
                if isinstance(child, LoraLayer) and not child.r:
                    setattr(parent, key, child.base_layer)
                elif isinstance(child, ModulesToSaveWrapper) and not child.modules_to_save:
                    setattr(parent, key, child.original_module)

    def frozen_copy(self, source: str, *, private: bool = False) -> str:
        """A frozen adapter with the configuration and weights of another, and its physical name.

        Agents start from the same weights more often than not, so an equal frozen adapter that is there already is
        held once more instead of being made again.

        Args:
            source: Physical name of the adapter to copy.
            private: Make a new one in any case, because it will be written to.
        """
        self.sweep()
        twin = None if private else self._find_frozen(source)
        if twin is None:
            twin = self.add("reference", self.config(source), trainable=False, seed=0)
            self.copy(source, twin)
        else:
            self._holders[twin] += 1
        return twin

    def shared(self, name: str) -> str:
        """Hold an equal frozen adapter instead of this new one, if there is one; return the name of what is held."""
        twin = self.hold_equal(name)
        if twin is None:
            return name
        self.disown(name)
        self.sweep()
        return twin

    def hold_equal(self, name: str) -> str | None:
        """Hold another frozen adapter that equals one; None if there is none.

        Args:
            name: Physical name of the adapter.
        """
        self.sweep()
        twin = self._find_frozen(name, other_than=name)
        if twin is not None:
            self._holders[twin] += 1
        return twin

    def _find_frozen(self, source: str, *, other_than: str | None = None) -> str | None:
        config, weights = self.config(source), self.parameters(source)
        for name, trainable in self._trainable.items():
            if not trainable and name != other_than and self.config(name) == config:
                others = self.parameters(name)
                if others.keys() == weights.keys() and all(torch.equal(others[key], weights[key]) for key in weights):
                    return name
        return None

    def is_shared(self, name: str) -> bool:
        """Whether several agents hold an adapter, so that none of them may write to it."""
        self.sweep()
        return self._holders[name] > 1

    def disown(self, name: str) -> None:
        """Let go of an adapter at the next safe point (a garbage collector may call this at any moment).

        It is removed when nobody holds it any more.
        """
        self._orphans.append(name)

    def sweep(self) -> None:
        """Remove the adapters of agents that are gone."""
        while self._orphans:
            name = self._orphans.pop()
            if name not in self._holders:
                continue
            self._holders[name] -= 1
            if not self._holders[name]:
                self._remove(name)

    def _remove(self, name: str) -> None:
        """Delete an adapter and free its memory."""
        del self._trainable[name], self._holders[name], self._parameters[name], self._adapter_weights[name]
        if self._active == name:
            self._activate(self._idle)
        # PEFT must not choose which adapter becomes active; ours is put back afterwards.
        others = [other for other in self.peft.peft_config if other != name]
        if others:
            self.peft.set_adapter(others[0])
        self.peft.delete_adapter(name)
        self._reactivate()

    @property
    def peft(self) -> PeftModel:
        """The PEFT view of the model."""
        if self.peft_model is None:
            raise RuntimeError("No adapter has been added to this base model yet.")
        return self.peft_model

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Physical names of the adapters that agents own."""
        self.sweep()
        return tuple(self._trainable)

    @property
    def is_sharded(self) -> bool:
        """Whether every process holds but a part of the base weights."""
        return Shards.of(self.model) is not None

    def shard(self, settings: Mapping[str, Any]) -> None:
        """Leave every process but a part of the base weights; see :class:`agiledpo.distributed.sharded.Shards`.

        Args:
            settings: ``zero_optimization`` of a DeepSpeed configuration with stage 3.

        Raises:
            ValueError: There are adapters on the model already, which would be sharded with it.
        """
        if self.is_sharded:
            return
        if self.peft_model is not None:
            raise ValueError(
                "ZeRO stage 3 shards the base model before adapters are on it, and this one has some. Pass the base "
                "model as actor_network, give all agents the accelerator, and load adapters with load_checkpoint."
            )
        Shards.make(self.model, settings)

    @property
    def device(self) -> torch.device:
        """Device of the base weights."""
        return self.model.device

    def config(self, name: str) -> LoraConfig:
        """LoRA configuration of an adapter."""
        return cast(LoraConfig, self.peft.peft_config[name])

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Parameters of one adapter by a name that does not depend on the adapter's own.

        Two adapters of the same configuration have the same keys in the same order.
        """
        return self._parameters[name] if name in self._parameters else self._find_parameters(name)

    def _find_parameters(self, name: str) -> dict[str, nn.Parameter]:
        return {
            key.replace(f".{name}", ""): parameter
            for key, parameter in self.peft.named_parameters()
            if name in key.split(".")
        }

    def state(self, name: str) -> dict[str, Tensor]:
        """State of one adapter with the keys that PEFT writes to ``adapter_model.safetensors``."""
        parameters = self.parameters(name)
        return {key: parameters[parameter].detach() for key, parameter in self.file_keys(name).items()}

    def saved_config(self, name: str) -> LoraConfig:
        """Configuration to save beside an adapter's state: for inference, naming its base model."""
        config = deepcopy(self.config(name))
        config.inference_mode = True
        config.base_model_name_or_path = self.model.name_or_path or None
        if isinstance(config.target_modules, set):  # an order that is the same in every process
            config.target_modules = sorted(config.target_modules)
        return config

    def base_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights of the base model under their own names, in order, without any adapter.

        Tensors are the live ones. Those of a sharded model are whole only until the next one is asked for.
        """
        return _one_by_one(self.model, self._base_tensors)

    def base_state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """The same at once; of a sharded model copies on the CPU, which take the whole model's memory.

        Args:
            keep: False gives nothing, for a process that only helps to gather what another one keeps.
        """
        copies = self.is_sharded
        return {key: tensor.cpu().clone() if copies else tensor for key, tensor in self.base_weights() if keep}

    @property
    def base_shapes(self) -> dict[str, torch.Size]:
        """Shapes of the base model's weights by their own names."""
        return {key: shape_of(tensor) for key, tensor in self._base_tensors().items()}

    @property
    def weights_revision(self) -> int:
        """A number that has grown since it was last asked for if a weight of the base has changed."""
        return self._weights.revision

    @torch.no_grad()
    def load_base_state(self, state: Mapping[str, Tensor]) -> None:
        """Write other weights into the base model, under all adapters that are on it.

        Args:
            state: As :meth:`base_state` gives it.

        Raises:
            ValueError: Names or shapes are not those of the base model; nothing has been written.
        """
        live = self.base_shapes
        differing = sorted(
            key
            for key in live.keys() | state.keys()
            if key not in live or key not in state or live[key] != state[key].shape
        )
        if differing:
            raise ValueError(
                f"The weights are of another model: {', '.join(differing[:3])} "
                f"{'is' if len(differing) == 1 else 'are'} missing, unexpected or of another shape."
            )
        for key, tensor in self._base_tensors().items():
            write(tensor, state[key])

    def file_keys(self, name: str) -> dict[str, str]:
        """Name of the parameter that each key of PEFT's file of an adapter holds."""
        parameters = self.parameters(name)
        known = tuple(parameters)
        if known not in self._file_keys:  # PEFT walks the whole model
            state = get_peft_model_state_dict(self.peft, adapter_name=name, save_embedding_layers=False)
            names = {_place(tensor): parameter for parameter, tensor in parameters.items()}
            self._file_keys[known] = {key: names[_place(tensor)] for key, tensor in state.items()}
        return self._file_keys[known]

    def load_state(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Load a state that :meth:`state` or PEFT wrote onto an adapter.

        Raises:
            ValueError: Keys are missing or unexpected.
        """
        result: Any = set_peft_model_state_dict(self.peft, dict(state), adapter_name=name)
        missing = [key for key in result.missing_keys if name in key.split(".")]
        if missing or result.unexpected_keys:
            raise ValueError(
                f"The adapter's weights do not fit: missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}. "
                "Check that rank and target_modules are those of the adapter that was saved."
            )

    @torch.no_grad()
    def copy(self, source: str, target: str) -> None:
        """Copy one adapter's weights onto another of the same configuration."""
        destination = self.parameters(target)
        for key, parameter in self.parameters(source).items():
            destination[key].copy_(parameter)

    @torch.no_grad()
    def mix(self, source: str, target: str, weight: float) -> None:
        """Move one adapter's weights towards another's: ``target <- weight * source + (1 - weight) * target``.

        Args:
            source: Adapter to move towards.
            target: Adapter to move, of the same configuration.
            weight: In [0, 1]; 1 copies.
        """
        destination = self.parameters(target)
        for key, parameter in self.parameters(source).items():
            destination[key].lerp_(parameter, weight)

    # Content --------------------------------------------------------------------------------------------------------

    def content(self, name: str | None, *, portable: bool) -> str:
        """Name what the base with one adapter (None: with none) computes: equal names mean equal weights.

        Args:
            name: Physical name of an adapter that an agent owns, or None, which is the same as one that adds nothing.
            portable: Mean the same in other processes. The base weights are then hashed, once until they change;
                otherwise they are only watched, and the name is good for this object.
        """
        base = self._weights.content if portable else str(self._weights.revision)
        return f"{base} + {NOTHING if name is None else self._adapter_weights[name].content}"

    def adds_nothing(self, name: str) -> bool:
        """Whether an adapter that an agent owns leaves the base as it is: its B factors are still zero."""
        return self._adapter_weights[name].content == NOTHING

    # Switching ------------------------------------------------------------------------------------------------------

    @property
    def active_name(self) -> str | None:
        """Physical name of the active adapter; None if the bare base is active."""
        return self._active

    @contextmanager
    def active(self, name: str | None) -> Iterator[PeftModel]:
        """Make one adapter active (None: the bare base) and restore what was active before, also on errors.

        Keep it open until after ``backward``: gradient checkpointing runs the forward pass again.
        """
        self.sweep()
        previous = self._active
        self.activate(name)
        try:
            yield self.peft
        finally:
            self.activate(previous if previous is None or previous in self.peft.peft_config else self._idle)

    def activate(self, name: str | None) -> None:
        """Make one adapter active until the next switch; None disables all adapters."""
        if name != self._active:
            self._activate(name)

    def _reactivate(self) -> None:
        """Activate what is active already, after PEFT has chosen for itself."""
        current, self._active = self._active, ""
        self._activate(current)

    def _activate(self, name: str | None) -> None:
        tuner = cast(LoraModel, self.peft.base_model)
        if name is None:
            tuner.disable_adapter_layers()
        else:
            if self._active is None:
                tuner.enable_adapter_layers()
            self.peft.set_adapter(name)
        self._active = name
        self._restore_requires_grad()

    def _restore_requires_grad(self) -> None:
        # PEFT freezes whatever is inactive; optimizers and gradient hooks expect every actor to stay trainable.
        for name, trainable in self._trainable.items():
            for parameter in self._parameters[name].values():
                parameter.requires_grad_(trainable)


def _base_tensors(model: PreTrainedModel, peft_model: PeftModel | None) -> Callable[[], dict[str, Tensor]]:
    """A function that reads the base's own parameters and saved buffers. They are found once; adapters come and go."""
    adapters = set() if peft_model is None else set(peft_model.peft_config)
    saved = model.state_dict().keys()
    slots = {
        base_key(key): (tensors, name)
        for prefix, module in model.named_modules()
        for tensors in (module._parameters, module._buffers)
        for name in tensors
        if (key := f"{prefix}.{name}".lstrip(".")) in saved and not adapters & set(key.split("."))
    }
    return lambda: {key: tensor for key, (tensors, name) in slots.items() if (tensor := tensors.get(name)) is not None}


def _one_by_one(model: PreTrainedModel, tensors: Callable[[], dict[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors by name, in order; those of a sharded model are whole only until the next one is asked for."""
    for key, tensor in sorted(tensors().items()):
        with whole(model, [tensor] if isinstance(tensor, nn.Parameter) else []):
            yield key, tensor.detach()


def _parts(tensors: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What this process holds of the tensors, to be watched."""
    return {key: Shards.part(tensor) for key, tensor in tensors().items()}


def _described(model: PreTrainedModel, tensors: Callable[[], dict[str, Tensor]], parts: Mapping[str, Tensor]) -> str:
    return describe_model(model, _one_by_one(model, tensors))


def _place(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Where a tensor's elements lie; those of a tied head may be an embedding's, transposed."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _hand_back(peft_model: PeftModel, owned: dict[str, bool], idle: str) -> None:
    """Leave a PeftModel that a user handed over as it was: without agents' adapters, its own one active."""
    cast(LoraModel, peft_model.base_model).enable_adapter_layers()
    peft_model.set_adapter(idle)
    for name in list(owned):
        peft_model.delete_adapter(name)


def _base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def starting_adapter(model: PeftModel) -> str:
    """Name of the one active LoRA adapter of a PeftModel.

    Raises:
        ValueError: None or several adapters are active, or the active one is not LoRA.
    """
    active = model.active_adapters
    if len(active) != 1 or not isinstance(model.peft_config[active[0]], LoraConfig):
        raise ValueError(
            f"actor_network is a PeftModel with active adapters {active}; exactly one active LoRA adapter is needed. "
            "Call set_adapter(name) on it, or pass the base model."
        )
    return active[0]


def _check_causal_lm(model: PreTrainedModel) -> None:
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"actor_network is a {type(model).__name__}; a Transformers PreTrainedModel or a PeftModel is needed."
        )
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; agiledpo tunes decoder-only causal language models.")
    if model.get_output_embeddings() is None:
        raise ValueError(f"{name} has no language-model head. Load it with AutoModelForCausalLM.from_pretrained(...).")


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D)) or (
        isinstance(module, LoraLayer) and "Linear" in type(module).__name__
    )


def _check_keeps_base(config: LoraConfig) -> None:
    if not isinstance(config, LoraConfig):
        raise ValueError(f"lora_config is a {type(config).__name__}; only peft.LoraConfig is supported.")
    if config.bias != "none":
        raise ValueError(
            f"lora_config.bias={config.bias!r} trains biases of the base model, which all agents share; use 'none'."
        )
    if config.layer_replication or config.kasa_config:
        name = "layer_replication" if config.layer_replication else "kasa_config"
        raise ValueError(f"lora_config.{name} changes the layers of the base model, which all agents share.")
    if config.init_lora_weights not in _INITS_THAT_KEEP_THE_BASE:
        raise ValueError(
            f"lora_config.init_lora_weights={config.init_lora_weights!r} rewrites weights of the base model, which all "
            f"agents share; use one of {_INITS_THAT_KEEP_THE_BASE}."
        )


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted(
        {p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None}
    )
