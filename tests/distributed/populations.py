"""Runs of populations as the ranks of a test make them, and all that can be compared of what comes of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from agiledpo.algorithms import DPO, GRPO, SFT
from agiledpo.algorithms.core.registry import HyperparameterConfig, LogUniform, RLParameter
from agiledpo.hpo import MultiFrequencySelection, Mutations, Selection, TournamentSelection, TruncationSelection
from agiledpo.llm_envs import PreferenceGym, ReasoningGym, SFTGym
from agiledpo.training.train_llm import finetune_llm_preference, finetune_llm_reasoning, finetune_llm_sft
from tests.distributed import work
from tests.distributed.words import low_words, rows, tokenizer

SELECTIONS: Mapping[str, Callable[[int], Selection]] = {
    "tournament": lambda size: TournamentSelection(2, True, size, rand_seed=4),
    "no elitism": lambda size: TournamentSelection(2, False, size, rand_seed=4),
    "unseeded": lambda size: TournamentSelection(2, True, size),
    "truncation": lambda size: TruncationSelection(size, 0.5, rand_seed=4),
    "subpopulations": lambda size: MultiFrequencySelection(size, (1, 2)),
}
RANGES = {"lr": RLParameter(1e-4, 1e30), "batch_size": RLParameter(2, 7)}


def per_process(handle: Accelerator | None, size: int) -> int:
    """Rows of a batch for each process, so that it has as many whatever their number."""
    return size // (1 if handle is None else handle.num_processes)


def minus_loss(agent: Any, env: Any) -> float:
    """A fitness of the user's own, which may be asked of agents with references of their own."""
    return float(agent.measure(env).fitness("loss").value)


def preference(
    parallel: str | None,
    selection: str = "tournament",
    *,
    size: int = 4,
    ill: int | None = 1,
    dropout: float = 0.1,
    seed: int = 0,
    reference_update: Any = "never",
    own_environments: bool = False,
    sets: bool = False,
    **arguments: Any,
) -> dict[str, Any]:
    """Four generations of DPO agents of which one diverges.

    Args:
        parallel: As for the training function; None for a process of its own.
        selection: One of ``SELECTIONS``.
        size: Number of agents.
        ill: Place of the agent that diverges; None for none.
        dropout: Of the adapters.
        seed: Of the data.
        reference_update: As for DPO.
        own_environments: Give each agent an environment of its own.
        sets: Have the fittest measured on a final split and a validation set too.
        **arguments: For the training function.
    """
    handle = None if parallel is None else work.accelerator()
    agents = DPO.population(
        size,
        actor_network=work.model(),
        lora_config=work.lora(lora_dropout=dropout),
        accelerator=handle,
        batch_size=3,
        gradient_checkpointing=False,
        lr=1e-3,
        nll_alpha=0.0,
        reference_update=reference_update,
        hp_config=HyperparameterConfig(**RANGES, beta=LogUniform(0.01, 1.0)),
    )
    for place, agent in enumerate(agents):
        agent.lr = 1e30 if place == ill else 1e-3 * (place + 1)

    def gym(order: int = 0) -> PreferenceGym:
        return PreferenceGym(
            rows(12, seed),
            rows(11, seed + 1),
            tokenizer(),
            final_dataset=rows(5, seed + 2) if sets else None,
            validation_datasets={"watched": rows(4, seed + 3)} if sets else None,
            data_batch_size_per_gpu=per_process(handle, 6),
            seed=order,
            accelerator=handle,
        )

    orders = iter(range(size))
    where: dict[str, Any] = {"env_fn": lambda: gym(next(orders))} if own_environments else {"env": gym()}
    return outcome(finetune_llm_preference, agents, selection, parallel, handle, **where, **arguments)


def sft(parallel: str | None, selection: str = "tournament") -> dict[str, Any]:
    """The same for SFT."""
    handle = None if parallel is None else work.accelerator()
    agents = SFT.population(
        4,
        actor_network=work.model(),
        lora_config=work.lora(lora_dropout=0.1),
        accelerator=handle,
        batch_size=3,
        gradient_checkpointing=False,
        lr=1e-2,
        hp_config=HyperparameterConfig(**RANGES),
    )
    demonstrations = [
        rows(count, seed).rename_column("chosen", "completion").remove_columns("rejected")
        for count, seed in ((12, 0), (11, 1))
    ]
    env = SFTGym(*demonstrations, tokenizer(), data_batch_size_per_gpu=per_process(handle, 6), accelerator=handle)
    return outcome(finetune_llm_sft, agents, selection, parallel, handle, env=env)


def reasoning(parallel: str | None, selection: str = "tournament") -> dict[str, Any]:
    """The same for GRPO, which samples what it learns from."""
    handle = None if parallel is None else work.accelerator()
    agents = GRPO.population(
        4,
        actor_network=work.model(),
        lora_config=work.lora(lora_dropout=0.1),
        accelerator=handle,
        batch_size=4,
        group_size=2,
        gradient_checkpointing=False,
        max_completion_length=4,
        lr=1e-2,
        hp_config=HyperparameterConfig(lr=RLParameter(1e-4, 1e-1)),
    )
    prompts = [
        rows(count, seed).rename_column("chosen", "answer").remove_columns("rejected")
        for count, seed in ((12, 0), (6, 1))
    ]
    env = ReasoningGym(
        *prompts, tokenizer(), low_words, data_batch_size_per_gpu=per_process(handle, 2), accelerator=handle
    )
    return outcome(finetune_llm_reasoning, agents, selection, parallel, handle, env=env, max_steps=8)


