"""Rows come back to the bit, are computed once, leave when room is needed, and survive on disk what disks do."""

import gc
import json
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agiledpo.scoring import CausalLM, PairScores, PreferenceBatch, ReferenceCache, Scorer
from agiledpo.scoring import reference_files as files_module
from agiledpo.scoring.reference_files import ReferenceFiles
from agiledpo.scoring.reference_rows import RowMemory, bytes_held, row_keys

LENGTHS = [(7, 5, 9), (1, 1, 1), (3, 8, 1), (12, 1, 6), (4, 4, 4), (2, 9, 3)]
CPU = torch.device("cpu")


def equal(one: PairScores, other: PairScores) -> bool:
    return all(
        torch.equal(getattr(getattr(one, side), part), getattr(getattr(other, side), part))
        for side in ("chosen", "rejected")
        for part in ("logps", "mask")
    )


class Counted:
    """A real scorer that notes the pairs it was given."""

    def __init__(self, model, **arguments):
        self.scorer = Scorer(CausalLM.of(model), pad_token_id=0, **arguments)
        self.calls = []

    @torch.no_grad()
    def __call__(self, batch):
        self.calls.append(list(batch.labels))
        with self.scorer.session():
            return self.scorer.score(batch)


@pytest.fixture
def batch(make_experiences):
    return PreferenceBatch.from_experiences(make_experiences(LENGTHS))


@pytest.fixture
def score(tiny_model):
    return Counted(tiny_model())


def random_rows(count, *, seed=0, width=20):
    generator = np.random.default_rng(seed)
    return {generator.bytes(16): generator.normal(size=width).astype(np.float32) for _ in range(count)}


# Hits and misses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sharing", ["auto", False])
def test_a_hit_is_what_the_scorer_gave_to_the_bit(tiny_model, batch, dtype, sharing):
    score = Counted(tiny_model(dtype=dtype), prefix_sharing=sharing)
    cache = ReferenceCache(memory_bytes=2**20)
    direct = score(batch)
    miss, hit = (cache.scores(batch, "r", score, CPU) for _ in range(2))
    assert equal(miss, direct)
    assert equal(hit, direct)
    assert hit.chosen.logps.dtype == direct.chosen.logps.dtype
    assert len(score.calls) == 2
    part = cache.scores(batch.slice(1, 3), "r", score, CPU)
    assert equal(part, direct.slice(1, 3))
    assert part.chosen.logps.shape == (2, 8)
    assert part.rejected.logps.shape == (2, 1)


def test_only_missing_pairs_are_scored_and_together(batch, score):
    cache = ReferenceCache(memory_bytes=2**20)
    first = cache.scores(batch.slice(2, 4), "r", score, CPU)
    whole = cache.scores(batch, "r", score, CPU)
    assert [len(call) for call in score.calls] == [2, 4]
    assert equal(whole.slice(2, 4), first)
    assert equal(cache.scores(batch.select([5, 0, 3]), "r", score, CPU).slice(2, 3), first.slice(1, 2))
    assert len(score.calls) == 2


def test_a_pair_that_is_there_twice_is_scored_once(batch, score):
    cache = ReferenceCache(memory_bytes=2**20)
    scores = cache.scores(batch.select([4, 1, 4, 4, 1]), "r", score, CPU)
    assert len(score.calls[0]) == 2
    direct = score(batch)
    for place, original in enumerate([4, 1, 4, 4, 1]):
        one, other = scores.slice(place, place + 1), direct.slice(original, original + 1)
        assert equal(one, scores.slice(0, 1) if original == 4 else scores.slice(1, 2))
        torch.testing.assert_close(one.chosen.logps, other.chosen.logps, rtol=1e-5, atol=1e-5)


def test_another_reference_is_another_row(batch, score, tiny_model):
    cache, other = ReferenceCache(memory_bytes=2**20), Counted(tiny_model(seed=1))
    one = cache.scores(batch, "one", score, CPU)
    assert not equal(cache.scores(batch, "other", other, CPU), one)
    assert equal(cache.scores(batch, "one", other, CPU), one)
    assert len(other.calls) == 1


@st.composite
def cut_twice(draw):
    """Two pairs made of few tokens, often of the same ones but cut differently into prompt and completions."""
    tokens = draw(st.lists(st.integers(0, 2), min_size=3, max_size=6))
    pairs = []
    for _ in range(2):
        first = draw(st.integers(1, len(tokens) - 2))
        second = draw(st.integers(first + 1, len(tokens) - 1))
        pairs.append([torch.tensor(part) for part in (tokens[:first], tokens[first:second], tokens[second:])])
        if draw(st.booleans()):
            tokens = tokens[::-1]
    return pairs


@settings(max_examples=300, deadline=None)
@given(cut_twice())
def test_keys_are_equal_exactly_if_all_tokens_are(pairs):
    prompts, chosen, rejected = zip(*pairs, strict=True)
    keys = row_keys(PreferenceBatch(prompts, chosen, rejected, ["", ""]))
    one, other = ([part.tolist() for part in pair] for pair in pairs)
    assert (keys[0] == keys[1]) == (one == other)


# Memory -------------------------------------------------------------------------------------------------------------


