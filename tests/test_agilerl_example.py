"""Scripts written for AgileRL run with the package name, the model and the dataset replaced."""

import copy
import subprocess
import sys
import textwrap

import torch
from datasets import Dataset
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


REASONING_SCRIPT = """
    from agiledpo.algorithms import GRPO
    from agiledpo.llm_envs import ReasoningGym
    from agiledpo.training.train_llm import finetune_llm_reasoning
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("{model}")
    tokenizer = AutoTokenizer.from_pretrained("{model}")
    rows = load_dataset("json", data_files="{data}", split="train").train_test_split(test_size=0.25, seed=42)


    def low_words(completion, answer, question):
        words = [int(word[1:]) for word in completion.split() if word[1:].isdigit()]
        return sum(word < answer for word in words) / max(len(words), 1)


    env = ReasoningGym(
        train_dataset=rows["train"],
        test_dataset=rows["test"],
        tokenizer=tokenizer,
        reward_fn=low_words,
        conversation_template=[
            {{"role": "system", "content": "w7 w8"}},
            {{"role": "user", "content": "w9 {{question}}"}},
        ],
        data_batch_size_per_gpu=3,
        max_context_length=30,
        return_raw_completions=True,
    )
    agent = GRPO(
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        actor_network=model,
        batch_size=6,
        group_size=4,
        max_output_tokens=5,
        lr=1e-3,
        seed=42,
    )
    prompts = env.reset()
    rewards_of_rounds = []
    for _ in range(4):
        completion_ids, action_masks, sampling_logps = agent.get_action(prompts)
        prompts, rewards = env.step(completion_ids)
        experiences = (completion_ids, action_masks, rewards)
        metrics = agent.learn(experiences, sampling_logps=sampling_logps)
        rewards_of_rounds.append(float(rewards.mean()))
        assert abs(metrics["mean_reward"] - rewards_of_rounds[-1]) < 1e-6
        assert rewards.shape == (3, 4)
    print("rounds", len(rewards_of_rounds), "epochs", env.num_epochs, "prompts", agent.steps)
    fitness = agent.test(env)
    finetune_llm_reasoning([agent], env, max_steps=6, evaluation_interval=10)
    print("prompts", agent.steps, "evaluated", len(agent.fitness))
"""


def test_the_loop_of_reasoning_runs(tmp_path, tiny_model, tiny_tokenizer):
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}w5"
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"question": f"w{10 + number} w{{x}}", "answer": 40 + number} for number in range(12)]
    Dataset.from_list(rows).to_json(tmp_path / "questions.jsonl")
    (tmp_path / "script.py").write_text(
        textwrap.dedent(REASONING_SCRIPT).format(model=tmp_path / "model", data=tmp_path / "questions.jsonl")
    )
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "rounds 4 epochs 1 prompts [12]" in result.stdout  # nine training rows
    assert "prompts [18] evaluated 2" in result.stdout