CASES: Mapping[str, Callable[[str | None], dict[str, Any]]] = {
    "tournament": lambda parallel: preference(parallel, sets=True),
    "truncation, own environments": lambda parallel: preference(parallel, "truncation", ill=2, own_environments=True),
    "subpopulations of eight": lambda parallel: preference(parallel, "subpopulations", size=8, ill=5),
    "own references": lambda parallel: preference(
        parallel, "no elitism", ill=None, reference_update="epoch", fitness=minus_loss
    ),
    "sft": lambda parallel: sft(parallel),
    "grpo": lambda parallel: reasoning(parallel),
}


def several(names: Sequence[str], parallel: str | None) -> dict[str, dict[str, Any]]:
    """Several of ``CASES``, one after the other."""
    return {name: CASES[name](parallel) for name in names}


def outcome(
    train: Any, agents: Sequence[Any], selection: str, parallel: str | None, handle: Any, **arguments: Any
) -> dict[str, Any]:
    """Let a population evolve; everything of it that may be compared, and the bytes that were sent."""
    strategy = SELECTIONS[selection](len(agents))
    mutation = Mutations(no_mutation=0.2, rl_hp=0.8, rand_seed=None if selection == "unseeded" else 5)
    ways: dict[str, Any] = {} if parallel is None else {"parallel": parallel, "accelerator": handle}
    settings = {"max_steps": 24, "evo_steps": 1, "verbose": False, **arguments}
    with Traffic() as traffic:
        population, fitnesses = train(agents, tournament=strategy, mutation=mutation, **settings, **ways)
    states = [agent.state_dict() for agent in population]
    return {
        "agents": states,
        "teams": [agent.team.size for agent in population],
        "fitnesses": fitnesses,
        "elite": population.elite.index,
        "final": population.final,
        "validation": {name: value for name, value in population.validation.items() if "timing" not in name},
        "lineage": [record.as_json() for record in population.lineage],
        "selection": strategy.state_dict(),
        "mutation": mutation.state_dict(),
        "traffic": traffic,
        "size": {part: size_of(value) for part, value in states[0].items()},
        "adapters": len(population[0].base.adapter_names),
    }


class Traffic:
    """Bytes of tensors that this process sends while it is open.

    Attributes:
        sent: Bytes of each tensor sent to one other process.
        spread: Bytes of each tensor sent to all, or heard from one that sent it to all.
    """

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.spread: list[int] = []
        self._send, self._broadcast = dist.send, dist.broadcast

    def __enter__(self) -> "Traffic":
        def send(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.sent.append(tensor.nbytes)
            return self._send(tensor, *args, **kwargs)

        def broadcast(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.spread.append(tensor.nbytes)
            return self._broadcast(tensor, *args, **kwargs)

        dist.send, dist.broadcast = send, broadcast
        return self

    def __exit__(self, *_: object) -> None:
        dist.send, dist.broadcast = self._send, self._broadcast

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ({"sent": self.sent, "spread": self.spread},)


def size_of(state: Any) -> int:
    """Bytes of the tensors in a state."""
    match state:
        case Tensor():
            return state.nbytes
        case dict():
            return sum(map(size_of, state.values()))
        case list() | tuple():
            return sum(map(size_of, state))
    return 0


def alike(parallel: str | None) -> dict[str, Any]:
    """A run whose decisions do not hang on the last digits: without dropout, and with figures far apart."""
    return preference(parallel, ill=None, dropout=0.0)


def saved(parallel: str | None, directory: str, **arguments: Any) -> dict[str, Any]:
    """The first of ``CASES``, which saves itself and its elite."""
    return preference(
        parallel,
        sets=True,
        checkpoint_steps=6,
        checkpoint_path=f"{directory}/checkpoints",
        save_elite=True,
        elite_path=f"{directory}/elite",
        **arguments,
    )


def differing() -> None:
    """Agents that each process makes otherwise."""
    handle = work.accelerator()
    base = work.model()
    agents = [work.dpo(handle, base, index=index, lr=1e-3) for index in range(2)]
    agents[1].lr = 1e-3 * (1 + handle.process_index)
    env = PreferenceGym(rows(8, 0), rows(3, 1), tokenizer(), data_batch_size_per_gpu=2, accelerator=handle)
    finetune_llm_preference(agents, env, parallel="population", accelerator=handle)


def under_deepspeed() -> str:
    """How a population is refused that DeepSpeed would spread otherwise."""
    handle = work.accelerator()
    try:
        finetune_llm_preference([work.dpo()], parallel="population", accelerator=handle)
    except ValueError as error:
        return str(error)
    return "nothing"
