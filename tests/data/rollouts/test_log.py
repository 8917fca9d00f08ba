"""The log of a run's rollouts: pairs can be made of it, and a resumed run goes on in it as if it had not stopped."""

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from agiledpo.data.rollouts import make_pairs
from agiledpo.data.rollouts.log import RolloutLog
from agiledpo.distributed.team import Team
from agiledpo.generation import Completions, SamplingSettings, roll_out
from agiledpo.llm_envs import ReasoningGym
from agiledpo.scoring import QuestionBatch, RolloutBatch

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
SYSTEM = {"role": "system", "content": "be brief"}
TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]


class Written:
    """Samples what is written here, in turn."""

    def __init__(self, texts: list[list[str]], finished: bool = True) -> None:
        self.texts, self.finished = texts, finished

    def generate(self, agent: Any, prompts: Any, *, group_size: int, settings: Any, tokenizer: Any) -> Completions:
        assert [len(group) for group in self.texts] == [group_size] * len(prompts)
        end = [tokenizer.eos_token_id] if self.finished else []
        tokens = [
            [torch.tensor([*tokenizer(text, add_special_tokens=False).input_ids, *end]) for text in group]
            for group in self.texts
        ]
        logps = [[torch.full((len(ids),), -0.5) for ids in group] for group in tokens]
        return Completions(tokens, logps, [[self.finished] * group_size for _ in tokens])


def equal(completion: str, answer: Any, question: str) -> float:
    return float(completion == answer)


def rolled_out(
    env: ReasoningGym, texts: list[list[str]], *, finished: bool = True
) -> tuple[QuestionBatch, RolloutBatch]:
    questions = QuestionBatch.from_experiences(env.next_batch())
    settings = SamplingSettings(max_new_tokens=20)
    agent: Any = SimpleNamespace(team=Team.alone())  # nothing else of it is asked for
    generator: Any = Written(texts, finished)
    return questions, roll_out(agent, questions, env, group_size=len(texts[0]), settings=settings, generator=generator)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def make_gym(make_tokenizer: MakeTokenizer) -> Callable[..., ReasoningGym]:
    def make(rows: list[dict[str, Any]], template: Any = None, **options: Any) -> ReasoningGym:
        dataset = Dataset.from_list(rows)
        options = {"answer_column": "answer", "data_batch_size_per_gpu": 2, **options}
        tokenizer = make_tokenizer(template="tools")
        tokenizer.chat_template = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + tokenizer.chat_template
        return ReasoningGym(dataset, dataset, tokenizer, equal, template, **options)

    return make


@pytest.fixture
def gym(make_gym: Callable[..., ReasoningGym]) -> ReasoningGym:
    return make_gym([{"question": f"say {i} é {{", "answer": str(i)} for i in range(4)])


def test_pairs_of_a_log(gym: ReasoningGym, tmp_path: Path) -> None:
    """The real command's code makes strict pairs of it: texts and rewards are those of the rollouts."""
    log = RolloutLog(tmp_path / "new" / "rollouts.jsonl")
    asked: dict[str, str] = {}
    for iteration in (1, 2):
        questions, rollouts = rolled_out(gym, [["0", "1", "2", "3"], ["no", "no", " no", "\n"]])
        log.write(questions, rollouts, gym, agent=7, iteration=iteration, rows_done=2 * iteration)
        asked |= {f"say {row} é {{": str(row) for row in questions.rows[:1]}
    with pytest.warns(UserWarning, match="2 of 16 lines are left out"):  # two answers say nothing
        statistics = make_pairs(log.path, tmp_path / "pairs.jsonl")
    pairs = records(tmp_path / "pairs.jsonl")
    assert (statistics.rollouts, statistics.prompts, statistics.pairs) == (14, 4, 2)
    assert {pair["prompt"][0]["content"]: pair["chosen"][0]["content"] for pair in pairs} == asked
    for pair in pairs:
        assert pair["prompt"] == [{"role": "user", "content": pair["prompt"][0]["content"]}]
        assert pair["rejected"][0]["content"] != pair["chosen"][0]["content"]
        assert pair["rejected"][0]["content"] in "0123"
        assert (pair["chosen_reward"], pair["rejected_reward"], pair["reward_gap"]) == (1.0, 0.0, 1.0)


