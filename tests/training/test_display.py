"""The live display of real runs: on a terminal that is read back, and in a notebook that is executed."""

import io
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console

from agiledpo.algorithms import DPO, GRPO
from agiledpo.training.display import LiveDisplay, TerminalScreen
from agiledpo.training.observer import Observer
from agiledpo.training.train_llm import finetune_llm_preference, finetune_llm_reasoning

WIDTH, HEIGHT = 100, 30


class Terminal:
    """What a terminal of endless height shows of the control sequences that Rich uses; refuses all others."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.cursor = True

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[^\x1b]", text):
            if part in ("\x1b[?25l", "\x1b[?25h"):
                self.cursor = part.endswith("h")
            elif part == "\x1b[2K":
                self.lines[self.row] = ""
            elif part == "\x1b[1A":
                self.row -= 1
            elif part == "\r":
                self.column = 0
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif part.endswith("m"):
                pass  # colours
            else:
                assert len(part) == 1, part
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
                self.column += 1


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=WIDTH, height=HEIGHT, _environ={"TERM": "xterm"})


def screen(console: Console) -> Terminal:
    terminal = Terminal()
    terminal.feed(console.file.getvalue())
    return terminal


class Talker(Observer):
    """A user's code that prints while the run goes on."""

    def advanced(self, rows_done):
        print(f"user's line {rows_done}")


def test_the_last_view_stands_below_everything_that_was_said(make_env, tiny_model, lora, console):
    agents = DPO.population(2, actor_network=tiny_model(), lora_config=lora, lr=1e-3, nll_alpha=0.0, batch_size=4)
    stdout = sys.stdout
    population, fitnesses = finetune_llm_preference(
        agents,
        make_env(train=12, batch=4),
        observers=[Talker(), LiveDisplay(TerminalScreen(console))],
        verbose=False,
    )
    assert sys.stdout is stdout
    shown = screen(console)
    assert shown.cursor
    said = [line.rstrip() for line in shown.lines if line.strip()]
    for text in ("user's line 4", "user's line 8", "user's line 12"):
        assert said.count(text) == 1
    assert [line for line in said if line.startswith("12/12 pairs")] == said[-6:-5]
    assert sum("held-out" in line and "loss" in line for line in said) == 1
    for agent, fitness, line in zip(population, fitnesses, said[-2:], strict=True):
        figures = line.split()
        assert figures[0] == str(agent.index)
        assert ("★" in figures) is (agent is population.elite)
        assert f"{fitness:.3f}" in figures
        assert f"{agent.lr:.3g}" in figures


def test_an_answer_is_shown_with_its_reward(make_reasoning_env, tiny_model, lora, console):
    rewards = []

    class Rewards(Observer):
        def answered(self, agent, questions, rollouts, env):
            rewards.append(rollouts.rewards[0][0])

    agent = GRPO(actor_network=tiny_model(), lora_config=lora, group_size=2, max_output_tokens=5, batch_size=2)
    finetune_llm_reasoning(
        [agent], make_reasoning_env(train=4, batch=4),
        observers=[Rewards(), LiveDisplay(TerminalScreen(console))], verbose=False,
    )  # fmt: skip
    last = [line.rstrip() for line in screen(console).lines if line.strip()][-2:]
    assert last[0].startswith("agent 0 was asked: w")
    assert last[1].startswith(f"and answered (reward {rewards[-1]:.3g}): ")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_terminal_is_given_back_after_an_error(make_env, tiny_model, lora, console, error):
    class Fails(Observer):
        def advanced(self, rows_done):
            if rows_done == 8:
                raise error

    agent = DPO(actor_network=tiny_model(), lora_config=lora, batch_size=4)
    stdout, stderr = sys.stdout, sys.stderr
    with pytest.raises(error):
        finetune_llm_preference(
            [agent], make_env(train=12, batch=4),
            observers=[LiveDisplay(TerminalScreen(console)), Fails()], verbose=False,
        )  # fmt: skip
    assert (sys.stdout, sys.stderr) == (stdout, stderr)
    shown = screen(console)
    assert shown.cursor
    assert sum(line.startswith("8/12 pairs") for line in shown.lines) == 1


NOTEBOOK = """
from agiledpo.training.display import display_for
from agiledpo.training.observer import Outline
shown = {"loss": ("loss", ".4f")}
with display_for() as display:
    display.begins(Outline("DPO", "pair", 400, shown), [])
    display.said("agent 0: minimise <b>this</b>")
    for batch in range(1, 101):
        display.advanced(4 * batch)
        if batch == 50:
            print("user's line")
"""


def test_a_notebook_has_one_view_that_is_replaced():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    (view,) = [output for output in outputs if output.output_type == "display_data"]
    assert view.data["text/plain"].startswith("400/400 pairs")
    assert "400/400 pairs" in view.data["text/html"]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert printed == "agent 0: minimise <b>this</b>\nuser's line\n"
    assert {output.output_type for output in outputs} == {"display_data", "stream"}
