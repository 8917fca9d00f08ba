"""What the ranks of the tests of ZeRO do; without an accelerator it is what one process does."""

import gc
import weakref
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from agiledpo.adapters import SharedBaseModel
from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.errors import NonFiniteLossError
from agiledpo.checkpoint.identity import identity_of
from tests.distributed import work

CELLS = [(lora_only, save_optimizer) for lora_only in (True, False) for save_optimizer in (True, False)]


def taught(agent: DPO, steps: range) -> list[Mapping[str, Any]]:
    """Metrics of some steps."""
    found = [agent.learn(work.pairs(5 if step % 4 else 8, seed=step)) for step in steps]
    for metrics in found:
        del metrics["tokens_per_second"]
    return found


def found(agent: DPO) -> Mapping[str, Any]:
    """What training has made of an agent."""
    return {"weights": work.weights(agent), "optimizer": deepcopy(agent.stepper.state_dict())}


def training(stage: int | None) -> Mapping[str, Any]:
    """Everything that is to be the same with any stage, and what only ranks can say."""
    handle = None if stage is None else work.accelerator()
    agent = work.dpo(handle)
    curve = {"metrics": taught(agent, range(20)), "measured": agent.learn(work.pairs(7, seed=99), training=False)}
    common = {"curve": {**curve, **found(agent)}, "population": population(handle), "restored": restored(handle)}
    if handle is None:
        return {**common, "undisturbed": undisturbed()}
    return {
        **common,
        "stepper": type(agent.stepper).__name__,
        "held": sum(value.numel() for state in agent.optimizer.state.values() for value in state.values()),
        "undisturbed": disturbed(handle),
        "left": left_behind(handle),
    }


def population(handle: Accelerator | None) -> list[Mapping[str, Any]]:
    """Two agents on one base, of which one becomes a copy of the other and goes another way; and a clone."""
    base = work.model()
    first, second = work.dpo(handle, base), work.dpo(handle, base, index=1, lr=3e-3)
    taught(first, range(3))
    taught(second, range(3, 5))
    second.inherit(first)
    second.lr, second.weight_decay, second.max_grad_norm = 5e-3, 0.05, 0.03
    taught(second, range(5, 8))
    taught(first, range(8, 10))
    twin = first.clone(index=2)
    taught(twin, range(10, 12))
    fresh = work.dpo(handle, base, index=3)
    twin.inherit(fresh)
    taught(twin, range(12, 14))
    return [found(agent) for agent in (first, second, twin)]


def restored(handle: Accelerator | None) -> Mapping[str, Any]:
    """An agent that goes on from another one's state, taken and given before and after a first step."""
    agent, other = work.dpo(handle), work.dpo(handle, index=1, lr=1e-3)
    taught(other, range(2))
    untouched = deepcopy(other.state_dict())
    taught(agent, range(4))
    other.load_state_dict(deepcopy(agent.state_dict()))
    taught(other, range(4, 6))
    agent.load_state_dict(untouched)
    taught(agent, range(2, 4))
    return {"other": found(other), "back": found(agent)}


def undisturbed() -> Mapping[str, Any]:
    agent = work.dpo(None)
    taught(agent, range(6))
    return found(agent)


def disturbed(handle: Accelerator) -> Mapping[str, Any]:
    """The same with losses and gradients that are not finite in one rank, which no step is made with."""
    agent, said = work.dpo(handle), []
    taught(agent, range(2))
    name, parameter = next(iter(agent.base.parameters(agent.adapters.owned["actor"]).items()))
    kept = parameter.detach().clone()
    if agent.team.rank == 1:
        parameter.data[0, 0] = torch.nan
    said.append(refused(agent))
    with torch.no_grad():
        parameter.copy_(kept)
    taught(agent, range(2, 4))
    handles = [parameter.register_hook(lambda grad: grad * torch.nan)] if agent.team.rank == 1 else []
    said.append(refused(agent))
    for hook in handles:
        hook.remove()
    taught(agent, range(4, 6))
    return {**found(agent), "said": said, "name": name}


def refused(agent: DPO) -> str:
    try:
        agent.learn(work.pairs(8, seed=50))
    except NonFiniteLossError as error:
        return str(error)
    return "nothing"


def left_behind(handle: Accelerator) -> Mapping[str, int]:
    """What twenty clones leave behind that have learned and been cleaned up, without the garbage collector's help."""
    agent = work.dpo(handle)
    taught(agent, range(1))
    groups = len(dist.distributed_c10d._world.pg_map)
    gc.collect()
    gc.disable()
    traces = []
    try:
        for number in range(20):
            twin = agent.clone(index=number + 1)
            if number % 10 == 0:
                taught(twin, range(1))
            traces += [weakref.ref(p) for p in twin.base.parameters(twin.adapters.owned["actor"]).values()]
            twin.clean_up()
            del twin
        alive = sum(trace() is not None for trace in traces)
    finally:
        gc.enable()
    own = agent.base.parameters(agent.adapters.owned["actor"]).values()
    hooks = {len(parameter._post_accumulate_grad_hooks or ()) for parameter in own}
    return {
        "parameters": alive,
        "hooks": max(hooks),
        "adapters": len(agent.base.adapter_names),
        "groups": len(dist.distributed_c10d._world.pg_map) - groups,
    }


