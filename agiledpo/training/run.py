"""A training run of one agent or a population; at any batch it can be put aside and taken up again."""

import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic

from agiledpo.algorithms.core.errors import NonFiniteLossError, PopulationDivergedError
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.measured import Estimate
from agiledpo.algorithms.core.randomness import global_random_state, set_global_random_state
from agiledpo.distributed.team import Team
from agiledpo.hpo.records import Born, Diverged, Evaluated, Final, Validated
from agiledpo.hpo.selection import rank
from agiledpo.scoring.prompt_batch import PromptBatch
from agiledpo.training.checkpoints import RunCheckpoints
from agiledpo.training.elite import EliteKeeper
from agiledpo.training.environments import BATCH_SIZE, PROCESSES, ROWS_OF, Environments
from agiledpo.training.evolution import Evolution
from agiledpo.training.homes import Homes, history_of
from agiledpo.training.interruption import Interruption, TrainingInterrupted
from agiledpo.training.observer import Observer
from agiledpo.training.population import Agent, Population
from agiledpo.training.practice import Practice
from agiledpo.training.row_queue import RowQueue
from agiledpo.training.schedule import Moment, Schedule
from agiledpo.training.validation import validate

Fitness = str | Callable[[Any, Any], float | tuple[float, float]]


class TrainingRun(Generic[Agent]):
    """Learn, evaluate, evolve, save: what the functions of :mod:`agiledpo.training.train_llm` do.

    Every agent learns from the same rows in the same order, as many at once as the practice says. What is left over at
    the end of an epoch, a generation or the run makes a smaller step, so agents have learned from the same rows
    whenever they are compared.

    Args:
        practice: How agents learn from rows and are measured on them.
        population: The agents, all of one algorithm.
        environments: Where rows come from.
        schedule: Length and rhythm.
        fitness: How agents are compared; None for the algorithm's default.
        evolution: Selection and mutation; None for none.
        checkpoints: Where the run is saved; None for nowhere.
        elite: Where the fittest agent is saved.
        observer: Who follows the run.
        team: The processes that make the run together; None for one.
        homes: Which process each agent is at home in; None where every process has all to do with each agent.

    Attributes:
        iteration: Batches of the environment so far.
        rows_done: Rows that each agent has been handed so far.
        metrics: Of the fittest agent in the last evaluation, on the test split and the validation sets, and its
            ``"fitness"``; empty where nobody was fit or the fittest did not survive.
        measured_at: Rows after which that was.
    """

    def __init__(
        self,
        practice: Practice[Agent],
        population: Population[Agent],
        environments: Environments,
        schedule: Schedule,
        *,
        fitness: Fitness | None = None,
        evolution: Evolution | None = None,
        checkpoints: RunCheckpoints | None = None,
        elite: EliteKeeper,
        observer: Observer,
        team: Team | None = None,
        homes: Homes | None = None,
    ) -> None:
        self.team = Team.alone() if team is None else team
        self.practice = practice
        self.population = population
        self.environments = environments
        self.schedule = schedule
        self.fitness = practice.fitness[0] if fitness is None else fitness
        self.evolution = evolution
        self.checkpoints = checkpoints
        self.elite = elite
        self.observer = practice.observer = observer
        self.homes = Homes(Team.alone()) if homes is None else homes
        self.iteration = 0
        self.rows_done = 0
        self.metrics: dict[str, float] = {}
        self.measured_at = 0
        self._kind = practice.batch
        self._queues = [RowQueue(self._kind) for _ in population]
        self._rest: list[PromptBatch] = []
        self._ended_with_epoch = False
        # Of agents at home here, by place, since the processes last heard of each other.
        self._lessons: dict[int, dict[str, float]] = {}
        self._setbacks: dict[int, tuple[int, NonFiniteLossError]] = {}

    @property
    def done(self) -> bool:
        """Whether the run has reached its length."""
        return self.rows_done >= self.schedule.total_rows

    def run(self) -> Population[Agent]:
        """Go on to the end.

        Raises:
            NonFiniteLossError: The only agent diverged.
            PopulationDivergedError: All agents did. What was saved before is untouched.
            TrainingInterrupted: The process was asked to stop; the run has been saved.
        """
        with self.homes.living_apart(self.population):
            self._go_on()
        return self.population

    def _go_on(self) -> None:
        if not self.population.lineage:
            self._introduce()
        if self.rows_done and not self.done and self._ended_with_epoch:
            self._end_epoch()  # which the end of a shorter run had no use for
        # Without a place to save to, a signal does what it always does.
        with nullcontext() if self.checkpoints is None else Interruption(self.team) as interruption:
            while not self.done:
                self.advance()
                if interruption is not None and (requested := interruption.agreed()) is not None:
                    self._stop(requested)
        if self.measured_at != self.rows_done:  # a checkpoint that is the end of this run was saved in the midst of one
            self._evaluate()
        for agent in self.population:
            agent.flush_caches()
        self._report()
        self.observer.ended(self.population, self.rows_done)
        self.homes.spread(self.population)

    def advance(self) -> None:
        """One batch of the environments, and whatever falls due after it."""
        left = self.schedule.total_rows - self.rows_done
        shown = self._rest or [self._kind.from_experiences(experiences) for experiences in self.environments.step()]
        batches = [batch.slice(0, left) for batch in shown]
        rows = len(batches[0])
        # What a run that ends within a batch leaves is for the one that goes on from there.
        self._rest = [batch.slice(left, len(batch)) for batch in shown] if left < len(shown[0]) else []
        ends_run = rows == left
        moment = Moment(
            iteration=self.iteration + 1,
            rows_before=self.rows_done,
            rows_done=self.rows_done + rows,
            ends_epoch=self.environments.at_epoch_end and not self._rest and not ends_run,
            ends_run=ends_run,
        )
        self.practice.begin_batch(moment.iteration, moment.rows_done)
        each = batches * len(self.population) if len(batches) == 1 else batches
        for place, batch in enumerate(each):
            self._learn(place, batch, moment)
        self.iteration, self.rows_done = moment.iteration, moment.rows_done
        self.observer.advanced(self.rows_done)
        saves = self.checkpoints is not None and self.schedule.checkpoints(moment)
        if self.schedule.evaluates(moment) or (saves and self._judges):
            self._evaluate()
        self._ended_with_epoch = moment.ends_run and self.environments.at_epoch_end and not self._rest
        if moment.ends_epoch:
            self._end_epoch()
        if self.evolution is not None and self.schedule.evolves(moment):
            self._evolve(self.evolution, moment)
        if saves:
            self._save()

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, between two batches.

        Agents' tensors are the live ones: save or copy them before the run goes on. ``torch.load(weights_only=True)``
        reads what ``torch.save`` makes of it.
        """
        return {**self.loop_state_dict(), "agents": [agent.state_dict() for agent in self.population]}

    def loop_state_dict(self) -> dict[str, Any]:
        """The same without the agents."""
        return {
            "iteration": self.iteration,
            "rows_done": self.rows_done,
            "settings": self._settings(),
            "metrics": dict(self.metrics),
            "measured_at": self.measured_at,
            "validation": dict(self.population.validation),
            "random": global_random_state(),
            "elite": None if self.population.elite is None else self.population.elite.index,
            "queues": [queue.state_dict() for queue in self._queues],
            "rest": [{name: list(values) for name, values in vars(batch).items()} for batch in self._rest],
            "ended_with_epoch": self._ended_with_epoch,
            "environments": self.environments.state_dict(),
            "evolution": None if self.evolution is None else self.evolution.state_dict(),
            "practice": self.practice.state_dict(),
            "lineage": self.population.lineage.state_dict(),
            "observers": self.observer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, in a run that was made with the same arguments.

        Raises:
            ValueError: The run was made with other agents, environments or strategies.
        """
        self.check_state(state, agents=len(state["agents"]))
        for agent, saved in zip(self.population, state["agents"], strict=True):
            agent.load_state_dict(saved)
        self.load_loop_state_dict(state)

    def check_state(self, state: Mapping[str, Any], *, agents: int) -> None:
        """Check that a state can be one of this run.

        Args:
            state: The state.
            agents: Number of agents in it.

        Raises:
            FileExistsError: A file of this run holds another run's lines.
            ValueError: It cannot.
        """
        if agents != len(self.population):
            raise ValueError(f"The state is of {agents} agents; this run has {len(self.population)}.")
        if (state["evolution"] is None) is not (self.evolution is None):
            raise ValueError("The state was taken with evolution and this run has none, or the other way round.")
        self.practice.check_state(state.get("practice", {}))
        self.observer.check_state(state.get("observers", {}))

    def place(self, state: Mapping[str, Any]) -> None:
        """Go to the place in the data and in the evolution where a state was taken; agents stay as they are.

        Raises:
            ValueError: The environments are of other data, or the strategies are others.
        """
        self.environments.load_state_dict(state["environments"])
        if self.evolution is not None:
            self.evolution.load_state_dict(state["evolution"])

    def load_loop_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`loop_state_dict` was taken, with agents that are as they were there.

        Warns:
            UserWarning: The run's length or rhythm was another one.
        """
        saved, settings = {PROCESSES: 1, **state["settings"]}, self._settings()
        self._warn_of_batches(saved, settings)
        for name in {**settings, **{name: None for name in saved if name.startswith(ROWS_OF)}}:
            if name.startswith(ROWS_OF) and (name in saved) is not (name in settings):
                has, had = ("has", "had not") if name in settings else ("has not", "had")
                what = f"This run {has} the {name.removeprefix(ROWS_OF)}, which the run that was saved {had}."
            elif saved.get(name) != settings[name] and name not in (BATCH_SIZE, PROCESSES):
                what = f"{name} was {saved.get(name)} in the run that was saved and is {settings[name]} from here on."
            else:
                continue
            warnings.warn(what, stacklevel=2)
        for queue, waiting in zip(self._queues, state["queues"], strict=True):
            queue.load_state_dict(waiting)
        self._rest = [self._kind(**rest) for rest in state["rest"]]
        self._ended_with_epoch = state["ended_with_epoch"]
        self.place(state)
        self.population.elite = next((a for a in self.population if a.index == state["elite"]), None)
        self.iteration, self.rows_done = state["iteration"], state["rows_done"]
        self.metrics, self.measured_at = dict(state["metrics"]), state["measured_at"]
        self.population.validation = dict(state.get("validation", {}))  # runs of version 0.1 had none
        set_global_random_state(state["random"])
        # Files are cut at the very last, when nothing else can be refused.
        self.population.lineage.load_state_dict(state["lineage"])
        self.practice.load_state_dict(state.get("practice", {}))  # runs of version 0.1 had none
        self.observer.load_state_dict(state.get("observers", {}))
        self.observer.resumed(self.rows_done)

    @staticmethod
    def _warn_of_batches(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Say that batches have other sizes, whatever it comes of."""
        was, now = (made[BATCH_SIZE] * made[PROCESSES] for made in (saved, settings))
        if was == now:
            return
        if saved[PROCESSES] == settings[PROCESSES]:
            what = (
                f"{BATCH_SIZE} was {saved[BATCH_SIZE]} in the run that was saved and is {settings[BATCH_SIZE]} from "
                "here on."
            )
        else:
            size, rest = divmod(was, settings[PROCESSES])
            what = (
                f"The run that was saved had {saved[PROCESSES]} process(es) and batches of {was} rows; from here on it "
                f"has {settings[PROCESSES]} and batches of {now}. Rows are neither lost nor repeated, but what goes by "
                "batches (evaluation_interval, evo_steps) comes after other rows than before."
                + ("" if rest else f" With {BATCH_SIZE}={size} it would not.")
            )
        warnings.warn(what, stacklevel=3)

    def _settings(self) -> dict[str, Any]:
        """What may be changed when a run goes on, but makes it another run."""
        schedule = vars(self.schedule)
        return {
            # With evolution a checkpoint is an evaluation more.
            **{name: value for name, value in schedule.items() if name != "checkpoint_steps" or self._judges},
            **self.environments.settings(),
            **self.practice.settings(list(self.population)),
            **({} if self.evolution is None else self.evolution.settings()),
            "fitness": self.fitness if isinstance(self.fitness, str) else "a function",
        }

    # The steps ------------------------------------------------------------------------------------------------------

    @property
    def _judges(self) -> bool:
        """Whether a checkpoint has to know who is the fittest."""
        return self.evolution is not None or (self.checkpoints is not None and self.checkpoints.judges)

    @property
    def _workers(self) -> Team:
        """The processes that work on an agent together."""
        return self.team if self.homes.is_one else Team.alone()

    @property
    def _generation(self) -> int:
        return 0 if self.evolution is None else self.evolution.generation

    def _stop(self, number: signal.Signals) -> None:
        assert self.checkpoints is not None
        saved = self._save()
        how = f"Stopped by {number.name} after {self.rows_done} of {self.schedule.total_rows} {self._unit}s. "
        newest = self.checkpoints.last()
        if saved is None:
            how += "It could not be saved. " if newest is None else f"Only {newest} could be saved. "
        if newest is not None and (command := self.observer.resume_command) is not None:
            how += f"To go on: {command}"
        elif newest is not None:
            how += f"To go on, make the same call with resume_from='latest', or '{newest}'."
        # Not only above the bar: whoever runs with verbose=False has to know as well.
        if self.team.leads:
            print(how, file=sys.stderr, flush=True)
        raise TrainingInterrupted(how, number)

    @property
    def _unit(self) -> str:
        return self.practice.unit

    def _save(self) -> Path | None:
        assert self.checkpoints is not None
        self._meet()
        return self.checkpoints.save(self)

    def _end_epoch(self) -> None:
        for _, agent in self._learners():
            agent.end_epoch()

    def _introduce(self) -> None:
        if table := self.environments.judge.filter_table():
            self.observer.said(table)
        for agent in self.population:
            self.observer.said(f"agent {agent.index}: minimise {self.practice.describe(agent)}")
            self.population.lineage.record(
                Born(agent=agent.index, parent=None, generation=0, pairs=0, hyperparameters=agent.hyperparameters)
            )

    def _learn(self, place: int, batch: Any, moment: Moment) -> None:
        """Show rows to an agent; it learns whenever enough of them are there, or from the rest when due."""
        agent, queue, env = self.population[place], self._queues[place], self.environments.of(place)
        if agent.diverged is not None or place in self._setbacks:
            return
        queue.put(batch)
        size = self.practice.rows_at_once(agent) or len(queue)
        flush = self.schedule.flushes(moment)
        try:
            while len(queue) >= size or (flush and len(queue)):
                rows = queue.take(size)
                if self.homes.has(place):
                    self._lessons[place] = self.practice.learn(agent, rows, env)
                    self.observer.learned(agent, self._lessons[place])
            if self.homes.has(place):
                self.practice.end_batch(agent, moment.iteration)
        except NonFiniteLossError as error:
            queue.clear()
            self._setbacks[place] = (moment.rows_done, error)
            if self.homes.is_one:
                self._meet()

    def _learners(self) -> Iterator[tuple[int, Agent]]:
        """Agents at home here that are well, with their places."""
        for place, agent in enumerate(self.population):
            if self.homes.has(place) and agent.diverged is None and place not in self._setbacks:
                yield place, agent

    def _meet(self) -> None:
        """Hear what has become of the agents that are at home elsewhere."""
        told = {
            place: (history_of(agent), self._lessons.get(place), self._setbacks.get(place))
            for place, agent in enumerate(self.population)
            if self.homes.has(place)
        }
        self._lessons, self._setbacks = {}, {}
        setbacks = []
        for place, (history, lesson, setback) in self.homes.share(told).items():
            agent = self.population[place]
            if not self.homes.has(place):
                vars(agent).update(history)
                if lesson is not None:
                    self.observer.learned(agent, lesson)
            if setback is not None:
                self._queues[place].clear()
                setbacks.append((setback[0], place, setback[1]))
        # One process would have met with them in this order.
        for rows_done, place, error in sorted(setbacks, key=lambda entry: entry[:2]):
            self._set_aside(self.population[place], error, rows_done)

    def _alike(self, failed: dict[int, NonFiniteLossError]) -> dict[int, NonFiniteLossError]:
        """Let all processes that measured the same agents know what the leader found, to the bit.

        Their devices may round otherwise, and who decides otherwise meets the others no more.

        Args:
            failed: Errors of this process, by place.

        Returns:
            The leader's.
        """
        if self.team.is_alone or not self.homes.is_one:
            return failed
        histories = {place: history_of(agent) for place, agent in enumerate(self.population)}
        failed, histories = self.team.same((failed, histories))
        for place, history in histories.items():
            vars(self.population[place]).update(history)
        return failed

    def _evaluate(self) -> None:
        failed: dict[int, NonFiniteLossError] = {}
        for place, agent in self._learners():
            try:
                if callable(self.fitness):
                    _ask(self.fitness, agent, self.environments.judge, self._workers)
                else:
                    agent.record(self.practice.measure(agent, self.environments.judge, "test"), self.fitness)
            except NonFiniteLossError as error:
                failed[place] = error
        self._meet()
        failed = self._alike(self.homes.share(failed))
        for place, agent in enumerate(self.population):
            if agent.diverged is not None:
                continue
            if place in failed:
                self._set_aside(agent, failed[place], self.rows_done)
                continue
            self.population.lineage.record(
                Evaluated(
                    agent=agent.index,
                    generation=self._generation,
                    pairs=self.rows_done,
                    fitness=agent.fitness[-1],
                    error=agent.fitness_errors[-1],
                    tie_break=agent.tie_break,
                )
            )
        elite = self.population.elite = self._fittest()
        validation = {} if elite is None else self._validate(elite)
        self.population.validation = validation
        self.metrics = {} if elite is None else {**elite.held_out, "fitness": elite.fitness[-1], **validation}
        self.measured_at = self.rows_done
        self.observer.evaluated(self.population, self.rows_done)

    def _fittest(self) -> Agent | None:
        """The agent of the highest rank; nobody is the fittest where no fitness is a number."""
        eval_loop = 1 if self.evolution is None else self.evolution.selection.eval_loop
        ranks = {agent.index: rank(agent, eval_loop) for agent in self.population.well}
        fit = [agent for agent in self.population.well if ranks[agent.index].fit]
        return max(fit, key=lambda agent: ranks[agent.index]) if fit else None

    def _validate(self, elite: Agent) -> dict[str, float]:
        """The fittest agent's figures on the validation sets."""
        validation = self.homes.ask(
            self.population.index(elite), lambda: validate(self.practice, elite, self.environments.judge)
        )
        for name, reason in validation.failed.items():
            self.observer.said(f"agent {elite.index} could not be measured on the validation set {name}: {reason}")
        if validation.metrics:
            self.population.lineage.record(
                Validated(
                    agent=elite.index,
                    generation=self._generation,
                    pairs=self.rows_done,
                    metrics=validation.metrics,  # without the time, which no other run has
                )
            )
        return validation.figures

    def _evolve(self, evolution: Evolution, moment: Moment) -> None:
        elite = self.population.elite
        index = None if elite is None else elite.index
        self._save_elite()
        places = {agent.index: place for place, agent in enumerate(self.population)}
        evolution.evolve(self.population, moment.rows_done)
        self.homes.move_in(self.population, places)
        if (elite is not None and elite.index != index) or not any(agent is elite for agent in self.population):
            self.population.elite, self.metrics = None, {}  # it did not survive
        self.observer.evolved(evolution.generation, self.population, moment.rows_done)

    def _save_elite(self) -> None:
        elite = self.population.elite
        if elite is not None and self.elite.path is not None:
            with self.homes.at_hand(self.population, elite):
                self.elite.save(elite, self.environments.judge)

    def _set_aside(self, agent: Agent, error: NonFiniteLossError, rows_done: int) -> None:
        """An agent that diverges does not end the run of the others."""
        if len(self.population) == 1:
            raise error
        agent.diverged = str(error)
        self.population.lineage.record(
            Diverged(agent=agent.index, generation=self._generation, pairs=rows_done, reason=agent.diverged)
        )
        self.observer.said(f"agent {agent.index} has diverged and is set aside: {error}")
        if not self.population.well:
            reasons = "; ".join(f"agent {agent.index}: {agent.diverged}" for agent in self.population)
            saved = (None if self.checkpoints is None else self.checkpoints.last()) or self.elite.saved
            where = "Nothing had been saved." if saved is None else f"The last good state is in {saved}."
            raise PopulationDivergedError(f"All agents have diverged. {reasons} {where}") from error

    def _report(self) -> None:
        """Measure the elite on what no selection ever saw."""
        elite, judge = self.population.elite, self.environments.judge
        self._save_elite()
        if elite is not None and "final" in judge.splits:
            name = self.practice.fitness[0]
            try:
                final, rows = self.homes.ask(self.population.index(elite), lambda: self._final(elite))
            except NonFiniteLossError as error:  # the trained agents must not be lost to it
                self.observer.said(f"agent {elite.index} could not be measured on the final split: {error}")
                return
            self.population.final = final
            self.population.lineage.record(
                Final(agent=elite.index, pairs=self.rows_done, split="final", fitness=final.value, error=final.error)
            )
            self.observer.said(
                f"agent {elite.index}: {name} {final} on the {rows} rows of the final split, which no "
                "selection ever saw"
            )

    def _final(self, elite: Agent) -> tuple[Estimate, int]:
        """The elite's figure on the final split, and the rows that it is of."""
        measured = self.practice.measure(elite, self.environments.judge, "final")
        return measured.fitness(self.practice.fitness[0]), len(measured)


