"""SFT, DPO and GRPO one after the other, each from what the last one saved."""

import torch

from agiledpo.algorithms import DPO, GRPO, SFT
from agiledpo.llm_envs import SFTGym
from agiledpo.training import (
    finetune_llm_online_preference,
    finetune_llm_preference,
    finetune_llm_reasoning,
    finetune_llm_sft,
)


@torch.no_grad()
def logits(agent, role):
    with agent.select_adapter(role) as model:
        return model(torch.arange(4, 24).view(2, 10)).logits


def test_each_stage_goes_on_where_the_last_one_ended(
    tiny_model, lora, make_pairs, make_env, make_reasoning_env, tiny_tokenizer, tmp_path
):
    model = tiny_model()
    alike = {"actor_network": model, "lora_config": lora, "lr": 1e-2, "batch_size": 4, "max_grad_norm": 10.0}
    demonstrations = SFTGym(
        make_pairs(8), make_pairs(4, seed=1), tiny_tokenizer, data_batch_size_per_gpu=4, response_column="chosen"
    )
    sampling = {"group_size": 4, "max_completion_length": 3}
    start = logits(SFT(**alike), "reference")

    ends = []

    def stage(agent, train):
        """Load what the last stage saved, train, save."""
        if ends:
            agent.load_checkpoint(tmp_path / str(len(ends) - 1))  # another algorithm's actor becomes both by default
        before = ends[-1] if ends else start
        assert torch.equal(logits(agent, "actor"), before)
        assert torch.equal(logits(agent, "reference"), before)
        train([agent])
        after = logits(agent, "actor")
        assert (after - before).abs().max() > 1e-2
        assert torch.equal(logits(agent, "reference"), before)
        agent.save_checkpoint(tmp_path / str(len(ends)))
        ends.append(after)

    env = make_reasoning_env()
    stage(SFT(**alike), lambda pop: finetune_llm_sft(pop, demonstrations, verbose=False))
    stage(DPO(**alike), lambda pop: finetune_llm_preference(pop, make_env(train=8), verbose=False))
    stage(GRPO(**alike, **sampling), lambda pop: finetune_llm_reasoning(pop, env, verbose=False))
    stage(
        DPO(**alike, reference_cache=None),
        lambda pop: finetune_llm_online_preference(pop, env, verbose=False, **sampling),
    )
    # Of its own algorithm a checkpoint is taken up as it was.
    again = GRPO.load(tmp_path / "2", actor_network=model)
    taken_up = GRPO(**alike, **sampling)
    taken_up.load_checkpoint(tmp_path / "2")
    assert torch.equal(logits(taken_up, "actor"), logits(again, "actor"))
    assert torch.equal(logits(taken_up, "reference"), logits(again, "reference"))
    assert not torch.equal(logits(again, "actor"), logits(again, "reference"))
    assert torch.equal(logits(again, "reference"), ends[1])
    assert torch.equal(logits(again, "actor"), ends[2])
