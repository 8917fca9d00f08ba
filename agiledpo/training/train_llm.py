"""The training loops for language models."""

from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator

from agiledpo.algorithms import DPO
from agiledpo.algorithms.fitness import check_fitness
from agiledpo.hpo.lineage import Lineage
from agiledpo.hpo.mutation import Mutations
from agiledpo.hpo.selection import Selection
from agiledpo.llm_envs import PreferenceGym
from agiledpo.training.environments import Environments
from agiledpo.training.evolution import Evolution
from agiledpo.training.keeper import Keeper
from agiledpo.training.population import Population
from agiledpo.training.progress import TrainingProgress
from agiledpo.training.run import Fitness, PreferenceRun
from agiledpo.training.schedule import Schedule


def finetune_llm_preference(
    pop: Sequence[DPO],
    env: PreferenceGym | None = None,
    *,
    env_fn: Callable[[], PreferenceGym] | None = None,
    tournament: Selection | None = None,
    mutation: Mutations | None = None,
    evo_steps: int | None = None,
    fitness: Fitness = "accuracy",
    num_epochs: int | None = None,
    max_steps: int | None = None,
    evaluation_interval: int | None = 10,
    checkpoint_steps: int | None = None,
    checkpoint_path: str | Path | None = None,
    save_elite: bool = False,
    elite_path: str | Path | None = None,
    lineage_path: str | Path | None = None,
    verbose: bool = True,
    accelerator: Accelerator | None = None,
) -> tuple[Population, list[float]]:
    """Train DPO agents on the pairs of an environment and, if asked, let them evolve.

    Every agent learns from the same pairs in the same order, ``agent.batch_size`` of them per optimizer step, and is
    evaluated on the whole test split. At the end of an epoch, of a generation and of the run, what is left over makes a
    smaller step, so agents are compared after the same pairs.

    With ``tournament``, ``evo_steps`` batches make a generation. At its end the agents are evaluated, the fittest is
    saved if asked, the survivors stay as they are, copies of them overwrite the others in place, and ``mutation``
    changes hyperparameters. The last generation only ends with an evaluation. Nothing ever chooses by the training
    split.

    An agent whose loss becomes NaN or infinite is set aside and is replaced at the next selection; a run of one agent
    ends there.

    Args:
        pop: The agents. Evolution overwrites losers in place; use the population that is returned.
        env: Where pairs come from, for all agents.
        env_fn: Instead of ``env``: makes an environment for each agent, all of the same size. Each agent learns from
            as many pairs as it would from ``env``; all are evaluated on the first environment's test split.
        tournament: Who survives: ``TournamentSelection``, ``TruncationSelection`` or ``MultiFrequencySelection``.
        mutation: How hyperparameters change; None only selects.
        evo_steps: Batches of the environment in a generation.
        fitness: How agents are compared: ``"accuracy"``, ``"margin"``, ``"loss"`` or ``"reward_margin"`` as in
            :meth:`DPO.test`, or a function of agent and environment that returns a number, higher is better, or the
            number and its standard error.
        num_epochs: Passes over the training split; wins over ``max_steps``. Neither given: one epoch.
        max_steps: Pairs that *each* agent learns from (AgileRL divides them among the agents).
        evaluation_interval: Batches of the environment between two evaluations; None evaluates only when a generation
            and the run end.
        checkpoint_steps: Pairs between two checkpoints; None makes none.
        checkpoint_path: Directory of the checkpoints, ``./saved_checkpoints`` by default: the agent itself if there is
            one, ``agent_<index>/`` for each if there are several, the fittest alone if they evolve. A newer checkpoint
            replaces the older one.
        save_elite: Save the fittest agent (ties: of the largest margin) to ``elite_path`` at the end of each
            generation, before anything is mutated, and of the run.
        elite_path: Directory for it.
        lineage_path: File of JSON lines to write the lineage to while the run goes on.
        verbose: Print the objectives and generations, and show a progress bar.
        accelerator: Accelerate's handle; only its main process prints.

    Returns:
        The agents as a :class:`Population`, whose ``lineage`` says where they come from, and their last fitness, in its
        order (NaN for an agent that has diverged). If the environment has a final split, ``population.final`` is the
        elite's accuracy there.

    Raises:
        ValueError: An argument or a combination makes no sense; found before training starts.
        FileExistsError: Something would be overwritten that is not a checkpoint, or a lineage; likewise.
        NonFiniteLossError: The only agent's loss became NaN or infinite; its weights are as before that step.
        PopulationDivergedError: All agents' did. The elite that was saved before is untouched.
    """
    agents = list(pop)
    _check_agents(agents)
    _check_evolution(agents, tournament, mutation, evo_steps)
    if not callable(fitness):
        check_fitness(fitness)
        if tournament is not None:
            _check_references(agents, fitness)
    if save_elite and elite_path is None:
        raise ValueError("save_elite=True needs elite_path, the directory to save to.")
    checkpoints = Path("saved_checkpoints" if checkpoint_path is None else checkpoint_path)
    keeper = Keeper(
        checkpoints=checkpoints if checkpoint_steps else None,
        elite=Path(elite_path) if save_elite and elite_path is not None else None,
        evolves=tournament is not None,
    )
    keeper.check(agents, None if lineage_path is None else Path(lineage_path))
    environments = Environments.make(env, env_fn, len(agents))
    for environment in environments.all:
        for agent in agents:
            agent.check_environment(environment)
    schedule = Schedule.make(
        environments.judge,
        num_epochs=num_epochs,
        max_steps=max_steps,
        evaluation_interval=evaluation_interval,
        checkpoint_steps=checkpoint_steps,
        evo_steps=evo_steps,
    )
    visible = verbose and (accelerator is None or accelerator.is_main_process)
    with TrainingProgress(schedule.total_pairs, visible=visible) as progress:
        population = PreferenceRun(
            Population(agents, Lineage(lineage_path)),
            environments,
            schedule,
            fitness=fitness,
            evolution=None if tournament is None else Evolution(tournament, mutation),
            keeper=keeper,
            progress=progress,
        ).run()
    return population, [float("nan") if agent.diverged else agent.fitness[-1] for agent in population]


