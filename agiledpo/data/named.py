"""Published preference data, by name: where it is and how its rows are written."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from typing_extensions import override

from agiledpo.data.checking import check_text, checked_example, require_values
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Form
from agiledpo.data.layout import Layout, column_forms, require_columns, wrong_type
from agiledpo.data.pairs import PAIRS, ImplicitPairs
from agiledpo.data.transcripts import parse_transcript


@dataclass(frozen=True)
class PublishedDialogues(ImplicitPairs):
    """Pairs of dialogues of a published set, without the rows that prefer neither.

    Such sets have a few: both dialogues are equal, or one ends without an answer. They are left out, since who uses the
    set did not make it.
    """

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        chosen, rejected = require_values(values, (self.chosen, self.rejected), row=row, name=name)
        if chosen == rejected or not all(_ends_with_answer(dialogue) for dialogue in (chosen, rejected)):
            return []
        return super().read(form, row, values, name=name)


@dataclass(frozen=True)
class HelpSteer3(Layout):
    """Two responses in a context, and by how much one is better.

    Args:
        context: Column of the dialogue so far, messages or a text that the user said.
        response1: Column of the first response.
        response2: Column of the second one.
        preference: Column of the preference: from -3, the first is much better, to 3, the second is. 0 prefers neither,
            and the row is left out.
    """

    context: str = "context"
    response1: str = "response1"
    response2: str = "response2"
    preference: str = "overall_preference"

    @property
    @override
    def columns(self) -> tuple[str, ...]:
        return self.context, self.response1, self.response2, self.preference

    @property
    @override
    def sources(self) -> tuple[str, ...]:
        return self.response1, self.response2

    @override
    def form(self, dataset: Dataset, *, name: str) -> Form:
        require_columns(dataset, self.columns, name=name)
        forms = column_forms(dataset, (self.context, *self.sources), name=name)
        for column, form in forms.items():
            if form is Form.TOKENS or (column in self.sources and form is not Form.TEXT):
                raise wrong_type("does not hold text", column, name)
        return Form.CHAT

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        context, *responses, preference = require_values(values, self.columns, row=row, name=name)
        if isinstance(preference, bool) or preference not in range(-3, 4):
            raise DatasetError(
                f"the preference is {preference!r}",
                remedy="It is a whole number from -3 (the first response is much better) to 3 (the second is).",
                dataset=name,
                row=row,
                column=self.preference,
            )
        if preference == 0 or responses[0] == responses[1]:
            return []
        if isinstance(context, str):
            check_text(context, row=row, column=self.context, name=name, may_be_empty=True)
        prompt = [{"role": "user", "content": context}] if isinstance(context, str) else context
        sources = list(self.sources)
        for column, response in zip(sources, responses, strict=True):
            check_text(response, row=row, column=column, name=name, may_be_empty=True)
        if preference > 0:
            responses.reverse()
            sources.reverse()
        completions = [[{"role": "assistant", "content": response}] for response in responses]
        return [
            checked_example(form, prompt, completions, values, sources=(self.context, *sources), row=row, name=name)
        ]


@dataclass(frozen=True)
class Transcripts(Layout):
    """Two transcripts that differ in the last turn, the assistant's.

    Rows that prefer no answer to the same turns are left out: the transcripts are equal, part before their last turn,
    end with another's turn, or have an empty turn.

    Args:
        chosen: Column of the preferred transcript.
        rejected: Column of the other one.
    """

    chosen: str = "chosen"
    rejected: str = "rejected"

    @property
    @override
    def columns(self) -> tuple[str, ...]:
        return self.chosen, self.rejected

    @property
    @override
    def sources(self) -> tuple[str, ...]:
        return self.chosen, self.rejected

    @override
    def form(self, dataset: Dataset, *, name: str) -> Form:
        for column, form in column_forms(dataset, self.columns, name=name).items():
            if form is not Form.TEXT:
                raise wrong_type("does not hold transcripts", column, name)
        return Form.CHAT

    @override
    def read(self, form: Form, row: int, values: Mapping[str, Any], *, name: str) -> list[Example]:
        dialogues = []
        for column, text in zip(self.columns, require_values(values, self.columns, row=row, name=name), strict=True):
            check_text(text, row=row, column=column, name=name, may_be_empty=True)
            try:
                dialogues.append(parse_transcript(text))
            except ValueError as error:
                raise DatasetError(
                    str(error),
                    remedy="Write '\\n\\nHuman: ...\\n\\nAssistant: ...', or use another format than HH-RLHF's.",
                    dataset=name,
                    row=row,
                    column=column,
                ) from error
        chosen, rejected = dialogues
        comparable = (
            chosen[:-1] == rejected[:-1]
            and chosen[-1]["content"].strip() != rejected[-1]["content"].strip()
            and len(chosen) > 1
            and chosen[-2]["role"] == "user"
            and chosen[-1]["role"] == rejected[-1]["role"] == "assistant"
            and all(message["content"].strip() for message in (*chosen, *rejected))
        )
        if not comparable:
            return []
        sources = (self.chosen, self.chosen, self.rejected)
        completions = [chosen[-1:], rejected[-1:]]
        return [checked_example(form, chosen[:-1], completions, values, sources=sources, row=row, name=name)]


@dataclass(frozen=True, slots=True)
class NamedDataset:
    """A published dataset.

    Attributes:
        repository: Its name on the Hub.
        layout: How its rows are written.
        split: The split to train on.
        config: The configuration that holds preferences, or None if there is but one; in a copy of the repository, the
            directory of that name.
        data_dir: The directory in the repository that holds them, or None for all.
    """

    repository: str
    layout: Layout
    split: str = "train"
    config: str | None = None
    data_dir: str | None = None


NAMED = {
    "HelpSteer3": NamedDataset("nvidia/HelpSteer3", HelpSteer3(), config="preference"),
    "Tulu3Preference": NamedDataset("allenai/llama-3.1-tulu-3-8b-preference-mixture", PublishedDialogues()),
    "UltraFeedback": NamedDataset("HuggingFaceH4/ultrafeedback_binarized", PublishedDialogues(), split="train_prefs"),
    "UltraFeedback-TRL": NamedDataset("trl-lib/ultrafeedback_binarized", PublishedDialogues()),
    "HH-RLHF": NamedDataset("Anthropic/hh-rlhf", Transcripts()),
    "Human-Like-DPO": NamedDataset("HumanLLMs/Human-Like-DPO-Dataset", PAIRS),
}
# The parts of HH-RLHF are directories; its others hold no preferences.
for _part in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"):
    NAMED[f"HH-RLHF/{_part}"] = NamedDataset("Anthropic/hh-rlhf", Transcripts(), data_dir=_part)


def named_dataset(name: str) -> NamedDataset:
    """The published dataset of a name.

    Args:
        name: One of `NAMED`, however capitalised.

    Raises:
        ValueError: There is none; names the nearest.
    """
    by_lower_case = {known.lower(): known for known in NAMED}
    if name.lower() in by_lower_case:
        return NAMED[by_lower_case[name.lower()]]
    near = difflib.get_close_matches(name.lower(), list(by_lower_case), n=1, cutoff=0.4)
    meant = f" Perhaps {by_lower_case[near[0]]!r} is meant." if near else ""
    raise ValueError(f"name={name!r} is no dataset known here; known are {', '.join(NAMED)}.{meant}")


def find_repository(repository: str) -> NamedDataset | None:
    """The published dataset that is in a repository of the Hub, or None."""
    return next((known for known in NAMED.values() if known.repository.lower() == repository.lower()), None)


def _ends_with_answer(dialogue: Any) -> bool:
    """Whether the last message is an assistant's that says something; a malformed dialogue is for the checks."""
    if not isinstance(dialogue, list) or not dialogue or not isinstance(dialogue[-1], dict):
        return True
    role, content = dialogue[-1].get("role"), dialogue[-1].get("content")
    return role == "assistant" and bool(
        dialogue[-1].get("tool_calls") or (isinstance(content, str) and content.strip())
    )
