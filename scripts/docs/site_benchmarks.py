"""A page for each result in benchmarking/results, as its script wrote it, with what that script says of itself."""

import ast
from pathlib import Path
from textwrap import indent

# Pages in the order of the README; others come behind, by name.
_ORDER = ("compare_peers", "population_memory", "scaling", "precision", "evolution_pays", "chain")


def benchmark_pages(root: Path) -> dict[str, str]:
    """The pages by their path under docs/: the text of ``benchmarking/results/<name>.md`` below how it is measured.

    Raises:
        FileNotFoundError: A result has no script ``benchmarking/<name>.py`` or package of that name.
    """
    results = {path.stem: path for path in sorted((root / "benchmarking" / "results").glob("*.md"))}
    names = [name for name in _ORDER if name in results] + [name for name in results if name not in _ORDER]
    return {f"benchmarks/{name}.md": _page(root, name, results[name].read_text()) for name in names}


def benchmark_pictures(root: Path) -> dict[str, Path]:
    """The files of the results' pictures, by their path under docs/."""
    return {f"benchmarks/{path.name}": path for path in sorted((root / "benchmarking" / "results").glob("*.png"))}


def _page(root: Path, name: str, result: str) -> str:
    title, _, rest = result.partition("\n")
    method = indent(_description(root, name), "    ")
    return f'{title}\n\n??? info "How it is measured, and how to measure it again"\n{method}\n\n{rest}'


def _description(root: Path, name: str) -> str:
    folder = root / "benchmarking"
    package = folder / name / "__main__.py"
    script = package if package.is_file() else folder / f"{name}.py"
    text = ast.get_docstring(ast.parse(script.read_text()))
    if text is None:
        raise ValueError(f"{script} has no docstring; write there what is measured and how to run it.")
    return text.replace(":mod:", "")
