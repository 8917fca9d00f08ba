"""A training run of one agent or a population; at any batch it can be put aside and taken up again."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.errors import NonFiniteLossError, PopulationDivergedError
from agiledpo.hpo.records import Born, Diverged, Evaluated, Final
from agiledpo.hpo.selection import rank
from agiledpo.llm_envs import PreferenceGym
from agiledpo.scoring import PreferenceBatch
from agiledpo.training.environments import Environments
from agiledpo.training.evolution import Evolution
from agiledpo.training.keeper import Keeper
from agiledpo.training.pair_queue import PairQueue
from agiledpo.training.population import Population
from agiledpo.training.progress import TrainingProgress
from agiledpo.training.schedule import Moment, Schedule

Fitness = str | Callable[[DPO, PreferenceGym], float | tuple[float, float]]


class PreferenceRun:
    """Learn, evaluate, evolve, save: what :func:`agiledpo.training.train_llm.finetune_llm_preference` does.

    Every agent learns from the same pairs in the same order, ``agent.batch_size`` of them per optimizer step. What is
    left over at the end of an epoch, a generation or the run makes a smaller step, so agents have learned from the
    same pairs whenever they are compared.

    Args:
        population: The agents.
        environments: Where pairs come from.
        schedule: Length and rhythm.
        fitness: How agents are compared; see ``finetune_llm_preference``.
        evolution: Selection and mutation; None for none.
        keeper: Where agents are saved.
        progress: Where the run shows itself.
    """

    def __init__(
        self,
        population: Population,
        environments: Environments,
        schedule: Schedule,
        *,
        fitness: Fitness = "accuracy",
        evolution: Evolution | None = None,
        keeper: Keeper,
        progress: TrainingProgress,
    ) -> None:
        self.population = population
        self.environments = environments
        self.schedule = schedule
        self.fitness = fitness
        self.evolution = evolution
        self.keeper = keeper
        self.progress = progress
        self.iteration = 0
        self.pairs_done = 0
        self._queues = [PairQueue() for _ in population]

    @property
    def done(self) -> bool:
        """Whether the run has reached its length."""
        return self.pairs_done >= self.schedule.total_pairs

    def run(self) -> Population:
        """Go on to the end.

        Raises:
            NonFiniteLossError: The only agent diverged.
            PopulationDivergedError: All agents did. What was saved before is untouched.
        """
        if not self.population.lineage:
            self._introduce()
        while not self.done:
            self.advance()
        for agent in self.population:
            agent.flush_reference_cache()
        self._report()
        return self.population

    def advance(self) -> None:
        """One batch of the environments, and whatever falls due after it."""
        left = self.schedule.total_pairs - self.pairs_done
        batches = self.environments.step(len(self.population), left)
        pairs = len(batches[0])
        ends_run = pairs == left
        moment = Moment(
            iteration=self.iteration + 1,
            pairs_before=self.pairs_done,
            pairs_done=self.pairs_done + pairs,
            ends_epoch=self.environments.at_epoch_end and not ends_run,
            ends_run=ends_run,
        )
        for agent, queue, batch in zip(self.population, self._queues, batches, strict=True):
            self._learn(agent, queue, batch, moment)
        self.iteration, self.pairs_done = moment.iteration, moment.pairs_done
        self.progress.advance(pairs)
        saves = self.schedule.checkpoints(moment)
        if self.schedule.evaluates(moment) or (saves and self.evolution is not None):
            self._evaluate(moment)
        if moment.ends_epoch:
            self._move_references()
        if saves:
            self.keeper.save_checkpoint(self.population)
        if self.evolution is not None and self.schedule.evolves(moment):
            self._evolve(self.evolution, moment)

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, between two batches.

        Agents' tensors are the live ones: save or copy them before the run goes on. ``torch.load(weights_only=True)``
        reads what ``torch.save`` makes of it.
        """
        return {
            "iteration": self.iteration,
            "pairs_done": self.pairs_done,
            "agents": [agent.state_dict() for agent in self.population],
            "elite": None if self.population.elite is None else self.population.elite.index,
            "queues": [queue.state_dict() for queue in self._queues],
            "environments": self.environments.state_dict(),
            "evolution": None if self.evolution is None else self.evolution.state_dict(),
            "lineage": self.population.lineage.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, in a run that was made with the same arguments.

        Raises:
            ValueError: The run was made with other agents, environments or strategies.
        """
        if len(state["agents"]) != len(self.population):
            raise ValueError(f"The state is of {len(state['agents'])} agents; this run has {len(self.population)}.")
        if (state["evolution"] is None) is not (self.evolution is None):
            raise ValueError("The state was taken with evolution and this run has none, or the other way round.")
        for agent, saved in zip(self.population, state["agents"], strict=True):
            agent.load_state_dict(saved)
        for queue, waiting in zip(self._queues, state["queues"], strict=True):
            queue.load_state_dict(waiting)
        self.environments.load_state_dict(state["environments"])
        if self.evolution is not None:
            self.evolution.load_state_dict(state["evolution"])
        self.population.lineage.load_state_dict(state["lineage"])
        self.population.elite = next((a for a in self.population if a.index == state["elite"]), None)
        self.iteration, self.pairs_done = state["iteration"], state["pairs_done"]
        self.progress.advance(self.pairs_done)

    # The steps ------------------------------------------------------------------------------------------------------

    @property
    def _generation(self) -> int:
        return 0 if self.evolution is None else self.evolution.generation

    def _introduce(self) -> None:
        for agent in self.population:
            self.progress.say(f"agent {agent.index}: minimise {agent.objective.describe()}")
            self.population.lineage.record(
                Born(agent=agent.index, parent=None, generation=0, pairs=0, hyperparameters=agent.hyperparameters)
            )

    def _learn(self, agent: DPO, queue: PairQueue, batch: PreferenceBatch, moment: Moment) -> None:
        """Show pairs to an agent; it learns whenever ``batch_size`` of them are there, or from the rest when due."""
        if agent.diverged is not None:
            return
        queue.put(batch)
        flush = self.schedule.flushes(moment)
        try:
            while len(queue) >= agent.batch_size or (flush and len(queue)):
                self.progress.learned(agent.index, agent.learn(queue.take(agent.batch_size)))
        except NonFiniteLossError as error:
            self._set_aside(agent, error, moment)
            queue.clear()

    def _evaluate(self, moment: Moment) -> None:
        for agent in self.population.well:
            try:
                if callable(self.fitness):
                    _ask(self.fitness, agent, self.environments.judge)
                else:
                    agent.test(self.environments.judge, fitness=self.fitness)
            except NonFiniteLossError as error:
                self._set_aside(agent, error, moment)
                continue
            self.population.lineage.record(
                Evaluated(
                    agent=agent.index,
                    generation=self._generation,
                    pairs=moment.pairs_done,
                    fitness=agent.fitness[-1],
                    error=agent.fitness_errors[-1],
                    tie_break=agent.tie_break,
                )
            )
        eval_loop = 1 if self.evolution is None else self.evolution.selection.eval_loop
        ranks = {agent.index: rank(agent, eval_loop) for agent in self.population.well}
        fit = [agent for agent in self.population.well if ranks[agent.index].fit]
        # Nobody is the fittest where no fitness is a number.
        self.population.elite = max(fit, key=lambda agent: ranks[agent.index]) if fit else None
        self.progress.evaluated(self.population)

    def _evolve(self, evolution: Evolution, moment: Moment) -> None:
        elite = self.population.elite
        index = None if elite is None else elite.index
        self.keeper.save_elite(elite)
        evolution.evolve(self.population, moment.pairs_done)
        if (elite is not None and elite.index != index) or not any(agent is elite for agent in self.population):
            self.population.elite = None  # it did not survive
        self.progress.evolved(evolution.generation, self.population)

    def _set_aside(self, agent: DPO, error: NonFiniteLossError, moment: Moment) -> None:
        """An agent that diverges does not end the run of the others."""
        if len(self.population) == 1:
            raise error
        agent.diverged = str(error)
        self.population.lineage.record(
            Diverged(agent=agent.index, generation=self._generation, pairs=moment.pairs_done, reason=agent.diverged)
        )
        self.progress.say(f"agent {agent.index} has diverged and is set aside: {error}")
        if not self.population.well:
            reasons = "; ".join(f"agent {agent.index}: {agent.diverged}" for agent in self.population)
            raise PopulationDivergedError(f"All agents have diverged. {reasons} {self.keeper.describe()}") from error

    def _move_references(self) -> None:
        for agent in self.population.well:
            if agent.reference_update == "epoch":
                agent.set_reference_policy(agent.reference_update_tracker + 1)

    def _report(self) -> None:
        """Measure the elite on what no selection ever saw."""
        elite, judge = self.population.elite, self.environments.judge
        self.keeper.save_elite(elite)
        if elite is not None and "final" in judge.splits:
            try:
                held_out = elite.measure(judge, "final")
            except NonFiniteLossError as error:  # the trained agents must not be lost to it
                self.progress.say(f"agent {elite.index} could not be measured on the final split: {error}")
                return
            final = self.population.final = held_out.fitness("accuracy")
            self.population.lineage.record(
                Final(agent=elite.index, pairs=self.pairs_done, split="final", fitness=final.value, error=final.error)
            )
            self.progress.say(
                f"agent {elite.index}: preference accuracy {final} on the {len(held_out.margins)} pairs of the final "
                "split, which no selection ever saw"
            )


def _ask(
    fitness: Callable[[DPO, PreferenceGym], float | tuple[float, float]], agent: DPO, judge: PreferenceGym
) -> None:
    """Record what a user's function says of an agent, and nothing that ``agent.test`` in it may have recorded."""
    values, errors = list(agent.fitness), list(agent.fitness_errors)
    answer = fitness(agent, judge)
    value, error = answer if isinstance(answer, (tuple, list)) and len(answer) == 2 else (answer, None)
    agent.fitness, agent.fitness_errors = values, errors
    try:
        agent.record_fitness(float(value), math.nan if error is None else float(error))
    except TypeError:
        raise TypeError(
            f"fitness={fitness!r} returned {answer!r} for agent {agent.index}; a number is needed, or a number and its "
            "standard error."
        ) from None
