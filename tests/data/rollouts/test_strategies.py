"""Every strategy against a second implementation that enumerates and compares one by one, in exact arithmetic."""

from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data.rollouts import Strategy
from agiledpo.data.rollouts import strategies as module
from agiledpo.data.rollouts.strategies import pair_within_prompts
from agiledpo.data.rollouts.stratified import stratified

# Tenths: their floating-point differences miss the exact ones (0.3 - 0.1 < 0.2), and ties are frequent.
# Prompt, reward in tenths, completion: few of each, so that equal ones meet.
ROLLOUTS = st.lists(st.tuples(st.integers(0, 3), st.integers(-10, 10), st.integers(0, 3)), max_size=24)
GAPS = st.integers(0, 8)


def arrays(rollouts):
    """Prompts numbered as they appear, rewards as floats, and completions as digests; without a third all differ."""
    names = list(dict.fromkeys(rollout[0] for rollout in rollouts))
    prompts = np.array([names.index(rollout[0]) for rollout in rollouts], dtype=np.int64)
    texts = [2**63 + (rollout[2] if len(rollout) > 2 else number) for number, rollout in enumerate(rollouts)]
    return prompts, np.array([rollout[1] / 10 for rollout in rollouts]), np.array(texts, dtype=np.uint64)


def groups_of(rollouts):
    groups = {}
    for number, (prompt, tenths, *_) in enumerate(rollouts):
        groups.setdefault(prompt, []).append((number, Fraction(tenths, 10)))
    return [group for group in groups.values() if len(group) > 1]


def is_clear(gap, min_gap):
    return gap > 0 and gap >= min_gap


def differ(rollouts, one, other):
    return rollouts[one][2:] != rollouts[other][2:] or not rollouts[one][2:]


def first_differing(rollouts, better, worse):
    """The first combination in the file whose completions differ, in a list, or an empty one."""
    return [pair for pair in product(better, worse) if differ(rollouts, *pair)][:1]


def brute_same_prompt(rollouts, min_gap):
    pairs, ties, small, same = [], 0, 0, 0
    for group in groups_of(rollouts):
        rewards = [reward for _, reward in group]
        gap = max(rewards) - min(rewards)
        ties += gap == 0
        small += gap > 0 and not is_clear(gap, min_gap)
        if is_clear(gap, min_gap):
            ends = ([number for number, reward in group if reward == end(rewards)] for end in (max, min))
            found = first_differing(rollouts, *ends)
            pairs += found
            same += not found
    return pairs, ties, small, same


def brute_adjacent(rollouts, min_gap):
    pairs, ties, small, same = [], 0, 0, 0
    for group in groups_of(rollouts):
        levels = {}
        for number, reward in group:
            levels.setdefault(reward, []).append(number)
        ties += len(group) - len(levels)
        ranked = sorted(levels, reverse=True)
        for upper, below in pairwise(ranked):
            if is_clear(upper - below, min_gap):
                found = first_differing(rollouts, levels[upper], levels[below])
                pairs += found
                same += not found
            else:
                small += 1
    return pairs, ties, small, same


def brute_min_gap(rollouts, min_gap):
    pairs, ties, small, same = [], 0, 0, 0
    for group in groups_of(rollouts):
        ties += len({reward for _, reward in group}) == 1
        for number, reward in group:
            clear = [(other, low) for other, low in group if is_clear(reward - low, min_gap)]
            different = [(other, low) for other, low in clear if differ(rollouts, number, other)]
            if different:
                nearest = max(low for _, low in different)
                pairs.append((number, next(other for other, low in different if low == nearest)))
            elif clear:
                same += 1
            else:
                small += any(low < reward for _, low in group)
    return pairs, ties, small, same


def brute_all_pairs(rollouts, min_gap):
    pairs, ties, small, same = [], 0, 0, 0
    for group in groups_of(rollouts):
        for one, other in combinations(group, 2):
            (better, high), (worse, low) = (one, other) if one[1] > other[1] else (other, one)
            ties += high == low
            small += high > low and not is_clear(high - low, min_gap)
            if is_clear(high - low, min_gap):
                same += not differ(rollouts, better, worse)
                pairs += [(better, worse)] if differ(rollouts, better, worse) else []
    return pairs, ties, small, same


