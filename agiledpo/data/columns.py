"""Which columns of a dataset hold a prompt and its completions."""

from dataclasses import dataclass

from datasets import Dataset

# Where a completion is looked for if nobody says; the second is AgileRL's name.
_COMPLETION_COLUMNS = ("completion", "target")


@dataclass(frozen=True, slots=True)
class RowColumns:
    """Where to find a prompt and its completions.

    Attributes:
        prompt: Column of the prompt.
        completions: What the completions are called, in order.
        sources: Column of each completion. If it is the prompt's own, the column holds whole dialogues, of which the
            last message is the completion.
    """

    prompt: str
    completions: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(dict.fromkeys((self.prompt, *self.sources)))

    @property
    def holds_dialogues(self) -> bool:
        """Whether prompt and completion are in one list of messages."""
        return self.prompt in self.sources


PAIRS = RowColumns("prompt", ("chosen", "rejected"), ("chosen", "rejected"))
DIALOGUES = RowColumns("messages", ("completion",), ("messages",))


def demonstration_columns(dataset: Dataset, response_column: str | None = None) -> RowColumns:
    """Find a prompt with one completion to learn from.

    Args:
        dataset: The dataset.
        response_column: Column of the completion, beside "prompt"; None takes "completion" or "target" if it is there
            with "prompt", otherwise "messages".
    """
    names = dataset.column_names
    if response_column is not None:
        return RowColumns("prompt", ("completion",), (response_column,))
    present = [column for column in _COMPLETION_COLUMNS if column in names]
    if "messages" in names and not (present and "prompt" in names):
        return DIALOGUES
    return RowColumns("prompt", ("completion",), (present[0] if present else _COMPLETION_COLUMNS[0],))
