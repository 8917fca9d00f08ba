"""Figures of a trained policy against plain Transformers and PEFT, and from every kind of checkpoint."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from agiledpo.adapters.files import AdapterFileError
from agiledpo.algorithms import DPO, GRPO
from agiledpo.checkpoint import CheckpointError
from agiledpo.data import load_preferences
from agiledpo.evaluation import evaluate
from agiledpo.llm_envs import PreferenceGym
from agiledpo.training.train_llm import finetune_llm_preference

BETA = 0.3


@pytest.fixture
def place(tmp_path, tiny_model, tiny_tokenizer, make_pairs, lora, randomise):
    """A base model, an agent's checkpoint on it, and pairs of which some share a prompt."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    agent = DPO(actor_network=model, lora_config=lora, beta=BETA)
    randomise(agent, scale=0.05)
    randomise(agent, "reference", seed=8, scale=0.05)
    agent.save_checkpoint(tmp_path / "agent")
    pairs = make_pairs(24)
    rows = [{**row, "prompt": pairs[number - number % 3]["prompt"]} for number, row in enumerate(pairs)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def peft_logps(place: Path, adapter: str | None, tokenizer) -> np.ndarray:
    """Summed log-probabilities (pairs, 2) in float64, one sequence at a time, by Transformers and PEFT alone."""
    model = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float64)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, place / "agent" / adapter).double()
    sums = []
    for line in (place / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            answer = [*tokenizer(row[side])["input_ids"], tokenizer.eos_token_id]
            ids = torch.tensor([prompt + answer])
            with torch.no_grad():
                logps = model.eval()(ids).logits[0].log_softmax(-1)
            places = range(len(prompt), ids.shape[1])
            sums.append(sum(float(logps[place - 1, ids[0, place]]) for place in places))
    return np.array(sums).reshape(-1, 2)


def test_figures_against_plain_peft(place, tiny_tokenizer) -> None:
    found = evaluate(place / "agent", place / "pairs.jsonl").policy.preferences["test"]
    actor, reference = (peft_logps(place, role, tiny_tokenizer) for role in ("actor", "reference"))
    ratios = actor - reference
    margins = ratios[:, 0] - ratios[:, 1]
    assert (found.pairs, found.prompts) == (24, 8)
    assert found.accuracy.value == np.mean(margins > 0)
    assert found.margins.mean.value == pytest.approx(margins.mean(), rel=1e-4)
    assert found.margins.quantiles == pytest.approx(np.quantile(margins, [0.05, 0.25, 0.5, 0.75, 0.95]), rel=1e-3)
    lengths = np.array(
        [
            [len(json.loads(line)[side].split()) + 1 for side in ("chosen", "rejected")]
            for line in (place / "pairs.jsonl").read_text().splitlines()
        ]
    )
    per_token = ratios / lengths
    assert found.margins_per_token.mean.value == pytest.approx((per_token[:, 0] - per_token[:, 1]).mean(), rel=1e-3)
    assert found.likelihood_accuracy.value == np.mean(actor[:, 0] > actor[:, 1])
    by_token = actor / lengths
    assert found.likelihood_accuracy_per_token.value == np.mean(by_token[:, 0] > by_token[:, 1])
    assert found.calibration.beta == BETA
    assert found.calibration.log_loss.value == pytest.approx(np.mean(np.log1p(np.exp(-BETA * margins))), rel=1e-4)
    assert found.accuracy.low <= found.accuracy_wilson.low
    # Prompts come three times, so the error is over 8 sums of influences.
    mean_error = math.sqrt(8 / 7 * (((margins - margins.mean()) / 24).reshape(8, 3).sum(1) ** 2).sum())
    assert (found.margins.mean.high - found.margins.mean.low) / 2 == pytest.approx(1.959964 * mean_error, rel=1e-3)
    kinds = np.sign(lengths[:, 0] - lengths[:, 1])
    assert found.length_control.pairs == ((kinds > 0).sum(), (kinds < 0).sum(), (kinds == 0).sum())
    assert found.length_control.chosen_longer.value == np.mean(margins[kinds > 0] > 0)


def test_the_figures_are_those_of_training(place, tiny_tokenizer) -> None:
    """What the training loop selects by is what the evaluation finds."""
    agent = DPO.load(place / "agent")
    env = PreferenceGym(place / "pairs.jsonl", place / "pairs.jsonl", tiny_tokenizer)
    held_out = agent.measure(env)
    found = evaluate(place / "agent", place / "pairs.jsonl").policy.preferences["test"]
    assert found.accuracy.value == pytest.approx(held_out.fitness("accuracy").value)
    assert found.margins.mean.value == pytest.approx(held_out.tie_break, rel=1e-5)


def test_the_reference_may_be_the_base(place, tiny_tokenizer) -> None:
    found = evaluate(place / "agent", place / "pairs.jsonl", reference="base", beta=2.0).policy.preferences["test"]
    ratios = peft_logps(place, "actor", tiny_tokenizer) - peft_logps(place, None, tiny_tokenizer)
    assert found.margins.mean.value == pytest.approx((ratios[:, 0] - ratios[:, 1]).mean(), rel=1e-4)
    assert found.calibration.beta == 2.0
    # An adapter alone has no other reference, and no beta.
    alone = evaluate(place / "agent" / "actor", place / "pairs.jsonl").policy.preferences["test"]
    assert alone.margins == found.margins
    assert alone.calibration.beta == 0.1


def test_kl_and_win_rate(place, tiny_tokenizer) -> None:
    def reward(completion: str, answer: None, question: str) -> float:
        assert answer is None
        assert question.startswith("w")
        return float(len(completion.split()))

    arguments = {"against": "base", "samples": 6, "reward": reward, "max_new_tokens": 8, "seed": 3}
    found = evaluate(place / "agent", place / "pairs.jsonl", **arguments)
    assert found.policy.answers is not None
    assert found.against is not None
    assert found.against.answers is not None
    assert found.against.answers.kl.per_token.value == pytest.approx(0.0, abs=1e-7)
    assert found.against.preferences["test"].accuracy.value == 0.5
    assert found.accuracy_gain is not None
    accuracy = found.policy.preferences["test"].accuracy.value
    assert found.accuracy_gain["test"].value == pytest.approx(accuracy - 0.5)
    assert found.accuracy_gain["test"].high == found.policy.preferences["test"].accuracy.high - 0.5
    rate = found.win_rate
    assert rate is not None
    lengths = [(len(match.answer.split()), len(match.other.split())) for match in rate.matches]
    assert rate.rate.value == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a, b in lengths]))
    assert (rate.wins, rate.losses) == (sum(a > b for a, b in lengths), sum(a < b for a, b in lengths))
    again = evaluate(place / "agent", place / "pairs.jsonl", **arguments)
    assert again.to_dict() == found.to_dict()
    other = evaluate(place / "agent", place / "pairs.jsonl", **{**arguments, "seed": 4})
    assert other.win_rate is not None
    assert [match.answer for match in other.win_rate.matches] != [match.answer for match in rate.matches]
    json.dumps(found.to_dict(), allow_nan=False)
    # Two policies draw from two streams: the base does not merely repeat itself.
    same = evaluate("base", place / "pairs.jsonl", model=place / "model", **arguments)
    assert same.win_rate is not None
    assert any(match.answer != match.other for match in same.win_rate.matches)