BRUTE = {
    Strategy.SAME_PROMPT: brute_same_prompt,
    Strategy.ADJACENT: brute_adjacent,
    Strategy.MIN_GAP: brute_min_gap,
    Strategy.ALL_PAIRS: brute_all_pairs,
}


def pair(strategy, rollouts, tenths=0, max_pairs=None, seed=0):
    rng = np.random.default_rng(seed)
    return pair_within_prompts(strategy, *arrays(rollouts), min_gap=tenths / 10, max_pairs=max_pairs, rng=rng)


def listed(pairing):
    return list(zip(pairing.chosen.tolist(), pairing.rejected.tolist(), strict=True))


@pytest.mark.parametrize("strategy", BRUTE)
@given(rollouts=ROLLOUTS, tenths=GAPS)
def test_pairs_and_counts_are_those_of_the_enumeration(strategy, rollouts, tenths):
    pairing = pair(strategy, rollouts, tenths)
    pairs, *counts = BRUTE[strategy](rollouts, Fraction(tenths, 10))
    assert sorted(listed(pairing)) == sorted(pairs)
    assert [pairing.ties, pairing.small_gaps, pairing.identical, pairing.over_limit] == [*counts, 0]


@pytest.mark.parametrize(
    ("rollouts", "pairs"),
    [
        ([(0, 10, 0), (0, 10, 1), (0, 0, 0)], [(1, 2)]),
        ([(0, 10, 0), (0, 0, 0), (0, 0, 1)], [(0, 2)]),
        # Both ways out exist: the earliest chosen one stays.
        ([(0, 10, 0), (0, 10, 1), (0, 0, 0), (0, 0, 1)], [(0, 3)]),
        ([(0, 10, 0), (0, 0, 0)], []),
    ],
)
def test_among_equal_rewards_one_is_taken_with_which_completions_differ(rollouts, pairs):
    pairing = pair(Strategy.SAME_PROMPT, rollouts)
    assert listed(pairing) == listed(pair(Strategy.ADJACENT, rollouts)) == pairs
    assert pairing.identical == (not pairs)


@pytest.mark.parametrize("strategy", BRUTE)
@given(rollouts=ROLLOUTS)
def test_pairs_come_in_the_order_of_the_file(strategy, rollouts):
    prompts = arrays(rollouts)[0]
    pairs = listed(pair(strategy, rollouts))
    assert pairs == sorted(pairs, key=lambda couple: (prompts[couple[0]], *couple))


@pytest.mark.parametrize("strategy", BRUTE)
@given(rollouts=ROLLOUTS, most=st.integers(1, 10), seed=st.integers(0, 3))
def test_max_pairs_takes_a_subset_and_counts_the_rest(strategy, rollouts, most, seed):
    everything = listed(pair(strategy, rollouts))
    limited = pair(strategy, rollouts, max_pairs=most, seed=seed)
    assert len(limited.chosen) == min(most, len(everything))
    assert limited.over_limit == len(everything) - len(limited.chosen)
    assert len(set(listed(limited))) == len(limited.chosen)
    assert set(listed(limited)) <= set(everything)
    assert listed(limited) == listed(pair(strategy, rollouts, max_pairs=most, seed=seed))


@pytest.mark.parametrize("strategy", BRUTE)
def test_rewards_that_differ_by_rounding_are_a_tie(strategy):
    rewards = np.array([0.1 + 0.2, 0.3])
    assert rewards[0] > rewards[1]
    prompts = np.zeros(2, dtype=np.int64)
    texts = np.arange(2, dtype=np.uint64)
    rng = np.random.default_rng(0)
    pairing = pair_within_prompts(strategy, prompts, rewards, texts, min_gap=0.0, max_pairs=None, rng=rng)
    assert listed(pairing) == []
    assert pairing.ties == 1


