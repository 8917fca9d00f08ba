"""What ranks do that answer prompts and learn from their answers."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset

from agiledpo.algorithms import DPO, GRPO
from agiledpo.algorithms.self_distillation import self_distillation
from agiledpo.data.trajectories import Step, Trajectory, TrajectoryGroup
from agiledpo.distributed.team import Team
from agiledpo.generation import VLLMGenerator
from agiledpo.generation.privileged import privileged_prompts
from agiledpo.llm_envs import ReasoningGym
from agiledpo.scoring import QuestionBatch, RolloutBatch
from agiledpo.training.train_llm import finetune_llm_online_preference, finetune_llm_reasoning
from tests.distributed import work
from tests.distributed.words import low_words, tokenizer

_OBJECTIVES: Sequence[Mapping[str, Any]] = (
    {"beta": 0.2},
    {"beta": 0.0, "loss_type": "gspo", "prefix_sharing": False},
    {"beta": 0.1, "loss_type": "cispo", "loss_normalization": "token", "filter_zero_adv": True},
)
_FEW_TOKENS = {"group_size": 3, "max_completion_length": 5, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


class BrokenRewardError(Exception):
    """Of a kind that cannot be made again of its message alone, as many libraries' errors."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)


def grpo(handle: Accelerator | None, **settings: Any) -> GRPO:
    """An agent on a tiny model."""
    made = {"lr": 1e-2, "batch_size": 6, "micro_batch_size_per_gpu": 2, "max_grad_norm": 0.5, **_FEW_TOKENS}
    return GRPO(actor_network=work.model(), lora_config=work.lora(), accelerator=handle, **{**made, **settings})


