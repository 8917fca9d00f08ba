"""What of a DeepSpeed configuration reaches an adapter's engine, and what is refused."""

from typing import Any

import pytest
import torch

from agiledpo.distributed.zero_config import (
    check_config,
    deepspeed_config,
    engine_config,
    warn_of_precision,
    zero_stage,
)


def test_an_engine_is_told_how_to_shard_and_nothing_else() -> None:
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 7,
        "gradient_accumulation_steps": 5,
        "gradient_clipping": 3.0,
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "reduce_bucket_size": "auto",
            "allgather_bucket_size": 101,
            "round_robin_gradients": True,
            "offload_optimizer": {"device": "cpu", "pin_memory": "auto", "ratio": 0.3},
            "offload_param": {"device": "cpu"},
            "stage3_param_persistence_threshold": 10,
        },
        "comms_logger": {"enabled": True},
    }
    assert engine_config(config, elements=1000) == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 1,
            "overlap_comm": True,
            "reduce_bucket_size": 1000,
            "allgather_bucket_size": 102,
            "offload_optimizer": {"device": "cpu", "pin_memory": False},
        },
        "comms_logger": {"enabled": True},
    }


@pytest.mark.parametrize(("asked", "elements", "bucket"), [(10, 1000, 10), (None, 37, 37), (5000, 36, 36)])
def test_buckets_are_no_larger_than_the_adapter(asked: int | None, elements: int, bucket: int) -> None:
    zero = {"stage": 1, "offload_optimizer": {"device": "none", "nvme_path": None}}
    sizes = {} if asked is None else {"reduce_bucket_size": asked, "allgather_bucket_size": asked}
    made = engine_config({"zero_optimization": {**zero, **sizes}}, elements)["zero_optimization"]
    assert made == {
        "stage": 1,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket + bucket % 2,
    }


def test_stages() -> None:
    assert deepspeed_config(None) is None
    assert zero_stage(None) == 0
    assert zero_stage({}) == 0
    assert zero_stage({"zero_optimization": {"stage": 2}}) == 2
    with pytest.raises(ValueError, match="stage 0"):
        engine_config({"zero_optimization": {"stage": 0}}, 10)
    for stage in range(4):
        check_config({"optimizer": None, "zero_optimization": {"stage": stage}, "tensor_parallel": {"autotp_size": 1}})


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"optimizer": {"type": "AdamW"}}, "optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler"),
        ({"pipeline": {"stages": 2}}, "pipeline"),
        ({"tensor_parallel": {"autotp_size": 2}}, r"tensor_parallel\.autotp_size"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size"),
        ({"expert_parallel": {"enabled": True}}, "expert_parallel"),
        ({"zero_optimization": {"stage": 4}}, r"zero_optimization\.stage"),
        ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}, "zenflow"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            r"offload_optimizer\.device of the .* say 'cpu' or 'none'",
        ),
    ],
)
def test_what_agents_cannot_train_under_is_named(config: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        check_config(config)


def test_a_precision_that_the_base_does_not_have_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"bf16\.enabled=true, which has no effect: the base model is in float32"):
        warn_of_precision({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, torch.float32)
    with pytest.warns(UserWarning, match="dtype=torch.float16 if"):
        warn_of_precision({"fp16": {"enabled": True}}, torch.bfloat16)


@pytest.mark.filterwarnings("error")
def test_a_precision_that_it_has_is_not() -> None:
    warn_of_precision({"bf16": {"enabled": True}}, torch.bfloat16)
    warn_of_precision({"bf16": {"enabled": "auto"}}, torch.float32)
    warn_of_precision({}, torch.float32)
