"""A dataset whose format is known, and where its rows come from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from agiledpo.data.checking import check_dataset
from agiledpo.data.checks.findings import Sighting
from agiledpo.data.checks.pair_table import PairColumns
from agiledpo.data.checks.texts import prompt_excerpt
from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Form
from agiledpo.data.layout import Layout
from agiledpo.data.recognition import recognise_preferences


@dataclass(frozen=True, slots=True)
class OpenedDataset:
    """Rows, and how to read them.

    Attributes:
        dataset: The rows.
        layout: Where in a row the prompt and its completions are.
        form: How they are written.
        name: What messages call the dataset.
        source: The file or folder it is from, or "".
    """

    dataset: Dataset
    layout: Layout
    form: Form
    name: str
    source: str = ""

    def locate(self, error: DatasetError) -> DatasetError:
        """The same error, said of the row of a file if there is one."""
        return error

    def sighting(self, row: int, excerpt: str, other_row: int | None = None) -> Sighting:
        """Something seen in a row."""
        return Sighting(row, excerpt, other_row=other_row)

    def first_pairs(
        self,
        mask: NDArray[np.bool_],
        pairs: PairColumns,
        wanted: NDArray[np.uint64],
        others: PairColumns,
        among: NDArray[np.uint64],
        examples: int,
    ) -> tuple[Sighting, ...]:
        """The first pairs that were found, with their prompts and the rows of the first pairs they are like.

        Args:
            mask: (pairs,) bool, which were found.
            pairs: All pairs of this dataset.
            wanted: (pairs,) digests by which they were found.
            others: All pairs among which like ones are.
            among: (others,) digests of these.
            examples: How many at most.
        """
        found = []
        for place in np.flatnonzero(mask)[:examples]:
            row = int(pairs.row[place])
            prompt = self.layout.read(self.form, row, self.dataset[row], name=self.name)[0].prompt
            like = int(np.argmax(among == wanted[place]))
            found.append(self.sighting(row, prompt_excerpt(prompt), int(others.row[like])))
        return tuple(found)


def open_preferences(data: Any, layout: Layout | None, name: str) -> OpenedDataset:
    """Find out what a dataset is.

    Args:
        data: What `PreferenceGym` takes.
        layout: The format; None recognises it.
        name: What messages call the dataset.

    Raises:
        DatasetError: It cannot be read as preferences.
    """
    dataset = check_dataset(data, name=name)
    layout = layout or recognise_preferences(dataset, name=name)
    return OpenedDataset(dataset, layout, layout.form(dataset, name=name), name)
