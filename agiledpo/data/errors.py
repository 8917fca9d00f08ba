"""The one exception that datasets raise."""

from functools import partial
from typing import Any


class DatasetError(ValueError):
    """A dataset cannot be used as it is.

    The message always says where (dataset, and row and column where there is one), what is wrong, and what to do.

    Attributes:
        problem: What is wrong, without a final full stop.
        remedy: What the user can do about it, a full sentence.
        dataset: Name of the dataset, such as "train".
        row: Row number in the dataset that the user handed over, or None.
        column: Column name, or None.
    """

    def __init__(
        self, problem: str, *, remedy: str, dataset: str, row: int | None = None, column: str | None = None
    ) -> None:
        self.problem = problem
        self.remedy = remedy
        self.dataset = dataset
        self.row = row
        self.column = column
        where = f"{dataset} dataset"
        if row is not None:
            where += f", row {row}"
        if column is not None:
            where += f", column {column!r}"
        super().__init__(f"{where}: {problem}. {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the keyword arguments, since it crosses from datasets' worker processes to the main one."""
        rebuild = partial(type(self), remedy=self.remedy, dataset=self.dataset, row=self.row, column=self.column)
        return rebuild, (self.problem,)


# The name that preference data's errors are known by.
PreferenceDataError = DatasetError
