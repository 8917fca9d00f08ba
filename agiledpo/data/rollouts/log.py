"""Write sampled and judged completions as rollouts in NeMo Gym's format, while a run goes on."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from transformers import PreTrainedTokenizerBase

from agiledpo.data.examples import Example, Message
from agiledpo.data.messages import without_none
from agiledpo.data.rollouts.reading import PARAMETERS
from agiledpo.distributed.team import Team
from agiledpo.journal import Journal

if TYPE_CHECKING:
    from agiledpo.scoring import QuestionBatch, RolloutBatch


class AskingGym(Protocol):
    """What a log asks of the environment that prompts are from."""

    tokenizer: PreTrainedTokenizerBase

    def example(self, split: str, row: int) -> Example:
        """The prompt of a row before it is rendered, with its tools."""
        ...


class RolloutLog:
    """A file of rollouts that `agiledpo pairs` makes preference pairs of, one JSON object per line and completion.

    A line has the request with the prompt's messages, as the row has them, and its tools; the response with one
    assistant message; and the reward. What a prompt begins of an answer, as the chat template writes it, is part of the
    response. Beside these are
    "agent", "iteration", "rows_done", "split", "row", "completion" (its number within the group, from 0), "finished"
    and "logp", the sum of its tokens' log-probabilities where it was sampled, or null. Completions without a reward are
    left out.

    The lines of a batch are handed to the operating system in one piece. Two runs of one seed write the same file.

    Args:
        path: The file, plain JSON lines. Nothing is written before the first completion.
        overwrite: Replace what another run left in the file; otherwise the first completion is refused where there is
            something.
        team: Processes that all call the same methods with the same arguments; the leader looks at the file and writes.
            None for one.

    Raises:
        FileExistsError: The path is no regular file.
        OSError: Nothing can be written there.
        ValueError: The name says that the file is compressed.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False, team: Team | None = None) -> None:
        self._journal = Journal(path, holds="rollouts", overwrite=overwrite)
        self._team = Team.alone() if team is None else team
        self._team.leader_does(self._journal.check_place)

    @property
    def path(self) -> Path:
        """The file."""
        return self._journal.path

    def write(
        self,
        questions: "QuestionBatch",
        rollouts: "RolloutBatch",
        env: AskingGym,
        *,
        agent: int,
        iteration: int,
        rows_done: int | None = None,
    ) -> None:
        """Add the completions of a batch.

        Args:
            questions: The prompts.
            rollouts: What was sampled for them, in the same order.
            env: The environment that the prompts are from.
            agent: Index of the agent that answered.
            iteration: Batches so far, this one included.
            rows_done: Rows so far; None if nobody counts them.

        Raises:
            FileExistsError: It is the first batch, and the file holds something.
            OSError: It cannot be written; the file is as it was.
            ValueError: The rollouts are not of these prompts, or somebody else has written to the file.
        """
        if len(rollouts) != len(questions):
            raise ValueError(f"The rollouts are of {len(rollouts)} prompts, and the questions are {len(questions)}.")
        self._team.leader_does(lambda: self._write(questions, rollouts, env, agent, iteration, rows_done))

    def _write(
        self,
        questions: "QuestionBatch",
        rollouts: "RolloutBatch",
        env: AskingGym,
        agent: int,
        iteration: int,
        rows_done: int | None,
    ) -> None:
        about = {"agent": agent, "iteration": iteration, "rows_done": rows_done}
        lines = "".join(
            json.dumps({**line, **about, **rest}, ensure_ascii=False, allow_nan=False) + "\n"
            for place in range(len(questions))
            for line, rest in _lines(questions, rollouts, env, place)
        ).encode()
        self._journal.write(lines)

    def state_dict(self) -> dict[str, Any]:
        """How far the file has been written, and what it holds: its number of bytes and their SHA-256.

        What it holds is on the disk then, so that it is there when the state is.
        """
        return self._team.leader_does(self._journal.state_dict)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that :meth:`load_state_dict` would take a state; nothing is changed.

        Raises:
            FileExistsError: Nothing had been written, and the file holds something.
            ValueError: The file is another run's, or lacks lines that had been written.
        """
        self._team.leader_does(lambda: self._journal.check_state(state))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: what was written after it will be written again, and is moved to a file beside.

        That file is named ``<name>.from_<n>``, after the bytes that came before, with another number behind if there is
        one already.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            FileExistsError: Nothing had been written, and the file holds something.
            OSError: What is cut off could not be kept; the file is as it was.
            ValueError: The file is another run's, or lacks lines that had been written; then nothing is changed. With
                `overwrite` it is begun anew instead.

        Warns:
            UserWarning: The file is not there any more, and is begun anew.
        """
        self._team.leader_does(lambda: self._journal.load_state_dict(state))


def _lines(
    questions: "QuestionBatch", rollouts: "RolloutBatch", env: AskingGym, place: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The rollout of each judged completion of a prompt, and what else is known of it."""
    split, row = questions.splits[place], questions.rows[place]
    rendered = env.tokenizer.decode(questions.prompts[place].tolist(), clean_up_tokenization_spaces=False)
    request, begun = _request(env.example(split, row), str(rendered))
    logps = rollouts.sampling_logps[place]
    texts = env.tokenizer.batch_decode(
        [completion.tolist() for completion in rollouts.completions[place]],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    for number, text in enumerate(texts):
        reward, finished = rollouts.rewards[place][number], rollouts.finished[place][number]
        if math.isnan(reward):
            continue
        message = {
            "type": "message",
            "role": "assistant",
            "status": "completed" if finished else "incomplete",
            "content": [{"type": "output_text", "text": begun + text, "annotations": []}],
        }
        yield (
            {PARAMETERS: request, "response": {"output": [message]}, "reward": float(reward)},
            {
                "split": split,
                "row": row,
                "completion": number,
                "finished": bool(finished),
                "logp": None if logps is None else float(logps[number].double().sum()),
            },
        )


def _request(example: Example, rendered: str) -> tuple[dict[str, Any], str]:
    """The request that a prompt is, and what its rendered text begins of the answer."""
    tools = {} if example.tools is None else {"tools": example.tools}
    if isinstance(example.prompt, str):
        return {"input": example.prompt, **tools}, ""
    messages = without_none(cast(list[Message], example.prompt))
    if messages[-1]["role"] != "assistant":
        return {"input": messages, **tools}, ""
    content = messages[-1]["content"]
    # The completion goes on from what the policy saw, and some templates write a message without whitespace around it.
    written = (content, content.rstrip(), content.lstrip(), content.strip())
    return {"input": messages[:-1], **tools}, next((text for text in written if rendered.endswith(text)), content)
