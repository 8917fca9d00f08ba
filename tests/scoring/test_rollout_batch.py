"""Prompts with groups of sampled completions, and prompts that nobody has answered yet."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.scoring import CausalLM, QuestionBatch, RolloutBatch, Scorer

# Tokens of each prompt, and of each completion of its group.
SHAPES = [(4, (3, 1, 5)), (2, (6,)), (7, (2, 2, 2, 9)), (1, (1, 4))]


def rollouts(shapes, seed=0, **columns):
    generator = torch.Generator().manual_seed(seed)

    def tokens(count):
        return torch.randint(1, 90, (count,), generator=generator)

    values = {
        "prompts": [tokens(prompt) for prompt, _ in shapes],
        "completions": [[tokens(count) for count in group] for _, group in shapes],
        "rewards": [[float(place) for place, _ in enumerate(group)] for _, group in shapes],
        "advantages": [None for _ in shapes],
        "sampling_logps": [[torch.rand(count, generator=generator) for count in group] for _, group in shapes],
        "finished": [[True] * len(group) for _, group in shapes],
        "labels": [f"train row {place}" for place, _ in enumerate(shapes)],
    }
    return RolloutBatch(**(values | columns))


groups = st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(1, 3), min_size=1, max_size=5)), max_size=6)


@given(groups, st.integers(1, 7))
def test_parts_hold_every_completion_once_and_in_order(shapes, size):
    batch = rollouts([(prompt, tuple(group)) for prompt, group in shapes])
    parts = list(batch.parts(size))
    found = [
        (part.labels[place], part.prompts[place].tolist(), ids.tolist())
        for part, _ in parts
        for place, ids in part.numbered
    ]
    assert found == [
        (batch.labels[place], batch.prompts[place].tolist(), ids.tolist()) for place, ids in batch.numbered
    ]
    places = [place for _, span in parts for place in range(span.start, span.stop)]
    assert places == list(range(batch.completion_count))
    assert all(part.completion_count == span.stop - span.start <= size for part, span in parts)
    # A group is cut only if it is larger than a part may be.
    rows = [label for part, _ in parts for label in part.labels]
    assert len(rows) == sum(math.ceil(len(group) / size) for _, group in shapes)


def test_a_cut_group_keeps_what_belongs_to_its_completions():
    batch = rollouts(SHAPES, advantages=[None, [torch.arange(6.0)], None, None])
    parts = [part for part, _ in batch.parts(3)]
    assert [[len(group) for group in part.completions] for part in parts] == [[3], [1], [3], [1, 2]]
    assert torch.equal(parts[1].advantages[0][0], torch.arange(6.0))
    assert parts[3].rewards == [[3.0], [0.0, 1.0]]
    assert torch.equal(parts[3].sampling_logps[0][0], batch.sampling_logps[2][3])
    assert parts[3].labels == ["train row 2", "train row 3"]


@pytest.mark.parametrize("prefix_sharing", [True, False])
def test_a_group_scores_as_its_completions_alone(tiny_model, plain_logps, prefix_sharing):
    model = tiny_model()
    scorer = Scorer(CausalLM.of(model), pad_token_id=0, prefix_sharing=prefix_sharing)
    batch = rollouts(SHAPES)
    with torch.no_grad(), scorer.session():
        scores = scorer.score_completions(batch)
    for row, (place, ids) in enumerate(batch.numbered):
        alone = plain_logps(model, batch.prompts[place], ids)
        torch.testing.assert_close(scores.logps[row, : len(ids)], alone, rtol=1e-5, atol=1e-5)
        assert scores.mask[row].sum() == len(ids)
    assert scores.logps.shape == (10, 9)


@pytest.mark.parametrize("own_head", [True, False])
def test_scores_at_a_temperature_are_of_the_softmax_of_the_divided_logits(tiny_model, own_head):
    model = tiny_model()
    lm = CausalLM.of(model)
    if not own_head:
        vars(lm)["head"] = None
    scorer = Scorer(lm, pad_token_id=0, temperature=0.6)
    batch = rollouts(SHAPES)
    with torch.no_grad(), scorer.session():
        scores = scorer.score_completions(batch)
    for row, (place, ids) in enumerate(batch.numbered):
        prompt = batch.prompts[place]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1].double()
        alone = torch.log_softmax(logits / 0.6, -1).gather(1, ids[:, None])[:, 0].float()
        torch.testing.assert_close(scores.logps[row, : len(ids)], alone, rtol=1e-5, atol=1e-5)


def test_agilerls_lists_are_taken_apart():
    batch = rollouts([(4, (3, 5)), (2, (1, 1))])
    ids, masks = [], []
    for prompt, group in zip(batch.prompts, batch.completions, strict=True):
        rows = [torch.cat([prompt, completion]) for completion in group]
        ids.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=95))
        places = torch.arange(1, ids[-1].shape[1])
        masks.append(torch.stack([(places >= len(prompt)) & (places < len(row)) for row in rows]))
    rewards = torch.tensor([[0.5, 1.0], [0.0, 2.0]])
    read = RolloutBatch.from_experiences({"completion_ids": ids, "action_masks": masks, "rewards": rewards})
    assert read.rewards == [[0.5, 1.0], [0.0, 2.0]]
    for (place, found), (_, expected) in zip(read.numbered, batch.numbered, strict=True):
        assert torch.equal(found, expected)
        assert torch.equal(read.prompts[place], batch.prompts[place])

    def malformed(**changes):
        experiences = {"completion_ids": ids, "action_masks": masks, "rewards": rewards} | changes
        return RolloutBatch.from_experiences(experiences)

    with pytest.raises(ValueError, match="are of 2, 1, 2 prompts"):
        malformed(action_masks=masks[:1])
    holes = [masks[0].clone(), masks[1]]
    holes[0][1, 5] = False
    with pytest.raises(ValueError, match="prompt 0 of the batch: the sampled tokens of a completion must be one piece"):
        malformed(action_masks=holes)
    other = [ids[0], ids[1].clone()]
    other[1][1, 0] += 1
    with pytest.raises(ValueError, match="prompt 1 of the batch: the completions of its group follow different"):
        malformed(completion_ids=other)
    with pytest.raises(ValueError, match=r"shape \(2, 9\) need action_masks of shape \(G, T - 1\), not \(2, 9\)"):
        malformed(action_masks=[torch.ones(2, 9), masks[1]])
    with pytest.raises(ValueError, match="lack rewards"):
        RolloutBatch.from_experiences({"completion_ids": ids, "action_masks": masks})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"completions": [[torch.ones(3)], []]}, "train row 1: a rollout needs"),
        ({"completions": [[torch.ones(3)], [torch.ones(0)]]}, "train row 1: a rollout needs"),
        ({"rewards": [[1.0], [1.0, 2.0]]}, "train row 1: rewards has 2 entries for 1 completions"),
        ({"advantages": [None, [torch.ones(3)]]}, r"train row 1: advantages has \[3\] values .* of \[2\] tokens"),
        ({"advantages": [None, [torch.tensor([1.0, torch.nan])]]}, "train row 1: advantages are not all finite"),
        ({"advantages": [[torch.full((3,), torch.inf)], None]}, "train row 0: advantages are not all finite"),
        ({"rewards": [[1.0], [-torch.inf]]}, "train row 1: rewards are -inf; each must be a finite number, or NaN"),
        ({"sampling_logps": [[torch.ones(1)], None]}, r"train row 0: sampling_logps has \[1\] values .* of \[3\]"),
    ],
)
def test_columns_that_do_not_fit_are_refused_by_row(columns, message):
    with pytest.raises(ValueError, match=message):
        rollouts([(2, (3,)), (2, (2,))], **columns)


def test_questions_are_read_and_name_their_rows():
    experiences = {
        "prompt_input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 0]]),
        "prompt_attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]),
        "row": torch.tensor([12, 3]),
        "split": "train",
    }
    batch = QuestionBatch.from_experiences(experiences)
    assert [prompt.tolist() for prompt in batch.prompts] == [[5, 6], [7, 8, 9]]
    assert (batch.rows, batch.splits, batch.labels) == ([12, 3], ["train"] * 2, ["train row 12", "train row 3"])
    assert (batch.tokens, batch.largest_token_id, len(batch)) == (5, 9, 2)
    assert QuestionBatch.concat([batch.slice(0, 1), batch.slice(1, 2)]).rows == [12, 3]
    empty = experiences | {"prompt_attention_mask": torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])}
    with pytest.raises(ValueError, match="train row 3: the prompt is empty"):
        QuestionBatch.from_experiences(empty)
    with pytest.raises(ValueError, match="lack split"):
        QuestionBatch.from_experiences({key: experiences[key] for key in QuestionBatch.KEYS[:3]})
