"""A frozen model of which every process holds a part: ZeRO stage 3 for the base that adapters are on.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
(https://arxiv.org/abs/1910.02054), section 5.3. DeepSpeed gathers the weights of a layer when its forward or backward
pass begins and lets go of them when it ends. Adapters are added afterwards and stay whole in every process: DeepSpeed
itself keeps parameters as small as LoRA's gathered (``stage3_param_persistence_threshold``).

Whoever reads weights of such a model other than through its layers' forward passes asks for them here. All processes do
that together.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from agiledpo.distributed.zero_config import deepspeed_config, zero_stage

# In DeepSpeed's set of those that use a parameter, which is why it does not let go of it.
_CLAIM = "agiledpo"

_known: "weakref.WeakKeyDictionary[nn.Module, Shards]" = weakref.WeakKeyDictionary()


class Shards:
    """The parts of a model's weights that this process holds, and the way to the whole.

    Args:
        model: A frozen model without adapters: whole, or loaded in parts by ``from_pretrained`` under Accelerate's
            ``zero3_init_flag``. Every weight is replaced by this process's part of it.
        settings: ``zero_optimization`` of a DeepSpeed configuration with stage 3.
    """

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        import deepspeed

        # Without an optimizer DeepSpeed only puts its hooks on the layers.
        self._engine, *_ = deepspeed.initialize(
            model=model,
            config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": {**settings, "stage": 3}},
        )
        self._hooks: Any = self._engine.optimizer
        self._in_flight: Any = model.ds_inflight_param_registry
        self._claims: dict[int, int] = {}

    @staticmethod
    def of(model: nn.Module) -> "Shards | None":
        """The shards of a model; None if every process has all of it."""
        return _known.get(model)

    @staticmethod
    def make(model: PreTrainedModel, settings: Mapping[str, Any]) -> "Shards":
        """Shard a model, unless it is sharded already.

        Args:
            model: As for the constructor.
            settings: Likewise.
        """
        known = _known.get(model)
        if known is None:
            known = _known[model] = Shards(model, settings)
        return known

    def begin_pass(self) -> None:
        """Say that a forward pass begins that does not begin with the whole model's.

        DeepSpeed notes the order of layers from pass to pass to gather the next ones early.
        """
        self._hooks.get_param_coordinator().reset_step()

    def rest(self) -> None:
        """Let go of what a backward pass left whole, as DeepSpeed's own engine does after one.

        Nothing tells it that the backward pass of a layer has ended if no gradient flows into the layer.
        """
        self._hooks.release_backward_leftovers()

    @contextmanager
    def whole(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Have some weights whole inside; they must not be written to.

        Args:
            parameters: Some of the model's; those that are no shards are left alone.
        """
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus, is_zero_param

        claimed: list[Any] = [parameter for parameter in parameters if is_zero_param(parameter)]
        for parameter in claimed:
            self._claims[parameter.ds_id] = self._claims.get(parameter.ds_id, 0) + 1
            parameter.ds_active_sub_modules.add(_CLAIM)
            if parameter in self._in_flight:
                self._in_flight.pop(parameter).wait()
        absent: list[Any] = [parameter for parameter in claimed if parameter.ds_status != ZeroParamStatus.AVAILABLE]
        if absent:
            absent[0].all_gather(param_list=absent)
        try:
            yield
        finally:
            free: list[Any] = []
            for parameter in claimed:
                self._claims[parameter.ds_id] -= 1
                if not self._claims[parameter.ds_id]:
                    parameter.ds_active_sub_modules.discard(_CLAIM)
                    if not parameter.ds_active_sub_modules and not parameter.ds_persist:
                        free.append(parameter)
            if free:
                free[0].partition(param_list=free)

    @staticmethod
    def part(parameter: Tensor) -> Tensor:
        """What this process holds of a weight."""
        return parameter.ds_tensor if _is_sharded(parameter) else parameter  # type: ignore[attr-defined]


def sharding_settings(accelerator: Accelerator | None) -> Mapping[str, Any] | None:
    """``zero_optimization`` of an accelerator's DeepSpeed configuration if its stage is 3, otherwise None.

    Args:
        accelerator: Accelerate's handle.
    """
    config = deepspeed_config(accelerator)
    if config is None or zero_stage(config) != 3:
        return None
    return {name: value for name, value in config["zero_optimization"].items() if value != "auto"}


def in_parts(model: nn.Module) -> bool:
    """Whether a model has weights in parts, as Transformers makes it under Accelerate's ``zero3_init_flag``."""
    return any(_is_sharded(parameter) for parameter in model.parameters())


@torch.no_grad()
def write(weight: Tensor, value: Tensor) -> None:
    """Replace a weight, or a buffer, of a model that is sharded or not.

    Args:
        weight: One of the model's.
        value: What it becomes; of a weight that is in parts the leader's counts.
    """
    if not _is_sharded(weight):
        weight.copy_(value)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        weight.copy_(value)


def shape_of(weight: Tensor) -> torch.Size:
    """Shape of a weight as a whole, wherever its parts are."""
    return weight.ds_shape if _is_sharded(weight) else weight.shape  # type: ignore[attr-defined]


@contextmanager
def whole(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Have some weights of a model whole inside, whether it is sharded or not; see :meth:`Shards.whole`."""
    shards = Shards.of(model)
    if shards is None:
        yield
        return
    with shards.whole(parameters):
        yield


def _is_sharded(weight: Tensor) -> bool:
    """Whether a tensor is a parameter as DeepSpeed marks those that it holds in parts."""
    return isinstance(weight, nn.Parameter) and "ds_tensor" in vars(weight)
