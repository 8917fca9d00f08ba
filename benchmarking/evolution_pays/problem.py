"""A base model with preference pairs, and what a seed makes of them: splits, order, and agents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import HyperparameterConfig
from agiledpo.embedded.model import MODEL_NAME, load_embedded_model
from agiledpo.embedded.preferences import load_embedded_preferences
from agiledpo.llm_envs import PreferenceGym
from agiledpo.scoring import PreferenceBatch
from benchmarking.evolution_pays.plan import Plan, Point
from benchmarking.evolution_pays.synthetic import make_pairs, make_tiny_model, make_tokenizer
from benchmarking.pairs import COLUMNS, load_rows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """What there is to learn, and by what.

    Attributes:
        model: Name of the base model, for tables.
        dataset: Name of the pairs.
        network: The base model, which all agents of all methods share.
        tokenizer: Its tokenizer.
        rows: The pairs.
        rank: Of the adapters.
        good_lr: Learning rate of the good start.
    """

    model: str
    dataset: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Row]
    rank: int
    good_lr: float

    @staticmethod
    def tiny() -> "Problem":
        """A random tiny model and synthetic pairs, in float32."""
        return Problem("tiny", "synthetic", make_tiny_model(), make_tokenizer(), make_pairs(4000), 4, 1e-2)

    @staticmethod
    def embedded(pairs: Path | None, max_length: int) -> "Problem":
        """The embedded model in bfloat16.

        Args:
            pairs: A file for ``load_rows``; None takes all embedded pairs.
            max_length: Rows with more tokens of prompt and longer completion are left out.
        """
        network, tokenizer = load_embedded_model(torch.bfloat16)
        rows = [row for split in load_embedded_preferences() for row in split] if pairs is None else load_rows(pairs)
        rows = [{column: row[column] for column in COLUMNS} for row in rows if row["chosen"] != row["rejected"]]
        rows = [row for row in rows if tokens(row, tokenizer) <= max_length]
        return Problem(MODEL_NAME, "embedded" if pairs is None else pairs.name, network, tokenizer, rows, 16, 1e-4)


def tokens(row: Row, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the prompt and the longer completion."""
    if isinstance(row["prompt"], str):
        texts = [row["prompt"] + row[side] for side in ("chosen", "rejected")]
    else:
        texts = [
            str(tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False))
            for side in ("chosen", "rejected")
        ]
    return max(len(tokenizer(text)["input_ids"]) for text in texts)


def split(rows: Sequence[Row], *, final: int, selection: int, train: int, seed: int) -> dict[str, list[Row]]:
    """Draw three splits of which no two have a prompt in common.

    Args:
        rows: The pairs.
        final: Pairs of the final split.
        selection: Pairs of the split that methods choose by.
        train: Pairs of the training split, at most.
        seed: Of the draw.

    Raises:
        ValueError: There are not enough pairs for the two held-out splits.
    """
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(str(row["prompt"]), []).append(row)
    groups = list(by_prompt.values())
    order = iter(np.random.default_rng(seed).permutation(len(groups)))
    splits: dict[str, list[Row]] = {}
    for name, size in {"final": final, "selection": selection, "train": train}.items():
        part: list[Row] = []
        while len(part) < size and (place := next(order, None)) is not None:
            part += groups[place]
        splits[name] = part[:size]  # what a prompt has beyond that is left out
        if name != "train" and len(part) < size:
            raise ValueError(f"{len(rows)} pairs are too few for {final} final and {selection} selection pairs.")
    return splits


class CountedDPO(DPO):
    """An agent that counts what it learns from in its place in the population, whoever it is a copy of.

    Attributes:
        pairs_learned: Pairs so far.
    """

    pairs_learned: int = 0

    def learn(self, experiences: Mapping[str, Any] | PreferenceBatch, training: bool = True) -> dict[str, float]:
        """As :meth:`DPO.learn`."""
        metrics = super().learn(experiences, training)
        self.pairs_learned += int(metrics["pairs"]) if training else 0
        return metrics


class Round:
    """What a seed draws, for all methods: the splits, their order, and the adapter that each agent begins with.

    Args:
        problem: Model and pairs.
        plan: The sizes.
        seed: The seed.

    Attributes:
        plan: As given.
        seed: As given.
        env: Training and selection split; a method finds it at its beginning.
        judge: Has the final split, which is kept from ``env``.

    Raises:
        ValueError: There are too few pairs.
    """

    def __init__(self, problem: Problem, plan: Plan, seed: int) -> None:
        self.plan = plan
        self.seed = seed
        self._problem = problem
        rows = split(problem.rows, final=plan.final, selection=plan.selection, train=plan.budget, seed=seed)
        if len(rows["train"]) < plan.pairs_per_agent:
            raise ValueError(
                f"{len(problem.rows)} pairs of {problem.dataset} leave {len(rows['train'])} to learn from, but an "
                f"agent is to learn from {plan.pairs_per_agent}. Lower --held-out or --pairs-per-agent."
            )
        train, selection, final = (Dataset.from_list(list(rows[name])) for name in ("train", "selection", "final"))
        self.env = PreferenceGym(train, selection, problem.tokenizer, plan.batch_size, seed=seed)
        self.judge = PreferenceGym(train, selection, problem.tokenizer, plan.batch_size, seed=seed, final_dataset=final)
        self._beginning = self.env.state_dict()
        self._agents: list[CountedDPO] = []
        self._learned_by_released = 0

    def agent(self, number: int, point: Point, hp_config: HyperparameterConfig | None = None) -> CountedDPO:
        """Make an agent.

        Args:
            number: Its index; the initialisation is a function of it and of the seed.
            point: Its hyperparameters.
            hp_config: What mutation may change.
        """
        agent = CountedDPO(
            actor_network=self._problem.network,
            index=number,
            seed=1000 * self.seed + number,
            hp_config=hp_config,
            lora_config=LoraConfig(
                r=self._problem.rank,
                lora_alpha=2 * self._problem.rank,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            use_separate_reference_adapter=False,
            batch_size=self.plan.batch_size,
            lr=point.lr,
            beta=point.beta,
            nll_alpha=0.0,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
        )
        self._agents.append(agent)
        return agent

    @property
    def pairs_learned(self) -> int:
        """Pairs that agents have learned from since :meth:`begin`."""
        return self._learned_by_released + sum(agent.pairs_learned for agent in self._agents)

    def release(self, agent: CountedDPO) -> None:
        """Free what an agent holds."""
        self._agents.remove(agent)
        self._learned_by_released += agent.pairs_learned
        agent.clean_up()

    def rewind(self) -> None:
        """Go back to the first batch."""
        self.env.load_state_dict(self._beginning)

    def begin(self) -> None:
        """Remove all agents and go back to the first batch."""
        for agent in list(self._agents):
            self.release(agent)
        self._learned_by_released = 0
        self.rewind()

    def score_reference(self) -> None:
        """Score all pairs under the reference, so that no method pays for what all share."""
        agent = self.agent(0, Point(1e-4, 0.1))
        agent.precompute_reference(self.judge, verbose=False)
        self.begin()
