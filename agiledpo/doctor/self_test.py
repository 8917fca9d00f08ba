"""One step of DPO on a tiny model, whose loss is known."""

import math
import time
from collections.abc import Iterator

from agiledpo.doctor.finding import Finding

_TOLERANCE = 1e-5
_VOCABULARY = 64
_PAIRS, _PROMPT, _COMPLETION = 4, 3, 5


def check_training() -> Iterator[Finding]:
    """Before the first step policy and reference are equal, so the loss is ln 2 whatever the model; then it falls.

    -log sigmoid(beta * 0) = ln 2; Rafailov et al. 2023, eq. 7.
    """
    import torch
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    from agiledpo.algorithms import DPO

    started = time.perf_counter()
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    agent = DPO(
        actor_network=model,
        lora_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        batch_size=_PAIRS,
        lr=1e-2,
        beta=0.5,
        nll_alpha=0.0,
        max_grad_norm=10.0,
        gradient_checkpointing=False,
    )
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, _VOCABULARY, (_PAIRS, _PROMPT), generator=generator)
    sides = {
        side: torch.cat([prompts, torch.randint(1, _VOCABULARY, (_PAIRS, _COMPLETION), generator=generator)], dim=1)
        for side in ("chosen", "rejected")
    }
    experiences = {"prompt_lengths": torch.full((_PAIRS,), _PROMPT)}
    for side, ids in sides.items():
        experiences |= {f"{side}_input_ids": ids, f"{side}_attention_mask": torch.ones_like(ids)}
    first = agent.learn(experiences)["loss"]
    second = agent.learn(experiences, training=False)["loss"]
    agent.clean_up()
    said = f"loss {first:.6f} before a step (ln 2 is {math.log(2):.6f}), {second:.6f} after it"
    seconds = f"; {time.perf_counter() - started:.1f} s"
    if abs(first - math.log(2)) > _TOLERANCE or not second < first:
        remedy = "torch, transformers or peft compute something else here: install the versions in constraints.txt."
        yield Finding("training", "one step of DPO", "error", said + seconds, remedy)
    else:
        yield Finding("training", "one step of DPO", "ok", said + seconds)
