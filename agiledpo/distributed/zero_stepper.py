"""ZeRO stages 1 and 2 for an adapter: every process holds a share of its moments, in stage 2 of its gradients too.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020, as DeepSpeed does it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from agiledpo.algorithms.core.optimizers import check_scalable, copy_optimizer_state, moved_state
from agiledpo.algorithms.core.stepper import Stepper
from agiledpo.disk import disk_errors
from agiledpo.distributed.engine import AdapterEngine
from agiledpo.distributed.team import Team
from agiledpo.distributed.zero_config import engine_config, zero_stage


class ZeroStepper(Stepper):
    """A DeepSpeed engine over the parameters of one adapter; the model runs outside it.

    AdamW works element by element, so on a flat partition it makes the step that it makes on whole parameters. All
    parameters have one count of steps.

    Args:
        optimizer: An AdamW over the parameters; it steps this process's partition from here on.
        parameters: By name.
        team: The processes.
        config: The accelerator's DeepSpeed configuration, of stage 1, 2 or 3.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], team: Team, config: Mapping[str, Any]
    ) -> None:
        self._optimizer = optimizer
        self._team = team
        elements = sum(parameter.numel() for parameter in parameters.values())
        self._config = config
        self._adapter = AdapterEngine(optimizer, parameters, engine_config(config, elements))

    @property
    def optimizer(self) -> Optimizer:
        """The AdamW over this process's partition."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        raise ValueError(
            f"ZeRO stage {self.stage} shards the optimizer that the agent was made with; another one cannot be put in "
            "its place. Use stage 0 (zero_optimization.stage), or plain data parallelism."
        )

    @property
    def stage(self) -> int:
        """1 if moments are sharded, 2 if gradients are too, 3 if the base model is, and moments."""
        return zero_stage(self._config)

    @override
    def begin(self) -> None:
        self.clear()
        # Adapters are copied, loaded and mixed in place; DeepSpeed steps a copy of its own.
        self._adapter.zero.refresh_fp32_params()

    @override
    def backward(self, share: Tensor, *, last: bool) -> None:
        self._adapter.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over processes.
        self._adapter.engine.backward(share * self._team.size, scale_wrt_gas=False)

    @override
    def finish(self, max_norm: float) -> float:
        self._adapter.zero.clip_grad = max_norm
        return float(self._adapter.zero.scaled_global_norm())  # infinite if the gradient is not finite

    @override
    def step(self) -> None:
        self._adapter.engine.step()

    @override
    def clear(self) -> None:
        """Forget the gradients, also those of a step that was given up half-way."""
        zero = self._adapter.zero
        zero.zero_grad(set_to_none=True)
        for kept in (zero.averaged_gradients, zero.all_grad_tensors):
            kept.clear()
        zero._release_ipg_buffers()
        for bucket in zero.ipg_buckets.values():
            bucket.clear()
        zero.params_already_reduced = [False] * len(zero.params_already_reduced)
        zero.micro_step_id = -1
        if zero.cpu_offload:
            zero.reset_cpu_buffers()
            self._adapter.flat.grad.zero_()

    @override
    def state_dict(self) -> dict[str, Any]:
        adapter, flat = self._adapter, self.optimizer.state.get(self._adapter.flat, {})
        return {"state": self._whole(flat) if flat else {}, "param_groups": self._groups(len(adapter.shapes))}

    def _whole(self, flat: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        adapter = self._adapter
        kinds = [kind for kind, value in flat.items() if self._is_moment(value)]
        state: dict[int, dict[str, Any]] = {
            number: {kind: value.clone() for kind, value in flat.items() if kind not in kinds}
            for number in range(len(adapter.shapes))
        }
        for kind in kinds:
            wholes = {
                name: torch.zeros(shape.numel(), dtype=flat[kind].dtype, device=self._team.device)
                for name, shape in adapter.shapes.items()
            }
            for name, whole in wholes.items():
                adapter.whole(flat[kind], name, whole)
            self._team.sum_(list(wholes.values()))  # each element is one process's; the others add zero
            for number, (name, whole) in enumerate(wholes.items()):
                state[number][kind] = whole.view(adapter.shapes[name])
        return state

    def _groups(self, parameters: int) -> list[dict[str, Any]]:
        (group,) = self.optimizer.state_dict()["param_groups"]
        return [{**group, "params": list(range(parameters))}]

    def _is_moment(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.shape == self._adapter.flat.shape

    @override
    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, by however many processes; tensors are copied.

        Where parameters have made different numbers of steps all are taken to have made the largest.

        Raises:
            ValueError: The state is of another number of parameters.
        """
        adapter = self._adapter
        (group,) = state["param_groups"]
        if len(group["params"]) != len(adapter.shapes):
            raise ValueError(
                f"The state is of {len(group['params'])} parameters, and the adapter has {len(adapter.shapes)}."
            )
        for live in self.optimizer.param_groups:
            live.update({name: value for name, value in group.items() if name != "params"})
        entries = {
            name: state["state"][number]
            for number, name in zip(group["params"], adapter.shapes, strict=True)
            if number in state["state"]
        }
        flat = self.optimizer.state[adapter.flat]
        flat.clear()
        adapter.zero._hp_optimizer_states_linked = False
        if not entries:
            self.optimizer.state.pop(adapter.flat)
            return
        steps = [float(entry["step"]) for entry in entries.values() if "step" in entry]
        # As a fused AdamW counts; see torch.optim.AdamW.
        flat["step"] = torch.tensor(max(steps, default=0.0), device=adapter.flat.device)
        for kind in dict.fromkeys(kind for entry in entries.values() for kind in entry if kind != "step"):
            flat[kind] = torch.zeros_like(adapter.flat)
            for name, entry in entries.items():
                if kind in entry:
                    adapter.part(entry[kind], name, flat[kind])

    @override
    def copy_from(self, other: Self) -> None:
        copy_optimizer_state(other.optimizer, self.optimizer)
        self._adapter.zero._hp_optimizer_states_linked = False

    @override
    def move(
        self, old: Mapping[str, nn.Parameter], new: Mapping[str, nn.Parameter], factors: Mapping[str, float]
    ) -> None:
        whole = self.state_dict()
        check_scalable(whole["state"].values())
        moved = {
            name: moved_state(whole["state"][number], parameter.shape, new[name], factors.get(name, 1.0))
            for number, (name, parameter) in enumerate(old.items())
            if number in whole["state"]
        }
        self.forget()
        (group,) = self.optimizer.param_groups
        group["params"] = list(new.values())
        elements = sum(parameter.numel() for parameter in new.values())
        self._adapter = AdapterEngine(self.optimizer, new, engine_config(self._config, elements))
        numbered = {number: moved[name] for number, name in enumerate(new) if name in moved}
        self.load_state_dict({"state": numbered, "param_groups": self._groups(len(new))})

    def save_shards(self, directory: Path, tag: str) -> None:
        """Have every process write its share of weights and moments, in DeepSpeed's format.

        Args:
            directory: The same place for all processes.
            tag: Name of the directory in it that holds the files.

        Raises:
            OSError: One could not; in every process.
        """
        self.begin()  # what is written is the adapter as it is now
        files = self._adapter.files(directory, tag)

        def write() -> None:
            for path, state in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                with disk_errors(path), path.open("wb") as file:
                    torch.save(state, file)
            if self._team.leads:
                self._adapter.write_scripts(directory, tag)

        self._team.everyone_does(write)

    @override
    def forget(self) -> None:
        self._adapter.release()
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["params"] = []
