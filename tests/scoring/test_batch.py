"""Reading padded dictionaries, and refusing malformed ones."""

import pytest
import torch

from agiledpo.scoring import CausalLM, PreferenceBatch, Scorer


def test_left_and_right_padding_read_the_same(make_experiences):
    lengths = [(3, 4, 2), (1, 1, 7)]
    right, left = (PreferenceBatch.from_experiences(make_experiences(lengths, left=side)) for side in (False, True))
    for side in ("prompts", "chosen", "rejected"):
        assert all(torch.equal(a, b) for a, b in zip(vars(right)[side], vars(left)[side], strict=True))
    assert [
        (len(p), len(c), len(r)) for p, c, r in zip(right.prompts, right.chosen, right.rejected, strict=True)
    ] == lengths
    assert (right.tokens, right.chosen_tokens, len(right)) == (18, 5, 2)


def test_prompt_tokens_that_differ_between_the_sides_belong_to_the_completions():
    ids = {"chosen_input_ids": [[5, 6, 7, 8]], "rejected_input_ids": [[5, 6, 9, 8]]}
    masks = {f"{side}_attention_mask": [[1, 1, 1, 1]] for side in ("chosen", "rejected")}
    batch = PreferenceBatch.from_experiences({**ids, **masks, "prompt_lengths": [3]})
    assert batch.prompts[0].tolist() == [5, 6]
    assert (batch.chosen[0].tolist(), batch.rejected[0].tolist()) == ([7, 8], [9, 8])


def test_spans_cover_every_pair_once(make_experiences):
    batch = PreferenceBatch.from_experiences(make_experiences([(1, 1, 1)] * 7))
    assert list(batch.spans(3)) == [(0, 3), (3, 6), (6, 7)]
    joined = PreferenceBatch.concat([batch.slice(*span) for span in batch.spans(3)])
    assert all(torch.equal(a, b) for a, b in zip(joined.chosen, batch.chosen, strict=True))


def test_missing_keys_are_named(make_experiences):
    experiences = make_experiences([(2, 2, 2)])
    del experiences["rejected_input_ids"]
    with pytest.raises(ValueError, match="lack rejected_input_ids"):
        PreferenceBatch.from_experiences(experiences)


def test_shapes_must_agree(make_experiences):
    experiences = make_experiences([(2, 2, 2)])
    experiences["chosen_attention_mask"] = experiences["chosen_attention_mask"][:, :-1]
    with pytest.raises(ValueError, match=r"one shape \(pairs, tokens\)"):
        PreferenceBatch.from_experiences(experiences)
    experiences = make_experiences([(2, 2, 2)]) | {"prompt_lengths": torch.tensor([2, 2])}
    with pytest.raises(ValueError, match="2 entries for 1 pairs"):
        PreferenceBatch.from_experiences(experiences)


def test_an_empty_completion_is_named(make_experiences):
    experiences = make_experiences([(2, 2, 2), (2, 3, 1)]) | {"row": torch.tensor([17, 4]), "split": "train"}
    experiences["rejected_attention_mask"][1, 2:] = 0
    with pytest.raises(ValueError, match="train row 4: the rejected completion is empty"):
        PreferenceBatch.from_experiences(experiences)


def test_a_pair_without_a_common_prompt_is_named(make_experiences):
    experiences = make_experiences([(2, 2, 2)]) | {"prompt_lengths": torch.tensor([0])}
    with pytest.raises(ValueError, match="pair 0 of the batch: chosen and rejected share no prompt token"):
        PreferenceBatch.from_experiences(experiences)


def test_tokens_the_model_does_not_know_and_rows_it_cannot_hold(tiny_model, make_experiences):
    scorer = Scorer(CausalLM.of(tiny_model()), pad_token_id=0)
    experiences = make_experiences([(2, 2, 2)])
    experiences["chosen_input_ids"][0, -1] = 97
    with pytest.raises(ValueError, match="token id 97, but LlamaForCausalLM embeds only 97"):
        scorer.check(PreferenceBatch.from_experiences(experiences))
    with pytest.raises(
        ValueError, match=r"pair 1 of the batch has 65 tokens; LlamaForCausalLM allows 64.*max_context_length=64"
    ):
        scorer.check(PreferenceBatch.from_experiences(make_experiences([(2, 2, 2), (30, 5, 35)])))