def rollouts(sizes: Sequence[int], seed: int) -> RolloutBatch:
    """Judged completions of random tokens, a group of each size; every third group has no spread in its rewards."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> torch.Tensor:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, work.VOCABULARY, (length,), generator=generator)

    completions = [[ids(1, 7) for _ in range(size)] for size in sizes]
    rewards = [torch.rand(size, generator=generator).tolist() for size in sizes]
    return RolloutBatch(
        prompts=[ids(1, 12) for _ in sizes],
        completions=completions,
        rewards=[[0.5] * len(group) if place % 3 == 2 else group for place, group in enumerate(rewards)],
        advantages=[None] * len(sizes),
        sampling_logps=[None] * len(sizes),
        finished=[[True] * size for size in sizes],
        labels=[f"row {place}" for place in range(len(sizes))],
    )


def trajectories() -> list[TrajectoryGroup]:
    """Two groups: one whose steps bring advantages, and one that is compared by rewards."""
    given = rollouts([3, 3], seed=17)
    groups = []
    for place, completions in enumerate(given.completions):
        prompt = given.prompts[place].tolist()
        steps = [
            Step(prompt, ids.tolist(), advantage=0.5 - number if place == 0 else None)
            for number, ids in enumerate(completions)
        ]
        attempts = [Trajectory([step], reward) for step, reward in zip(steps, given.rewards[place], strict=True)]
        groups.append(TrajectoryGroup.named(f"task-{place}:solver", attempts))
    return groups


def curves(parallel: bool = True, objectives: int = len(_OBJECTIVES)) -> list[Mapping[str, Any]]:
    """Learn from the same rollouts under several objectives; then the metrics of each call, weights, a measurement."""
    return _curves(work.accelerator() if parallel else None, objectives)


def sharded() -> dict[str, Any]:
    """Learning on a sharded base, and what is said where an agent would have to answer prompts on it."""
    handle = work.accelerator()
    env, agent, said = gym(handle), grpo(handle), []
    pairs = work.dpo(handle, reference_cache=None)
    few = {"max_steps": 4, "verbose": False, "accelerator": handle}
    for act in (
        lambda: finetune_llm_reasoning([agent], env, **few),
        lambda: finetune_llm_online_preference([pairs], env, **_FEW_TOKENS, **few),
        lambda: agent.roll_out(env.reset(), env),
    ):
        try:
            act()
        except ValueError as error:
            said.append(str(error))
    return {"said": said, "curve": _curves(handle, 1)[0]}


def _curves(handle: Accelerator | None, objectives: int) -> list[Mapping[str, Any]]:
    found = []
    for settings in _OBJECTIVES[:objectives]:
        agent = grpo(handle, update_epochs=2, **settings)
        # Groups larger than a process's share, several steps in a call, and at last fewer completions than processes.
        metrics = [agent.learn(rollouts(sizes, seed)) for seed, sizes in enumerate([[3, 2, 4, 3], [7], [3, 5], [2]])]
        metrics.append(agent.learn(trajectories()))
        for told in metrics:
            del told["tokens_per_second"]
        measured = agent.learn(rollouts([3, 2, 4], seed=99), training=False)
        found.append(
            {
                "metrics": [_known(told) for told in metrics],
                "weights": work.weights(agent),
                "measured": measured,
                "steps": agent.optimizer_steps,
            }
        )
    return found


def _known(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value == value}


def gym(handle: Accelerator | None, reward: Any = low_words, *, rows: int = 6, batch: int = 2) -> ReasoningGym:
    """Prompts of one to five words, in batches of ``batch`` for each process."""
    generator = torch.Generator().manual_seed(5)
    texts = [
        " ".join(f"w{i}" for i in torch.randint(4, work.VOCABULARY, (1 + row % 5,), generator=generator).tolist())
        for row in range(2 * rows)
    ]
    train, test = (
        Dataset.from_list([{"prompt": text, "answer": "w4"} for text in part]) for part in (texts[:rows], texts[rows:])
    )
    return ReasoningGym(train, test, tokenizer(), reward, data_batch_size_per_gpu=batch, accelerator=handle)


def _told(batch: RolloutBatch) -> dict[str, Any]:
    return {
        "labels": list(batch.labels),
        "prompts": [prompt.tolist() for prompt in batch.prompts],
        "completions": [[ids.tolist() for ids in group] for group in batch.completions],
        "rewards": [list(group) for group in batch.rewards],
        "finished": [list(group) for group in batch.finished],
        "logps": [[values.tolist() for values in group or ()] for group in batch.sampling_logps],
    }


def one_question() -> dict[str, Any]:
    """A rollout that only one process has something to do for."""
    handle = work.accelerator()
    judged: list[str] = []

    def reward(completion: str, answer: str, question: str) -> float:
        judged.append(completion)
        return 1.0

    env, agent = gym(handle, reward), grpo(handle)
    questions = QuestionBatch.from_experiences(env.reset()).slice(0, 1)
    found = {"first": _told(agent.roll_out(questions, env)), "judged here": len(judged)}
    return found | {"stream": agent.sampling_stream.state_dict()["states"][0]}


def answers(parallel: bool = True) -> dict[str, Any]:
    """Everything by which an agent answers prompts, and what it leaves of the agent's stream of draws."""
    handle = work.accelerator() if parallel else None
    judged: list[str] = []

    def reward(completion: str, answer: str, question: str) -> float:
        judged.append(completion)
        return low_words(completion, answer, question)

    env = gym(handle, reward, batch=6)
    questions = QuestionBatch.from_experiences(env.reset()).slice(0, 5)
    agent, twin = grpo(handle), grpo(handle)
    agent.learn(rollouts([3, 4], seed=0)), twin.learn(rollouts([3, 4], seed=0))  # away from the base
    found: dict[str, Any] = {"first": _told(agent.roll_out(questions, env)), "judged here": len(judged)}
    found["next"] = _told(agent.roll_out(questions, env))
    found["one prompt twice"] = _told(agent.roll_out(questions.select([0, 0]), env))["completions"]
    found["twin's first"] = _told(twin.roll_out(questions, env))
    before = agent.sampling_stream.state_dict()["states"][0]
    measured = agent.measure(env)
    found["measured"] = measured.metrics | {"error": measured.fitness("reward").error}
    found["measuring draws"] = not agent.sampling_stream.state_dict()["states"][0].equal(before)
    agent.temperature, agent.eval_temperature = 1.0, 0.0
    shown = env.next_batch()
    acted = agent.get_action(shown, training=False)
    found["greedy"] = [ids.tolist() for ids in acted.completion_ids]
    judged.clear()
    found["step"] = env.step(acted.completion_ids, acted.action_masks)[1].tolist()
    found["judged in step"] = len(judged)
    hinted = self_distillation(
        lambda agent, questions, env: rollouts_of(questions),
        privileged_prompts(lambda question, answer: f"{question} {answer} w7"),
    )
    found["distilled"] = hinted(agent, questions, env).advantages
    found["stream"] = agent.sampling_stream.state_dict()["states"][0]
    return found


