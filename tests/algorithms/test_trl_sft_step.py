"""One training step of ours and of TRL's SFTTrainer, from the same weights on the same text."""

import pytest
import torch
from peft import get_peft_model
from trl import SFTConfig, SFTTrainer

from agiledpo.algorithms import SFT
from agiledpo.llm_envs import SFTGym

LR = 1e-3


@pytest.fixture
def started(tiny_model, lora, tiny_tokenizer, make_pairs, randomise, trl_one_step, tmp_path, monkeypatch):
    """Our agent and TRL's trainer before the step: same base, same (non-zero) adapter, same five rows."""
    monkeypatch.setenv("CI", "1")  # TRL sends telemetry otherwise
    rows = make_pairs(5).remove_columns("rejected").rename_column("chosen", "completion")
    agent = SFT(actor_network=tiny_model(), lora_config=lora, batch_size=5, lr=LR, gradient_checkpointing=False)
    # Weights at which some tokens are predicted correctly.
    teacher = SFT(actor_network=agent.base.model, lora_config=lora, batch_size=5, lr=1e-2, max_grad_norm=10.0)
    randomise(teacher)
    env = SFTGym(rows, rows, tiny_tokenizer, data_batch_size_per_gpu=5)
    for _ in range(10):
        teacher.learn(env.step())
    agent.adapters.copy_from(teacher.adapters)
    model = get_peft_model(tiny_model(), lora)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path),
            completion_only_loss=True,
            learning_rate=LR,
            per_device_train_batch_size=5,
            **trl_one_step,
        ),
        train_dataset=rows,
        processing_class=tiny_tokenizer,
    )
    ours = agent.base.parameters(agent.adapters.name("actor"))
    theirs = {n.replace(".default", ""): p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        parameter.data.copy_(ours[name].data)
    return agent, env, trainer, ours, theirs


def test_loss_accuracy_and_updated_weights_agree(started):
    agent, env, trainer, ours, theirs = started
    before = {name: p.detach().clone() for name, p in ours.items()}
    metrics = agent.learn(env.step())
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)

    assert metrics["loss"] == pytest.approx(log["loss"], rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(log["grad_norm"], rel=1e-4)
    assert 0.1 < metrics["mean_token_accuracy"] < 0.9
    assert metrics["mean_token_accuracy"] == pytest.approx(log["mean_token_accuracy"], abs=1e-6)
    moved = torch.cat([(ours[n] - before[n]).flatten() for n in ours])
    assert moved.abs().median() > 0.5 * LR
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
