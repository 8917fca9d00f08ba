"""TRL's ``DPOTrainer`` on the same token ids, through a tokenizer that spells each id as a word."""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from agiledpo.scoring import PreferenceBatch
from benchmarking.gpu.synthetic import END, PAD
from benchmarking.gpu.systems import Training
from benchmarking.gpu.timing import Run, Stopwatch


def train(
    model: PreTrainedModel, batches: Sequence[PreferenceBatch], training: Training, lora_config: LoraConfig
) -> Run:
    """Train on the batches in their order and time ``train()``'s steps after the warm-up."""
    clock = _Clock(Stopwatch(model.device, training.warm_up))
    with tempfile.TemporaryDirectory() as directory:
        trainer = make_trainer(model, batches, training, lora_config, directory)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Run(clock.seconds, losses)


def make_trainer(
    model: PreTrainedModel,
    batches: Sequence[PreferenceBatch],
    training: Training,
    lora_config: LoraConfig,
    directory: str,
) -> DPOTrainer:
    """The trainer; no sequence is cut, and the batches stay as they are."""
    arguments = DPOConfig(
        output_dir=directory,
        per_device_train_batch_size=training.batch_size,
        max_steps=len(batches),
        train_sampling_strategy="sequential",
        max_length=None,
        beta=training.beta,
        learning_rate=training.lr,
        lr_scheduler_type="constant",
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.checkpointing,
        bf16=model.dtype == torch.bfloat16,
        use_cpu=model.device.type == "cpu",
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=training.seed,
    )
    return DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(batches),
        processing_class=_tokenizer(model.config.vocab_size),
        peft_config=lora_config,
    )


class _Clock(TrainerCallback):
    """Runs a stopwatch along the trainer's steps."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch
        self.seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.watch.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.watch.step()
        self.seconds = self.watch.seconds()


def _dataset(batches: Sequence[PreferenceBatch]) -> Dataset:
    whole = PreferenceBatch.concat(batches)
    columns = {"prompt": whole.prompts, "chosen": whole.chosen, "rejected": whole.rejected}
    return Dataset.from_dict({name: [_spell(ids) for ids in column] for name, column in columns.items()})


def _spell(ids: torch.Tensor) -> str:
    return "".join(f" {_word(token)}" for token in ids.tolist())


def _word(token: int) -> str:
    # Special tokens are found inside words too, so they must not look like the others.
    return {PAD: "<pad>", END: "<end>"}.get(token, str(token))


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Token i is the word "i"."""
    words = {_word(token): token for token in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=_word(PAD)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_word(PAD), eos_token=_word(END))
