"""TRL: ``DPOTrainer.train``.

With ``precompute_ref_log_probs`` the trainer computes the reference in its constructor. Its seconds on the counted
batches are added to those of the steps; what it spends on hashing and writing its cache is not counted.
"""

import tempfile
import time
from typing import Any

import torch
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarking.pairs import to_dataset
from benchmarking.peers.task import Clock, Task, answer, start_adapter
from benchmarking.processes import read_task, report


class StepClock(TrainerCallback):
    """Tells a clock the end of each step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """A step is done, its optimizer step included."""
        self.clock.step_done()


class TimedTrainer(DPOTrainer):
    """Notes the seconds of each batch of the precomputed reference."""

    reference_seconds: list[float]

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """Compute and time one batch."""
        started = time.perf_counter()
        computed = super().compute_ref_log_probs(model, inputs)
        self.reference_seconds.append(time.perf_counter() - started)
        return computed


def train(task: Task) -> dict[str, Any]:
    """Do the task."""
    torch.set_num_threads(task.threads)
    model, tokenizer = task.load_model()
    pairs = task.load_pairs()
    batches = -(-len(pairs) // task.batch_size)
    clock = Clock()
    TimedTrainer.reference_seconds = []  # before the constructor, which computes the reference
    with tempfile.TemporaryDirectory() as directory:
        settings = {
            "output_dir": directory,
            "beta": task.beta,
            "learning_rate": task.lr,
            "max_grad_norm": task.max_grad_norm,
            "weight_decay": 0.0,
            "per_device_train_batch_size": task.batch_size,
            "max_length": task.max_length,
            "num_train_epochs": 1,
            "train_sampling_strategy": "sequential",
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "logging_steps": 1,
            "gradient_checkpointing": False,
            # "bf16" here is autocast; the base is already loaded in the dtype to be measured.
            "bf16": False,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        trainer = TimedTrainer(
            model=model,
            args=DPOConfig(**{**settings, **task.options}),
            train_dataset=to_dataset(pairs),
            processing_class=tokenizer,
            peft_config=task.lora_config(),
            callbacks=[StepClock(clock)],
        )
        assert trainer.model is not None
        lora_dtype = start_adapter(dict(trainer.model.named_parameters()), "default")
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    reference = trainer.reference_seconds
    if task.options.get("precompute_ref_log_probs") and len(reference) != batches:
        raise RuntimeError(f"TRL computed the reference of {len(reference)} batches, not of {batches}.")
    return answer(task, clock, losses, lora_dtype, system="trl", extra_seconds=sum(reference[1:]))


if __name__ == "__main__":
    report(train(Task(**read_task())))
