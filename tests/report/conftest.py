"""Directories of real runs of tiny models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agiledpo.algorithms import DPO, GRPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.hpo import Mutations, TournamentSelection
from agiledpo.llm_envs import PreferenceGym, ReasoningGym
from agiledpo.training.samples import Samples
from agiledpo.training.train_llm import finetune_llm_preference, finetune_llm_reasoning

CONFIG = """\
model:
  name: tiny
lr: 0.01
lora:
  r: 4
"""
ABOUT = """\
{"algorithm": "dpo", "command": "agiledpo train dpo", "started": "2026-11-22T10:00:00+00:00", "ended": null,
 "seconds": 83.4, "status": "running", "error": null, "model": {"name": "tiny", "parameters": 12345}, "data": {},
 "machine": {"cpu": "some cpu", "cores": 2}, "versions": {"torch": "2.13"}, "processes": 1}
"""


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that have been made already in this process; tests only read them."""
    return {"": tmp_path_factory.mktemp("runs")}


def _files(run: Path, env: Any) -> dict[str, Any]:
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG)
    (run / "about.json").write_text(ABOUT)
    return {
        "lineage_path": run / "lineage.jsonl",
        "log_path": run / "metrics.jsonl",
        "observers": [Samples(run / "samples.jsonl", env, count=2, max_new_tokens=6)],
        "verbose": False,
    }


@pytest.fixture
def population_run(kept, tiny_model, lora, tiny_tokenizer, make_pairs) -> Path:
    """Three DPO agents over four generations, with validation and final split."""
    if "population" not in kept:
        env = PreferenceGym(
            make_pairs(16),
            make_pairs(9, seed=1),
            tiny_tokenizer,
            4,
            final_dataset=make_pairs(7, seed=2),
            validation_datasets={"other": make_pairs(5, seed=3)},
        )
        evolving = HyperparameterConfig(
            lr=RLParameter(min=1e-6, max=1e-1, shrink_factor=0.5, grow_factor=2.0),
            beta=RLParameter(min=0.03, max=1.0, shrink_factor=0.7, grow_factor=1.5),
        )
        agents = DPO.population(
            3, actor_network=tiny_model(), lora_config=lora, lr=1e-2, nll_alpha=0.0, batch_size=4, hp_config=evolving
        )
        agents[0].lr = 1e-5
        run = kept[""] / "population"
        finetune_llm_preference(
            agents,
            env,
            max_steps=32,
            evo_steps=2,
            tournament=TournamentSelection(2, True, 3, rand_seed=1),
            mutation=Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=1),
            **_files(run, env),
        )
        kept["population"] = run
    return kept["population"]


@pytest.fixture
def grpo_run(kept, tiny_model, lora, tiny_tokenizer, make_pairs) -> Path:
    """One GRPO agent, rewarded for short completions."""
    if "grpo" not in kept:
        questions = [make_pairs(6, seed=seed).select_columns("prompt") for seed in (0, 1)]
        train, test = (rows.add_column("answer", ["w4"] * 6) for rows in questions)

        def short(completion: str, answer: str, question: str) -> float:
            return -len(completion.split()) / 4

        env = ReasoningGym(train, test, tiny_tokenizer, short, data_batch_size_per_gpu=3)
        agents = GRPO.population(
            1, actor_network=tiny_model(), lora_config=lora, lr=1e-2, group_size=2, max_output_tokens=4, batch_size=3
        )
        run = kept[""] / "grpo"
        finetune_llm_reasoning(agents, env, max_steps=6, evaluation_interval=1, **_files(run, env))
        (run / "about.json").unlink()
        kept["grpo"] = run
    return kept["grpo"]


@pytest.fixture
def copied(tmp_path) -> Callable[..., Path]:
    """Copy some files of a run, so that they can be damaged: ``copied(run, "metrics.jsonl")``; all by default."""

    def copy(run: Path, *files: str, name: str = "copy") -> Path:
        place = tmp_path / name
        place.mkdir()
        for file in files or [each.name for each in run.iterdir() if each.name != "report.html"]:
            (place / file).write_bytes((run / file).read_bytes())
        return place

    return copy
