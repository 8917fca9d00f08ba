"""The training loops for language models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

from accelerate import Accelerator

from agiledpo.algorithms import DPO, GRPO, SFT
from agiledpo.data.rollouts.log import RolloutLog
from agiledpo.distributed.parallel import Parallel
from agiledpo.generation import Generator, Rollout, SamplingSettings
from agiledpo.hpo.mutation import Mutations
from agiledpo.hpo.selection import Selection
from agiledpo.llm_envs import PreferenceGym, ReasoningGym, SFTGym
from agiledpo.losses.checks import check_number, check_whole_number
from agiledpo.training.agilerl_tracking import AgileRLTracking, trackers_from
from agiledpo.training.finetune import finetune
from agiledpo.training.observer import Observer
from agiledpo.training.online import FromComparisons, FromRewards
from agiledpo.training.population import Population
from agiledpo.training.practice import FromRows
from agiledpo.training.processes import team_of
from agiledpo.training.retention import Retention
from agiledpo.training.run import Fitness
from agiledpo.training.trackers import ToTrackers


def finetune_llm_preference(
    pop: Sequence[DPO],
    env: PreferenceGym | None = None,
    *,
    env_fn: Callable[[], PreferenceGym] | None = None,
    tournament: Selection | None = None,
    mutation: Mutations | None = None,
    evo_steps: int | None = None,
    fitness: Fitness | None = None,
    num_epochs: int | None = None,
    max_steps: int | None = None,
    evaluation_interval: int | None = 10,
    checkpoint_steps: int | None = None,
    checkpoint_path: str | Path | None = None,
    resume_from: str | Path | None = None,
    retention: Retention | None = None,
    save_elite: bool = False,
    elite_path: str | Path | None = None,
    lineage_path: str | Path | None = None,
    log_path: str | Path | None = None,
    observers: Sequence[Observer] = (),
    trackers: ToTrackers = (),
    verbose: bool = True,
    accelerator: Accelerator | None = None,
    parallel: Parallel = "data",
    **agilerl: Unpack[AgileRLTracking],
) -> tuple[Population[DPO], list[float]]:
    """Train DPO agents on the pairs of an environment and, if asked, let them evolve.

    Every agent learns from the same pairs in the same order, ``agent.batch_size`` of them per optimizer step, and is
    evaluated on the whole test split. At the end of an epoch, of a generation and of the run, what is left over makes a
    smaller step, so agents are compared after the same pairs.

    With ``tournament``, ``evo_steps`` batches make a generation. At its end the agents are evaluated, the fittest is
    saved if asked, the survivors stay as they are, copies of them overwrite the others in place, and ``mutation``
    changes hyperparameters. The last generation only ends with an evaluation. Nothing ever chooses by the training
    split.

    After each evaluation the fittest agent is also measured on the environment's validation sets, if it has any
    (``PreferenceGym(validation_datasets=...)``): ``validation-<name>_loss`` (its own objective),
    ``validation-<name>_accuracy``, and so on for every figure of :meth:`DPO.measure`. Nothing but ``retention`` ever
    chooses by them, and the run is bit for bit the same without.

    An agent whose loss becomes NaN or infinite is set aside and is replaced at the next selection; a run of one agent
    ends there.

    With checkpoints, Ctrl-C and SIGTERM end the run after the batch in hand: it is saved, and the message says how to
    go on. A checkpoint that cannot be written (a full disk) is a warning; the run goes on and earlier ones are intact.

    Args:
        pop: The agents. Evolution overwrites losers in place; use the population that is returned.
        env: Where pairs come from, for all agents.
        env_fn: Instead of ``env``: makes an environment for each agent, all of the same size. Each agent learns from
            as many pairs as it would from ``env``; all are evaluated on the first environment's test split.
        tournament: Who survives: ``TournamentSelection``, ``TruncationSelection`` or ``MultiFrequencySelection``.
        mutation: How hyperparameters change; None only selects.
        evo_steps: Batches of the environment in a generation.
        fitness: How agents are compared: ``"accuracy"`` (the default), ``"margin"``, ``"loss"`` or ``"reward_margin"``,
            see :class:`DPO`, or a function of agent and environment that returns a number, higher is better, or the
            number and its standard error.
        num_epochs: Passes over the training split; wins over ``max_steps``. Neither given: one epoch.
        max_steps: Pairs that *each* agent learns from (AgileRL divides them among the agents).
        evaluation_interval: Batches of the environment between two evaluations; None evaluates only when a generation
            and the run end.
        checkpoint_steps: Pairs between two checkpoints of the run, the last of which is at its end.
        checkpoint_path: Directory of the checkpoints, ``./saved_checkpoints`` by default if there are any. Each is a
            directory ``step_<pairs>`` with everything that the run needs to go on, and ``agents/agent_<index>`` in it
            is a checkpoint that :meth:`DPO.load_checkpoint` and :meth:`DPO.load` read.
        resume_from: Go on from a checkpoint, with the same arguments otherwise: its directory, or ``"latest"`` for the
            newest complete one in ``checkpoint_path``, which begins at the beginning if nothing has been saved yet. The
            run then ends as if it had never stopped, on a CPU bit for bit.
        retention: Which checkpoints are kept; None keeps the last two. ``Retention(keep_best=1,
            metric_name="validation-<name>_loss", higher_is_better=False)`` also keeps the best by a validation set.
        save_elite: Save the fittest agent (ties: of the largest margin) to ``elite_path`` at the end of each
            generation, before anything is mutated, and of the run.
        elite_path: Directory for it.
        lineage_path: File of JSON lines to write the lineage to while the run goes on.
        log_path: File of JSON lines to write the run's figures to, see :class:`agiledpo.training.recorder.Recorder`.
        observers: Who else follows the run, see :class:`agiledpo.training.observer.Observer`.
        trackers: Where the figures go beside the log: ``["tensorboard", "wandb"]``, or
            :class:`agiledpo.training.trackers.Trackers` to say more.
        verbose: Show how the run goes on: a live view in terminals and notebooks, lines elsewhere.
        accelerator: Accelerate's handle; only its main process prints.
        parallel: How its processes share the work: ``"data"``: all of them on every agent; ``"population"``: each has
            agents of its own, which suits models that fit one device; see docs/distributed.md.
        **agilerl: AgileRL's ``wb``, ``tensorboard``, ``init_hp`` and so on, see
            :class:`agiledpo.training.agilerl_tracking.AgileRLTracking`.

    Returns:
        The agents as a :class:`Population`, whose ``lineage`` says where they come from, and their last fitness, in its
        order (NaN for an agent that has diverged). If the environment has a final split, ``population.final`` is the
        elite's accuracy there; ``population.validation`` holds the last figures on the validation sets.

    Raises:
        ValueError: An argument or a combination makes no sense; found before training starts.
        FileExistsError: Something would be overwritten: an earlier run, a lineage, what is no checkpoint; likewise.
        CheckpointError: ``resume_from`` is damaged or no run's checkpoint; likewise.
        TrainingInterrupted: The process was asked to stop and has saved everything (a SystemExit).
        NonFiniteLossError: The only agent's loss became NaN or infinite; its weights are as before that step.
        PopulationDivergedError: All agents' did. The elite that was saved before is untouched.
    """
    return finetune(
        FromRows(DPO),
        pop,
        env,
        env_fn=env_fn,
        tournament=tournament,
        mutation=mutation,
        evo_steps=evo_steps,
        fitness=fitness,
        num_epochs=num_epochs,
        max_steps=max_steps,
        evaluation_interval=evaluation_interval,
        checkpoint_steps=checkpoint_steps,
        checkpoint_path=checkpoint_path,
        resume_from=resume_from,
        retention=retention,
        save_elite=save_elite,
        elite_path=elite_path,
        lineage_path=lineage_path,
        log_path=log_path,
        observers=observers,
        trackers=trackers_from(trackers, agilerl),
        verbose=verbose,
        accelerator=accelerator,
        parallel=parallel,
    )


def finetune_llm_sft(
    pop: Sequence[SFT],
    env: SFTGym | None = None,
    *,
    env_fn: Callable[[], SFTGym] | None = None,
    tournament: Selection | None = None,
    mutation: Mutations | None = None,
    evo_steps: int | None = None,
    fitness: Fitness | None = None,
    num_epochs: int | None = None,
    max_steps: int | None = None,
    evaluation_interval: int | None = 10,
    checkpoint_steps: int | None = None,
    checkpoint_path: str | Path | None = None,
    resume_from: str | Path | None = None,
    retention: Retention | None = None,
    save_elite: bool = False,
    elite_path: str | Path | None = None,
    lineage_path: str | Path | None = None,
    log_path: str | Path | None = None,
    observers: Sequence[Observer] = (),
    trackers: ToTrackers = (),
    verbose: bool = True,
    accelerator: Accelerator | None = None,
    parallel: Parallel = "data",
    **agilerl: Unpack[AgileRLTracking],
) -> tuple[Population[SFT], list[float]]:
    """Train SFT agents on the rows of an environment and, if asked, let them evolve.

    All is as in :func:`finetune_llm_preference`, with rows where there are pairs. On validation sets the loss is the
    negative log-likelihood per completion token, and the accuracy that of tokens.

    Args:
        pop: The agents.
        env: Where rows come from, for all agents.
        env_fn: Instead of ``env``: makes an environment for each agent.
        tournament: Who survives.
        mutation: How hyperparameters change.
        evo_steps: Batches of the environment in a generation.
        fitness: How agents are compared: ``"loss"`` (the default: minus the negative log-likelihood per completion
            token), ``"accuracy"`` (of tokens), or a function of agent and environment.
        num_epochs: Passes over the training split; wins over ``max_steps``. Neither given: one epoch.
        max_steps: Rows that each agent learns from.
        evaluation_interval: Batches of the environment between two evaluations.
        checkpoint_steps: Rows between two checkpoints of the run.
        checkpoint_path: Directory of the checkpoints.
        resume_from: Go on from a checkpoint: its directory, or ``"latest"``.
        retention: Which checkpoints are kept; None keeps the last two.
        save_elite: Save the fittest agent to ``elite_path``.
        elite_path: Directory for it.
        lineage_path: File of JSON lines to write the lineage to.
        log_path: File of JSON lines to write the run's figures to, see :class:`agiledpo.training.recorder.Recorder`.
        observers: Who else follows the run, see :class:`agiledpo.training.observer.Observer`.
        trackers: Where the figures go beside the log: ``["tensorboard", "wandb"]``, or
            :class:`agiledpo.training.trackers.Trackers` to say more.
        verbose: Show how the run goes on: a live view in terminals and notebooks, lines elsewhere.
        accelerator: Accelerate's handle; only its main process prints.
        parallel: How its processes share the work: ``"data"``: all of them on every agent; ``"population"``: each has
            agents of its own, which suits models that fit one device; see docs/distributed.md.
        **agilerl: AgileRL's ``wb``, ``tensorboard``, ``init_hp`` and so on, see
            :class:`agiledpo.training.agilerl_tracking.AgileRLTracking`.

    Returns:
        The agents as a :class:`Population` and their last fitness, in its order.

    Raises:
        ValueError: As :func:`finetune_llm_preference`, and the other errors that it names.
    """
    return finetune(
        FromRows(SFT),
        pop,
        env,
        env_fn=env_fn,
        tournament=tournament,
        mutation=mutation,
        evo_steps=evo_steps,
        fitness=fitness,
        num_epochs=num_epochs,
        max_steps=max_steps,
        evaluation_interval=evaluation_interval,
        checkpoint_steps=checkpoint_steps,
        checkpoint_path=checkpoint_path,
        resume_from=resume_from,
        retention=retention,
        save_elite=save_elite,
        elite_path=elite_path,
        lineage_path=lineage_path,
        log_path=log_path,
        observers=observers,
        trackers=trackers_from(trackers, agilerl),
        verbose=verbose,
        accelerator=accelerator,
        parallel=parallel,
    )


def finetune_llm_reasoning(
    pop: Sequence[GRPO],
    env: ReasoningGym | None = None,
    *,
    rollout: Rollout | None = None,
    env_fn: Callable[[], ReasoningGym] | None = None,
    tournament: Selection | None = None,
    mutation: Mutations | None = None,
    evo_steps: int | None = None,
    fitness: Fitness | None = None,
    num_epochs: int | None = None,
    max_steps: int | None = None,
    evaluation_interval: int | None = 10,
    checkpoint_steps: int | None = None,
    checkpoint_path: str | Path | None = None,
    resume_from: str | Path | None = None,
    retention: Retention | None = None,
    save_elite: bool = False,
    elite_path: str | Path | None = None,
    lineage_path: str | Path | None = None,
    log_path: str | Path | None = None,
    observers: Sequence[Observer] = (),
    trackers: ToTrackers = (),
    rollouts_path: str | Path | None = None,
    verbose: bool = True,
    accelerator: Accelerator | None = None,
    parallel: Parallel = "data",
    **agilerl: Unpack[AgileRLTracking],
) -> tuple[Population[GRPO], list[float]]:
    """Train GRPO agents on the rewards of what they answer and, if asked, let them evolve.

    Each batch of the environment is a round: every agent answers its prompts, ``agent.group_size`` completions each,
    the environment judges them, and ``agent.learn`` makes its optimizer steps from the rewards. Agents answer the same
    prompts in the same order, each drawing from its own ``sampling_stream``, so that a run that is taken up again ends
    as if it had never stopped. Held-out prompts are answered greedily.

    All else is as in :func:`finetune_llm_preference`, with prompts where there are pairs. On validation sets the loss
    is minus the mean reward, and the accuracy the success rate.

    Args:
        pop: The agents.
        env: Where prompts come from and who judges, for all agents.
        rollout: Instead of ``agent.roll_out``: makes a ``RolloutBatch`` of an agent, a ``QuestionBatch`` and their
            environment, such as :func:`agiledpo.algorithms.self_distillation.self_distillation`. What it draws has to
            come from ``agent.sampling_stream``.
        env_fn: Instead of ``env``: makes an environment for each agent.
        tournament: Who survives.
        mutation: How hyperparameters change.
        evo_steps: Batches of the environment in a generation.
        fitness: How agents are compared: ``"reward"`` (the default: the mean reward), ``"success_rate"`` (share of
            completions with at least the environment's ``success_reward``), or a function of agent and environment.
        num_epochs: Passes over the training split; wins over ``max_steps``. Neither given: one epoch.
        max_steps: Prompts that *each* agent answers, a group of completions each.
        evaluation_interval: Batches of the environment between two evaluations.
        checkpoint_steps: Prompts between two checkpoints of the run.
        checkpoint_path: Directory of the checkpoints.
        resume_from: Go on from a checkpoint: its directory, or ``"latest"``.
        retention: Which checkpoints are kept; None keeps the last two.
        save_elite: Save the fittest agent to ``elite_path``.
        elite_path: Directory for it.
        lineage_path: File of JSON lines to write the lineage to.
        log_path: File of JSON lines to write the run's figures to, see :class:`agiledpo.training.recorder.Recorder`.
        observers: Who else follows the run, see :class:`agiledpo.training.observer.Observer`.
        trackers: Where the figures go beside the log: ``["tensorboard", "wandb"]``, or
            :class:`agiledpo.training.trackers.Trackers` to say more.
        rollouts_path: File of JSON lines to write all training rollouts to, as NeMo Gym does: ``agiledpo pairs`` makes
            preference pairs of it. A run that goes on from a checkpoint moves what came after it to a file beside,
            ``<name>.from_<bytes before it>``, so that the file has each rollout once.
        verbose: Show how the run goes on: a live view in terminals and notebooks, lines elsewhere.
        accelerator: Accelerate's handle; only its main process prints.
        parallel: How its processes share the work: ``"data"``: all of them on every agent; ``"population"``: each has
            agents of its own, which suits models that fit one device; see docs/distributed.md.
        **agilerl: AgileRL's ``wb``, ``tensorboard``, ``init_hp`` and so on, see
            :class:`agiledpo.training.agilerl_tracking.AgileRLTracking`.

    Returns:
        The agents as a :class:`Population` and their last fitness, in its order.

    Raises:
        TypeError: ``rollout`` returned something else.
        ValueError: As :func:`finetune_llm_preference`, and the other errors that it names.
    """
    log = None if rollouts_path is None else RolloutLog(rollouts_path, team=team_of(accelerator, pop))
    return finetune(
        FromRewards(rollout, log),
        pop,
        env,
        env_fn=env_fn,
        tournament=tournament,
        mutation=mutation,
        evo_steps=evo_steps,
        fitness=fitness,
        num_epochs=num_epochs,
        max_steps=max_steps,
        evaluation_interval=evaluation_interval,
        checkpoint_steps=checkpoint_steps,
        checkpoint_path=checkpoint_path,
        resume_from=resume_from,
        retention=retention,
        save_elite=save_elite,
        elite_path=elite_path,
        lineage_path=lineage_path,
        log_path=log_path,
        observers=observers,
        trackers=trackers_from(trackers, agilerl),
        verbose=verbose,
        accelerator=accelerator,
        parallel=parallel,
    )


def finetune_llm_online_preference(
    pop: Sequence[DPO],
    env: ReasoningGym | None = None,
    *,
    group_size: int = 8,
    temperature: float = 0.9,
    top_p: float = 0.95,
    top_k: int = 50,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    min_output_tokens: int = 0,
    stop: str | Sequence[str] = (),
    max_completion_length: int = 256,
    min_reward_gap: float = 0.0,
    mask_truncated_completions: bool = False,
    reference_refresh_rounds: int | None = None,
    eval_temperature: float = 0.0,
    eval_group_size: int = 1,
    generator: Generator | None = None,
    env_fn: Callable[[], ReasoningGym] | None = None,
    tournament: Selection | None = None,
    mutation: Mutations | None = None,
    evo_steps: int | None = None,
    fitness: Fitness | None = None,
    num_epochs: int | None = None,
    max_steps: int | None = None,
    evaluation_interval: int | None = 10,
    checkpoint_steps: int | None = None,
    checkpoint_path: str | Path | None = None,
    resume_from: str | Path | None = None,
    retention: Retention | None = None,
    save_elite: bool = False,
    elite_path: str | Path | None = None,
    lineage_path: str | Path | None = None,
    log_path: str | Path | None = None,
    observers: Sequence[Observer] = (),
    trackers: ToTrackers = (),
    rollouts_path: str | Path | None = None,
    verbose: bool = True,
    accelerator: Accelerator | None = None,
    parallel: Parallel = "data",
    **agilerl: Unpack[AgileRLTracking],
) -> tuple[Population[DPO], list[float]]:
    """Train DPO agents on preferences between their own completions and, if asked, let them evolve.

    Each batch of the environment is a round. Every agent answers its prompts as it is now, the environment judges the
    completions, and the best of each group is preferred to its worst. Groups of equal rewards or equal completions make
    no pair; a round without any changes nothing. ``agent.batch_size`` pairs make an optimizer step, and what is left
    over at the end of a round makes a smaller one. This is online DPO (Guo et al. 2024,
    https://arxiv.org/abs/2402.04792); with ``reference_refresh_rounds`` it is iterative DPO. The live view shows the
    mean reward and ``pairs``, the share of groups that made a pair.

    Make the agents with ``reference_cache=None``: no pair comes again, and none of what a cache keeps is ever asked
    for. ``"memory"`` only takes up its ``reference_cache_bytes``; a directory would grow with every pair and is
    refused.

    All else is as in :func:`finetune_llm_preference`, with prompts where there are pairs; ``agent.steps`` counts pairs.
    On validation sets the loss is minus the mean reward, and the accuracy the success rate.

    Args:
        pop: The agents.
        env: Where prompts come from and who judges, for all agents.
        group_size: Completions per prompt, at least 2.
        temperature: What logits are divided by when completions are sampled, above 0.
        top_p: Only the most likely tokens that together have this probability are sampled.
        top_k: Only the k most likely tokens are; 0 for all.
        min_p: Only tokens at least this many times as likely as the most likely one are.
        repetition_penalty: What makes tokens that were there before less likely; 1 for none.
        min_output_tokens: No end-of-sequence token before as many.
        stop: Text, or several texts, behind which a completion ends, also of held-out prompts.
        max_completion_length: Most tokens of a completion, also of held-out prompts.
        min_reward_gap: Smallest difference of rewards in a pair; a tie never makes one.
        mask_truncated_completions: Make no pairs of completions that were cut at ``max_completion_length``.
        reference_refresh_rounds: Rounds after which each agent's actor is copied onto its reference, again and again;
            None leaves that to the agents' ``reference_update``, which otherwise has to be ``"never"``.
        eval_temperature: The same for held-out prompts; 0 takes the most likely token each time.
        eval_group_size: Completions per held-out prompt; more than one makes sense with a temperature.
        generator: Who samples; None for :class:`agiledpo.generation.TransformersGenerator`.
        env_fn: Instead of ``env``: makes an environment for each agent.
        tournament: Who survives.
        mutation: How hyperparameters change.
        evo_steps: Batches of the environment in a generation.
        fitness: How agents are compared: ``"reward"`` (the default: the mean reward), ``"success_rate"`` (share of
            completions with at least the environment's ``success_reward``), or a function of agent and environment.
        num_epochs: Passes over the training split; wins over ``max_steps``. Neither given: one epoch.
        max_steps: Prompts that *each* agent answers, a group of completions each.
        evaluation_interval: Batches of the environment between two evaluations.
        checkpoint_steps: Prompts between two checkpoints of the run.
        checkpoint_path: Directory of the checkpoints.
        resume_from: Go on from a checkpoint: its directory, or ``"latest"``.
        retention: Which checkpoints are kept; None keeps the last two.
        save_elite: Save the fittest agent to ``elite_path``.
        elite_path: Directory for it.
        lineage_path: File of JSON lines to write the lineage to.
        log_path: File of JSON lines to write the run's figures to, see :class:`agiledpo.training.recorder.Recorder`.
        observers: Who else follows the run, see :class:`agiledpo.training.observer.Observer`.
        trackers: Where the figures go beside the log: ``["tensorboard", "wandb"]``, or
            :class:`agiledpo.training.trackers.Trackers` to say more.
        rollouts_path: File of JSON lines to write all training rollouts to, as NeMo Gym does: ``agiledpo pairs`` makes
            preference pairs of it. A run that goes on from a checkpoint moves what came after it to a file beside,
            ``<name>.from_<bytes before it>``, so that the file has each rollout once.
        verbose: Show how the run goes on: a live view in terminals and notebooks, lines elsewhere.
        accelerator: Accelerate's handle; only its main process prints.
        parallel: How its processes share the work: ``"data"``: all of them on every agent; ``"population"``: each has
            agents of its own, which suits models that fit one device; see docs/distributed.md.
        **agilerl: AgileRL's ``wb``, ``tensorboard``, ``init_hp`` and so on, see
            :class:`agiledpo.training.agilerl_tracking.AgileRLTracking`.

    Returns:
        The agents as a :class:`Population` and their last fitness, in its order.

    Raises:
        ValueError: As :func:`finetune_llm_preference`, and the other errors that it names.
    """
    check_whole_number("max_completion_length", max_completion_length)
    check_number("eval_temperature", eval_temperature, minimum=0.0)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    practice = FromComparisons(
        group_size=group_size,
        sampling=SamplingSettings(
            max_new_tokens=max_completion_length,
            min_new_tokens=min_output_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=stops,
        ),
        evaluation=SamplingSettings(max_new_tokens=max_completion_length, temperature=eval_temperature, stop=stops),
        evaluation_group_size=eval_group_size,
        min_reward_gap=min_reward_gap,
        reference_refresh_rounds=reference_refresh_rounds,
        mask_truncated_completions=mask_truncated_completions,
        generator=generator,
        log=None if rollouts_path is None else RolloutLog(rollouts_path, team=team_of(accelerator, pop)),
    )
    return finetune(
        practice,
        pop,
        env,
        env_fn=env_fn,
        tournament=tournament,
        mutation=mutation,
        evo_steps=evo_steps,
        fitness=fitness,
        num_epochs=num_epochs,
        max_steps=max_steps,
        evaluation_interval=evaluation_interval,
        checkpoint_steps=checkpoint_steps,
        checkpoint_path=checkpoint_path,
        resume_from=resume_from,
        retention=retention,
        save_elite=save_elite,
        elite_path=elite_path,
        lineage_path=lineage_path,
        log_path=log_path,
        observers=observers,
        trackers=trackers_from(trackers, agilerl),
        verbose=verbose,
        accelerator=accelerator,
        parallel=parallel,
    )