def test_what_a_line_holds(gym: ReasoningGym, tmp_path: Path) -> None:
    log = RolloutLog(str(tmp_path / "rollouts.jsonl"))
    questions, rollouts = rolled_out(gym, [["0", "1 2"], ["2", "3"]], finished=False)
    log.write(questions, rollouts, gym, agent=3, iteration=5)
    lines = records(log.path)
    assert [(line["row"], line["completion"]) for line in lines] == [
        (row, number) for row in questions.rows for number in (0, 1)
    ]
    row = questions.rows[0]
    assert lines[1] == {
        "responses_create_params": {"input": [{"role": "user", "content": f"say {row} é {{"}]},
        "response": {
            "output": [
                {
                    "type": "message",
                    "role": "assistant",
                    "status": "incomplete",
                    "content": [{"type": "output_text", "text": "1 2", "annotations": []}],
                }
            ]
        },
        "reward": rollouts.rewards[0][1],
        "agent": 3,
        "iteration": 5,
        "rows_done": None,
        "split": "train",
        "row": row,
        "completion": 1,
        "finished": False,
        "logp": -0.5 * len(rollouts.completions[0][1]),
    }
    assert "é" in log.path.read_text(encoding="utf-8").splitlines()[0]


def test_whole_conversations_tools_and_begun_answers(make_gym: Callable[..., ReasoningGym], tmp_path: Path) -> None:
    """What the prompt begins of an answer is part of what was answered, and what is said to the model is all asked."""
    template = [SYSTEM, {"role": "user", "content": "{question}!"}, {"role": "assistant", "content": "I say "}]
    begun = make_gym([{"question": "hello", "answer": "yes"}], template)
    tools = make_gym([{"question": "hello", "answer": "yes", "tools": json.dumps(TOOLS)}], [SYSTEM, template[1]])
    chat = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "hm"},
        {"role": "user", "content": "2"},
    ]
    chats = make_gym([{"prompt": chat, "answer": "yes"}])
    pairs = []
    for number, env in enumerate((begun, tools, chats)):
        log = RolloutLog(tmp_path / f"{number}.jsonl")
        log.write(*rolled_out(env, [["yes", "no"]]), env, agent=0, iteration=1)
        make_pairs(log.path, tmp_path / f"{number}.pairs")
        pairs += records(tmp_path / f"{number}.pairs")
    asked = [SYSTEM, {"role": "user", "content": "hello!"}]
    assert [pair["prompt"] for pair in pairs] == [asked, asked, chat]
    assert [pair["chosen"][0]["content"] for pair in pairs] == ["I say yes", "yes", "yes"]
    assert [pair["rejected"][0]["content"] for pair in pairs] == ["I say no", "no", "no"]
    assert [pair.get("tools") for pair in pairs] == [None, TOOLS, None]


@pytest.mark.parametrize(("content", "trimmed"), [("I say:\n", "I say:"), ("\n I say ", "I say"), ("I say", "I say")])
@pytest.mark.parametrize("filters", ["", " | trim"])
def test_a_begun_answer_is_what_the_policy_saw(
    content: str, trimmed: str, filters: str, make_gym: Callable[..., ReasoningGym], tmp_path: Path
) -> None:
    template = [{"role": "user", "content": "{question}"}, {"role": "assistant", "content": content}]
    env = make_gym([{"question": "hello", "answer": "yes"}], template[:1])
    tokenizer = env.tokenizer
    written = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content']"
        + filters
        + ") + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer.chat_template = written
    rows = Dataset.from_list([{"question": "hello", "answer": "yes"}])
    env = ReasoningGym(rows, rows, tokenizer, equal, template)
    questions, rollouts = rolled_out(env, [["\nyes", "no"]])
    log = RolloutLog(tmp_path / "log.jsonl")
    log.write(questions, rollouts, env, agent=0, iteration=1)
    said = [line["response"]["output"][0]["content"][0]["text"] for line in records(log.path)]
    begun = trimmed if filters else content
    assert said == [f"{begun}\nyes", f"{begun}no"]
    # A second path: what the policy's tokens say behind the question.
    whole = tokenizer.decode(torch.cat([questions.prompts[0], rollouts.completions[0][0]]))
    assert whole.partition("<|im_start|>assistant\n")[2].removesuffix(str(tokenizer.eos_token)) == said[0]


