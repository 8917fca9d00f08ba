"""Answers to held-out prompts: what is written, that it is true, and that the run does not notice."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from agiledpo.algorithms import DPO, GRPO, SFT
from agiledpo.generation import SamplingSettings
from agiledpo.hpo import Mutations, TournamentSelection
from agiledpo.llm_envs import PreferenceGym, SFTGym
from agiledpo.training.samples import Samples, kl_per_token
from agiledpo.training.train_llm import finetune_llm_preference, finetune_llm_reasoning, finetune_llm_sft


@pytest.fixture
def make_population(tiny_model, lora):
    def make(size: int, **arguments: Any) -> list[DPO]:
        settings = {"lr": 1e-2, "nll_alpha": 0.0, "batch_size": 2, **arguments}
        return DPO.population(size, actor_network=tiny_model(), lora_config=lora, **settings)

    return make


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(agent: DPO) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in agent.adapters.parameters("actor")]


def run(path: Path | None, env: Any, agents: list[DPO], *, max_steps: int = 8, **options: Any) -> Any:
    samples = [] if path is None else [Samples(path, env, count=3, max_new_tokens=6, temperature=1.0)]
    return finetune_llm_preference(
        agents,
        env,
        max_steps=max_steps,
        evo_steps=1,
        tournament=TournamentSelection(2, True, 2, rand_seed=1),
        mutation=Mutations(no_mutation=0.2, rl_hp=0.0, rand_seed=1),
        observers=samples,
        verbose=False,
        **options,
    )[0]


def test_a_run_is_the_same_with_and_without(make_env, make_population, tmp_path):
    torch.manual_seed(5)
    with_samples = run(tmp_path / "samples.jsonl", make_env(), make_population(2))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    without = run(None, make_env(), make_population(2))
    assert torch.equal(drawn, torch.rand(3))
    for one, other in zip(with_samples, without, strict=True):
        assert one.fitness == other.fitness
        assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_before_training_and_at_each_evaluation(make_env, make_population, tmp_path):
    path, env = tmp_path / "samples.jsonl", make_env()
    population = run(path, env, make_population(2))
    found = lines(path)
    assert [(line["step"], line["agent"] is None) for line in found] == [(0, True)] * 3 + [(4, False)] * 3 + [
        (8, False)
    ] * 3
    assert [line["agent"] for line in found[-3:]] == [population.elite.index] * 3
    rows = [line["row"] for line in found[:3]]
    assert len(set(rows)) == 3
    assert [line["row"] for line in found] == rows * 3
    dataset = env._loaded["test"].dataset
    for line in found:
        assert line["prompt"] == dataset[line["row"]]["prompt"]
        assert line["chosen"] == dataset[line["row"]]["chosen"]
        assert 1 <= line["tokens"] <= 6
        assert line["finished"] or line["tokens"] == 6
        assert (line["kl_per_token"] == 0) == (line["step"] == 0)


def test_greedy_answers_are_the_elites(make_env, make_population, tiny_tokenizer, tmp_path):
    path, env = tmp_path / "samples.jsonl", make_env()
    population, _ = finetune_llm_preference(
        make_population(1), env, max_steps=8, observers=[Samples(path, env, count=2, max_new_tokens=5)], verbose=False
    )
    (agent,) = population
    for line in lines(path)[-2:]:
        ids = torch.tensor([tiny_tokenizer.encode(line["prompt"], add_special_tokens=False)])
        start, answer = ids.shape[1], []
        with torch.no_grad(), agent.select_adapter("actor"):
            while len(answer) < 5 and tiny_tokenizer.eos_token_id not in answer:
                answer.append(int(agent.base.model(input_ids=ids).logits[0, -1].argmax()))
                ids = torch.cat([ids, torch.tensor([[answer[-1]]])], dim=1)
        assert line["answer"] == tiny_tokenizer.decode(answer, skip_special_tokens=True)
        assert line["tokens"] == ids.shape[1] - start


def test_kl_is_the_sum_over_the_vocabulary_in_float64(make_population, randomise, monkeypatch):
    (agent,) = make_population(1)
    randomise(agent, "actor")
    prompt, answer = torch.arange(4, 9), torch.arange(30, 40)
    logps = {}
    for role in ("actor", "reference"):
        with torch.no_grad(), agent.select_adapter(role):
            logits = agent.base.model.double()(input_ids=torch.cat([prompt, answer])[None]).logits[0, 4:-1]
        logps[role] = logits.log_softmax(-1)
    expected = torch.nn.functional.kl_div(logps["reference"], logps["actor"], log_target=True, reduction="sum") / 10
    agent.base.model.float()
    assert kl_per_token(agent, prompt, answer) == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) > 0.01
    # Several blocks of positions add up, and no logits of the prompt are made.
    shapes = []
    hook = agent.lm.model.get_output_embeddings().register_forward_hook(
        lambda module, given, made: shapes.append(made.shape[1])
    )
    monkeypatch.setattr("agiledpo.evaluation.kl._POSITIONS", 3)
    assert kl_per_token(agent, prompt, answer) == pytest.approx(float(expected), rel=1e-5)
    hook.remove()
    assert shapes == [10, 10]


def test_a_resumed_run_writes_the_same_samples(make_env, make_population, tmp_path):
    def go(name: str, **options: Any) -> Path:
        path = tmp_path / name / "samples.jsonl"
        checkpoints = {"checkpoint_path": tmp_path / name / "checkpoints", "checkpoint_steps": 4}
        run(path, make_env(), make_population(2), **checkpoints, **options)
        return path

    whole = go("whole", max_steps=12)
    taken = go("taken", max_steps=8)
    with pytest.warns(UserWarning, match="total_rows was 8"):
        go("taken", max_steps=12, resume_from=tmp_path / "taken" / "checkpoints" / "step_4")
    assert taken.read_bytes() == whole.read_bytes()
    (aside,) = taken.parent.glob("samples.jsonl.from_*")
    assert {line["step"] for line in lines(aside)} == {8}


def test_a_run_that_had_no_samples_gets_them(make_env, make_population, tmp_path):
    checkpoints = {"checkpoint_path": tmp_path / "checkpoints", "checkpoint_steps": 4}
    run(None, make_env(), make_population(2), max_steps=4, **checkpoints)
    path = tmp_path / "samples.jsonl"
    with pytest.warns(UserWarning, match="total_rows was 4"):
        run(path, make_env(), make_population(2), max_steps=8, resume_from="latest", **checkpoints)
    assert [line["step"] for line in lines(path)] == [0, 0, 0, 8, 8, 8]


def test_the_samples_of_another_run_are_left_alone(make_env, make_population, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("{}\n")
    with pytest.raises(FileExistsError, match=r"observers\[0\]=.*samples.jsonl holds what another run wrote"):
        run(path, make_env(), make_population(2))
    assert path.read_text() == "{}\n"


def test_demonstrations_and_questions(tiny_model, lora, make_pairs, tiny_tokenizer, make_reasoning_env, tmp_path):
    env = SFTGym(make_pairs(8), make_pairs(5, seed=1), tiny_tokenizer, 4, "chosen")
    agents = SFT.population(1, actor_network=tiny_model(), lora_config=lora, lr=1e-2, batch_size=4)
    path = tmp_path / "sft.jsonl"
    samples = Samples(path, env, count=2, max_new_tokens=4)
    finetune_llm_sft(agents, env, max_steps=8, observers=[samples], verbose=False)
    dataset = env._loaded["test"].dataset
    assert [line["chosen"] for line in lines(path)] == [dataset[line["row"]]["chosen"] for line in lines(path)]
    assert all(line["kl_per_token"] > 0 for line in lines(path)[2:])  # of the base model, as there is no reference

    questions = make_reasoning_env()
    agents = GRPO.population(
        1, actor_network=tiny_model(), lora_config=lora, lr=1e-2, group_size=2, max_output_tokens=4, batch_size=4
    )
    path = tmp_path / "grpo.jsonl"
    samples = Samples(path, questions, count=2, max_new_tokens=4)
    finetune_llm_reasoning(agents, questions, max_steps=4, observers=[samples], verbose=False)
    assert [(line["step"], line["chosen"]) for line in lines(path)] == [(0, None)] * 2 + [(4, None)] * 2
    assert all(line["prompt"] == questions.messages("test", line["row"]) for line in lines(path))


def test_prompts_are_distinct_fit_the_model_and_follow_the_seed(make_env, make_pairs, make_population, tmp_path):
    def rows(seed: int, count: int, env: Any) -> list[int]:
        path = tmp_path / f"{seed}-{count}.jsonl"
        samples = Samples(path, env, count=count, max_new_tokens=1, seed=seed)
        samples.begins(None, make_population(1))  # type: ignore[arg-type]
        samples.advanced(4)
        found = [line["row"] for line in lines(path)]
        path.unlink()
        return found

    env = make_env(test=9)
    assert rows(3, 4, env) == rows(3, 4, env) == rows(3, 9, env)[:4]
    assert rows(3, 9, env) != rows(4, 9, env)
    assert sorted(rows(0, 50, env)) == list(range(9))
    # The same prompt twice, and one that leaves the model (64 positions) no room for an answer.
    prompts = ["w5 w6 ", "w5 w6 ", "w7 " * 64, "w8 "]
    train = make_pairs(8)
    test = train.select(range(4)).remove_columns("prompt").add_column("prompt", prompts)
    found = rows(0, 50, PreferenceGym(train, test, env.tokenizer, 4))
    assert len(found) == 2
    assert 3 in found
    assert 2 not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"count": -1}, "count=-1"), ({"seed": -1}, "seed=-1"), ({"temperature": -1.0}, "temperature=-1.0")],
)
def test_numbers_out_of_range(make_env, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        Samples(tmp_path / "samples.jsonl", make_env(), **arguments)


def test_settings_are_those_asked_for(make_env, tmp_path):
    samples = Samples(tmp_path / "s.jsonl", make_env(), max_new_tokens=7, temperature=0.5)
    assert samples.settings == SamplingSettings(max_new_tokens=7, temperature=0.5)
    assert math.isclose(samples.settings.temperature, 0.5)
