"""Several processes that answer prompts and learn from their answers do what one process does."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.distributed import rollout_work
from tests.distributed.ranks import run_ranks, zero_environment
from tests.distributed.test_data_parallel import assert_ranks_agree, assert_same_training


def assert_equal(one: Any, other: Any) -> None:
    """Equal to the bit, whatever is in it."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.equal(other)
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_equal(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


@pytest.fixture(scope="module")
def curves_alone() -> list[Mapping[str, Any]]:
    return rollout_work.curves(parallel=False)


@pytest.mark.parametrize(("ranks", "objectives"), [(2, 3), (3, 1)])
def test_learning_from_the_same_rollouts_is_that_of_one_process(curves_alone, ranks: int, objectives: int) -> None:
    results = run_ranks(rollout_work.curves, True, objectives, ranks=ranks)
    assert {len(result) for result in results} == {objectives}
    for place, alone in enumerate(curves_alone[:objectives]):
        ours = [result[place] for result in results]
        assert_ranks_agree(ours)
        assert_same_training(ours[0], alone)
        assert {result["steps"] for result in ours} == {alone["steps"]}
        assert alone["steps"] >= 10


@pytest.fixture(scope="module")
def answers() -> list[dict[str, Any]]:
    return run_ranks(rollout_work.answers)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return rollout_work.answers(parallel=False)


def test_all_processes_have_everybodys_answers_in_the_questions_order(answers, alone) -> None:
    first = answers[0]["first"]
    for name in ("first", "next", "twin's first"):
        assert_equal(answers[1][name], answers[0][name])
    assert first["labels"] == alone["first"]["labels"]
    assert first["prompts"] == alone["first"]["prompts"]
    tokenizer = rollout_work.tokenizer()
    for group, rewards in zip(first["completions"], first["rewards"], strict=True):
        texts = tokenizer.batch_decode(group, skip_special_tokens=True)
        assert rewards == [rollout_work.low_words(text, "", "") for text in texts]
        assert len(group) == 3
    assert len({reward for group in first["rewards"] for reward in group}) > 3
    lengths = [[len(ids) for ids in group] for group in first["completions"]]
    assert [[len(values) for values in group] for group in first["logps"]] == lengths
    assert [result["judged here"] for result in answers] == [9, 6]  # 3 and 2 groups of 3
    assert alone["judged here"] == 15


def test_draws_follow_from_the_seed_and_the_stream_stays_the_same_everywhere(answers, alone) -> None:
    first, following = answers[0]["first"]["completions"], answers[0]["next"]["completions"]
    assert first == answers[0]["twin's first"]["completions"]
    assert first != following
    one, other = answers[0]["one prompt twice"]  # by two processes, whose draws are not the same
    assert one != other
    assert answers[0]["stream"].equal(answers[1]["stream"])
    assert not any(result["measuring draws"] for result in answers)


def test_greedy_answers_and_their_judgement_are_those_of_one_process(answers, alone) -> None:
    assert answers[0]["measured"] == answers[1]["measured"]
    assert answers[0]["measured"] == pytest.approx(alone["measured"], abs=1e-12)
    assert answers[0]["measured"]["mean_reward"] > 0
    for result in answers:
        assert result["greedy"] == alone["greedy"]
        assert result["step"] == alone["step"]
    assert len(alone["step"]) == 6
    assert [result["judged in step"] for result in answers] == [3, 3]


def test_a_teacher_says_the_same_in_several_processes(answers, alone) -> None:
    assert_equal(answers[0]["distilled"], answers[1]["distilled"])
    for ours, theirs in zip(answers[0]["distilled"], alone["distilled"], strict=True):
        torch.testing.assert_close(list(ours), list(theirs), rtol=1e-4, atol=1e-5)
        assert torch.cat(list(ours)).abs().max() > 0.01


def test_fewer_questions_than_processes() -> None:
    results = run_ranks(rollout_work.one_question, ranks=3)
    assert sorted(result.pop("judged here") for result in results) == [0, 0, 3]
    for result in results:
        assert_equal(result, results[0])
    assert [len(group) for group in results[0]["first"]["completions"]] == [3]


def test_a_reward_that_fails_in_one_process_is_everybodys_failure() -> None:
    results = run_ranks(rollout_work.broken)
    for rank, (*errors, unmoved, told, weights) in enumerate(results):
        assert len(errors) == 3
        for kind, message, notes in errors:
            assert kind == "RewardError"
            assert "the judge's line is cut" in message
            assert [("rank 1" in note) for note in notes] == ([True] if rank == 0 else [])
        assert unmoved
        # Rank 0 is told of an error that it cannot make again.
        assert (
            told
            == [
                ("RuntimeError", "BrokenRewardError: the judge's line is cut"),
                ("BrokenRewardError", "the judge's line is cut"),
            ][rank]
        )
        assert_equal(weights, results[0][-1])


def test_a_run_ends_with_the_same_agents_everywhere() -> None:
    first, second = run_ranks(rollout_work.trained_in_all_ways)
    assert_equal(first, second)
    for way, ours in first.items():
        assert min(ours["steps"]) >= 2, way
    alone = rollout_work.trained(None, "replayed")
    ours = first["replayed"]
    assert ours["steps"] == alone["steps"]
    assert ours["fitness"] == pytest.approx(alone["fitness"], abs=1e-12)
    for mine, theirs in zip(ours["weights"], alone["weights"], strict=True):
        for name, tensor in theirs.items():
            assert (mine[name] - tensor).abs().max() < 1e-5


def test_a_rollout_that_draws_in_each_process_is_refused() -> None:
    for message in run_ranks(rollout_work.drawn_by_each):
        assert "returned other rollouts" in message
        assert "leader_does" in message


def test_a_sharded_model_learns_but_does_not_sample_in_each_process(curves_alone) -> None:
    results = run_ranks(rollout_work.sharded, environment=zero_environment(3, SHARD_FROM="0"))
    for result in results:
        assert len(result["said"]) == 3
        for said in result["said"]:
            assert "sharded over 2 processes" in said
            assert "VLLMGenerator" in said
    ours = [result["curve"] for result in results]
    assert_ranks_agree(ours)
    assert_same_training(ours[0], curves_alone[0])
