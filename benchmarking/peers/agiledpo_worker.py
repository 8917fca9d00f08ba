"""AgileDPO: ``DPO.learn`` on the batches of a ``PreferenceGym``, the reference pass included."""

from typing import Any

import torch

from agiledpo.algorithms import DPO
from agiledpo.llm_envs import PreferenceGym
from benchmarking.pairs import to_dataset
from benchmarking.peers.task import Clock, Task, answer, start_adapter
from benchmarking.processes import read_task, report


def train(task: Task) -> dict[str, Any]:
    """Do the task."""
    torch.set_num_threads(task.threads)
    model, tokenizer = task.load_model()
    pairs = task.load_pairs()
    # The test split keeps the order of the file; the training split holds one pair, because there must be one.
    env = PreferenceGym(
        to_dataset(pairs[:1]),
        to_dataset(pairs),
        tokenizer,
        data_batch_size_per_gpu=task.batch_size,
        max_context_length=task.max_length,
    )
    agent = DPO(
        actor_network=model,
        pad_token_id=tokenizer.pad_token_id,
        lora_config=task.lora_config(),
        batch_size=task.batch_size,
        lr=task.lr,
        beta=task.beta,
        max_grad_norm=task.max_grad_norm,
        nll_alpha=0.0,
        gradient_checkpointing=False,
        use_separate_reference_adapter=False,
        **task.options,
    )
    with agent.select_adapter("actor") as policy:
        adapter = policy.active_adapter
        lora_dtype = start_adapter(dict(policy.named_parameters()), adapter)
    clock = Clock()
    losses = []
    for batch in env.test_batches():
        losses.append(agent.learn(batch)["loss"])
        clock.step_done()
    return answer(task, clock, losses, lora_dtype, system="agiledpo")


if __name__ == "__main__":
    report(train(Task(**read_task())))
