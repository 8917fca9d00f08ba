"""A dataset whose format is known, and where its rows come from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agiledpo.data.checks.findings import Place, Sighting
from agiledpo.data.checks.pair_table import PairColumns
from agiledpo.data.checks.texts import prompt_excerpt
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Form
from agiledpo.data.loaded_rows import LoadedRows
from agiledpo.data.loading import load_preferences
from agiledpo.data.sources import Source


@dataclass(frozen=True, slots=True)
class OpenedDataset:
    """Rows, and how to read them.

    Attributes:
        data: The rows, their layout and their files.
        form: How prompts and completions are written.
        name: What messages call the dataset.
    """

    data: LoadedRows
    form: Form
    name: str

    def place(self, row: int) -> Place:
        """Where a row of the dataset is."""
        if len(self.data.files) < 2:
            return Place(row)
        located = self.data.locate(DatasetError("", remedy="", dataset=self.name, row=row))
        return Place(row if located.row is None else located.row, located.file)

    def first_pairs(
        self,
        mask: NDArray[np.bool_],
        pairs: PairColumns,
        wanted: NDArray[np.uint64],
        like: tuple["OpenedDataset", PairColumns, NDArray[np.uint64]],
        examples: int,
    ) -> tuple[Sighting, ...]:
        """The first pairs that were found, with their prompts and the rows of the first pairs they are like.

        Args:
            mask: (pairs,) bool, which were found.
            pairs: All pairs of this dataset.
            wanted: (pairs,) digests by which they were found.
            like: The dataset in which the pairs are that they are like, its pairs, and their digests.
            examples: How many at most.
        """
        other, others, among = like
        found = []
        for number in np.flatnonzero(mask)[:examples]:
            row = int(pairs.row[number])
            read = self.data.layout.read(self.form, row, self.data.dataset[row], name=self.name)
            first = int(np.argmax(among == wanted[number]))
            found.append(Sighting(self.place(row), prompt_excerpt(read[0].prompt), other.place(int(others.row[first]))))
        return tuple(found)


def open_preferences(source: Source | LoadedRows, name: str) -> OpenedDataset:
    """Find out what a dataset is.

    Args:
        source: A source of preferences, or preferences that were loaded.
        name: What messages call the dataset.

    Raises:
        DatasetError: It cannot be read as preferences.
    """
    data = source if isinstance(source, LoadedRows) else load_preferences(source, dataset_name=name)
    return OpenedDataset(data, data.layout.form(data.dataset, name=name), name)