def test_text_prompts_come_back_as_text(make_gym: Callable[..., ReasoningGym], tmp_path: Path) -> None:
    env = make_gym([{"prompt": "hello ", "answer": "yes"}])
    log = RolloutLog(tmp_path / "log.jsonl")
    log.write(*rolled_out(env, [["yes", "no"]]), env, agent=0, iteration=1)
    make_pairs(log.path, tmp_path / "pairs.jsonl", format="text")
    (pair,) = records(tmp_path / "pairs.jsonl")
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("hello ", "yes", "no")


def test_what_nobody_judged_is_left_out(gym: ReasoningGym, tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "log.jsonl")
    questions, rollouts = rolled_out(gym, [["0", "1"], ["2", "3"]])
    values = {**vars(rollouts), "rewards": [[math.nan, 0.25], [0.5, math.nan]], "sampling_logps": [None, None]}
    log.write(questions, RolloutBatch(**values), gym, agent=0, iteration=1)
    lines = records(log.path)
    assert [(line["completion"], line["reward"], line["logp"]) for line in lines] == [(1, 0.25, None), (0, 0.5, None)]


def test_rollouts_of_other_prompts(gym: ReasoningGym, tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "log.jsonl")
    questions, rollouts = rolled_out(gym, [["0"], ["1"]])
    with pytest.raises(ValueError, match="The rollouts are of 2 prompts, and the questions are 1"):
        log.write(questions.slice(0, 1), rollouts, gym, agent=0, iteration=1)
    assert not log.path.exists()


