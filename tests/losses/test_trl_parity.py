"""Side by side with TRL: the same batch and the same two models through DPOTrainer's loss and through ours."""

import copy

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from agiledpo.losses import PREFERENCE_LOSSES, LabelSmoothing, ObjectiveTerms, PreferenceObjective, TokenLogProbs

WORDS = [f"w{i}" for i in range(28)]
ROWS = [
    {"prompt": "w0 w1 w2", "chosen": " w3 w4 w5 w6 w7", "rejected": " w8 w9"},
    {"prompt": "w10", "chosen": " w11 w12", "rejected": " w13 w14 w15 w16"},
    {"prompt": "w17 w18", "chosen": " w19", "rejected": " w20 w21 w22 w23 w24 w25"},
    {"prompt": "w3 w1 w4 w1", "chosen": " w5 w9 w2", "rejected": " w6 w5 w3"},
]


def tiny_llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        # Wide enough for log-ratios of the order of 1, so that wrong signs and factors show.
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).float().eval()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    args = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        # Only the trainer's constructor looks at it: it makes the fused head return what WPO weights need.
        use_weighting=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "1")  # TRL sends no telemetry from CI.
        return DPOTrainer(
            model=tiny_llama(seed=0),
            ref_model=tiny_llama(seed=1),
            args=args,
            train_dataset=Dataset.from_list(ROWS),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
            ),
        )


@pytest.fixture(scope="module")
def batch(trainer):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))])