def test_kl_against_a_sum_over_the_vocabulary(place, tiny_tokenizer) -> None:
    from agiledpo.evaluation.kl import kl_of

    agent = DPO.load(place / "agent")
    prompt, completion = torch.tensor([1, 9, 30]), torch.tensor([50, 7, 2])
    found = kl_of(agent, [prompt], [completion])
    base = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float64)
    with torch.no_grad():
        ids = torch.cat([prompt, completion])[None]
        q = base(ids).logits[0, 2:5].log_softmax(-1)
        policy = PeftModel.from_pretrained(base, place / "agent" / "actor").double().eval()
        p = policy(ids).logits[0, 2:5].log_softmax(-1)
    assert found.tolist() == pytest.approx([float((p.exp() * (p - q)).sum())], rel=1e-4)
    assert float(found) > 1e-3


def test_runs_are_their_fittest_agent(place, tiny_tokenizer, lora) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    agents = DPO.population(2, actor_network=model, lora_config=lora, batch_size=8, lr=5e-2, max_grad_norm=100.0)
    agents[1].lr = 1e-4
    env = PreferenceGym(place / "pairs.jsonl", place / "pairs.jsonl", tiny_tokenizer, 8)
    population, _ = finetune_llm_preference(
        agents,
        env,
        max_steps=24,
        evaluation_interval=1,
        checkpoint_steps=24,
        checkpoint_path=place / "run" / "checkpoints",
        verbose=False,
    )
    assert population.elite is not None
    data = place / "pairs.jsonl"
    found = evaluate(place / "run", data)
    assert found.policy.path is not None
    assert Path(found.policy.path).name == f"agent_{population.elite.index}"
    margins = population.elite.measure(env).margins
    assert found.policy.preferences["test"].margins.mean.value == pytest.approx(float(margins.mean()), rel=1e-4)
    other = population[1 - population.index(population.elite)]
    other.save_checkpoint(place / "run" / "elite")
    elite = evaluate(place / "run", data)
    assert elite.policy.path == str(place / "run" / "elite")
    assert elite.policy.preferences["test"].margins.mean.value != found.policy.preferences["test"].margins.mean.value