# Resuming -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.integers(1, 5), data=st.data())
def test_a_resumed_run_writes_the_same_file(
    batches: int, data: st.DataObject, gym: ReasoningGym, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Saved anywhere and killed anywhere later, the file ends as that of a run that was not, byte for byte."""
    saved = data.draw(st.integers(1, batches))
    killed = data.draw(st.integers(saved, batches))
    directory = tmp_path_factory.mktemp("logs")
    done = [rolled_out(gym, [[str(number), "é"], ["2", "3"]]) for number in range(batches)]

    def write(log: RolloutLog, start: int, stop: int) -> None:
        for number in range(start, stop):
            log.write(*done[number], gym, agent=0, iteration=number)

    whole = RolloutLog(directory / "whole.jsonl")
    write(whole, 0, batches)
    first = RolloutLog(directory / "log.jsonl")
    write(first, 0, saved)
    state = json.loads(json.dumps(first.state_dict()))
    assert state["bytes"] == first.path.stat().st_size
    write(first, saved, killed)
    with first.path.open("ab") as file:
        file.write(data.draw(st.binary(max_size=5)))  # half a line
    later = first.path.read_bytes()
    second = RolloutLog(directory / "log.jsonl")
    second.load_state_dict(state)
    assert second.state_dict() == state
    kept = b"".join(path.read_bytes() for path in directory.glob(f"log.jsonl.from_{state['bytes']}"))
    assert second.path.read_bytes() + kept == later
    write(second, saved, batches)
    assert second.path.read_bytes() == whole.path.read_bytes()
    assert second.state_dict() == whole.state_dict()


def test_a_file_of_another_run_is_left_alone(gym: ReasoningGym, tmp_path: Path) -> None:
    done = rolled_out(gym, [["0", "1"], ["2", "3"]])
    log = RolloutLog(tmp_path / "log.jsonl")
    empty = log.state_dict()
    log.write(*done, gym, agent=0, iteration=1)
    state, lines = log.state_dict(), log.path.read_bytes()
    for other in (b"x" * (len(lines) + 10), lines[:-1], b"", lines.replace(b"0", b"1")):
        log.path.write_bytes(other)
        resumed = RolloutLog(log.path)
        with pytest.raises(ValueError, match=f"does not begin with the {len(lines)} bytes that this run had written"):
            resumed.load_state_dict(state)
        assert log.path.read_bytes() == other
    log.path.write_bytes(lines)
    for refused in (
        lambda fresh: fresh.load_state_dict(empty),
        lambda fresh: fresh.write(*done, gym, agent=0, iteration=1),
    ):
        with pytest.raises(FileExistsError, match=r"holds the rollouts of another run; [^=]*, or resume that run.$"):
            refused(RolloutLog(log.path))
    assert log.path.read_bytes() == lines
    log.path.write_bytes(b"x" * 1000)
    for replaced in (RolloutLog(log.path, overwrite=True), RolloutLog(log.path, overwrite=True)):
        replaced.load_state_dict(state if replaced.path.read_bytes().startswith(b"x") else empty)
        replaced.write(*done, gym, agent=0, iteration=1)
        assert log.path.read_bytes() == lines


def test_what_an_earlier_point_cuts_off_can_be_put_back(gym: ReasoningGym, tmp_path: Path) -> None:
    """By the very command that the error names; nothing that was written is ever lost."""
    done = [rolled_out(gym, [[str(number), "é"], ["2", "3"]]) for number in range(3)]
    log = RolloutLog(tmp_path / "the log [1].jsonl")
    states, contents = [], []
    for number in (0, 1):
        log.write(*done[number], gym, agent=0, iteration=number)
        states.append(log.state_dict())
        contents.append(log.path.read_bytes())
    for iteration in (2, 3):  # twice, so that a name is taken
        branch = RolloutLog(log.path)
        branch.load_state_dict(states[0])
        assert branch.path.read_bytes() == contents[0]
        branch.write(*done[2], gym, agent=0, iteration=iteration)
    cut = log.path.with_name(f"{log.path.name}.from_{len(contents[0])}")
    assert contents[0] + cut.read_bytes() == contents[1]
    assert len(list(tmp_path.iterdir())) == 3
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"does not begin with the {len(contents[1])} bytes") as caught:
        RolloutLog(log.path).load_state_dict(states[1])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    message = str(caught.value)
    subprocess.run(message[message.index("(head") : message.index(", and pass")], shell=True, check=True)
    whole = RolloutLog(f"{log.path}.whole")
    whole.load_state_dict(states[1])
    assert whole.path.read_bytes() == contents[1]
    assert whole.state_dict() == states[1]


def test_a_file_that_is_gone_is_begun_anew(gym: ReasoningGym, tmp_path: Path) -> None:
    done = rolled_out(gym, [["0", "1"], ["2", "3"]])
    log = RolloutLog(tmp_path / "log.jsonl")
    log.write(*done, gym, agent=0, iteration=1)
    state = log.state_dict()
    moved = RolloutLog(tmp_path / "moved.jsonl")
    with pytest.warns(UserWarning, match="is not there any more"):
        moved.load_state_dict(state)
    moved.write(*done, gym, agent=0, iteration=1)
    assert moved.path.read_bytes() == log.path.read_bytes()
    assert moved.state_dict() == state


def test_two_runs_that_share_a_file(gym: ReasoningGym, tmp_path: Path) -> None:
    done = rolled_out(gym, [["0", "1"], ["2", "3"]])
    log = RolloutLog(tmp_path / "log.jsonl")
    log.write(*done, gym, agent=0, iteration=1)
    lines = log.path.read_bytes()
    log.path.write_bytes(lines + b"other\n")
    with pytest.raises(ValueError, match="something else writes to it"):
        log.write(*done, gym, agent=0, iteration=2)
    assert log.path.read_bytes() == lines + b"other\n"


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(NotADirectoryError, match=r"path .* cannot be written"):
        RolloutLog(file / "log.jsonl")
    with pytest.raises(FileExistsError, match="is a directory"):
        RolloutLog(tmp_path)
    with pytest.raises(FileExistsError, match="no regular file"):
        RolloutLog("/dev/null")
    with pytest.raises(ValueError, match=r"leave \.gz away"):
        RolloutLog(tmp_path / "log.jsonl.gz")
    assert sorted(tmp_path.iterdir()) == [file]
