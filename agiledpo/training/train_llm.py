"""The training loops for language models."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from agiledpo.algorithms import DPO
from agiledpo.checkpoint import check_destination
from agiledpo.llm_envs import PreferenceGym
from agiledpo.scoring import PreferenceBatch
from agiledpo.training.pair_queue import PairQueue
from agiledpo.training.progress import TrainingProgress
from agiledpo.training.schedule import Schedule


def finetune_llm_preference(
    pop: Sequence[DPO],
    env: PreferenceGym,
    *,
    num_epochs: int | None = None,
    max_steps: int | None = None,
    evaluation_interval: int | None = 10,
    checkpoint_steps: int | None = None,
    checkpoint_path: str | Path | None = None,
    save_elite: bool = False,
    elite_path: str | Path | None = None,
    verbose: bool = True,
    accelerator: Accelerator | None = None,
) -> tuple[list[DPO], list[float]]:
    """Train DPO agents on the pairs of an environment.

    Every agent learns from the same pairs in the same order, ``agent.batch_size`` of them per optimizer step, and is
    evaluated on the whole held-out split. At the end of an epoch, and of the run, what is left over makes a smaller
    step.

    Args:
        pop: The agents.
        env: Where pairs come from.
        num_epochs: Passes over the training split; wins over ``max_steps``. Neither given: one epoch.
        max_steps: Pairs that *each* agent learns from (AgileRL divides them among the agents).
        evaluation_interval: Batches of the environment between two evaluations; None evaluates only at the end.
        checkpoint_steps: Pairs between two checkpoints; None makes none.
        checkpoint_path: Directory of the checkpoints, ``./saved_checkpoints`` by default: the agent itself if there is
            one, ``agent_<index>/`` for each if there are several. A newer checkpoint replaces the older one.
        save_elite: Save the agent of the highest final fitness (ties: of the largest margin) to ``elite_path``.
        elite_path: Directory for it.
        verbose: Print the objectives and show a progress bar.
        accelerator: Accelerate's handle; only its main process prints.

    Returns:
        The agents and their final fitness, in the order of ``pop``.

    Raises:
        ValueError: An argument or a combination makes no sense; found before training starts.
        NonFiniteLossError: A loss became NaN or infinite; weights are as they were before that step.
    """
    agents = list(pop)
    checkpoints = Path("saved_checkpoints" if checkpoint_path is None else checkpoint_path)
    _check(agents, env)
    _check_destinations(agents, checkpoints if checkpoint_steps else None, elite_path, save_elite)
    schedule = Schedule.make(
        env,
        num_epochs=num_epochs,
        max_steps=max_steps,
        evaluation_interval=evaluation_interval,
        checkpoint_steps=checkpoint_steps,
    )
    visible = verbose and (accelerator is None or accelerator.is_main_process)
    queues = [PairQueue() for _ in agents]
    fitnesses: list[float] = []
    with TrainingProgress(schedule.total_pairs, visible=visible) as progress:
        for agent in agents:
            progress.say(f"agent {agent.index}: minimise {agent.objective.describe()}")
        for stretch in schedule.stretches(env):
            for agent, queue in zip(agents, queues, strict=True):
                for metrics in _learn(agent, queue, stretch.batch, flush=stretch.ends_epoch or stretch.ends_run):
                    progress.learned(agent.index, metrics)
                if stretch.ends_epoch and agent.reference_update == "epoch":
                    agent.set_reference_policy(agent.reference_update_tracker + 1)
            progress.advance(len(stretch.batch))
            if schedule.evaluates(stretch):
                fitnesses = [float(agent.test(env)) for agent in agents]
                progress.evaluated(fitnesses)
            if schedule.checkpoints(stretch):
                _save(agents, checkpoints)
    for agent in agents:
        agent.flush_reference_cache()
    if save_elite and elite_path is not None:
        max(agents, key=_rank).save_checkpoint(elite_path)
    return agents, fitnesses


def _learn(agent: DPO, queue: PairQueue, batch: PreferenceBatch, *, flush: bool) -> list[dict[str, float]]:
    """Show pairs to an agent; it learns whenever ``batch_size`` of them are there, or from the rest on ``flush``."""
    queue.put(batch)
    metrics = []
    while len(queue) >= agent.batch_size or (flush and len(queue)):
        metrics.append(agent.learn(queue.take(agent.batch_size)))
    return metrics


def _rank(agent: DPO) -> tuple[float, float]:
    """Fitness, ties broken by the mean log-ratio margin, in which there is no beta."""
    return agent.fitness[-1], agent.held_out["rewards/margins"] / agent.beta


def _save(agents: Sequence[DPO], path: Path) -> None:
    for agent in agents:
        agent.save_checkpoint(_destination(agent, agents, path))


def _destination(agent: DPO, agents: Sequence[DPO], path: Path) -> Path:
    return path if len(agents) == 1 else path / f"agent_{agent.index}"


def _check_destinations(
    agents: Sequence[DPO], checkpoints: Path | None, elite_path: str | Path | None, save_elite: bool
) -> None:
    if save_elite and elite_path is None:
        raise ValueError("save_elite=True needs elite_path, the directory to save to.")
    if checkpoints is not None:
        for agent in agents:
            check_destination(_destination(agent, agents, checkpoints))
    if save_elite and elite_path is not None:
        check_destination(Path(elite_path))
        if checkpoints is not None and Path(elite_path).resolve() == checkpoints.resolve():
            raise ValueError(f"elite_path and checkpoint_path are both {elite_path}; choose two directories.")


def _check(agents: Sequence[DPO], env: PreferenceGym) -> None:
    if not agents:
        raise ValueError("pop is empty; pass at least one agent.")
    for agent in agents:
        if not isinstance(agent, DPO):
            raise ValueError(f"pop holds a {type(agent).__name__}; finetune_llm_preference trains DPO agents.")
        agent.check_environment(env)
    if len({agent.index for agent in agents}) < len(agents):
        raise ValueError(f"The agents' indices {[agent.index for agent in agents]} are not distinct; pass index=...")
