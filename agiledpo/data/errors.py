"""The one exception that datasets raise."""

import re
from functools import partial
from pathlib import Path
from typing import Any

# How remedies say what to do with a `datasets.Dataset`, which who handed over a file does not have.
_ON_A_DATASET = re.compile(r" with dataset\.map\b|: dataset\.\w+\(.*\)(?=\.$)", re.DOTALL)


class DatasetError(ValueError):
    """A dataset cannot be used as it is.

    The message always says where (dataset, and file, row and column where there is one), what is wrong, and what to do.

    Attributes:
        problem: What is wrong, without a final full stop.
        remedy: What the user can do about it, a full sentence. It may end with ": dataset.<method>(...)." or say "with
            dataset.map", which is left out of errors that `in_file` locates in a file.
        dataset: Name of the dataset, such as "train".
        row: Row number from 0, in the file if there is one and otherwise in the dataset that the user handed over; or
            None.
        column: Column name, or None.
        file: The file that the row is in, or None.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str,
        dataset: str,
        row: int | None = None,
        column: str | None = None,
        file: str | Path | None = None,
    ) -> None:
        self.problem = problem
        self.remedy = remedy
        self.dataset = dataset
        self.row = row
        self.column = column
        self.file = None if file is None else str(file)
        where = f"{dataset} dataset"
        if file is not None:
            where += f" ({file})"
        if row is not None:
            where += f", row {row}"
        if column is not None:
            where += f", column {column!r}"
        super().__init__(f"{where}: {problem}. {remedy}")

    def in_file(self, file: str | Path, row: int | None) -> "DatasetError":
        """The same error, said of a row of a file.

        Args:
            file: The file.
            row: The row's number in it, from 0.
        """
        remedy = _ON_A_DATASET.sub("", self.remedy)
        return type(self)(self.problem, remedy=remedy, dataset=self.dataset, row=row, column=self.column, file=file)

    def in_row(self, row: int) -> "DatasetError":
        """The same error, said of another row.

        Args:
            row: Its number, from 0.
        """
        return type(self)(
            self.problem, remedy=self.remedy, dataset=self.dataset, row=row, column=self.column, file=self.file
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the keyword arguments, since it crosses from datasets' worker processes to the main one."""
        rebuild = partial(
            type(self), remedy=self.remedy, dataset=self.dataset, row=self.row, column=self.column, file=self.file
        )
        return rebuild, (self.problem,)


# The name that preference data's errors are known by.
PreferenceDataError = DatasetError