def _ask(
    fitness: Callable[[Any, Any], float | tuple[float, float]], agent: LLMAlgorithm, judge: Any, team: Team
) -> None:
    """Record what a user's function says of an agent, and nothing that ``agent.test`` in it may have recorded.

    Every process asks, because ``agent.measure`` in it takes them all; the leader's answer counts.
    """
    values, errors = list(agent.fitness), list(agent.fitness_errors)

    def answer() -> tuple[float, float]:
        said = fitness(agent, judge)
        return _numbers(said, fitness, agent) if team.leads else (math.nan, math.nan)

    value, error = team.same(team.everyone_does(answer))
    agent.fitness, agent.fitness_errors = values, errors
    agent.record_fitness(value, error)


def _numbers(answer: Any, fitness: Any, agent: LLMAlgorithm) -> tuple[float, float]:
    """What a user's function returned, as plain numbers: a tensor may be on a device that others do not have."""
    value, error = answer if isinstance(answer, (tuple, list)) and len(answer) == 2 else (answer, None)
    try:
        return float(value), math.nan if error is None else float(error)
    except (TypeError, ValueError):
        raise TypeError(
            f"fitness={fitness!r} returned {answer!r} for agent {agent.index}; a number is needed, or a number and its "
            "standard error."
        ) from None
