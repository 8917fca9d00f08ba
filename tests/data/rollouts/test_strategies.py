"""Every strategy against a second implementation that enumerates and compares one by one, in exact arithmetic."""

from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data.rollouts import Strategy
from agiledpo.data.rollouts import strategies as module
from agiledpo.data.rollouts.strategies import pair_within_prompts
from agiledpo.data.rollouts.stratified import stratified

# Tenths: their floating-point differences miss the exact ones (0.3 - 0.1 < 0.2), and ties are frequent.
ROLLOUTS = st.lists(st.tuples(st.integers(0, 3), st.integers(-10, 10)), max_size=24)
GAPS = st.integers(0, 8)


def arrays(rollouts):
    """Prompts numbered as they appear, and rewards as floats."""
    names = list(dict.fromkeys(prompt for prompt, _ in rollouts))
    prompts = np.array([names.index(prompt) for prompt, _ in rollouts], dtype=np.int64)
    return prompts, np.array([tenths / 10 for _, tenths in rollouts])


def groups_of(rollouts):
    groups = {}
    for number, (prompt, tenths) in enumerate(rollouts):
        groups.setdefault(prompt, []).append((number, Fraction(tenths, 10)))
    return [group for group in groups.values() if len(group) > 1]


def is_clear(gap, min_gap):
    return gap > 0 and gap >= min_gap


def brute_same_prompt(rollouts, min_gap):
    pairs, ties, small = [], 0, 0
    for group in groups_of(rollouts):
        best = max(group, key=lambda entry: (entry[1], -entry[0]))
        worst = min(group, key=lambda entry: (entry[1], entry[0]))
        gap = best[1] - worst[1]
        ties += gap == 0
        small += gap > 0 and not is_clear(gap, min_gap)
        if is_clear(gap, min_gap):
            pairs.append((best[0], worst[0]))
    return pairs, ties, small


def brute_adjacent(rollouts, min_gap):
    pairs, ties, small = [], 0, 0
    for group in groups_of(rollouts):
        levels = {}
        for number, reward in group:
            levels.setdefault(reward, []).append(number)
        ties += len(group) - len(levels)
        ranked = sorted(levels, reverse=True)
        for upper, below in pairwise(ranked):
            if is_clear(upper - below, min_gap):
                pairs.append((levels[upper][0], levels[below][0]))
            else:
                small += 1
    return pairs, ties, small


def brute_min_gap(rollouts, min_gap):
    pairs, ties, small = [], 0, 0
    for group in groups_of(rollouts):
        ties += len({reward for _, reward in group}) == 1
        for number, reward in group:
            clear = [(other, low) for other, low in group if is_clear(reward - low, min_gap)]
            if clear:
                nearest = max(low for _, low in clear)
                pairs.append((number, next(other for other, low in clear if low == nearest)))
            else:
                small += any(low < reward for _, low in group)
    return pairs, ties, small


def brute_all_pairs(rollouts, min_gap):
    pairs, ties, small = [], 0, 0
    for group in groups_of(rollouts):
        for one, other in combinations(group, 2):
            (better, high), (worse, low) = (one, other) if one[1] > other[1] else (other, one)
            ties += high == low
            small += high > low and not is_clear(high - low, min_gap)
            if is_clear(high - low, min_gap):
                pairs.append((better, worse))
    return pairs, ties, small


BRUTE = {
    Strategy.SAME_PROMPT: brute_same_prompt,
    Strategy.ADJACENT: brute_adjacent,
    Strategy.MIN_GAP: brute_min_gap,
    Strategy.ALL_PAIRS: brute_all_pairs,
}


def pair(strategy, rollouts, tenths=0, max_pairs=None, seed=0):
    prompts, rewards = arrays(rollouts)
    rng = np.random.default_rng(seed)
    return pair_within_prompts(strategy, prompts, rewards, min_gap=tenths / 10, max_pairs=max_pairs, rng=rng)


def listed(pairing):
    return list(zip(pairing.chosen.tolist(), pairing.rejected.tolist(), strict=True))


@pytest.mark.parametrize("strategy", BRUTE)
@given(rollouts=ROLLOUTS, tenths=GAPS)
def test_pairs_and_counts_are_those_of_the_enumeration(strategy, rollouts, tenths):
    pairing = pair(strategy, rollouts, tenths)
    pairs, ties, small = BRUTE[strategy](rollouts, Fraction(tenths, 10))
    assert sorted(listed(pairing)) == sorted(pairs)
    assert (pairing.ties, pairing.small_gaps, pairing.over_limit) == (ties, small, 0)


@pytest.mark.parametrize("strategy", BRUTE)
@given(rollouts=ROLLOUTS)
def test_pairs_come_in_the_order_of_the_file(strategy, rollouts):
    prompts, _ = arrays(rollouts)
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
    pairing = pair_within_prompts(strategy, prompts, rewards, min_gap=0.0, max_pairs=None, rng=np.random.default_rng(0))
    assert listed(pairing) == []
    assert pairing.ties == 1


def test_all_pairs_refuses_to_list_more_than_memory_holds(monkeypatch):
    monkeypatch.setattr(module, "MOST_PAIRS", 2)
    rollouts = [(0, 0), (0, 1), (0, 2)]
    with pytest.raises(ValueError, match=r"makes 3 pairs of these rollouts; set max_pairs \(at most 2\)"):
        pair(Strategy.ALL_PAIRS, rollouts)
    assert len(pair(Strategy.ALL_PAIRS, rollouts, max_pairs=2).chosen) == 2


def stratify(rollouts, high, low, gap, max_pairs, seed=0):
    prompts, rewards = arrays(rollouts)
    return stratified(
        prompts,
        rewards,
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
    candidates = {
        (one, other): rollouts[one][0] == rollouts[other][0]
        for one in range(len(rollouts))
        for other in range(len(rollouts))
        if rollouts[one][1] >= high and rollouts[other][1] <= low and rollouts[one][1] - rollouts[other][1] >= gap
    }
    highs = sum(tenths >= high for _, tenths in rollouts)
    lows = sum(tenths <= low for _, tenths in rollouts)
    pairing = stratify(rollouts, high, low, gap, most, seed)
    pairs = listed(pairing)
    bound = highs if most is None else most
    assert len(set(pairs)) == len(pairs) == min(bound, len(candidates))
    assert set(pairs) <= set(candidates)
    assert sum(candidates[couple] for couple in pairs) == min(len(pairs), sum(candidates.values()))
    assert pairing.over_limit == len(candidates) - len(pairs)
    assert pairing.small_gaps == highs * lows - len(candidates)


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
