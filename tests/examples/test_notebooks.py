"""The notebooks run from top to bottom on a tiny model, and show what their code showed when it was run."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import torch
from jupyter_client.manager import KernelManager
from nbformat import NotebookNode
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agiledpo.embedded.model import embedded_model_path
from scripts.execute_notebooks import DIGEST, KERNEL, code_digest, environment, execute

EXAMPLES = Path(__file__).parents[2] / "examples"
# What makes each notebook small: values of its cell of parameters, and the files it leaves.
SMALL = {
    "first_dpo_run": (
        {"PAIRS": 12, "TEST_PAIRS": 9, "MAX_NEW_TOKENS": 5},
        ["runs/first/agent/actor/adapter_config.json"],
    ),
    "population_and_tournament": (
        {"AGENTS": 2, "GENERATIONS": 2, "BATCH": 4, "TEST_PAIRS": 4, "FINAL_PAIRS": 4},
        ["runs/population/elite/actor/adapter_model.safetensors", "runs/population/family_tree.png"],
    ),
    "sft_to_dpo_to_grpo": (
        {"ROWS": 8, "HELD_OUT": 6, "QUESTIONS": 8, "MAX_NEW_TOKENS": 5},
        [f"runs/chain/{stage}/actor/adapter_model.safetensors" for stage in ("sft", "dpo", "grpo")],
    ),
    "your_own_data": ({}, ["data/pairs.jsonl"]),
    "coming_from_agilerl": ({"PAIRS": 10, "BATCH": 4}, ["path/to/checkpoint/actor/adapter_config.json"]),
    "coming_from_trl": ({"STEPS": 2, "BATCH": 2}, ["runs/trl/from_trl/adapter_model.safetensors"]),
}


def read(name: str) -> NotebookNode:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def tiny_chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama that is small in everything but the embedded model's vocabulary."""
    directory = str(tmp_path_factory.mktemp("model"))
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path(), local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all: each would need ten seconds for the same imports."""
    manager = KernelManager(kernel_name=KERNEL)
    manager.start_kernel(env=environment() | {"OMP_NUM_THREADS": "1"})
    yield manager
    manager.shutdown_kernel(now=True)


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_the_notebook_runs(name: str, tiny_chat_model: str, kernel: KernelManager, tmp_path: Path) -> None:
    parameters, files = SMALL[name]
    run = execute(read(name), tmp_path, {"MODEL": tiny_chat_model, **parameters}, kernel=kernel, timeout=120)
    assert all(cell.execution_count for cell in code_cells(run))
    assert [file for file in files if not (tmp_path / file).is_file()] == []


@pytest.mark.parametrize("name", SMALL)
def test_the_notebook_shows_what_its_code_showed(name: str) -> None:
    notebook = read(name)
    assert notebook.metadata.get(DIGEST) == code_digest(notebook), (
        f"{name}.ipynb was edited and not executed again: python scripts/execute_notebooks.py examples/{name}.ipynb"
    )
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) >= 4
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert "stderr" not in {output.get("name") for output in outputs}
    shown = "".join(str(output) for output in outputs)
    assert [place for place in ("/tmp/", "/home/", "/root/", "/work/", "/Users/") if place in shown] == []


@pytest.mark.parametrize("name", SMALL)
def test_the_notebook_tells_a_story(name: str) -> None:
    notebook = read(name)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "## Where to go next" in last.source
    parameters = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", ())]
    assert [cell.source.startswith('MODEL = "embedded"') for cell in parameters] == [True]
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < 300_000
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    links = [part.split(")")[0] for text in texts for part in text.split("](")[1:]]
    assert links
    assert [link for link in links if not link.startswith("http") and not (EXAMPLES / link).is_file()] == []
