"""The life of a DeepSpeed engine over an adapter: agents are cloned and cleaned up all the time."""

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer


class Fragment(NamedTuple):
    """What a process holds of a parameter.

    Attributes:
        place: Where it begins in the flat parameter.
        start: Where it begins in the process's flat partition.
        length: Number of elements.
    """

    place: int
    start: int
    length: int


class AdapterEngine:
    """A DeepSpeed engine over parameters of a model that it does not run.

    All processes make it together; it ends when :meth:`release` is called or it is garbage-collected, which needs no
    other process.

    Args:
        optimizer: Over the parameters. From here on it steps this process's partition of them.
        parameters: By name.
        config: As :func:`agiledpo.distributed.zero_config.engine_config` gives it.

    Attributes:
        engine: DeepSpeed's.
        zero: Its optimizer.
        flat: This process's partition of the parameters, flat, in float32.
        shapes: Of the parameters, by name, in the optimizer's order.
        fragments: By name, where this process holds something of a parameter.
    """

    def __init__(self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], config: Mapping[str, Any]) -> None:
        import deepspeed  # an extra

        held = list(parameters.values())
        known = [set(vars(parameter)) for parameter in held]
        with _quiet():
            self.engine, self.zero, *_ = deepspeed.initialize(
                model=_tree(parameters), optimizer=optimizer, config=dict(config)
            )
        (self.flat,) = self.zero.single_partition_of_fp32_groups
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.fragments = {
            name: Fragment(mapping.lp_fragment_address.start, address.start, address.numel)
            for name, parameter in parameters.items()
            if (mapping := parameter._hp_mapping) is not None  # type: ignore[attr-defined]
            for address in (mapping.hp_fragment_address,)
        }
        self._finalizer = weakref.finalize(self, _release, self.engine, self.zero, held, known)
        self._finalizer.atexit = False  # nothing is left to free then

    def whole(self, flat: Tensor | None, name: str, target: Tensor) -> None:
        """Put this process's part of a parameter's moment into its place in the whole one.

        Args:
            flat: A moment of this process's partition; None for zeros.
            name: The parameter's.
            target: The whole moment, flat.
        """
        if flat is not None and name in self.fragments:
            place, start, length = self.fragments[name]
            target[place : place + length] = flat[start : start + length]

    def part(self, whole: Tensor, name: str, target: Tensor) -> None:
        """Take this process's part of a parameter's moment from the whole one.

        Args:
            whole: The moment.
            name: The parameter's.
            target: Where it goes: a moment of this process's partition.
        """
        if name in self.fragments:
            place, start, length = self.fragments[name]
            target[start : start + length] = whole.reshape(-1)[place : place + length]

    def files(self, directory: Path, tag: str) -> dict[Path, Any]:
        """What this process would write of a checkpoint of DeepSpeed's, by path; nothing is written.

        DeepSpeed waits for all processes while it writes, so an error of one of them would keep the others waiting for
        ever. All processes call this together, and each writes by itself afterwards.

        Args:
            directory: The checkpoint's.
            tag: Name of the directory in it that holds the files.
        """
        found: dict[Path, Any] = {}

        def save(state_dict: Any, path: str) -> None:
            found[Path(path)] = state_dict

        def nothing(*arguments: object, **options: object) -> None:
            pass

        writer = self.engine.checkpoint_engine
        with (
            _instead(writer, "save", save),
            _instead(writer, "makedirs", nothing),
            _instead(self.engine, "_copy_recovery_script", nothing),
        ):
            self.engine.save_checkpoint(str(directory), tag=tag, save_latest=False)
        return found

    def write_scripts(self, directory: Path, tag: str) -> None:
        """Write what one process adds to :meth:`files`: the newest tag, and the scripts that read the checkpoint.

        Args:
            directory: The checkpoint's.
            tag: As there.
        """
        (directory / "latest").write_text(tag)
        self.engine._copy_recovery_script(str(directory))

    def release(self) -> None:
        """Free its memory and take its hooks off the parameters."""
        self._finalizer()
        del self.flat, self.engine, self.zero


def _tree(parameters: Mapping[str, nn.Parameter]) -> nn.Module:
    """A module whose parameters have these names, with which DeepSpeed's files then name them."""
    root = nn.Module()
    for name, parameter in parameters.items():
        *path, leaf = name.split(".")
        module = root
        for step in path:
            if step not in module._modules:
                module.add_module(step, nn.Module())
            module = module.get_submodule(step)
        module.register_parameter(leaf, parameter)
    return root


def _release(engine: Any, zero: Any, parameters: Sequence[nn.Parameter], known: Sequence[set[str]]) -> None:
    engine.destroy()
    # They refer to each other, through hooks too: their memory would wait for the garbage collector.
    for owner in (zero, engine):
        vars(owner).clear()
    for parameter, names in zip(parameters, known, strict=True):
        for name in vars(parameter).keys() - names:
            delattr(parameter, name)


@contextmanager
def _instead(owner: object, method: str, function: Callable[..., None]) -> Iterator[None]:
    """Have one object's method do something else inside."""
    vars(owner)[method] = function
    try:
        yield
    finally:
        del vars(owner)[method]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep DeepSpeed from telling of every engine what it is made of."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)
