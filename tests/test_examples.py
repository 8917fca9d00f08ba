"""The notebooks run from top to bottom, on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agiledpo.embedded import model as embedded

EXAMPLES = Path(__file__).parent.parent / "examples"


def code_cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_chain_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(embedded.embedded_model_path(), local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    monkeypatch.setattr(embedded, "load_embedded_model", lambda dtype: (model, tokenizer))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for cell in code_cells(EXAMPLES / "chain.ipynb"):
        smaller = cell.replace("ROWS, HELD_OUT, QUESTIONS = 48, 24, 64", "ROWS, HELD_OUT, QUESTIONS = 8, 6, 8")
        exec(smaller.replace('"max_completion_length": 64', '"max_completion_length": 5'), namespace)
    table = namespace["table"]
    assert list(table) == ["base", "SFT", "DPO", "GRPO"]
    assert all(0 <= found["mean_reward"] <= 1 for found in table.values())
    assert (tmp_path / "runs/chain/grpo/actor/adapter_model.safetensors").is_file()
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("GRPO")
