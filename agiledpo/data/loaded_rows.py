"""Rows whose format is known, and where they come from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from agiledpo.data.errors import DatasetError
from agiledpo.data.files import FileRows
from agiledpo.data.layout import Layout
from agiledpo.data.limits import Truncation
from agiledpo.data.preparation import PreparedRows, prepare_rows
from agiledpo.data.splitting import split_rows_by_prompt


@dataclass(frozen=True, slots=True, eq=False)
class LoadedRows:
    """Rows of a dataset and how to read them; what `load_preferences` and its siblings return.

    Attributes:
        dataset: The rows, memory-mapped where they are from files or a stream.
        layout: How a row is read.
        files: The files that the rows are from, in order; none for a dataset, a stream or the Hub.
        name: What messages call the dataset.
        rows: (rows,) int64, their numbers in what they were selected from; None for all.
    """

    dataset: Dataset
    layout: Layout
    files: tuple[FileRows, ...]
    name: str
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.dataset)

    @property
    def title(self) -> str | None:
        """Name of the first file, or else of the dataset, where it has one."""
        return self.files[0].path.stem if self.files else self.dataset.info.dataset_name

    def named(self, name: str) -> "LoadedRows":
        """The same rows, which messages call `name`."""
        return replace(self, name=name)

    def expect(self, completions: tuple[str, ...], *, remedy: str) -> "LoadedRows":
        """The same rows, if they have these completions.

        Args:
            completions: What a layout calls them; none for prompts alone.
            remedy: What to do otherwise, a full sentence.

        Raises:
            DatasetError: They have others.
        """
        if self.layout.completions == completions:
            return self
        raise DatasetError(
            f"its rows are read as {self.layout!r}, of {_named(self.layout.completions)}; needed are rows of "
            f"{_named(completions)}",
            remedy=remedy,
            dataset=self.name,
        )

    def select(self, rows: NDArray[np.int64]) -> "LoadedRows":
        """Some of the rows, which messages still find where they come from.

        Args:
            rows: Their numbers in `dataset`.
        """
        return replace(self, dataset=self.dataset.select(rows), rows=rows if self.rows is None else self.rows[rows])

    def split_by_prompt(self, test_size: float, *, seed: int = 42) -> tuple["LoadedRows", "LoadedRows"]:
        """Hold rows out so that no prompt is on both sides, and no question.

        Args:
            test_size: Share of the rows for the second part, in (0, 1); equal prompts stay together, so it may be
                exceeded.
            seed: Of the draw; not negative.

        Returns:
            Rows to train on, and rows to test on.

        Raises:
            DatasetError: A row cannot be read, or there are too few prompts to divide.
            ValueError: `test_size` is not between 0 and 1, or `seed` is negative.
        """
        try:
            train, test = split_rows_by_prompt(self.dataset, self.layout, test_size, seed=seed, name=self.name)
        except DatasetError as error:
            raise self.locate(error) from None
        return self.select(train), self.select(test)

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_context_length: int | None = None,
        min_completion_length: int | None = None,
        truncation: Truncation = "drop",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        num_proc: int | None = None,
    ) -> PreparedRows:
        """Check, tokenise and filter the rows, as :func:`prepare_rows` does; errors name the file.

        Args:
            tokenizer: See there, as for the rest.
            max_context_length: See there.
            min_completion_length: See there.
            truncation: See there.
            chat_template_kwargs: See there.
            num_proc: See there.
        """
        try:
            return prepare_rows(
                self.dataset,
                tokenizer,
                self.layout,
                name=self.name,
                max_context_length=max_context_length,
                min_completion_length=min_completion_length,
                truncation=truncation,
                chat_template_kwargs=chat_template_kwargs,
                num_proc=num_proc,
            )
        except DatasetError as error:
            raise self.locate(error) from None

    def locate(self, error: DatasetError) -> DatasetError:
        """The error with the file that its row is in and the row's number in that file.

        Args:
            error: An error of this dataset, its row counted in `dataset`.

        Returns:
            A copy, or `error` itself if it knows its file, or if there is nothing to add.
        """
        if error.file is not None:
            return error
        if error.row is None:
            return error.in_file(self.files[0].path, None) if len(self.files) == 1 else error
        row = error.row if self.rows is None else int(self.rows[error.row])
        for file in self.files:
            if row < file.rows:
                return error.in_file(file.path, row)
            row -= file.rows
        return error if self.rows is None else error.in_row(row)


def _named(completions: tuple[str, ...]) -> str:
    return " and ".join(completions) or "prompts alone"
