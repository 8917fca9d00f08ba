"""The peer that is always there: DPO through plain Transformers and PEFT, as a first implementation would have it."""

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from agiledpo.scoring import PreferenceBatch
from benchmarking.gpu.synthetic import PAD
from benchmarking.gpu.systems import Training


class PlainDPO:
    """One padded row per completion, logits at all positions, the reference computed in each step.

    Args:
        model: The base model, which gets the adapter.
        config: Its configuration.
        training: Batch size, checkpointing and hyperparameters.
    """

    def __init__(self, model: PreTrainedModel, config: LoraConfig, training: Training) -> None:
        self.training = training
        with torch.random.fork_rng():
            torch.manual_seed(training.seed)
            self.model = get_peft_model(model, config)
        if training.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=training.lr, weight_decay=0.0, fused=True)

    def step(self, batch: PreferenceBatch) -> float:
        """Make one optimizer step and return the mean loss before it."""
        inputs = _rows(batch, self.model.device)
        self.model.eval()
        with torch.no_grad(), self.model.disable_adapter():
            reference = self._logps(*inputs)
        self.model.train()
        chosen, rejected = (self._logps(*inputs) - reference).chunk(2)
        loss = -F.logsigmoid(self.training.beta * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _logps(self, input_ids: Tensor, attention_mask: Tensor, completion: Tensor) -> Tensor:
        """Summed log-probabilities of the completions, (2B,) float32."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
        targets = input_ids[:, 1:, None]
        # Row by row: a float32 copy of all logits would not fit beside them.
        tokens = torch.stack(
            [
                row.float().gather(1, target)[:, 0] - torch.logsumexp(row.float(), dim=-1)
                for row, target in zip(logits, targets, strict=True)
            ]
        )
        return (tokens * completion[:, 1:]).sum(1)


def _rows(batch: PreferenceBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention mask and completion mask of all chosen, then all rejected rows, each (2B, T)."""
    rows, masks = [], []
    for side in (batch.chosen, batch.rejected):
        for prompt, completion in zip(batch.prompts, side, strict=True):
            rows.append(torch.cat([prompt, completion]))
            masks.append(torch.cat([torch.zeros_like(prompt), torch.ones_like(completion)]))
    pad = torch.nn.utils.rnn.pad_sequence
    attention = pad([torch.ones_like(row) for row in rows], batch_first=True)
    return (
        pad(rows, batch_first=True, padding_value=PAD).to(device),
        attention.to(device),
        pad(masks, batch_first=True).to(device),
    )
