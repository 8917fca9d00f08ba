"""The same rollouts through TRL's GRPOTrainer, from rewards to gradients, and through GRPO.learn."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from trl import GRPOConfig, GRPOTrainer

from agiledpo.algorithms import GRPO
from agiledpo.losses import group_advantages

LENGTHS = [(4, [3, 1, 5, 2]), (1, [4, 4, 2, 6]), (7, [1, 6, 3, 3])]
LONGEST = 9
BETA = 0.3


class Recording(GRPO):
    """Keeps loss and gradient of every optimizer step, and the weights before it."""

    def record(self):
        self.seen = []
        parameters = self.base.parameters(self.adapters.name("actor"))

        def keep(optimizer, arguments, keywords):
            self.seen.append({"weights": _copy(parameters), "gradient": _copy(parameters, gradients=True)})

        self.optimizer.register_step_pre_hook(keep)
        return self

    def _step(self, scorer, step):
        terms, grad_norm = super()._step(scorer, step)
        self.seen[-1]["loss"] = sum(float(part.loss.detach().sum()) for part in terms) / step.completions
        return terms, grad_norm


def _copy(parameters, gradients=False):
    return {name: (p.grad if gradients else p.detach()).clone() for name, p in parameters.items()}


class Theirs:
    """TRL's trainer on an adapter that can be set, fed with our completions and rewards."""

    def __init__(self, model, lora, tokenizer, rollouts, directory, temperature):
        self.rollouts = rollouts
        places = [place for place, _ in rollouts.numbered]
        rewards = [reward for group in rollouts.rewards for reward in group]
        rows = [{"prompt": f"w{10 + place} "} for place in range(len(rollouts))]
        self.examples = [rows[place] for place in places]

        def answers(prompts, trainer):
            return {
                "prompt_ids": [rollouts.prompts[place].tolist() for place in places],
                "completion_ids": [ids.tolist() for _, ids in rollouts.numbered],
                "logprobs": None,
            }

        self.trainer = GRPOTrainer(
            model=get_peft_model(model, lora),
            reward_funcs=lambda completions, **columns: rewards,
            args=GRPOConfig(
                output_dir=str(directory),
                per_device_train_batch_size=len(places),
                num_generations=4,
                max_completion_length=LONGEST,
                temperature=temperature,
                beta=BETA,  # there are reference log-probabilities, whether they are used or not
                use_bias_correction_kl=False,  # TRL multiplies k3 with the ratio otherwise; the paper does not
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            rollout_func=answers,
        )
        self.trainer.model.eval()
        self.trainer.num_generations_eval = 4
        named = self.trainer.model.named_parameters()
        self.parameters = {name.replace(".default", ""): p for name, p in named if p.requires_grad}

    def set(self, weights):
        assert weights.keys() == self.parameters.keys()
        for name, parameter in self.parameters.items():
            parameter.data.copy_(weights[name])

    def inputs(self, scale_rewards):
        self.trainer.scale_rewards, self.trainer.beta = scale_rewards, BETA
        return self.trainer._generate_and_score_completions(self.examples)

    def logps(self, inputs):
        with torch.no_grad():
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
            width = inputs["completion_ids"].shape[1]
            return self.trainer._get_per_token_logps_and_entropies(self.trainer.model, ids, mask, width)[0]

    def loss_and_gradient(self, inputs, **settings):
        vars(self.trainer).update(settings)
        loss = self.trainer._compute_loss(self.trainer.model, inputs)
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        return float(loss.detach()), dict(zip(self.parameters, gradients, strict=True))


@pytest.fixture
def rollouts(make_rollouts):
    return make_rollouts(LENGTHS)


@pytest.fixture
def theirs(tiny_model, lora, tiny_tokenizer, rollouts, tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL sends telemetry otherwise
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")

    def make(temperature=0.7):
        return Theirs(tiny_model(), lora, tiny_tokenizer, rollouts, tmp_path, temperature)

    return make


@pytest.fixture
def make_ours(tiny_model, lora, randomise):
    def make(**arguments):
        settings = {
            "actor_network": tiny_model(), "lora_config": lora, "use_separate_reference_adapter": False, "lr": 0.02,
            "max_grad_norm": 1e9, "batch_size": 12, "update_epochs": 2, "max_completion_length": LONGEST, "seed": 0,
            "temperature": 0.7, "vllm_importance_sampling_correction": False,
        }  # fmt: skip
        agent = Recording(**settings | arguments)
        randomise(agent)
        return agent.record()

    return make


def relative(one, other):
    mine, yours = (torch.cat([gradients[name].flatten() for name in other]) for gradients in (one, other))
    return float((mine - yours).norm() / yours.norm())


CASES = {
    # ours, TRL's loss_type, its importance_sampling_level, its epsilon_low and epsilon_high
    "grpo": ({}, "grpo", "token", 0.2, 0.2),
    "dapo": ({"loss_normalization": "token", "clip_coef": (0.8, 1.28)}, "dapo", "token", 0.2, 0.28),
    "dr_grpo": ({"loss_normalization": "constant", "clip_coef": (0.9, 1.5)}, "dr_grpo", "token", 0.1, 0.5),
    "gspo": ({"loss_type": "gspo", "clip_coef": (0.95, 1.1)}, "grpo", "sequence", 0.05, 0.1),
    "cispo": (
        {"loss_type": "cispo", "loss_normalization": "token", "clip_coef": (0.0, 1.3)}, "cispo", "token", 0.0, 1.3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_losses_and_gradients_agree(theirs, make_ours, rollouts, temperature):
    """Both steps of two passes: the first at ratio 1, the second with ratios that leave their bounds on both sides."""
    trl = theirs(temperature)
    for name, (settings, loss_type, level, low, high) in CASES.items():
        for beta in (0.0, BETA):
            agent = make_ours(beta=beta, adv_norm="mean_only", temperature=temperature, **settings)
            metrics = agent.learn(rollouts)
            assert metrics["clip_ratio/high"] > 0.05, name
            assert metrics["clip_ratio/low"] > 0.05 or name == "cispo", name  # which has no lower bound in TRL
            first, second = agent.seen
            assert metrics["loss"] == pytest.approx(first["loss"], abs=1e-7)
            trl.set(first["weights"])
            inputs = trl.inputs("none")
            old = trl.logps(inputs)
            for number, step in enumerate((first, second)):
                trl.set(step["weights"])
                loss, gradient = trl.loss_and_gradient(
                    inputs | ({"old_per_token_logps": old} if number else {}),
                    loss_type=loss_type, importance_sampling_level=level, epsilon_low=low, epsilon_high=high, beta=beta,
                )  # fmt: skip
                case = (name, beta, number)
                assert step["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6), case
                assert relative(step["gradient"], gradient) < 1e-5, case
            assert relative(second["gradient"], first["gradient"]) > 0.1, name
            if beta:
                kl = trl.trainer._metrics["eval"]["kl"][-2]  # of the first step
                assert metrics["kl"] == pytest.approx(kl, rel=1e-4)


def test_advantages_and_truncated_completions_agree(theirs, make_ours, rollouts):
    """TRL adds 1e-4 to the standard deviation, AgileRL and we 1e-8; both leave what was cut out of DAPO's mean."""
    trl = theirs()
    for scale, adv_norm, eps in (("group", "mean_std", 1e-4), ("none", "mean_only", 1e-8)):
        expected = trl.inputs(scale)["advantages"]
        actual = torch.cat(group_advantages(rollouts.rewards, adv_norm=adv_norm, eps=eps))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)

    agent = make_ours(
        beta=BETA, adv_norm="mean_only", loss_normalization="token", update_epochs=1, mask_truncated_completions=True
    )
    # TRL calls a completion cut that does not end with the end-of-sequence token.
    ended = [[False, True, True, False], [True] * 4, [False, False, True, False]]
    completions = [
        [torch.cat([ids[:-1], torch.tensor([2])]) if end else ids for ids, end in zip(group, ends, strict=True)]
        for group, ends in zip(rollouts.completions, ended, strict=True)
    ]
    trl.rollouts.completions[:] = completions
    trl.trainer.mask_truncated_completions = True
    trl.set({name: p.detach().clone() for name, p in agent.base.parameters(agent.adapters.name("actor")).items()})
    inputs = trl.inputs("none")
    loss, gradient = trl.loss_and_gradient(inputs, loss_type="dapo", epsilon_low=0.2, epsilon_high=0.2, beta=BETA)
    agent.learn(replace(rollouts, completions=completions, finished=ended))
    assert agent.seen[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert relative(agent.seen[0]["gradient"], gradient) < 1e-5
