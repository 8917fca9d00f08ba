"""What ranks that differ are told; the rest runs in real processes, in tests/cli/test_launch_check.py."""

from dataclasses import replace

from agiledpo.distributed.inspection import RankFacts, available, disagreements

GIB = 2**30


def gpu(rank: int, host: str, index: int, **differing: object) -> RankFacts:
    facts = RankFacts(
        rank=rank,
        local_rank=index,
        host=host,
        device=f"cuda:{index}",
        device_name="H100",
        visible_devices=2,
        total=80 * GIB,
        free=79 * GIB,
        versions={"torch": "2.13.0", "NCCL": "2.27"},
        model="0123",
        problem=None,
    )
    return replace(facts, **differing)


FOUR = [gpu(0, "a", 0), gpu(1, "a", 1), gpu(2, "b", 0), gpu(3, "b", 1)]


def test_equal_ranks_agree():
    assert disagreements(FOUR) == []


def test_what_differs_is_named_with_its_ranks():
    other = gpu(3, "b", 1, versions={"torch": "2.6.0"}, device_name="A100", visible_devices=1, model="4567")
    assert disagreements([*FOUR[:3], other]) == [
        "Ranks differ in NCCL: 2.27 on ranks 0 to 2; not installed on rank 3.",
        "Ranks differ in torch: 2.13.0 on ranks 0 to 2; 2.6.0 on rank 3.",
        "Ranks differ in device: H100 with 80 GiB on ranks 0 to 2; A100 with 80 GiB on rank 3.",
        "Ranks differ in visible devices: 2 on ranks 0 to 2; 1 on rank 3.",
        "Ranks differ in model configuration: 0123 on ranks 0 to 2; 4567 on rank 3.",
    ]


def test_two_ranks_on_one_device():
    assert disagreements([gpu(0, "a", 0), gpu(1, "a", 0)]) == ["Ranks 0, 1 share cuda:0 on a."]
    assert disagreements([gpu(0, "a", 0), gpu(1, "b", 0)]) == []


def test_the_rank_with_the_least_memory_counts_and_hosts_share_theirs():
    assert available([*FOUR[:3], gpu(3, "b", 1, free=10 * GIB)]) == 10 * GIB
    processor = {"device": "cpu:0", "device_name": "CPU"}
    ranks = [
        gpu(0, "a", 0, free=24 * GIB, **processor),
        gpu(1, "a", 0, free=23 * GIB, **processor),
        gpu(2, "b", 0, free=12 * GIB, **processor),
    ]
    assert available(ranks) == 23 * GIB // 2
    assert disagreements(ranks) == []
