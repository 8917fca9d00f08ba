"""A page of the API reference for each package: its exports, then those of its modules that users import from."""

import ast
import re
from pathlib import Path

# Modules whose public names are documented too, since they are imported from there.
MODULES = {
    "agiledpo.algorithms": (
        "agiledpo.algorithms.core.registry",
        "agiledpo.algorithms.core.domains",
        "agiledpo.algorithms.core.llm",
        "agiledpo.algorithms.core.evolvable",
        "agiledpo.algorithms.metrics",
        "agiledpo.algorithms.policy_metrics",
        "agiledpo.algorithms.fitness",
        "agiledpo.algorithms.self_distillation",
        "agiledpo.algorithms.precomputed",
    ),
    "agiledpo.data": ("agiledpo.data.rollouts", "agiledpo.data.trajectories", "agiledpo.data.checks"),
    "agiledpo.distributed": (
        "agiledpo.distributed.team",
        "agiledpo.distributed.parallel",
        "agiledpo.distributed.memory",
        "agiledpo.distributed.launch_check",
    ),
    "agiledpo.embedded": (
        "agiledpo.embedded.model",
        "agiledpo.embedded.preferences",
        "agiledpo.embedded.rule",
        "agiledpo.embedded.sampling",
        "agiledpo.embedded.measure",
    ),
    "agiledpo.generation": ("agiledpo.generation.privileged",),
    "agiledpo.hpo": ("agiledpo.hpo.records",),
    "agiledpo.launch": ("agiledpo.launch.train", "agiledpo.launch.directory"),
    "agiledpo.training": (
        "agiledpo.training.population",
        "agiledpo.training.observer",
        "agiledpo.training.recorder",
        "agiledpo.training.metrics_log",
        "agiledpo.training.samples",
        "agiledpo.training.trackers",
    ),
    "agiledpo.utils": ("agiledpo.utils.utils",),
}

# Packages in the order in which a user meets them; others come behind, by name.
_ORDER = ("algorithms", "llm_envs", "training", "hpo", "data", "losses", "generation", "checkpoint")


def reference_pages(root: Path) -> dict[str, str]:
    """The pages by their path under docs/."""
    names = [path.parent.name for path in sorted((root / "agiledpo").glob("*/__init__.py"))]
    ordered = [name for name in _ORDER if name in names] + [name for name in names if name not in _ORDER]
    pages = {f"reference/{name}.md": _page(root, f"agiledpo.{name}") for name in ordered if name != "cli"}
    return {"reference/index.md": _index(root, ordered)} | pages


def exports(root: Path, module: str) -> list[str]:
    """The names in a module's ``__all__``; without one, none."""
    tree = ast.parse(_source(root, module).read_text())
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == ["__all__"]:
            return list(ast.literal_eval(statement.value))
    return []


def _source(root: Path, module: str) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _summary(root: Path, module: str) -> str:
    line = (ast.get_docstring(ast.parse(_source(root, module).read_text())) or "").partition("\n")[0]
    return re.sub(r":[a-z]+:(?=`)", "", line)


def _page(root: Path, package: str) -> str:
    title = package.removeprefix("agiledpo.")
    lines = [f"---\ntitle: {title}\n---", f"# `{package}`", _summary(root, package)]
    names = exports(root, package)
    lines += [f"::: {package}.{name}" for name in names]
    for module in MODULES.get(package, ()):
        lines += [f"## `{module}`", _summary(root, module)]
        inside = exports(root, module)
        lines += [f"::: {module}.{name}\n    options:\n      heading_level: 3" for name in inside]
        if not inside:
            lines += [f"::: {module}\n    options:\n      show_root_heading: false\n      heading_level: 2"]
    return "\n\n".join(lines) + "\n"


def _index(root: Path, names: list[str]) -> str:
    rows = [
        f"| [`agiledpo.{name}`]({name}.md) | {_summary(root, f'agiledpo.{name}')} |" for name in names if name != "cli"
    ]
    return "\n".join(["# API reference", "", "| package | |", "| --- | --- |", *rows, ""])
