"""A dataset that was read once, and its figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from agiledpo.data.checks.findings import Finding, Severity, Sighting
from agiledpo.data.checks.histogram import length_figures
from agiledpo.data.checks.length_bias import length_bias
from agiledpo.data.checks.opened import OpenedDataset
from agiledpo.data.checks.pair_table import PairColumns
from agiledpo.data.checks.report import DatasetFigures
from agiledpo.data.checks.scan import Scan, Sightings, scan
from agiledpo.data.examples import Form
from agiledpo.data.template_kwargs import check_template_kwargs
from agiledpo.data.tokenization import check_tokenizer, isolated_copy

_OPENINGS = 3


@dataclass(frozen=True, slots=True)
class CheckedDataset:
    """What is known of a dataset after one pass.

    Attributes:
        opened: The dataset.
        scan: What the pass left behind.
        pairs: Its pairs, in numbers.
        figures: What it is like.
    """

    opened: OpenedDataset
    scan: Scan
    pairs: PairColumns
    figures: DatasetFigures

    def finding(
        self, check: str, severity: Severity, seen: Sightings, problem: str, remedy: str, *, unit: str = "pairs"
    ) -> list[Finding]:
        """One finding if something was seen, and otherwise none."""
        if not seen.count:
            return []
        total = self.scan.rows if unit == "rows" else len(self.pairs)
        examples = tuple(Sighting(self.opened.place(row), excerpt) for row, excerpt in seen.first)
        return [Finding(check, severity, self.opened.name, problem, remedy, seen.count, total, unit, examples)]


def read_once(
    opened: OpenedDataset,
    tokenizer: PreTrainedTokenizerBase | None,
    chat_template_kwargs: Mapping[str, Any] | None,
    *,
    examples: int,
    show_progress: bool,
) -> CheckedDataset:
    """Read all rows of a dataset.

    Args:
        opened: The dataset.
        tokenizer: For lengths in tokens; None for characters.
        chat_template_kwargs: What its chat template is told for all rows; None for nothing.
        examples: How many rows to keep of everything that is found.
        show_progress: Whether to draw a progress bar.

    Raises:
        TypeError: `chat_template_kwargs` is not a mapping, or JSON cannot hold it.
        ValueError: The tokenizer lacks an end-of-sequence token or the chat template that the data need, or
            `chat_template_kwargs` has no effect.
    """
    told: dict[str, Any] = {}
    if tokenizer is not None:
        check_tokenizer(tokenizer, opened.form)
        told = check_template_kwargs(chat_template_kwargs, tokenizer, opened.form)
        tokenizer = isolated_copy(tokenizer)
    found = scan(
        opened.data.dataset,
        opened.data.layout,
        opened.form,
        tokenizer,
        told,
        name=opened.name,
        examples=examples,
        show_progress=show_progress,
    )
    pairs = found.pairs.columns()
    parts = zip(("prompt", "chosen", "rejected"), pairs.lengths, strict=True)
    figures = DatasetFigures(
        name=opened.name,
        files=tuple(str(file.path) for file in opened.data.files),
        layout=repr(opened.data.layout),
        columns=opened.data.layout.present(opened.data.dataset),
        form=opened.form,
        rows=found.rows,
        unusable_rows=found.unusable.count,
        rows_without_preference=found.without_preference.count,
        pairs=len(pairs),
        distinct_prompts=len(np.unique(pairs.prompt)),
        length_unit="characters" if tokenizer is None and opened.form is not Form.TOKENS else "tokens",
        lengths={part: length_figures(lengths) for part, lengths in parts if len(pairs)},
        length_bias=length_bias(pairs.lengths[1], pairs.lengths[2]) if len(pairs) else None,
        openings=tuple(found.openings.most_different(_OPENINGS)),
    )
    return CheckedDataset(opened, found, pairs, figures)
