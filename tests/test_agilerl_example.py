"""A script written for AgileRL runs with the package name, the model and the dataset replaced."""

import subprocess
import sys
import textwrap

import torch
from peft import PeftModel

SCRIPT = """
    from agiledpo.algorithms import DPO
    from agiledpo.llm_envs import PreferenceGym
    from accelerate import Accelerator
    from datasets import load_dataset
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    import torch

    model = AutoModelForCausalLM.from_pretrained("{model}", torch_dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained("{model}")
    accelerator = Accelerator()

    raw_dataset = load_dataset("json", data_files="{data}", split="train").shuffle(seed=42)
    train_test_split = raw_dataset.train_test_split(test_size=0.1)
    train_dataset = train_test_split["train"]
    test_dataset = train_test_split["test"]

    env = PreferenceGym(
        train_dataset=train_dataset,
        test_dataset=test_dataset,
        tokenizer=tokenizer,
        data_batch_size_per_gpu=16,
        accelerator=accelerator,
    )
    agent = DPO(
        env.observation_space,
        env.action_space,
        actor_network=model,
        pad_token_id=tokenizer.eos_token_id,
        pad_token=tokenizer.eos_token,
        device="cuda" if torch.cuda.is_available() else "cpu",
        batch_size=32,
        lr=0.000005,
        beta=0.001,
        update_epochs=1,
        seed=42,
        accelerator=accelerator,
    )

    from agiledpo.training.train_llm import finetune_llm_preference

    finetune_llm_preference(
        [agent],
        env,
        num_epochs=1,
        checkpoint_steps=250,
        accelerator=accelerator,
    )

    from agiledpo.utils.utils import save_llm_checkpoint

    save_llm_checkpoint(agent, "path/to/checkpoint")
    steps = {{int(state["step"]) for state in agent.optimizer.state.values()}}
    print("optimizer steps", steps, "pairs", agent.steps)
"""


def test_the_page_runs(tmp_path, tiny_model, tiny_tokenizer, make_pairs):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    make_pairs(80).to_json(tmp_path / "pairs.jsonl")
    (tmp_path / "script.py").write_text(
        textwrap.dedent(SCRIPT).format(model=tmp_path / "model", data=tmp_path / "pairs.jsonl")
    )
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "optimizer steps {3} pairs [72]" in result.stdout  # 32 + 32 + 8
    for saved in ("saved_checkpoints/step_72/agents/agent_0", "path/to/checkpoint"):
        base = tiny_model().to(torch.bfloat16)
        assert PeftModel.from_pretrained(base, tmp_path / saved / "actor")