def full_logits_logps(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> tuple[TokenLogProbs, TokenLogProbs]:
    """Completion log-probabilities of both sides from plain logits, moved to column 0."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    vocabulary_logps = logits.log_softmax(dim=-1)
    token_logps = vocabulary_logps.gather(2, batch["input_ids"][:, 1:].unsqueeze(2)).squeeze(2)
    log_collision = (2 * vocabulary_logps.detach()).logsumexp(dim=-1)
    on_completion = batch["completion_mask"][:, 1:].bool()
    # A stable sort of "is not completion" brings the completion to the front and keeps its order.
    order = (~on_completion).int().argsort(dim=1, stable=True)
    mask = on_completion.gather(1, order)
    logps = token_logps.gather(1, order).masked_fill(~mask, 0.0)
    collision = log_collision.gather(1, order).masked_fill(~mask, 0.0)
    pairs = mask.shape[0] // 2
    chosen, rejected = (
        TokenLogProbs(logps=logps[half], mask=mask[half], log_collision=collision[half])
        for half in (slice(0, pairs), slice(pairs, None))
    )
    return chosen, rejected


def trl_loss(trainer: DPOTrainer, objective: PreferenceObjective, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    trainer.loss_types = list(objective.loss_type)
    trainer.loss_weights = list(objective.loss_weights or [1.0] * len(objective.loss_type))
    trainer.beta = objective.beta
    trainer.label_smoothing = objective.label_smoothing
    trainer.f_divergence_type = objective.f_divergence_type
    trainer.f_alpha_divergence_coef = objective.f_alpha_divergence_coef
    trainer.ld_alpha = objective.ld_alpha
    trainer.use_weighting = objective.use_weighting
    trainer.args.discopop_tau = objective.discopop_tau
    return trainer.compute_loss(trainer.model, copy.copy(batch))


def our_terms(trainer: DPOTrainer, objective: PreferenceObjective, batch: dict[str, torch.Tensor]) -> ObjectiveTerms:
    policy = full_logits_logps(trainer.model, batch)
    with torch.no_grad():
        reference = full_logits_logps(trainer.ref_model, batch)
    return objective(*policy, *reference)


def gradients(model: LlamaForCausalLM, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def smoothing(name: str) -> float:
    return 0.0 if PREFERENCE_LOSSES[name].label_smoothing is LabelSmoothing.UNUSED else 0.2


F_DIVERGENCES = [
    {"f_divergence_type": "forward_kl"},
    {"f_divergence_type": "js_divergence"},
    {"f_divergence_type": "alpha_divergence"},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.2},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
]

CASES = [
    *({"loss_type": (name,), "label_smoothing": smoothing(name)} for name in PREFERENCE_LOSSES),
    *({"loss_type": (name,), "label_smoothing": smoothing(name), "ld_alpha": 0.3} for name in PREFERENCE_LOSSES),
    *(
        {"loss_type": (name,), "label_smoothing": smoothing(name), "use_weighting": True}
        for name, loss in PREFERENCE_LOSSES.items()
        if loss.accepts_weighting and name != "hinge"
    ),
    *(
        {"loss_type": (name,), "label_smoothing": smoothing(name), **divergence}
        for name, loss in PREFERENCE_LOSSES.items()
        if loss.accepts_f_divergence
        for divergence in F_DIVERGENCES
    ),
    {"beta": 0.5},
    {"ld_alpha": 0.0},
    {"ld_alpha": 1.0},
    {"loss_type": ("robust",)},
    {"loss_type": ("aot",)},
    {"loss_type": ("discopop",), "discopop_tau": 0.5, "beta": 0.5},
    {"loss_type": ("sigmoid", "sft"), "loss_weights": (0.8, 0.3)},
    {"loss_type": ("sigmoid", "bco_pair", "sft"), "loss_weights": (0.8, 0.2, 1.0)},
    {"loss_type": ("robust", "exo_pair"), "label_smoothing": 1e-3, "ld_alpha": 0.5, "use_weighting": True},
    {"loss_type": ("sigmoid", "ipo"), "f_divergence_type": "js_divergence", "use_weighting": True, "ld_alpha": 0.7},
]


@pytest.mark.parametrize("fields", CASES, ids=lambda fields: ",".join(str(value) for value in fields.values()))
def test_same_loss_and_gradient(fields, trainer, batch):
    objective = PreferenceObjective(**fields)
    theirs = trl_loss(trainer, objective, batch)
    ours = our_terms(trainer, objective, batch).loss.mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for our_gradient, their_gradient in zip(
        gradients(trainer.model, ours), gradients(trainer.model, theirs), strict=True
    ):
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss_type", [("hinge",), ("hinge", "exo_pair")])
def test_same_weighted_hinge(loss_type, trainer, batch):
    """Values only: TRL multiplies the output of relu in place, and its backward pass then fails."""
    label_smoothing = 0.1 if "exo_pair" in loss_type else 0.0
    objective = PreferenceObjective(loss_type=loss_type, label_smoothing=label_smoothing, use_weighting=True)
    with torch.no_grad():
        theirs = trl_loss(trainer, objective, batch)
        ours = our_terms(trainer, objective, batch).loss.mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_same_rewards_and_logps(trainer, batch):
    """TRL's logged means over the batch, which are plain sums over tokens when LD-DPO is off."""
    objective = PreferenceObjective(beta=0.3)
    trainer._metrics["eval"].clear()
    trl_loss(trainer, objective, batch)
    terms = our_terms(trainer, objective, batch)
    logged = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    assert terms.chosen_rewards.mean().item() == pytest.approx(logged["rewards/chosen"], rel=1e-5, abs=1e-5)
    assert terms.rejected_rewards.mean().item() == pytest.approx(logged["rewards/rejected"], rel=1e-5, abs=1e-5)
    assert terms.chosen_logps.mean().item() == pytest.approx(logged["logps/chosen"], rel=1e-5, abs=1e-5)
    assert terms.rejected_logps.mean().item() == pytest.approx(logged["logps/rejected"], rel=1e-5, abs=1e-5)


def test_the_registry_has_every_loss_of_trl():
    documented = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    assert {name for name in PREFERENCE_LOSSES if f"`'{name}'`" in documented} == set(PREFERENCE_LOSSES)
    assert documented.split("Possible values are: ")[1].split(". If")[0].count(",") + 1 == len(PREFERENCE_LOSSES)


def test_the_batch_tests_something(trainer, batch):
    """Policy and reference differ by log-ratios of the order of 1, of both signs, over unequal lengths."""
    terms = our_terms(trainer, PreferenceObjective(beta=1.0), batch)
    rewards = torch.cat([terms.chosen_rewards, terms.rejected_rewards])
    assert rewards.min() < -1
    assert rewards.max() > 1
    chosen, rejected = full_logits_logps(trainer.model, batch)
    assert chosen.lengths.tolist() == [6, 3, 2, 4]
    assert rejected.lengths.tolist() == [3, 5, 7, 4]
