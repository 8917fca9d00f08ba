"""Self-distillation: the same model with another prompt gives the advantages."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from agiledpo.algorithms import DPO
from agiledpo.algorithms.core.steps import gradient_step
from agiledpo.algorithms.self_distillation import SelfDistillation, self_distillation
from agiledpo.scoring import QuestionBatch, RolloutBatch


class Sampler(DPO):
    """An agent with the temperature that completions are sampled at."""

    temperature = 0.7


PROMPTS = [torch.tensor(ids) for ids in ([11, 12, 13], [14], [15, 16])]
HINTED = [torch.tensor(ids) for ids in ([40, 41, 11, 12, 13], [42, 14], [43, 44, 45, 46, 15, 16])]
COMPLETIONS = [[[20, 21], [22], [23, 24, 25]], [[26]], [[27, 28], [29, 30]]]
QUESTIONS = QuestionBatch(PROMPTS, [4, 5, 6], ["train"] * 3, ["train row 4", "train row 5", "train row 6"])


def answers(questions: QuestionBatch, completions: Sequence[Sequence[Sequence[int]]]) -> RolloutBatch:
    return RolloutBatch(
        prompts=questions.prompts,
        completions=[[torch.tensor(ids) for ids in group] for group in completions],
        rewards=[[0.5] * len(group) for group in completions],
        advantages=[None] * len(completions),
        sampling_logps=[[torch.full((len(ids),), -9.0) for ids in group] for group in completions],
        finished=[[True] * len(group) for group in completions],
        labels=questions.labels,
    )


def given(agent, questions, env) -> RolloutBatch:
    return answers(questions, COMPLETIONS)


def hinted(env, questions) -> list[Tensor]:
    return HINTED


@pytest.fixture
def make_sampler(tiny_model, lora, randomise) -> Callable[..., Sampler]:
    """An agent whose actor is not its reference, on a tiny model; LoRA dropout would change every score."""

    def make(architecture: str = "llama", **arguments) -> Sampler:
        lora.lora_dropout = 0.5
        agent = Sampler(actor_network=tiny_model(architecture), lora_config=lora, batch_size=4, **arguments)
        randomise(agent)
        randomise(agent, "reference", seed=8)
        return agent

    return make


def plain_logps(agent: Sampler, role: str, prompts: Sequence[Tensor]) -> list[list[Tensor]]:
    """The same log-probabilities by the plain model, one completion at a time."""
    found = []
    with torch.no_grad(), agent.select_adapter(role) as model:
        model.eval()
        for prompt, group in zip(prompts, COMPLETIONS, strict=True):
            found.append([])
            for ids in group:
                logits = model(input_ids=torch.cat([prompt, torch.tensor(ids)])[None]).logits[0, len(prompt) - 1 : -1]
                logps = (logits.double() / agent.temperature).log_softmax(-1)
                found[-1].append(logps[torch.arange(len(ids)), torch.tensor(ids)])
    return found


@pytest.mark.parametrize("architecture", ["llama", "mistral"])  # packed with shared prompts, and padded rows
@pytest.mark.parametrize("teacher", ["reference", "actor"])
def test_advantages_are_those_of_separate_forward_passes_of_the_plain_model(make_sampler, architecture, teacher):
    agent = make_sampler(architecture, micro_batch_size_per_gpu=2)
    rollouts = self_distillation(given, hinted, teacher=teacher, kl_coef=2.0)(agent, QUESTIONS, None)
    expected = [
        [2 * (taught - own) for taught, own in zip(*groups, strict=True)]
        for groups in zip(plain_logps(agent, teacher, HINTED), plain_logps(agent, "actor", PROMPTS), strict=True)
    ]
    for found, wanted in zip(rollouts.advantages, expected, strict=True):
        for values, reference in zip(found, wanted, strict=True):
            torch.testing.assert_close(values, reference.float(), rtol=1e-4, atol=1e-4)
    assert max(float(values.abs().max()) for group in expected for values in group) > 0.5
    before = given(agent, QUESTIONS, None)
    assert rollouts.rewards == before.rewards
    assert all(torch.equal(a, b) for a, b in zip(rollouts.prompts, PROMPTS, strict=True))
    assert [[ids.tolist() for ids in group] for group in rollouts.completions] == COMPLETIONS
    assert rollouts.labels == QUESTIONS.labels
    assert all((logps == -9.0).all() for group in rollouts.sampling_logps for logps in group)


def test_a_teacher_that_knows_no_more_has_nothing_to_say(make_sampler):
    distilled = self_distillation(given, lambda env, questions: PROMPTS, teacher="actor")
    rollouts = distilled(make_sampler(), QUESTIONS, None)
    assert all((values == 0).all() for group in rollouts.advantages for values in group)
    assert distilled.last == {
        "distillation/reverse_kl": 0.0,
        "distillation/clipped": 0.0,
        "distillation/advantage_std": 0.0,
    }


def test_the_reference_is_the_teacher_until_it_is_refreshed(make_sampler):
    agent = make_sampler()

    def advantages(teacher: str) -> list[list[float]]:
        rollouts = self_distillation(given, hinted, teacher=teacher)(agent, QUESTIONS, None)
        return [values.tolist() for group in rollouts.advantages for values in group]

    before = advantages("reference")
    assert before != advantages("actor")
    agent.set_reference_policy(1)
    assert advantages("reference") == advantages("actor") != before


def test_without_a_reference_adapter_the_base_is_the_teacher(tiny_model, lora, randomise):
    agent = Sampler(actor_network=tiny_model(), lora_config=lora, use_separate_reference_adapter=False)
    randomise(agent)
    found = self_distillation(given, hinted)(agent, QUESTIONS, None).advantages
    expected = plain_logps(agent, "reference", HINTED)[1][0] - plain_logps(agent, "actor", PROMPTS)[1][0]
    torch.testing.assert_close(found[1][0], expected.float(), rtol=1e-4, atol=1e-4)


def test_nothing_of_the_agent_changes(make_sampler):
    agent = make_sampler()
    weights = [parameter.clone() for role in ("actor", "reference") for parameter in agent.adapters.parameters(role)]
    streams = [agent.random_stream.state_dict(), agent.sampling_stream.state_dict()]
    self_distillation(given, hinted)(agent, QUESTIONS, None)
    after = [parameter for role in ("actor", "reference") for parameter in agent.adapters.parameters(role)]
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    assert str(streams) == str([agent.random_stream.state_dict(), agent.sampling_stream.state_dict()])
    assert all(parameter.grad is None for parameter in after)


def test_clip_discount_and_metrics(make_sampler):
    agent = make_sampler()
    plain, clipped = self_distillation(given, hinted), self_distillation(given, hinted, clip=0.5, discount=1.0)
    assert plain.last is None
    whole = [v for group in plain(agent, QUESTIONS, None).advantages for v in group]
    summed = [v for group in clipped(agent, QUESTIONS, None).advantages for v in group]
    for own, future in zip(whole, summed, strict=True):
        expected = own.clamp(-0.5, 0.5).flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(future, expected, rtol=1e-5, atol=1e-5)
    tokens = torch.cat(whole).double()
    assert plain.last is not None
    assert clipped.last is not None
    assert plain.last["distillation/reverse_kl"] == pytest.approx(-float(tokens.mean()), rel=1e-5)
    assert plain.last["distillation/advantage_std"] == pytest.approx(float(tokens.std(correction=0)), rel=1e-5)
    assert plain.last["distillation/clipped"] == 0.0
    assert clipped.last["distillation/reverse_kl"] == plain.last["distillation/reverse_kl"]
    assert 0 < clipped.last["distillation/clipped"] == float((tokens.abs() > 0.5).double().mean()) < 1


def test_it_decorates_a_rollout(make_sampler):
    agent = make_sampler()

    @self_distillation(privileged=hinted, kl_coef=3.0)
    def sample(agent, questions, env):
        return answers(questions, COMPLETIONS)

    assert isinstance(sample, SelfDistillation)
    single = self_distillation(given, hinted)(agent, QUESTIONS, None)
    for triple, once in zip(sample(agent, QUESTIONS, None).advantages, single.advantages, strict=True):
        torch.testing.assert_close(torch.cat(list(triple)), 3 * torch.cat(list(once)))


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (HINTED[:2], "2 prompts for 3 questions"),
        ([HINTED[0], torch.tensor([], dtype=torch.int64), HINTED[2]], "train row 5: privileged gave a prompt of shape"),
        ([HINTED[0], HINTED[1][None], HINTED[2]], "train row 5: privileged gave a prompt of shape"),
        (
            [HINTED[0], HINTED[1], torch.arange(3, 66)],
            "train row 6 with the teacher's prompt .* 65 tokens; .* allows 64. Shorten",
        ),
        ([HINTED[0], HINTED[1], torch.tensor([97])], "token id 97"),
    ],
)
def test_prompts_that_the_teacher_cannot_read_are_refused(make_sampler, prompts, said):
    with pytest.raises(ValueError, match=said):
        self_distillation(given, lambda env, questions: prompts)(make_sampler(), QUESTIONS, None)


def test_the_longest_prompt_that_fits_is_read(make_sampler):
    prompts = [HINTED[0], HINTED[1], torch.arange(3, 65)]
    rollouts = self_distillation(given, lambda env, questions: prompts)(make_sampler(), QUESTIONS, None)
    assert bool(rollouts.advantages[2][0].isfinite().all())


def test_rollouts_of_other_questions_are_refused(make_sampler):
    agent = make_sampler()

    def fewer(agent, questions, env):
        return answers(questions, COMPLETIONS).slice(0, 2)

    def turned(agent, questions, env):
        return answers(questions, COMPLETIONS).select([0, 2, 1])

    with pytest.raises(ValueError, match="answers 2 prompts, but there are 3"):
        self_distillation(fewer, hinted)(agent, QUESTIONS, None)
    with pytest.raises(ValueError, match="train row 5: the rollout answers another prompt"):
        self_distillation(turned, hinted)(agent, QUESTIONS, None)
    with pytest.raises(ValueError, match="train row 4: the rollout brings advantages"):
        self_distillation(self_distillation(given, hinted), hinted)(agent, QUESTIONS, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"privileged": None}, "privileged is missing"),
        ({"teacher": "critic"}, "teacher='critic'; use 'reference' or 'actor'"),
        ({"kl_coef": -1.0}, "kl_coef=-1.0"),
        ({"discount": 2.0}, "discount=2.0"),
        ({"clip": -1.0}, "clip=-1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(arguments, said):
    with pytest.raises(ValueError, match=said):
        self_distillation(given, **{"privileged": hinted, **arguments})


class TestLearning:
    """Four questions with an answer each: the model can copy an answer that it is shown, and knows none by itself."""

    HINT = 90
    QUESTIONS = torch.arange(10, 14)
    ANSWERS = torch.arange(20, 24)

    def batch(self) -> QuestionBatch:
        prompts = [question[None] for question in self.QUESTIONS]
        return QuestionBatch(prompts, range(4), ["train"] * 4, [f"train row {n}" for n in range(4)])

    def hints(self, env, questions) -> list[Tensor]:
        """The teacher's prompt holds the answer."""
        return [torch.tensor([self.HINT, int(self.ANSWERS[row]), int(self.QUESTIONS[row])]) for row in questions.rows]

    def answer_probabilities(self, agent: Sampler, prompts: Sequence[Tensor]) -> Tensor:
        """At temperature 1."""
        with torch.no_grad(), agent.select_adapter("actor") as model:
            logits = model(input_ids=torch.stack(list(prompts))).logits[:, -1]
        return logits.softmax(-1)[torch.arange(4), self.ANSWERS]

    def sample(self, agent, questions, env) -> RolloutBatch:
        with torch.no_grad(), agent.select_adapter("actor") as model:
            logits = model(input_ids=torch.stack(list(questions.prompts))).logits[:, -1]
        tokens = torch.multinomial((logits / agent.temperature).softmax(-1), 8, replacement=True, generator=env)
        return answers(questions, [[[token] for token in group] for group in tokens.tolist()])

    def step(self, agent: Sampler, batch: RolloutBatch, weights: Tensor, temperature: float) -> None:
        """One optimizer step that raises each token's log-probability by its weight, (completions,)."""
        scorer = agent.scorer(temperature=temperature)

        def loss(part: RolloutBatch) -> tuple[Tensor, None]:
            return -(weights * scorer.score_completions(part).logps[:, 0]).mean(), None

        gradient_step(
            agent, scorer, [(batch, True)], loss, check=lambda part, terms: None, labels=batch.labels, remedy=""
        )

    def test_the_policy_learns_the_answers_from_itself(self, tiny_model, lora):
        model = tiny_model()
        model.lm_head.weight.data.mul_(3)  # so that it can be sure of a token
        agent = Sampler(actor_network=model, lora_config=lora, lr=5e-3, max_grad_norm=1.0)
        questions = self.batch()
        # Copy the answer that is shown, whatever the question; without one, any of the four.
        shown = torch.cartesian_prod(self.ANSWERS, self.QUESTIONS).tolist()
        prompts = [torch.tensor([self.HINT, *pair]) for pair in shown] + list(questions.prompts)
        lesson = answers(
            QuestionBatch(prompts, range(20), ["train"] * 20, [f"train row {n}" for n in range(20)]),
            [[[answer]] for answer, _ in shown] + [[[int(answer)] for answer in self.ANSWERS]] * 4,
        )
        for _ in range(40):
            self.step(agent, lesson, torch.ones(32), 1.0)
        agent.set_reference_policy(1)
        assert self.answer_probabilities(agent, self.hints(None, questions)).min() > 0.8
        assert self.answer_probabilities(agent, questions.prompts).max() < 0.5

        distilled = self_distillation(self.sample, self.hints)
        generator = torch.Generator().manual_seed(0)
        divergences = []
        for _ in range(45):
            rollouts = distilled(agent, questions, generator)
            advantages = torch.cat([values for group in rollouts.advantages for values in group])
            self.step(agent, rollouts, advantages, agent.temperature)
            divergences.append(distilled.last["distillation/reverse_kl"])
        assert self.answer_probabilities(agent, questions.prompts).min() > 0.8
        assert abs(sum(divergences[-10:])) < 0.1 * sum(divergences[:10])
