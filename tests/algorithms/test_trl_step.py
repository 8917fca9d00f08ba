"""One training step of ours and of TRL's DPOTrainer, from the same weights on the same text."""

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from trl import DPOConfig, DPOTrainer

from agiledpo.algorithms import DPO
from agiledpo.llm_envs import PreferenceGym

LR = 1e-3


@pytest.fixture
def started(tiny_model, lora, tiny_tokenizer, make_pairs, randomise, trl_one_step, tmp_path, monkeypatch):
    """Our agent and TRL's trainer before the step: same base, same (non-zero) adapter, same four pairs."""
    monkeypatch.setenv("CI", "1")  # TRL sends telemetry otherwise
    pairs: Dataset = make_pairs(4)
    agent = DPO(
        actor_network=tiny_model(),
        lora_config=lora,
        batch_size=4,
        lr=LR,
        beta=0.2,
        nll_alpha=0.0,
        use_separate_reference_adapter=False,
        gradient_checkpointing=False,
    )
    randomise(agent)
    model = get_peft_model(tiny_model(), lora)
    trainable = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    ours = agent.base.parameters(agent.adapters.name("actor"))
    assert trainable.keys() == ours.keys()
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(tmp_path),
            beta=0.2,
            learning_rate=LR,
            per_device_train_batch_size=4,
            **trl_one_step,
        ),
        train_dataset=pairs,
        processing_class=tiny_tokenizer,
    )
    # After construction: TRL keeps a copy of a trained adapter as its reference, ours is the bare base.
    theirs = {n.replace(".default", ""): p for n, p in trainer.model.named_parameters() if p.requires_grad}
    for name, parameter in theirs.items():
        parameter.data.copy_(ours[name].data)
    env = PreferenceGym(pairs, pairs, tiny_tokenizer, data_batch_size_per_gpu=4)
    return agent, env, trainer, ours, theirs


def test_loss_and_updated_weights_agree(started):
    agent, env, trainer, ours, theirs = started
    before = {name: p.detach().clone() for name, p in ours.items()}
    metrics = agent.learn(env.step())
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)

    assert metrics["loss"] == pytest.approx(log["loss"], rel=1e-5)
    assert abs(metrics["loss"] - 0.693147) > 1e-3
    assert metrics["grad_norm"] == pytest.approx(log["grad_norm"], rel=1e-4)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert metrics[name] == pytest.approx(log[name], rel=1e-4)
    moved = torch.cat([(ours[n] - before[n]).flatten() for n in ours])
    assert moved.abs().median() > 0.5 * LR
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
