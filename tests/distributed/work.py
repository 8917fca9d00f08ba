"""What the ranks of a test do: real agents on tiny models, with everything that can differ between processes given."""

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from peft import LoraConfig
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from agiledpo.algorithms import DPO, SFT
from agiledpo.algorithms.core.stepper import LocalStepper
from agiledpo.checkpoint.identity import identity_of
from agiledpo.distributed.sharded import Shards
from agiledpo.distributed.team import Team
from agiledpo.scoring import CompletionBatch, PreferenceBatch

VOCABULARY = 97


def accelerator() -> Accelerator:
    """Accelerate's handle on this process, as its environment says."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed.ops

        # Collectives in shared memory need a compiler, and wait in a loop that keeps other tests from working.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        stage = int(os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"])
        dist.init_process_group("gloo")
        plugin = DeepSpeedPlugin(zero_stage=stage, zero3_init_flag="ZERO3_INIT" in os.environ)
        if "SHARD_FROM" in os.environ:
            plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = int(
                os.environ["SHARD_FROM"]
            )
        return Accelerator(deepspeed_plugin=plugin)
    return Accelerator(cpu=True)


def model(seed: int = 0) -> LlamaForCausalLM:
    """A tiny Llama, the same in every process."""
    settings = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LlamaForCausalLM(settings)
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(6)
    return made


def pairs(count: int, seed: int = 0) -> PreferenceBatch:
    """Random pairs of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> Tensor:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator)

    return PreferenceBatch(
        prompts=[ids(2, 9) for _ in range(count)],
        chosen=[ids(1, 8) for _ in range(count)],
        rejected=[ids(1, 8) for _ in range(count)],
        labels=[f"pair {number}" for number in range(count)],
    )


def completions(count: int, seed: int = 0) -> CompletionBatch:
    """Random prompts with one completion each."""
    batch = pairs(count, seed)
    return CompletionBatch(batch.prompts, batch.chosen, batch.labels)


def lora(**settings: Any) -> LoraConfig:
    """A small LoRA configuration without dropout, whose masks would differ between processes."""
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear", **settings})


def dpo(handle: Accelerator | None = None, base: Any = None, **settings: Any) -> DPO:
    """An agent on a tiny model."""
    made: dict[str, Any] = {"lr": 1e-2, "batch_size": 5, "micro_batch_size_per_gpu": 2, "max_grad_norm": 0.5}
    return DPO(
        actor_network=model() if base is None else base,
        lora_config=lora(),
        accelerator=handle,
        **{**made, **settings},
    )


def weights(agent: Any) -> dict[str, Tensor]:
    """The actor's parameters, copied."""
    name = agent.adapters.owned["actor"]
    return {key: parameter.detach().clone() for key, parameter in agent.base.parameters(name).items()}


def curve(steps: int = 20, *, parallel: bool = True, **settings: Any) -> Mapping[str, Any]:
    """Learn from the same pairs everywhere; the metrics of each call, the actor, and a measurement at the end."""
    agent = dpo(accelerator() if parallel else None, **settings)
    metrics = [agent.learn(pairs(5 if step % 4 else 8, seed=step)) for step in range(steps)]
    for found in metrics:
        del found["tokens_per_second"]
    return {
        "metrics": metrics,
        "weights": weights(agent),
        "measured": agent.learn(pairs(7, seed=99), training=False),
        "optimizer": agent.stepper.state_dict()["state"],
        "ranks": agent.team.size,
    }


def sft_curve(steps: int = 6, *, parallel: bool = True) -> Mapping[str, Any]:
    """The same for SFT."""
    agent = SFT(
        actor_network=model(),
        lora_config=lora(),
        accelerator=accelerator() if parallel else None,
        lr=1e-2,
        batch_size=5,
        micro_batch_size_per_gpu=2,
    )
    metrics = [agent.learn(completions(5 if step % 2 else 6, seed=step)) for step in range(steps)]
    for found in metrics:
        del found["tokens_per_second"]
    return {
        "metrics": metrics,
        "weights": weights(agent),
        "measured": agent.learn(completions(7, seed=99), training=False),
    }


