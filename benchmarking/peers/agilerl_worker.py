"""AgileRL 2.8.4: ``DPO.learn`` on the batches of its ``PreferenceGym``, which includes the reference pass.

Its losses differ a little from the second step on: it leaves the first token of each completion out of the loss, and
its AdamW has torch's default weight decay, which it has no parameter for.
"""

# AgileRL defines its LLM classes only if all packages of its `llm` extra are installed, vllm and deepspeed among them,
# which DPO does not use and which need a GPU. Its Liger patches need one too. Both are decided by these two flags,
# which have to be set before any of its modules is imported.
import agilerl

agilerl.HAS_LLM_DEPENDENCIES = True
agilerl.HAS_LIGER_KERNEL = False

from typing import Any  # noqa: E402

import torch  # noqa: E402
from agilerl.algorithms.dpo import DPO  # noqa: E402
from agilerl.llm_envs import PreferenceGym  # noqa: E402

from benchmarking.pairs import to_dataset  # noqa: E402
from benchmarking.peers.task import Clock, Task, answer, start_adapter  # noqa: E402
from benchmarking.processes import read_task, report  # noqa: E402


def train(task: Task) -> dict[str, Any]:
    """Do the task."""
    torch.set_num_threads(task.threads)
    model, tokenizer = task.load_model()
    dataset = to_dataset(task.load_pairs())
    # With a max_context_length AgileRL pads every row to it. Without one it pads to the longest row of the batch,
    # which is faster, and no row here is too long.
    env = PreferenceGym(dataset, dataset, tokenizer, data_batch_size_per_gpu=task.batch_size, max_context_length=None)
    agent = DPO(
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        actor_network=model,
        lora_config=task.lora_config(),
        batch_size=task.batch_size,
        micro_batch_size_per_gpu=task.batch_size,
        lr=task.lr,
        beta=task.beta,
        max_grad_norm=task.max_grad_norm,
        nll_alpha=0.0,
        device="cpu",
        # Cheaper than the default: the reference is the base with its adapter switched off, as in the other systems.
        use_separate_reference_adapter=False,
        **task.options,
    )
    lora_dtype = start_adapter(dict(agent.actor.named_parameters()), "actor")
    clock = Clock()
    losses = []
    for batch in env.test_dataloader:  # in the order of the file
        # What AgileRL returns is the mean over the batch divided by its number of pairs once more.
        losses.append(agent.learn(batch)["loss"] * len(batch["prompt"]))
        clock.step_done()
    return answer(task, clock, losses, lora_dtype, system="agilerl")


if __name__ == "__main__":
    report(train(Task(**read_task())))
