"""A loop written for AgileRL's ReasoningGym and GRPO runs with the package name, model and dataset replaced."""

import copy
import subprocess
import sys
import textwrap

from datasets import Dataset

SCRIPT = """
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
        textwrap.dedent(SCRIPT).format(model=tmp_path / "model", data=tmp_path / "questions.jsonl")
    )
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "rounds 4 epochs 1 prompts [12]" in result.stdout  # nine training rows
    assert "prompts [18] evaluated 2" in result.stdout
