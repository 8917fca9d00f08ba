"""A batch of prompts with the completions that a policy sampled for them, and what these were worth."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from agiledpo.scoring.prompt_batch import PromptBatch, row_labels


@dataclass(frozen=True)
class RolloutBatch(PromptBatch):
    """B prompts, each with a group of sampled completions; groups may differ in size.

    A column holds a value per prompt, which is a sequence with an entry for each completion of its group, or None.

    Attributes:
        prompts: Prompt tokens; B int64 tensors (prompt tokens,).
        completions: Sampled tokens, the end-of-sequence token included where one was sampled; int64 (tokens,) each.
        rewards: Reward of each completion, finite; NaN where nobody judged it and it has an advantage of its own.
        advantages: Advantage of each token of each completion, float32 (tokens,), instead of those that follow from
            rewards; None for those.
        sampling_logps: Log-probability of each token where it was sampled, under the temperature and before truncation
            such as top-p, float32 (tokens,); None where it is not known.
        finished: Whether each completion ended itself instead of being cut at the length limit.
        labels: Where each row comes from, for messages ("train row 17").
    """

    KEYS: ClassVar[Sequence[str]] = ("completion_ids", "action_masks", "rewards")

    prompts: Sequence[Tensor]
    completions: Sequence[Sequence[Tensor]]
    rewards: Sequence[Sequence[float]]
    advantages: Sequence[Sequence[Tensor] | None]
    sampling_logps: Sequence[Sequence[Tensor] | None]
    finished: Sequence[Sequence[bool]]
    labels: Sequence[str]

    def __post_init__(self) -> None:
        for place, label in enumerate(self.labels):
            group = self.completions[place]
            if not len(self.prompts[place]) or not group or not all(map(len, group)):
                raise ValueError(
                    f"{label}: a rollout needs prompt tokens, and at least one completion of at least one token each."
                )
            columns: dict[str, Sequence[Sequence[Any] | None]] = {
                "rewards": self.rewards,
                "advantages": self.advantages,
                "sampling_logps": self.sampling_logps,
                "finished": self.finished,
            }
            for name, column in columns.items():
                values = column[place]
                if values is not None and len(values) != len(group):
                    raise ValueError(f"{label}: {name} has {len(values)} entries for {len(group)} completions.")
            for name in ("advantages", "sampling_logps"):
                lengths = [len(values) for values in columns[name][place] or group]
                if lengths != [len(ids) for ids in group]:
                    raise ValueError(
                        f"{label}: {name} has {lengths} values for completions of {[len(ids) for ids in group]} "
                        "tokens; one per token is needed."
                    )
            if any(map(math.isinf, self.rewards[place])):
                raise ValueError(
                    f"{label}: rewards are {', '.join(f'{reward:g}' for reward in self.rewards[place])}; each must be "
                    "a finite number, or NaN where nobody judged. Look at the reward function."
                )
            given = self.advantages[place]
            if given is not None and not bool(torch.cat(list(given)).isfinite().all()):
                raise ValueError(f"{label}: advantages are not all finite; look at where they come from.")

    @property
    def numbered(self) -> Sequence[tuple[int, Tensor]]:
        """All completions prompt by prompt, each with the place of its prompt."""
        return [(place, ids) for place, group in enumerate(self.completions) for ids in group]

    @property
    def completion_count(self) -> int:
        """Number of completions of all groups."""
        return sum(map(len, self.completions))

    def parts(self, size: int) -> Iterator[tuple[Self, slice]]:
        """Cut into consecutive micro-batches, each with the places of its completions in ``numbered``.

        Args:
            size: Most completions in one. A group stays whole where it can; one that is larger is cut, and its prompt
                then goes through the model more than once.
        """
        pieces = [
            (place, range(start, min(start + size, len(group))))
            for place, group in enumerate(self.completions)
            for start in range(0, len(group), size)
        ]
        taken: list[tuple[int, Sequence[int]]] = []
        count = done = 0
        for piece in pieces:
            rows = len(piece[1])
            if taken and count + rows > size:
                yield self._cut(taken), slice(done, done + count)
                taken, done, count = [], done + count, 0
            taken.append(piece)
            count += rows
        if taken:
            yield self._cut(taken), slice(done, done + count)

    def group_spans(self, size: int) -> Iterator[tuple[int, int]]:
        """Cut into consecutive (start, stop) spans of whole groups.

        Args:
            size: Completions from which on a span takes in no further group; the last span may have fewer.
        """
        start = count = 0
        for place, group in enumerate(self.completions):
            count += len(group)
            if count >= size or place + 1 == len(self):
                yield start, place + 1
                start, count = place + 1, 0

    def span(self, start: int, stop: int) -> Self:
        """Completions ``start`` to ``stop`` in ``numbered``, with their prompts."""
        groups: dict[int, list[int]] = {}
        done = 0
        for place, group in enumerate(self.completions):
            numbers = range(max(start - done, 0), min(stop - done, len(group)))
            if numbers:
                groups[place] = list(numbers)
            done += len(group)
        return self._cut(list(groups.items()))

    def where(self, keep: Sequence[Sequence[bool]]) -> Self:
        """Some of the completions; a prompt that is left without any goes too.

        Args:
            keep: For each prompt whether each of its completions stays.
        """
        numbers = [[number for number, kept in enumerate(group) if kept] for group in keep]
        return self._cut([(place, group) for place, group in enumerate(numbers) if group])

    def _cut(self, pieces: Sequence[tuple[int, Sequence[int]]]) -> Self:
        """Some completions, by their numbers in the groups of some places, each a row of its own."""

        def column(values: Sequence[Any]) -> list[Any]:
            groups = [(values[place], numbers) for place, numbers in pieces]
            return [None if group is None else [group[number] for number in numbers] for group, numbers in groups]

        return type(self)(
            prompts=[self.prompts[place] for place, _ in pieces],
            completions=column(self.completions),
            rewards=column(self.rewards),
            advantages=column(self.advantages),
            sampling_logps=column(self.sampling_logps),
            finished=column(self.finished),
            labels=[self.labels[place] for place, _ in pieces],
        )

    @classmethod
    def from_experiences(cls, experiences: Mapping[str, Any]) -> Self:
        """Read AgileRL's three lists.

        Args:
            experiences: For each prompt ``completion_ids``, int64 (G, T), prompt and completion, padded on the right;
                ``action_masks``, bool (G, T - 1), whether each token but the first was sampled; and ``rewards`` (B, G).

        Raises:
            ValueError: A key is missing, shapes disagree, or what was sampled is not one piece behind the prompt.
        """
        missing = [key for key in cls.KEYS if key not in experiences]
        if missing:
            raise ValueError(f"The experiences lack {', '.join(missing)}; rollouts have {', '.join(cls.KEYS)}.")
        columns = [experiences[key] for key in cls.KEYS]
        if len({len(column) for column in columns}) != 1:
            raise ValueError(
                f"completion_ids, action_masks and rewards are of {', '.join(str(len(c)) for c in columns)} prompts; "
                "one entry per prompt is needed in each."
            )
        labels = row_labels(experiences, len(columns[0]), noun="prompt")
        prompts, completions, rewards = [], [], []
        for ids, mask, reward, label in zip(*columns, labels, strict=True):
            sequences, masks = torch.as_tensor(ids).cpu(), torch.as_tensor(mask).cpu().bool()
            if sequences.ndim != 2 or masks.shape != (sequences.shape[0], sequences.shape[1] - 1):
                raise ValueError(
                    f"{label}: completion_ids of shape {tuple(sequences.shape)} need action_masks of shape (G, T - 1), "
                    f"not {tuple(masks.shape)}."
                )
            parts = [_prompt_and_completion(row, sampled, label) for row, sampled in zip(sequences, masks, strict=True)]
            if any(not torch.equal(prompt, parts[0][0]) for prompt, _ in parts):
                raise ValueError(f"{label}: the completions of its group follow different prompts.")
            prompts.append(parts[0][0])
            completions.append([completion for _, completion in parts])
            rewards.append(torch.as_tensor(reward).double().reshape(-1).tolist())
        return cls(
            prompts=prompts,
            completions=completions,
            rewards=rewards,
            advantages=[None] * len(prompts),
            sampling_logps=[None] * len(prompts),
            finished=[[True] * len(group) for group in completions],  # which these lists do not say
            labels=labels,
        )


def _prompt_and_completion(ids: Tensor, sampled: Tensor, label: str) -> tuple[Tensor, Tensor]:
    places = sampled.nonzero().flatten() + 1
    if not len(places) or int(places[-1] - places[0]) + 1 != len(places):
        raise ValueError(f"{label}: the sampled tokens of a completion must be one piece that is not empty.")
    return ids[: places[0]], ids[places]
