"""Batches of one completion per prompt, and what all batches have in common."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from agiledpo.scoring import CausalLM, CompletionBatch, PreferenceBatch, Scorer, SidedBatch
from agiledpo.scoring.layout import packed_rows, separate_rows

LENGTHS = [(7, 5), (1, 1), (3, 8), (12, 1)]


@pytest.mark.parametrize("left", [False, True])
def test_rows_are_taken_apart(demonstrations, left):
    experiences = demonstrations(LENGTHS, left=left) | {"row": torch.tensor([4, 2, 9, 0]), "split": "test"}
    batch = CompletionBatch.from_experiences(experiences)
    assert [(len(p), len(c)) for p, c in zip(batch.prompts, batch.completions, strict=True)] == LENGTHS
    assert batch.labels == ["test row 4", "test row 2", "test row 9", "test row 0"]
    for i, ids in enumerate(experiences["input_ids"]):
        whole = torch.cat([batch.prompts[i], batch.completions[i]])
        assert torch.equal(whole, ids[experiences["attention_mask"][i].bool()])
    assert (len(batch), batch.completion_tokens, batch.tokens) == (4, 15, 38)
    assert batch.largest_token_id == int(experiences["input_ids"].max())


def test_agilerls_dictionary_with_a_list_of_lengths(demonstrations):
    experiences = demonstrations(LENGTHS)
    listed = experiences | {"prompt_lengths": [7, 1, 3, 12], "prompt": [""] * 4, "response": [""] * 4}
    batch = CompletionBatch.from_experiences(listed)
    assert [len(c) for c in batch.completions] == [5, 1, 8, 1]
    assert batch.labels[2] == "row 2 of the batch"


@pytest.mark.parametrize("kind", [CompletionBatch, PreferenceBatch])
def test_cutting_and_joining(demonstrations, make_experiences, kind):
    experiences = {
        CompletionBatch: demonstrations(LENGTHS),
        PreferenceBatch: make_experiences([(7, 5, 2), (1, 1, 1), (3, 8, 4), (12, 1, 1)]),
    }[kind]
    batch = kind.from_experiences(experiences)
    joined = kind.concat([batch.slice(start, stop) for start, stop in batch.spans(3)])
    chosen = batch.select([3, 0])
    assert list(joined.labels) == list(batch.labels)
    assert chosen.labels == [batch.labels[3], batch.labels[0]]
    for columns in zip((batch.prompts, *batch.sides), (joined.prompts, *joined.sides), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(*columns, strict=True))
    assert torch.equal(chosen.sides[0][0], batch.sides[0][3])
    assert len(kind.concat([])) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_lengths": torch.tensor([7, 1, 11, 12])}, r"row 2 of the batch: prompt_lengths=11 of 11 tokens"),
        ({"prompt_lengths": torch.tensor([7, 0, 3, 12])}, r"row 1 of the batch: prompt_lengths=0 of 2 tokens"),
        ({"prompt_lengths": torch.tensor([7, 1, 3])}, r"3 entries for 4 rows"),
        ({"attention_mask": torch.ones(4, 3)}, r"one shape \(rows, tokens\).*\(4, 13\) and \(4, 3\)"),
    ],
)
def test_malformed_experiences(demonstrations, change, message):
    with pytest.raises(ValueError, match=message):
        CompletionBatch.from_experiences(demonstrations(LENGTHS) | change)


def test_preference_pairs_are_refused_by_name(make_experiences):
    with pytest.raises(ValueError, match="lack input_ids, attention_mask; they hold prompt_lengths, chosen_input_ids"):
        CompletionBatch.from_experiences(make_experiences([(2, 2, 2)]))


def test_too_long_and_unknown_tokens(tiny_model, demonstrations):
    scorer = Scorer(CausalLM.of(tiny_model()), pad_token_id=0)
    with pytest.raises(ValueError, match=r"row 1 of the batch has 65 tokens.*max_context_length=64"):
        scorer.check(CompletionBatch.from_experiences(demonstrations([(2, 2), (30, 35)])))


@dataclass(frozen=True)
class Group(SidedBatch):
    """Three completions of each prompt, as a policy samples them."""

    prompts: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    third: list[Tensor]
    labels: list[str]

    @property
    def sides(self):
        return self.first, self.second, self.third

    @classmethod
    def from_experiences(cls, experiences):
        raise NotImplementedError


def test_any_number_of_completions_scores_as_each_alone(tiny_model, demonstrations):
    """With layouts of three completions per prompt each scores to what it scores by itself."""
    columns = [CompletionBatch.from_experiences(demonstrations([(4, n), (2, 6)], seed=n)) for n in (3, 1, 5)]
    prompts = columns[0].prompts
    group = Group(list(prompts), *(list(batch.completions) for batch in columns), labels=["a", "b"])
    scorer = Scorer(CausalLM.of(tiny_model()), pad_token_id=0)
    assert packed_rows(group, share_prompts=True).input_ids.shape == (1, 4 + 3 + 1 + 5 + 2 + 3 * 6)
    assert packed_rows(group, share_prompts=False).input_ids.shape == (1, 3 * 4 + 3 + 1 + 5 + 3 * 2 + 3 * 6)
    assert separate_rows(group, 0).input_ids.shape == (6, 9)
    with torch.no_grad(), scorer.session():
        together = scorer.score_sides(group)
        alone = [scorer.score_sides(CompletionBatch(prompts, b.completions, b.labels))[0] for b in columns]
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.mask, other.mask)
        torch.testing.assert_close(one.logps, other.logps, rtol=1e-5, atol=1e-5)