def rollouts_of(questions: QuestionBatch) -> RolloutBatch:
    """Completions that follow from the prompts alone."""
    groups = [[torch.roll(prompt, number) % 90 + 4 + number for number in range(3)] for prompt in questions.prompts]
    return RolloutBatch(
        prompts=questions.prompts,
        completions=groups,
        rewards=[[float(int(ids.sum()) % 7) for ids in group] for group in groups],
        advantages=[None] * len(groups),
        sampling_logps=[None] * len(groups),
        finished=[[True] * len(group) for group in groups],
        labels=questions.labels,
    )


def broken() -> list[Any]:
    """A reward that fails in rank 1 alone: what each process is told, and whether the environment's place stays."""
    handle = work.accelerator()

    def reward(completion: str, answer: str, question: str) -> float:
        if os.environ["RANK"] == "1":
            raise BrokenRewardError(reason="the judge's line is cut")
        return 0.0

    env, agent = gym(handle, reward), grpo(handle)
    shown = env.reset()
    found = []
    place = env.state_dict()
    acts = (
        lambda: agent.roll_out(shown, env),
        lambda: agent.measure(env),
        lambda: env.step(agent.get_action(shown).completion_ids),
    )
    for act in acts:
        try:
            act()
        except Exception as error:
            found.append((type(error).__name__, str(error), getattr(error, "__notes__", [])))
    found.append(env.state_dict() == place)
    try:
        agent.team.all_do(lambda: reward("", "", ""))
    except Exception as error:
        found.append((type(error).__name__, str(error)))
    agent.learn(rollouts([3, 3], seed=1))  # nobody waits for anybody
    found.append(work.weights(agent))
    return found


def trained_in_all_ways() -> dict[str, Any]:
    """Of several ranks, :func:`trained` one way after the other."""
    handle = work.accelerator()
    return {way: trained(handle, way) for way in ("grpo", "replayed", "dpo")}


def trained(handle: Accelerator | None, way: str) -> dict[str, Any]:
    """A run of two agents over two epochs.

    Args:
        handle: Accelerate's handle; None for a process of its own.
        way: ``"grpo"``; ``"replayed"``: GRPO from rollouts that nobody draws; ``"dpo"``: online preference learning.
    """
    env = gym(handle, rows=6, batch=6 // Team.of(handle).size)
    shared = {"actor_network": work.model(), "lora_config": work.lora(), "accelerator": handle, "lr": 1e-2}
    told = {"num_epochs": 2, "evaluation_interval": 1, "verbose": False, "accelerator": handle}
    agents: Sequence[Any]
    if way == "dpo":
        agents = DPO.population(2, batch_size=4, reference_cache=None, nll_alpha=0.0, **shared)
        population, fitness = finetune_llm_online_preference(agents, env, **_FEW_TOKENS, **told)
    else:
        agents = GRPO.population(2, batch_size=9, micro_batch_size_per_gpu=4, update_epochs=2, **shared, **_FEW_TOKENS)
        replayed = None if way == "grpo" else (lambda agent, questions, env: rollouts_of(questions))
        population, fitness = finetune_llm_reasoning(agents, env, rollout=replayed, **told)
    return {
        "weights": [work.weights(agent) for agent in population],
        "fitness": fitness,
        "steps": [agent.optimizer_steps for agent in population],
        "streams": [agent.sampling_stream.state_dict()["states"][0] for agent in population],
    }


def drawn_by_each() -> str:
    """A rollout of the user's that draws in each process by itself."""
    handle = work.accelerator()

    def rollout(agent: GRPO, questions: QuestionBatch, env: Any) -> RolloutBatch:
        made = rollouts_of(questions)
        rank = int(os.environ["RANK"])
        return RolloutBatch(**{**vars(made), "rewards": [[rank, 1.0, 2.0] for _ in made.rewards]})

    env = gym(handle)
    try:
        finetune_llm_reasoning([grpo(handle)], env, rollout=rollout, max_steps=4, verbose=False, accelerator=handle)
    except ValueError as error:
        return str(error)
    return ""


def served(url: str, directory: Path) -> list[Any]:
    """Two rollouts by a server, with a step in between."""
    handle = work.accelerator()
    env = gym(handle, batch=3)
    found = []
    with VLLMGenerator(url, adapter_directory=directory) as generator:
        agent = grpo(handle, generator=generator)
        questions = QuestionBatch.from_experiences(env.reset())
        for _ in range(2):
            made = agent.roll_out(questions, env)
            agent.learn(made)
            found.append(_told(made))
        found.append(_told(agent.roll_out(questions.slice(0, 1), env)))  # one process has nothing to ask
    return found
