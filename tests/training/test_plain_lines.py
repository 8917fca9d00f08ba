"""Lines for logs: few, complete, and of nothing but text."""

import io

import pytest
from rich.console import Console

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.registry import HyperparameterConfig, RLParameter
from agiledpo.hpo import Mutations, TournamentSelection
from agiledpo.training.display import LiveDisplay, display_for
from agiledpo.training.observer import Outline
from agiledpo.training.plain_lines import PlainLines
from agiledpo.training.train_llm import finetune_llm_preference


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_at_most_a_line_in_ten_seconds_of_training():
    stream, clock = io.StringIO(), Clock()
    lines = PlainLines(stream, interval=10.0, clock=clock)
    lines.begins(Outline("DPO", "pair", 400, {}), [])
    for batch in range(1, 101):
        clock.seconds += 1.0
        lines.advanced(4 * batch)
    text = stream.getvalue().splitlines()
    assert len(text) == 10
    assert [line.split("/")[0] for line in text[:3]] == ["4", "44", "84"]
    assert text[2] == "84/400 pairs (21%); 0:00:21 elapsed, 0:01:19 left"


def test_each_line_of_a_run_can_be_read_by_itself(make_env, tiny_model, lora):
    stream = io.StringIO()
    evolving = HyperparameterConfig(lr=RLParameter(min=1e-5, max=1e-1))
    agents = DPO.population(
        3, actor_network=tiny_model(), lora_config=lora, lr=1e-3, nll_alpha=0.0, batch_size=4, hp_config=evolving
    )
    population, fitnesses = finetune_llm_preference(
        agents,
        make_env(train=16, batch=4),
        evo_steps=2,
        tournament=TournamentSelection(2, True, 3, rand_seed=1),
        mutation=Mutations(no_mutation=0.0, rl_hp=1.0, rand_seed=1),
        observers=[PlainLines(stream)],
        verbose=False,
    )
    text = stream.getvalue()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "agent 0: minimise" in text
    evaluated = [line for line in text.splitlines() if "held-out accuracy=" in line]
    assert [line.split(" ")[0] for line in evaluated] == ["8/16", "16/16"]
    assert "16/16 pairs (100%), mean of 3 agents: loss=" in evaluated[-1]
    assert evaluated[-1].endswith("0:00:00 left")
    for agent, fitness in zip(population, fitnesses, strict=True):
        elite = "*" if agent is population.elite else ""
        assert f"agent {agent.index}{elite} {fitness:.3f}" in evaluated[-1]
    (generation,) = [line for line in text.splitlines() if "generation 1:" in line]
    assert generation.startswith("8/16 pairs (50%): generation 1: agent ")
    assert "(lr=" in generation


def test_a_stream_that_lacks_a_character_is_no_reason_to_stop():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    PlainLines(stream).said("0.5 ± 0.1\x1b[2J\tok\r")
    stream.seek(0)
    assert stream.read() == "0.5 ? 0.1 [2J\tok \n"


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"FORCE_COLOR": "1"}])
def test_who_is_no_terminal_gets_lines(environment):
    console = Console(file=io.StringIO(), _environ=environment)
    assert isinstance(display_for(console), PlainLines)


@pytest.mark.parametrize(("term", "kind"), [("xterm", LiveDisplay), ("dumb", PlainLines)])
def test_a_terminal_gets_a_live_view_unless_it_is_dumb(term, kind):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    console = Console(file=Terminal(), _environ={"TERM": term})
    assert isinstance(display_for(console), kind)