def sharded_population() -> Mapping[str, Any]:
    """Two agents and a clone on one sharded base; what is whole, and when."""
    handle = accelerator()
    base = model()
    whole_weights = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    first = dpo(handle, base)
    second = dpo(handle, base, index=1, lr=3e-3)
    for step in range(3):
        first.learn(pairs(5, seed=step))
        second.learn(pairs(4, seed=step))
    # What is not gathered has no elements of its own beside this process's part.
    parameters = list(base.parameters())
    held = sum(p.numel() + Shards.part(p).numel() for p in parameters if Shards.part(p) is not p)
    twin = first.clone(index=2)
    seen = [agent.learn(pairs(3, seed=9))["loss"] for agent in (first, twin)]
    return {
        "weights": [weights(agent) for agent in (first, second, twin)],
        "losses": seen,
        "state": {key: tensor for key, tensor in first.base.base_state().items()},
        "whole_weights": whole_weights,
        "shapes": first.base.base_shapes,
        "identity": vars(identity_of(first.base)),
        "content": first.adapters.content("reference", portable=True),
        "held_elements": held,
    }


def whole_population() -> Mapping[str, Any]:
    """The same on one process's whole base."""
    base = model()
    first, second = dpo(None, base), dpo(None, base, index=1, lr=3e-3)
    for step in range(3):
        first.learn(pairs(5, seed=step))
        second.learn(pairs(4, seed=step))
    twin = first.clone(index=2)
    return {
        "losses": [agent.learn(pairs(3, seed=9))["loss"] for agent in (first, twin)],
        "weights": [weights(agent) for agent in (first, second, twin)],
        "identity": vars(identity_of(first.base)),
        "content": first.adapters.content("reference", portable=True),
    }


def write_sharded_base() -> Tensor:
    """The logits of a sharded model after other weights were written into it."""
    agent = dpo(accelerator(), model(seed=0))
    agent.base.load_base_state(model(seed=5).state_dict())
    with torch.no_grad():
        return agent.base.model(input_ids=torch.arange(3, 9)[None]).logits


def refused_when_sharded() -> list[str]:
    """What an agent says to settings that a sharded base does not go with."""
    handle, said = accelerator(), []
    taken = model(seed=1)
    holder = dpo(None, taken)
    for settings in (
        {"lora_config": lora(modules_to_save=["lm_head"])},
        {"lora_config": lora(trainable_token_indices=[3])},
        {"activation_offload": True},
        {"actor_network": taken},
    ):
        try:
            DPO(**{"actor_network": model(), "accelerator": handle, "lora_config": lora(), **settings})
        except ValueError as error:
            said.append(str(error))
    holder.clean_up()
    return said


def loaded_in_parts(directory: str) -> Mapping[str, Any]:
    """Learn on a model that ``from_pretrained`` loaded when DeepSpeed's stage 3 was known already."""
    handle = accelerator()
    agent = DPO(
        model_name=directory,
        lora_config=lora(),
        accelerator=handle,
        lr=1e-2,
        batch_size=5,
        micro_batch_size_per_gpu=2,
        max_grad_norm=0.5,
    )
    gathered = []
    head = agent.base.model.get_output_embeddings().weight
    gather = head.all_gather

    def counted(*arguments: Any, **options: Any) -> Any:
        gathered.append(head in options.get("param_list", [head]))
        return gather(*arguments, **options)

    head.all_gather = counted
    # The second pass over the same pairs needs no reference.
    losses = [agent.learn(pairs(5))["loss"] for _ in range(2)]
    return {
        "losses": losses,
        "weights": weights(agent),
        "gathered": len(gathered),
        "whole": head.numel(),
        "ranks": agent.team.size,
    }


def unreached() -> Mapping[str, Any]:
    """What becomes of a parameter that only one process reaches, and of one that none does."""
    team = Team.of(accelerator())
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    stepper = LocalStepper(torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5), parameters, team)
    stepper.begin()
    loss = parameters[0].sum() + (parameters[1].sum() if team.leads else 0)
    stepper.backward(loss, last=True)
    norm = stepper.finish(max_norm=100.0)
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
    stepper.step()
    return {"norm": norm, "gradients": gradients, "untouched": parameters[2].detach()}


def coupled_curve(parallel: bool = True) -> Mapping[str, Any]:
    """Learn with a loss that compares all pairs of a step, of which there are fewer than processes in the last."""
    agent = dpo(accelerator() if parallel else None, loss_type="aot", micro_batch_size_per_gpu=None)
    metrics = [agent.learn(pairs(count, seed=count)) for count in (5, 6, 1)]
    for found in metrics:
        del found["tokens_per_second"]
    return {
        "metrics": metrics,
        "weights": weights(agent),
        "measured": agent.learn(pairs(7, seed=99), training=False),
    }