def test_what_makes_no_sense_is_refused_before_a_model_is_loaded(place) -> None:
    data = place / "pairs.jsonl"
    for arguments, said in (
        ({"samples": 2, "reward": len}, "pass against"),
        ({"against": "base", "reward": len}, "pass samples"),
        ({"reward": len, "judge": "x"}, "each decide who wins"),
        ({"beta": 0.0}, "beta"),
        ({"reference": "old"}, "'own' or 'base'"),
        ({"samples": -1}, "samples"),
        ({"device": "gpu"}, r"device \(--device\) is 'gpu'"),
        ({"device": "cuda:99"}, r"device \(--device\) is 'cuda:99'"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate(place / "no-such", data, **arguments)
    with pytest.raises(ValueError, match="data"):
        evaluate("base", {})
    with pytest.raises(CheckpointError, match="is no directory"):
        evaluate(place / "no-such", data)
    with pytest.raises(AdapterFileError, match="holds a whole model"):
        evaluate(place / "model", data)
    with pytest.raises(ValueError, match="Nothing says which base model base is on"):
        evaluate("base", data)
    with pytest.raises(ValueError, match=r"model \(--model\): there is no directory '/nope'"):
        evaluate("base", data, model="/nope")
    with pytest.raises(ValueError, match=r"max_length \(--max-length\) is 4096, and the model reads"):
        evaluate("base", data, model=place / "model", samples=2, max_length=4096)


def test_each_policy_has_its_own_beta(place, tiny_model, tiny_tokenizer, lora) -> None:
    """A whole number is one too; GRPO's is another thing."""
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    DPO(actor_network=model, lora_config=lora, beta=1).save_checkpoint(place / "one")
    found = evaluate(place / "agent", place / "pairs.jsonl", against=place / "one")
    assert found.against is not None
    betas = [each.preferences["test"].calibration.beta for each in (found.policy, found.against)]
    assert betas == [BETA, 1.0] == [found.settings["beta"], found.settings["against_beta"]]
    grpo = GRPO(actor_network=model, pad_token_id=tiny_tokenizer.pad_token_id, lora_config=lora, beta=0.04)
    grpo.save_checkpoint(place / "grpo")
    with pytest.warns(UserWarning, match="trained by GRPO, whose beta weighs the KL"):
        found = evaluate(place / "grpo", place / "pairs.jsonl")
    assert found.settings["beta"] == 0.1


def test_prompts_and_rows_of_several_datasets(place) -> None:
    lines = (place / "pairs.jsonl").read_text().splitlines()
    (place / "few.jsonl").write_text(lines[0] + "\n")
    data = {"few": load_preferences(place / "few.jsonl"), "many": load_preferences(place / "pairs.jsonl")}
    for names in (["few", "many"], ["many", "few"]):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            found = evaluate(
                "base", {name: data[name] for name in names}, model=place / "model", samples=7, max_new_tokens=1
            )
        assert found.settings["samples"] == 7
    found = evaluate("base", data, model=place / "model", max_rows=5)
    assert found.settings["data"] == {"few": 1, "many": 5}


def test_fewer_prompts_than_samples_is_said(place) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = evaluate("base", {"one": place / "pairs.jsonl"}, model=place / "model", samples=9, max_new_tokens=2)
    assert any("8 different prompts, fewer than samples=9" in str(warning.message) for warning in caught)
    assert found.settings["samples"] == 8
    assert found.policy.preferences["one"].calibration.log_loss.value == pytest.approx(math.log(2))