def test_equal_completions_do_not_use_up_the_limit():
    """A thousand pairs of a text with itself, and three that differ."""
    rollouts = [(0, 0, 0)] * 1000 + [(0, 10, 0), (1, 0, 0), (1, 10, 1), (1, 20, 2)]
    for seed in range(5):
        pairing = pair(Strategy.ALL_PAIRS, rollouts, max_pairs=3, seed=seed)
        assert listed(pairing) == [(1002, 1001), (1003, 1001), (1003, 1002)]
        assert (pairing.identical, pairing.over_limit) == (1000, 0)
    assert len(pair(Strategy.SAME_PROMPT, rollouts, max_pairs=1).chosen) == 1


def test_all_pairs_are_equally_likely():
    """Of 8 different pairs among 36, two are drawn 2000 times: each is in a quarter of the draws, within five sigma."""
    rollouts = [(0, number, 0) for number in range(8)] + [(0, 8, 1)]
    drawn = Counter(p for seed in range(2000) for p in listed(pair(Strategy.ALL_PAIRS, rollouts, 0, 2, seed)))
    assert set(drawn) == {(8, number) for number in range(8)}
    assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in drawn.values())


def test_all_pairs_refuses_to_list_more_than_memory_holds(monkeypatch):
    monkeypatch.setattr(module, "MOST_PAIRS", 2)
    rollouts = [(0, 0), (0, 1), (0, 2)]
    with pytest.raises(ValueError, match=r"makes 3 pairs of these rollouts; set max_pairs \(at most 2\)"):
        pair(Strategy.ALL_PAIRS, rollouts)
    assert len(pair(Strategy.ALL_PAIRS, rollouts, max_pairs=2).chosen) == 2


def stratify(rollouts, high, low, gap, max_pairs, seed=0):
    return stratified(
        *arrays(rollouts),
        high_threshold=high / 10,
        low_threshold=low / 10,
        min_gap=gap / 10,
        max_pairs=max_pairs,
        rng=np.random.default_rng(seed),
    )


@given(
    rollouts=ROLLOUTS,
    low=st.integers(-8, 6),
    above=st.integers(1, 6),
    gap=GAPS,
    most=st.none() | st.integers(1, 60),
    seed=st.integers(0, 3),
)
def test_stratified_takes_pairs_of_the_same_prompt_first(rollouts, low, above, gap, most, seed):
    high = low + above
    clear = [
        (one, other)
        for one in range(len(rollouts))
        for other in range(len(rollouts))
        if rollouts[one][1] >= high and rollouts[other][1] <= low and rollouts[one][1] - rollouts[other][1] >= gap
    ]
    candidates = {pair: rollouts[pair[0]][0] == rollouts[pair[1]][0] for pair in clear if differ(rollouts, *pair)}
    highs = sum(tenths >= high for _, tenths, _ in rollouts)
    lows = sum(tenths <= low for _, tenths, _ in rollouts)
    pairing = stratify(rollouts, high, low, gap, most, seed)
    pairs = listed(pairing)
    bound = highs if most is None else most
    assert len(set(pairs)) == len(pairs) == min(bound, len(candidates))
    assert set(pairs) <= set(candidates)
    assert sum(candidates[couple] for couple in pairs) == min(len(pairs), sum(candidates.values()))
    assert pairing.over_limit == len(candidates) - len(pairs)
    assert pairing.small_gaps == highs * lows - len(clear)
    assert pairing.identical == len(clear) - len(candidates)


def test_stratified_uses_all_high_rollouts_equally_often():
    rollouts = [(number, 10) for number in range(5)] + [(number, 0) for number in range(5, 10)]
    pairing = stratify(rollouts, 7, 4, 2, max_pairs=10)
    assert np.bincount(pairing.chosen).tolist() == [2, 2, 2, 2, 2]


@pytest.mark.parametrize("seed", range(8))
def test_stratified_does_not_repeat_pairs_of_the_same_prompt_among_the_others(seed):
    pairs = listed(stratify([(0, 10), (0, 0), (1, 0)], 7, 4, 2, max_pairs=2, seed=seed))
    assert pairs == [(0, 1), (0, 2)]


def test_stratified_depends_on_the_seed_only():
    rollouts = [(number, 10) for number in range(20)] + [(number, 0) for number in range(20, 40)]
    first, again, other = (listed(stratify(rollouts, 7, 4, 2, None, seed)) for seed in (1, 1, 2))
    assert first == again != other
