"""Execute notebooks in place: ``python scripts/execute_notebooks.py examples/*.ipynb``.

A notebook has a cell tagged ``parameters``. Other values for them go into a cell behind it, which is not saved:
``--set MODEL=/some/model``. Saved with the outputs is a digest of the code that made them, by which a test finds
notebooks that were edited and not executed again.
"""

import argparse
import ast
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

DIGEST = "code_sha256"
_SHOWN = ("display_data", "execute_result")


def execute(
    notebook: NotebookNode, directory: Path, parameters: Mapping[str, object] | None = None, *, timeout: int = 1800
) -> NotebookNode:
    """Run a notebook in a kernel of its own, offline.

    Args:
        notebook: The notebook; it is not changed.
        directory: Where the kernel works.
        parameters: Values that replace those of the cell tagged ``parameters``.
        timeout: Most seconds for a cell.

    Returns:
        The notebook with its outputs, and with the cell of parameters where there are any.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    run = nbformat.from_dict(notebook)
    if parameters:
        place = next(n for n, cell in enumerate(run.cells) if "parameters" in cell.metadata.get("tags", ()))
        code = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        run.cells.insert(place + 1, nbformat.v4.new_code_cell(code))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    client = NotebookClient(run, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": directory}})
    client.execute(env=environment)
    return run


def code_digest(notebook: NotebookNode) -> str:
    """SHA-256 over the code of a notebook."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def tidy(notebook: NotebookNode, directory: Path) -> NotebookNode:
    """Leave what a notebook shows: no progress bars and warnings, no paths of this machine, no times of execution.

    Args:
        notebook: An executed notebook; it is changed.
        directory: Where it was executed.

    Returns:
        The notebook.
    """
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            kept = [output for output in cell.outputs if _is_shown(output)]
            for output in kept:
                if output.output_type == "stream":
                    output.text = _without_paths(output.text, directory)
                elif "text/plain" in output.data:
                    output.data["text/plain"] = _without_paths(output.data["text/plain"], directory)
            cell.outputs = kept
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            DIGEST: code_digest(notebook),
        }
    )
    return notebook


def _is_shown(output: Any) -> bool:
    if output.output_type == "stream":
        return output.name == "stdout"
    # Widgets are live; of a display that was updated in place nothing can be said afterwards.
    return output.output_type in _SHOWN and "application/vnd.jupyter.widget-view+json" not in output.data


def _without_paths(text: str, directory: Path) -> str:
    return text.replace(f"{directory}/", "").replace(str(Path.home()), "~")


def main(arguments: Sequence[str] | None = None) -> None:
    """Execute the notebooks that are named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a parameter")
    options = parser.parse_args(arguments)
    parameters = dict(_parameter(given) for given in options.set)
    for path in options.notebooks:
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as directory:
            run = execute(notebook, Path(directory), parameters)
            if parameters:
                run.cells = [cell for cell in run.cells if cell.id in {kept.id for kept in notebook.cells}]
            nbformat.write(tidy(run, Path(directory)), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def _parameter(given: str) -> tuple[str, object]:
    name, _, value = given.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


if __name__ == "__main__":
    main()
