"""Functions that a configuration names: rewards and fitness."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def load_function(path: str, parameter: str) -> Callable[..., Any]:
    """The function that ``module:function`` or ``file.py:function`` names.

    Args:
        path: The path.
        parameter: What it was given for, for messages.

    Raises:
        ValueError: There is no such module, file or function, or it cannot be imported.
    """
    where, colon, name = path.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(
            f"{parameter}={path!r} names no function; write {parameter}=module:function or "
            f"{parameter}=file.py:function."
        )
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(
            f"{parameter}={path!r}: {where} cannot be imported ({type(error).__name__}: {error})."
        ) from error
    functions = vars(module)
    if not callable(functions.get(name)):
        own = [key for key, value in functions.items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{parameter}={path!r}: {where} has no function {name!r}. It has {', '.join(own) or 'none'}.")
    return functions[name]  # type: ignore[no-any-return]


def load_rewards(paths: str | Sequence[str] | Mapping[str, str]) -> Any:
    """What ``reward`` names, as ``ReasoningGym`` takes it.

    Args:
        paths: One function, or several in order or by name.

    Raises:
        ValueError: One cannot be had.
    """
    if isinstance(paths, str):
        return load_function(paths, "reward")
    if isinstance(paths, Mapping):
        return {name: load_function(path, f"reward.{name}") for name, path in paths.items()}
    return [load_function(path, "reward") for path in paths]


def _from_file(file: Path) -> Any:
    """The module of a file, which a second function of the same file does not run again."""
    name = f"agiledpo_user_{file.resolve().as_posix().replace('/', '_').removesuffix('.py')}"
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