def test_the_limit_is_kept_in_real_bytes_and_the_least_used_leave():
    rows = random_rows(3000, width=150)
    keys = list(rows)
    limit = 400_000
    memory = RowMemory(limit)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for key in keys:
        # As the cache makes them: arrays and keys that nobody else holds.
        memory.put({b"reference".ljust(16) + key: rows[key].copy()})
        assert memory.bytes <= limit
        memory.get([b"reference".ljust(16) + keys[0]])
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.8 * limit < after - before < 1.1 * limit
    assert memory.bytes == len(memory) * bytes_held(bytes(32), 600)
    held = memory.get([b"reference".ljust(16) + key for key in keys])
    assert set(held) == {b"reference".ljust(16) + key for key in [keys[0], *keys[-len(memory) + 1 :]]}


def test_a_batch_larger_than_the_memory_is_still_right(batch, score):
    cache = ReferenceCache(memory_bytes=800)
    assert equal(cache.scores(batch, "r", score, CPU), cache.scores(batch, "r", score, CPU))
    assert cache.memory_bytes <= 800
    assert ReferenceCache(memory_bytes=1).scores(batch, "r", score, CPU).chosen.logps.shape == (6, 9)


def flip_a_bit_of_a_score(data):
    header = 8 + int.from_bytes(data[:8], "little")
    place = header + json.loads(data[8:header])["logps"]["data_offsets"][0]
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


# Disk ---------------------------------------------------------------------------------------------------------------


def test_what_was_computed_is_there_for_the_next_one(batch, score, tmp_path):
    first = ReferenceCache(memory_bytes=2**20, directory=tmp_path / "references")
    scores = first.scores(batch.slice(0, 3), "r", score, CPU)
    del first
    gc.collect()  # nothing is lost when the object goes
    second = ReferenceCache(memory_bytes=2**20, directory=tmp_path / "references")
    assert equal(second.scores(batch.slice(0, 3), "r", score, CPU), scores)
    assert len(score.calls) == 1
    second.scores(batch, "r", score, CPU)
    second.flush()
    # A cache that was there before sees what others wrote since.
    third = ReferenceCache(memory_bytes=1, directory=tmp_path / "references")
    third.scores(batch.slice(3, 6), "r", score, CPU)
    assert [len(call) for call in score.calls] == [3, 3]
    third.scores(batch, "other", score, CPU)
    third.flush()
    assert len(list((tmp_path / "references").iterdir())) == 2
    assert {path.suffix for path in (tmp_path / "references").rglob("*") if path.is_file()} == {".safetensors"}


def test_rows_are_found_before_and_after_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "_SHARD_BYTES", 4000)
    rows = random_rows(200) | {bytes(16): np.ones(1, np.float32), b"\xff" * 15 + b"\0": np.zeros(2, np.float32)}
    files = ReferenceFiles(tmp_path)
    for key, row in rows.items():
        files.put({key: row})
        assert np.array_equal(files.get([key])[key], row)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    files.flush()
    files.flush()
    found = ReferenceFiles(tmp_path).get([*rows, b"absent".ljust(16)])
    assert found.keys() == rows.keys()
    assert all(np.array_equal(found[key], row) for key, row in rows.items())
    assert len(list(tmp_path.glob("*"))) == 5


def test_a_reader_sees_shards_that_were_written_after_its_first_look(tmp_path):
    reader, writer = ReferenceFiles(tmp_path), ReferenceFiles(tmp_path)
    rows = random_rows(6)
    for key, row in rows.items():
        assert reader.get([key]) == {}
        writer.put({key: row})
        writer.flush()
        assert np.array_equal(reader.get([key])[key], row)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\0" * len(data),
        lambda data: data.replace(b"agiledpo-reference-1", b"agiledpo-reference-0"),
        flip_a_bit_of_a_score,
    ],
    ids=["truncated", "empty", "zeros", "another format", "one bit"],
)
def test_a_damaged_shard_is_left_out_with_a_warning_and_its_rows_are_scored_again(batch, score, tmp_path, damage):
    for part in (batch.slice(0, 3), batch.slice(3, 6)):
        cache = ReferenceCache(memory_bytes=2**20, directory=tmp_path)
        expected = cache.scores(part, "r", score, CPU)
        cache.flush()
    _, victim = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    victim.write_bytes(damage(victim.read_bytes()))
    score.calls.clear()
    cache = ReferenceCache(memory_bytes=2**20, directory=tmp_path)
    with pytest.warns(UserWarning, match=f"{victim.name} in the reference cache cannot be read .*Delete the file"):
        scores = cache.scores(batch, "r", score, CPU)
    assert score.calls == [list(batch.labels[3:])]
    assert equal(scores.slice(3, 6), expected)
    cache.flush()
    victim.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ReferenceCache(memory_bytes=2**20, directory=tmp_path).scores(batch, "r", score, CPU)
    assert equal(again, scores)
    assert len(score.calls) == 1


def test_a_shard_of_another_reference_is_not_read(batch, score, tmp_path):
    for name in ("one", "other"):
        cache = ReferenceCache(memory_bytes=2**20, directory=tmp_path)
        cache.scores(batch.slice(0, 2) if name == "one" else batch.slice(2, 3), name, score, CPU)
        cache.flush()
    one, other = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    one.rename(other.parent / one.name)
    with pytest.warns(UserWarning, match="its label is"):
        assert len(ReferenceFiles(other.parent).get(row_keys(batch))) == 1


def test_a_directory_that_cannot_be_written_costs_the_rows_and_a_warning_only(batch, score, tmp_path):
    cache = ReferenceCache(memory_bytes=2**20, directory=tmp_path / "references")
    scores = cache.scores(batch, "r", score, CPU)
    (tmp_path / "references").write_text("in the way")
    with pytest.warns(UserWarning, match="Could not write 6 rows"):
        cache.flush()
    assert equal(cache.scores(batch, "r", score, CPU), scores)