def _check_agents(agents: Sequence[DPO]) -> None:
    if not agents:
        raise ValueError("pop is empty; pass at least one agent.")
    for agent in agents:
        if not isinstance(agent, DPO):
            raise ValueError(f"pop holds a {type(agent).__name__}; finetune_llm_preference trains DPO agents.")
        if agent.diverged is not None:
            raise ValueError(
                f"Agent {agent.index} has diverged and does not learn any more: {agent.diverged} Leave it out, or put "
                "a clone of another agent in its place."
            )
    if len({agent.index for agent in agents}) < len(agents):
        raise ValueError(f"The agents' indices {[agent.index for agent in agents]} are not distinct; pass index=...")


def _check_evolution(
    agents: Sequence[DPO], tournament: Selection | None, mutation: Mutations | None, evo_steps: int | None
) -> None:
    if (tournament is None) is not (evo_steps is None):
        raise ValueError(
            f"evo_steps={evo_steps} with tournament={tournament}: evolution needs both, evo_steps as the batches in a "
            "generation and tournament to select. Pass both, or neither."
        )
    if tournament is None:
        if mutation is not None:
            raise ValueError("mutation without tournament and evo_steps would never happen. Pass all three, or none.")
        return
    if tournament.population_size != len(agents):
        raise ValueError(
            f"The tournament's population_size={tournament.population_size}, but pop holds {len(agents)} agents; make "
            "them equal."
        )
    tournament.check(agents)
    if mutation is not None:
        mutation.check(agents)
        for agent in agents:
            agent.check_hyperparameters()


def _check_references(agents: Sequence[DPO], fitness: str) -> None:
    for agent in agents:
        if agent.reference_update != "never":
            raise ValueError(
                f"fitness={fitness!r} holds each agent against its reference, and with "
                f"reference_update={agent.reference_update!r} agent {agent.index}'s moves: the one whose reference "
                "lags most would win. Use reference_update='never', or a function as fitness."
            )