def save_grid(directory: Path) -> Mapping[str, Any]:
    """Save all cells of the grid, load each into another agent, and say what was saved."""
    handle = work.accelerator()
    base = work.model()
    agent = work.dpo(handle, base, weight_decay=0.05)
    agent.save_checkpoint(directory / "fresh")
    taught(agent, range(4))
    saved = found(agent)
    for cell in CELLS:
        agent.save_checkpoint(directory / name_of(cell), *cell)
    others = [work.dpo(handle, base, index=1 + number, weight_decay=0.05) for number in range(len(CELLS))]
    after = [found_after(other, directory / name_of(cell), cell) for other, cell in zip(others, CELLS, strict=True)]
    taught(agent, range(4, 6))
    return {"saved": saved, "went_on": found(agent), "after": after}


def save_with_a_full_disk(directory: Path) -> Mapping[str, Any]:
    """Save while rank 1 cannot write its share, while rank 0 cannot write what it adds, and then as ever."""
    agent, said = work.dpo(work.accelerator()), []
    taught(agent, range(2))
    opened, written = Path.open, Path.write_text

    def open_(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name.startswith("zero_pp_rank_1"):
            with opened(path, *arguments, **options) as file:
                file.write(b"the beginning")
            raise OSError(28, "No space left on device", str(path))
        return opened(path, *arguments, **options)

    def write_text(path: Path, text: str, *arguments: Any, **options: Any) -> int:
        if path.name == "latest":
            raise OSError(28, "No space left on device", str(path))
        return written(path, text, *arguments, **options)

    for rank, name, function in ((1, "open", open_), (0, "write_text", write_text)):
        if agent.team.rank == rank:
            setattr(Path, name, function)
        try:
            agent.save_checkpoint(directory / "full")
        except OSError as error:
            said.append((error.errno, str(error)))
        finally:
            Path.open, Path.write_text = opened, written  # type: ignore[method-assign]
        agent.team.wait()
        said.append(sorted(path.name for path in directory.iterdir()))
        agent.team.wait()
    taught(agent, range(2, 3))
    agent.save_checkpoint(directory / "full")
    return {"said": said, "saved": found(agent)}


def load_grid(directory: Path, parallel: bool = True) -> list[Mapping[str, Any]]:
    """Load all cells, by whatever number of processes, and go on."""
    handle = work.accelerator() if parallel else None
    return [found_after(work.dpo(handle, weight_decay=0.05), directory / name_of(cell), cell) for cell in CELLS]


def found_after(agent: DPO, path: Path, cell: tuple[bool, bool]) -> Mapping[str, Any]:
    agent.load_checkpoint(path, load_optimizer=cell[1])
    loaded = found(agent)
    taught(agent, range(4, 6))
    return {"loaded": loaded, "went_on": found(agent)}


def name_of(cell: tuple[bool, bool]) -> str:
    return f"lora_only={cell[0]},save_optimizer={cell[1]}"


def save_with_base(directory: Path) -> Mapping[str, Any]:
    """Save an agent on a sharded base with that base, and make it again of what was saved."""
    handle = work.accelerator()
    agent = work.dpo(handle)
    kept, state = [], SharedBaseModel.base_state

    def noted(base: SharedBaseModel, *, keep: bool = True) -> dict[str, Tensor]:
        weights = state(base, keep=keep)
        kept.append(len(weights))
        return weights

    taught(agent, range(4))
    SharedBaseModel.base_state = noted  # type: ignore[method-assign]
    try:
        agent.save_checkpoint(directory / "whole", lora_only=False)
    finally:
        SharedBaseModel.base_state = state  # type: ignore[method-assign]
    agent.save_checkpoint(directory / "named")
    saved = found(agent)
    made = DPO.load(directory / "whole", accelerator=handle)
    same = identity_of(made.base).weights_sha256 == identity_of(agent.base).weights_sha256
    loaded = found(made)
    for one in (agent, made):
        taught(one, range(4, 6))
    return {
        "kept": kept,
        "saved": saved,
        "loaded": loaded,
        "same": same,
        "went_on": [found(agent), found(made)],
        "state": {key: tensor.clone() for key, tensor in made.base.base_state().items()},
        "held": {
            name: parameter.numel()
            for name, parameter in made.base.model.named_parameters()
            if "lora_" not in name and parameter.numel()
        },
    }
