"""docs/monitoring.md: its example runs, and its table has every name that runs write."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from agiledpo.algorithms import DPO, GRPO, SFT
from agiledpo.hpo import TournamentSelection
from agiledpo.llm_envs import SFTGym
from agiledpo.training.train_llm import finetune_llm_preference, finetune_llm_reasoning, finetune_llm_sft

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"


def code_of(section: str) -> list[str]:
    text = PAGE.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_observer_of_the_page_notes_the_winners(make_env, tiny_model, lora):
    agents = DPO.population(2, actor_network=tiny_model(), lora_config=lora, batch_size=4)
    names = {"agents": agents, "env": make_env(), "finetune_llm_preference": finetune_llm_preference}
    for code in code_of("Your own observer"):
        exec(code, names)
    notes = names["winners"].notes
    assert [rows for rows, _, _ in notes] == [24]
    best = max(agents, key=lambda agent: agent.fitness[-1])
    assert notes[0][2] == best.fitness[-1]


def first_column(heading: str) -> list[str]:
    """The names in the first column of a table."""
    rows = PAGE.read_text().split(f"| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`(.*?)`", row.split("|")[1])]


def documented(hyperparameters: Iterable[str]) -> list[re.Pattern[str]]:
    """All names of the first table, with those of the second where it says so."""
    alternatives = {
        "<i>": r"\d+",
        "<name>": r"[^_]+",
        "<metric>": "|".join(map(re.escape, [*first_column("Metric"), "accuracy"])),
        "<hyperparameter>": "|".join(hyperparameters),
    }
    return [
        re.compile("".join(f"(?:{alternatives[part]})" if part in alternatives else re.escape(part) for part in parts))
        for parts in (re.split(r"(<\w+>)", name) for name in first_column("Name"))
    ]


@pytest.mark.parametrize("algorithm", ["dpo", "sft", "grpo"])
def test_every_name_is_in_the_table(
    make_env, make_pairs, make_reasoning_env, tiny_tokenizer, tiny_model, lora, tmp_path, algorithm
):
    path, common = tmp_path / "metrics.jsonl", {"actor_network": tiny_model(), "lora_config": lora}
    options = {"log_path": path, "verbose": False, "max_steps": 4}
    if algorithm == "dpo":
        evolution = {"evo_steps": 1, "tournament": TournamentSelection(2, True, 2, rand_seed=1)}
        env = make_env(final_dataset=make_pairs(5, seed=3), validation_datasets={"other": make_pairs(5, seed=4)})
        finetune_llm_preference(DPO.population(2, **common), env, **evolution, **options)
        hyperparameters = DPO.HYPERPARAMETERS
    elif algorithm == "sft":
        rows = make_pairs(8).rename_column("chosen", "completion").remove_columns("rejected")
        env = SFTGym(rows, rows, tiny_tokenizer, data_batch_size_per_gpu=4)
        finetune_llm_sft([SFT(**common)], env, **options)
        hyperparameters = SFT.HYPERPARAMETERS
    else:
        agent = GRPO(**common, group_size=2, max_output_tokens=4, batch_size=2)
        finetune_llm_reasoning([agent], make_reasoning_env(), **options)
        hyperparameters = GRPO.HYPERPARAMETERS
    names = {name for line in path.read_text().splitlines() for name in json.loads(line)} - {"step"}
    patterns = documented(hyperparameters)
    assert sorted(name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)) == []
