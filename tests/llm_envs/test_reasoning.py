"""The environment of prompts: its batches, that it walks as the others do, and that it judges by its rows."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agiledpo.data import DatasetError, Prompts, Questions, load_preferences, load_questions
from agiledpo.generation import Completions
from agiledpo.llm_envs import BatchedReward, PreferenceGym, ReasoningGym, RewardError
from agiledpo.scoring import QuestionBatch
from agiledpo.training.environments import Environments

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
MakeGym = Callable[..., ReasoningGym]
TEMPLATE = [
    {"role": "system", "content": "yes or no"},
    {"role": "user", "content": "hello {question}? {{maybe}}"},
]
TEMPLATES = {
    "trimming": (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    ),
    "header only": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{{ 'assistant: maybe\n' if add_generation_prompt }}"
    ),
}


def rows_of(count: int, *, first: int = 0) -> Dataset:
    return Dataset.from_list(
        [
            {"question": "world" + " you" * (i % 4) + f" {i}", "answer": str(i % 3), "other": i}
            for i in range(first, first + count)
        ]
    )


def equal(completion: str, answer: Any, question: str) -> float:
    return float(completion.strip() == answer)


def sampled(groups: list[list[str]], tokenizer: PreTrainedTokenizerBase, *, ended: bool = True) -> Completions:
    """What a generator would have sampled."""
    end = [tokenizer.eos_token_id] if ended else []
    tokens = [
        [torch.tensor([*tokenizer(text, add_special_tokens=False).input_ids, *end]) for text in group]
        for group in groups
    ]
    logps = [[torch.zeros(len(ids)) for ids in group] for group in tokens]
    return Completions(tokens, logps, [[ended for _ in group] for group in tokens])


def padded(completions: Completions, batch: Any, pad: int) -> list[Tensor]:
    """AgileRL's form: prompts with completions, (G, T) for each."""
    sequences = []
    for ids, length, group in zip(batch["prompt_input_ids"], batch["prompt_lengths"], completions.tokens, strict=True):
        rows = [torch.cat([ids[:length], completion]) for completion in group]
        sequences.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad))
    return sequences


@pytest.fixture(scope="module")
def make_gym(make_tokenizer: MakeTokenizer) -> MakeGym:
    def make(train: int = 10, test: int = 5, batch: int = 4, **options: Any) -> ReasoningGym:
        options = {"tokenizer": make_tokenizer(), "reward_fn": equal, **options}
        return ReasoningGym(rows_of(train), rows_of(test, first=1000), data_batch_size_per_gpu=batch, **options)

    return make


# Batches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("chat", ["chatml", "trimming", "header only"])
def test_batch_layout(template: Any, chat: str, make_gym: MakeGym, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES.get(chat, tokenizer.chat_template)
    env = make_gym(tokenizer=tokenizer, conversation_template=template)
    batch = env.reset()
    assert env.observation_space.contains(batch)
    assert list(batch) == [
        *("prompt", "question", "answer", "prompt_input_ids", "prompt_attention_mask", "prompt_lengths"),
        *("pad_token_id", "row", "split"),
    ]
    assert batch["pad_token_id"] == tokenizer.pad_token_id
    rows = rows_of(10)
    for i, number in enumerate(batch["row"].tolist()):
        question = rows[number]["question"]
        messages = [{"role": "user", "content": question}]
        if template is not None:
            messages = [TEMPLATE[0], {"role": "user", "content": f"hello {question}? {{maybe}}"}]
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        length = int(batch["prompt_lengths"][i])
        assert batch["prompt_input_ids"][i, :length].tolist() == expected
        assert batch["prompt_input_ids"][i, length:].eq(env.pad_token_id).all()
        assert batch["prompt_attention_mask"][i].tolist() == [1] * length + [0] * (
            batch["prompt_input_ids"].shape[1] - length
        )
        assert batch["prompt"][i] == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert (batch["question"][i], batch["answer"][i]) == (question, rows[number]["answer"])
    assert batch["prompt_input_ids"].shape[1] == int(batch["prompt_lengths"].max())
    for key in ("prompt_input_ids", "prompt_attention_mask", "prompt_lengths", "row"):
        assert batch[key].dtype == torch.int64  # type: ignore[literal-required]
    questions = QuestionBatch.from_experiences(batch)
    assert questions.rows == batch["row"].tolist()
    assert [len(prompt) for prompt in questions.prompts] == batch["prompt_lengths"].tolist()
    env.observation_space.seed(3)
    assert env.observation_space.contains(env.observation_space.sample())
    assert not env.observation_space.contains({**batch, "answer": "1"})


@pytest.mark.parametrize(
    "answers", [[1, 2], [0.5, None], [["a"], []], [{"sum": 3, "way": "x"}, {"sum": 4, "way": None}], [None, None]]
)
def test_answers_are_of_any_kind(answers: list[Any], make_tokenizer: MakeTokenizer) -> None:
    rows = Dataset.from_list([{"question": f"{i}", "answer": answer} for i, answer in enumerate(answers)])
    told: list[Any] = []

    def reward(completion: str, answer: Any, question: str) -> float:
        told.append(answer)
        return 0.0

    env = ReasoningGym(rows, rows, make_tokenizer(), reward)
    (batch,) = env.test_batches()
    assert batch["answer"] == answers
    assert env.observation_space.contains(batch)
    env.judge(QuestionBatch.from_experiences(batch), sampled([["yes", "no"]] * 2, env.tokenizer))
    assert told == [answers[0], answers[0], answers[1], answers[1]]


def test_answers_of_several_types_in_a_file(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    answers = [1, "one", {"a": [2.5]}, None]
    path.write_text("".join(json.dumps({"question": str(i), "answer": a}) + "\n" for i, a in enumerate(answers)))
    env = ReasoningGym(path, path, make_tokenizer(), equal)
    assert next(env.test_batches())["answer"] == answers
    assert env.name == "rows"


def test_prompts_as_text_and_as_chat(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    chat = [{"role": "system", "content": "no"}, {"role": "user", "content": "hello"}]
    texts, chats = Dataset.from_list([{"prompt": "hello "}]), Dataset.from_list([{"prompt": chat}])
    env = ReasoningGym(texts, chats, tokenizer, equal, answer_column=None)
    batch = env.reset()
    assert (batch["prompt"], batch["question"], batch["answer"]) == (["hello "], ["hello "], [None])
    assert batch["prompt_input_ids"].tolist() == [tokenizer("hello ").input_ids]
    assert env.messages("train", 0) == "hello "
    (batch,) = env.test_batches()
    assert batch["question"] == ["hello"]
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert batch["prompt_input_ids"].tolist() == [expected]
    assert env.messages("test", 0) == chat
    assert env.name == "questions"


def test_an_answer_that_the_template_begins(make_tokenizer: MakeTokenizer) -> None:
    """AgileRL's templates often do: it is the end of the prompt, and completions are what follows it."""
    template = [*TEMPLATE, {"role": "assistant", "content": "maybe <think>"}]
    rows = Dataset.from_list([{"question": "you", "answer": "yes"}])
    env = ReasoningGym(rows, rows, make_tokenizer(), equal, template)
    batch = env.reset()
    assert batch["prompt"][0].endswith("<|im_start|>assistant\nmaybe <think>")
    ids = torch.cat([batch["prompt_input_ids"][0], torch.tensor(env.tokenizer("yes").input_ids[1:])])
    _, rewards = env.step([torch.stack([ids, ids])])
    assert rewards.tolist() == [[1.0, 1.0]]
    assert env.messages("train", 0)[-1] == template[-1]


def test_long_prompts(make_tokenizer: MakeTokenizer) -> None:
    def make(**options: Any) -> ReasoningGym:
        return ReasoningGym(rows_of(10), rows_of(1), make_tokenizer(), equal, data_batch_size_per_gpu=10, **options)

    env = make()
    lengths = env.lengths("train")
    assert lengths.shape == (10, 1)
    limit = int(lengths.max()) - 1
    with pytest.warns(UserWarning, match=r"samples were filtered out of the train dataset"):
        shorter = make(max_context_length=limit)
    kept = [row for row in range(10) if lengths[row, 0] <= limit]
    assert sorted(shorter.reset()["row"].tolist()) == kept
    assert len(shorter) == len(kept) < 10
    whole, cut = env.reset(), make(max_context_length=limit, truncation="keep_end").reset()
    assert whole["row"].tolist() == cut["row"].tolist()
    assert whole["prompt"] == cut["prompt"]
    for i in range(10):
        before = whole["prompt_input_ids"][i, : int(whole["prompt_lengths"][i])]
        length = int(cut["prompt_lengths"][i])
        assert length == min(len(before), limit)
        assert torch.equal(cut["prompt_input_ids"][i, :length], before[len(before) - length :])
    with pytest.raises(ValueError, match="truncation='keep_start' cuts the end of completions"):
        make(max_context_length=limit, truncation="keep_start")


# Walking ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 11),
    batch=st.integers(1, 5),
    seed=st.integers(0, 5),
    grouped=st.booleans(),
    steps=st.lists(st.booleans(), max_size=8),
)
def test_it_walks_as_preference_gym_does(
    rows: int, batch: int, seed: int, grouped: bool, steps: list[bool], make_gym: MakeGym, make_env: Any
) -> None:
    """Same order and epochs, whether completions are judged or not; with grouped rows every row once an epoch."""
    mine = make_gym(train=rows, batch=batch, seed=seed, group_by_length=grouped)
    theirs = make_env(train=rows, batch=batch, seed=seed)
    orders = [(mine.reset()["row"].tolist(), theirs.reset()["row"].tolist())]
    for judges in steps:
        if judges:
            shown, rewards = mine.step([["1", "2"]] * len(orders[-1][0]))
            assert rewards.shape == (len(orders[-1][0]), 2)
        else:
            shown = mine.next_batch()
        orders.append((shown["row"].tolist(), theirs.step()["row"].tolist()))
        assert (mine.num_epochs, mine.at_epoch_end) == (theirs.num_epochs, theirs.at_epoch_end)
    if not grouped:
        assert [ours for ours, _ in orders] == [other for _, other in orders]
    for epoch in range(len(orders) // -(-rows // batch)):
        per_epoch = -(-rows // batch)
        handed_out = [row for ours, _ in orders[epoch * per_epoch : (epoch + 1) * per_epoch] for row in ours]
        assert sorted(handed_out) == list(range(rows))


@pytest.mark.parametrize("steps", [0, 3, 4])  # three make an epoch
def test_resumed_run_gets_the_batches_of_the_original(
    steps: int, make_gym: MakeGym, assert_same_batch: Callable[..., None]
) -> None:
    env = make_gym(train=11)
    for _ in range(steps):
        env.next_batch()
    resumed = make_gym(train=11, seed=9)
    resumed.reset()
    resumed.load_state_dict(json.loads(json.dumps(env.state_dict())))
    with pytest.raises(RuntimeError, match="call reset"):
        resumed.step([["1"]] * 4)
    for _ in range(5):
        assert_same_batch(resumed.next_batch(), env.next_batch())


def test_other_answers_and_templates_are_other_rows(make_tokenizer: MakeTokenizer) -> None:
    rows = rows_of(4)
    env = ReasoningGym(rows, rows, make_tokenizer(), equal)
    changed = Dataset.from_list([row | {"answer": "9"} for row in rows])
    others = [
        ReasoningGym(changed, rows, make_tokenizer(), equal),
        ReasoningGym(rows, rows, make_tokenizer(), equal, TEMPLATE),
    ]
    for other in others:
        assert other.fingerprint("train") != env.fingerprint("train")
        with pytest.raises(ValueError, match="other training rows"):
            env.load_state_dict(other.state_dict())
    assert next(others[0].test_batches())["answer"] == rows["answer"][:]
    assert others[0].next_batch()["answer"] == ["9"] * 4
    assert ReasoningGym(rows_of(4), rows, make_tokenizer(), equal).fingerprint("train") == env.fingerprint("train")


def test_training_loops_take_batches_without_judging(make_gym: MakeGym) -> None:
    env, other = make_gym(), make_gym()
    (batch,) = Environments.make(env, None, agents=3).step()
    assert batch["row"].tolist() == other.reset()["row"].tolist()


def test_reset_twice_and_rewinding(make_gym: MakeGym) -> None:
    env = make_gym()
    first = env.reset()
    with pytest.warns(UserWarning, match="more than once in a row"):
        second = env.reset()
    _, rewards = env.step([["x"]] * 4)  # of the second
    assert rewards.shape == (4, 1)
    with pytest.warns(UserWarning, match="Rewinding the train split"):
        again = env.reset(reset_dataloaders=True)
    assert again["row"].tolist() == first["row"].tolist() != second["row"].tolist()


# Judging ------------------------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(["0", "1", "2", " yes", "hello", "\n", "{", "é"]), max_size=4).map("".join)


@settings(max_examples=30, deadline=None)
@given(group=st.integers(1, 4), data=st.data())
def test_step_and_judge_agree_on_every_form(group: int, data: st.DataObject, make_gym: MakeGym) -> None:
    """AgileRL's tensors, texts, and what was sampled, against calling the function."""

    def reward(completion: str, answer: Any, question: str) -> float:
        return len(completion) + (completion == answer) / 4 + len(question) / 64

    env, rows = make_gym(reward_fn=reward), rows_of(10)
    for form in ("sampled", "tensors", "texts", "tensors"):
        batch = env.reset() if form == "sampled" else env.next_batch()
        texts = [[data.draw(WORDS) for _ in range(group)] for _ in batch["row"]]
        completions = sampled(texts, env.tokenizer)
        expected = [
            [reward(text, rows[row]["answer"], rows[row]["question"]) for text in each]
            for row, each in zip(batch["row"].tolist(), texts, strict=True)
        ]
        assert env.judge(QuestionBatch.from_experiences(batch), completions) == expected
        given_forms: dict[str, Any] = {
            "sampled": completions,
            "texts": texts,
            "tensors": padded(completions, batch, env.pad_token_id),
        }
        following, rewards = env.step(given_forms[form])
        assert rewards.dtype == torch.float32
        assert rewards.tolist() == torch.tensor(expected, dtype=torch.float32).tolist()
        assert following["split"] == "train"


def test_masks_say_what_is_judged(make_gym: MakeGym) -> None:
    env = make_gym(reward_fn=lambda completion, answer, question: float(len(completion)), batch=2)
    batch = env.reset()
    word = env.tokenizer("hello", add_special_tokens=False).input_ids[0]
    sequences = padded(sampled([["yes", "1 2 0"], ["", "no"]], env.tokenizer), batch, word)
    masks = []
    for ids, length, sizes in zip(sequences, batch["prompt_lengths"].tolist(), [(3, 5), (0, 2)], strict=True):
        places = torch.arange(1, ids.shape[1])
        masks.append(torch.stack([(places >= length) & (places < length + size) for size in sizes]))
    expected = [
        [
            float(len(env.tokenizer.decode(row[1:][mask], skip_special_tokens=True)))
            for row, mask in zip(ids, group, strict=True)
        ]
        for ids, group in zip(sequences, masks, strict=True)
    ]
    place = env.state_dict()
    for wrong in (masks[:1], [masks[0][:, 1:], masks[1]], [mask.long() for mask in masks], [~mask for mask in masks]):
        with pytest.raises(ValueError, match=r"action_masks of 1|The mask of prompt 0 of the batch must be bool"):
            env.step(sequences, wrong)
    with pytest.raises(TypeError, match="action_masks go with token ids"):
        env.step([["yes"], ["no"]], masks)
    assert env.state_dict() == place
    assert env.step(sequences, masks)[1].tolist() == expected


def test_rewards_are_of_the_rows_whatever_came_since(make_gym: MakeGym) -> None:
    """So that all agents of a population can learn from one environment, each from rows of its own."""
    env, rows = make_gym(batch=3), rows_of(10)
    batches = [QuestionBatch.from_experiences(env.next_batch()) for _ in range(3)]
    held_out = QuestionBatch.from_experiences(next(env.test_batches()))
    both = QuestionBatch.concat([*batches[::-1], held_out])
    completions = sampled([[str(number), "no"] for number in range(len(both))], env.tokenizer)
    before = env.state_dict()
    expected = [
        [float(str(place) == (rows if split == "train" else rows_of(5, first=1000))[row]["answer"]), 0.0]
        for place, (split, row) in enumerate(zip(both.splits, both.rows, strict=True))
    ]
    assert sum(map(sum, expected)) > 0
    assert env.judge(both, completions) == env.judge(both, completions) == expected
    assert env.state_dict() == before
    ragged = Completions([completions.tokens[0][:1], completions.tokens[1]], [], [])
    assert env.judge(both.slice(0, 2), ragged) == [expected[0][:1], expected[1]]


def test_several_rewards(make_gym: MakeGym) -> None:
    calls: list[int] = []

    def at_once(completions: list[str], answers: list[Any], questions: list[str]) -> list[float | None]:
        calls.append(len(completions))
        return [None if text == "no" else float(len(text)) for text in completions]

    functions = {"correct": equal, "style": BatchedReward(at_once)}
    env = make_gym(reward_fn=functions, reward_weights=[2.0, 0.5], batch=2)
    batch = env.reset()
    questions = QuestionBatch.from_experiences(batch)
    answers = batch["answer"]
    completions = sampled([[answers[0], "no"], ["hello", answers[1]]], env.tokenizer)
    assert env.judge(questions, completions) == [[2.5, 0.0], [2.5, 2.5]]
    assert calls == [4]
    assert (env.rewards.names, env.rewards.weights) == (("correct", "style"), (2.0, 0.5))


def test_evaluation_leaves_the_batch_to_be_judged_alone(make_gym: MakeGym) -> None:
    env = make_gym(reward_fn=lambda completion, answer, question: float(len(question)))
    batch = env.reset()
    with env.eval_mode() as inner:
        with pytest.raises(RuntimeError, match=r"none of this split yet: call reset\(\) first"):
            inner.step([["x"]] * 4)
        shown = inner.reset()
        assert shown["row"].tolist() == [0, 1, 2, 3]
        following, rewards = inner.step([["x"]] * 4)
        assert rewards[:, 0].tolist() == [len(question) for question in shown["question"]]
        assert (following["split"], following["row"].tolist()) == ("test", [4])
        with env.eval_mode():
            env.reset()
        _, rewards = env.step([["x"]])
        assert rewards[:, 0].tolist() == [len(following["question"][0])]
    list(env.test_batches())
    _, rewards = env.step([["x"]] * 4)
    assert rewards[:, 0].tolist() == [len(question) for question in batch["question"]]


def test_completions_that_are_not_of_the_batch(make_gym: MakeGym) -> None:
    env = make_gym()
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step([["x"]] * 4)
    batch = env.reset()
    good = padded(sampled([["1"]] * 4, env.tokenizer), batch, env.pad_token_id)
    place = env.state_dict()
    wrong: list[tuple[Any, type[Exception], str]] = [
        (good[:3], ValueError, "The completions are of 3 prompts, and the batch has 4"),
        (good[::-1], ValueError, "The completions of prompt 0 of the batch do not begin with its"),
        ([*good[:3], good[3][0]], ValueError, r"The completions of prompt 3 .* must be token ids \(G, T\)"),
        ([*good[:3], good[3].float()], ValueError, r"The completions of prompt 3 .* got torch.float32 of shape"),
        ([["x"], ["x", "y"], ["x"], ["x"]], ValueError, r"as many completions for every prompt, got \[1, 2, 1, 1\]"),
        ([["x"], [], ["x"], ["x"]], ValueError, "Prompt 1 of the batch has no completion"),
        (["x", "x", "x", "x"], TypeError, "The completions of prompt 0 .* a list of texts, got 'x'"),
        ([[1]] * 4, TypeError, r"The completions of prompt 0 .* a list of texts, got \[1\]"),
    ]
    for completions, error, problem in wrong:
        with pytest.raises(error, match=problem):
            env.step(completions)
    assert env.state_dict() == place
    _, rewards = env.step(good)
    assert rewards.shape == (4, 1)


def test_rows_that_are_not_of_the_environment(make_gym: MakeGym) -> None:
    env = make_gym()
    questions = QuestionBatch.from_experiences(env.reset())
    completions = sampled([["1"]] * 4, env.tokenizer)
    for splits, rows, problem in (
        (["final"] * 4, questions.rows, "There is no split 'final'"),
        (questions.splits, [0, 1, 2, 10], "There is no row 10 in the train split of 10 rows"),
        (questions.splits, [-1, 1, 2, 3], "There is no row -1"),
    ):
        with pytest.raises(ValueError, match=problem):
            env.judge(QuestionBatch(questions.prompts, rows, splits, questions.labels), completions)
    with pytest.raises(ValueError, match="There is no row 5 in the test split"):
        env.messages("test", 5)


def test_a_failing_reward_names_the_row_and_changes_no_place(make_gym: MakeGym) -> None:
    def fussy(completion: str, answer: Any, question: str) -> float:
        if completion == "2":
            raise KeyError("nothing")
        return 0.0

    env = make_gym(reward_fn=fussy)
    batch, place = env.reset(), env.state_dict()
    row = int(batch["row"][1])
    with pytest.raises(RewardError, match=f"^train row {row}, completion 2 of 2: the reward function 'fussy' failed"):
        env.step([["1", "1"], ["1", "2"], ["1", "1"], ["1", "1"]])
    assert env.state_dict() == place
    following, _ = env.step([["1"]] * 4)
    assert following["row"].tolist() != batch["row"].tolist()


def test_a_failing_reward_names_the_row_as_the_user_has_it(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    def fussy(completion: str, answer: Any, question: str) -> float:
        raise KeyError(question)

    rows = [{"question": f"hello {i}", "answer": str(i)} for i in range(9)]
    for name, part in (("a", rows[:4]), ("b", rows[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for source in (tmp_path, Dataset.from_list(rows)):
        train, test = load_questions(source).split_by_prompt(0.4)
        env = ReasoningGym(train, test, make_tokenizer(), fussy, data_batch_size_per_gpu=1)
        for batch in env.test_batches():
            number = int(batch["question"][0].split()[1])
            where = f"test row {number}"
            if source == tmp_path:
                file, place = ("a", number) if number < 4 else ("b", number - 4)
                where = f"test row {place} of {tmp_path / file}.jsonl"
            with pytest.raises(RewardError, match=f"^{re.escape(where)}, completion 1 of 1: the reward"):
                env.judge(QuestionBatch.from_experiences(batch), sampled([["yes"]], env.tokenizer))


# Arguments ----------------------------------------------------------------------------------------------------------


def test_agilerls_positions(make_tokenizer: MakeTokenizer) -> None:
    rows = rows_of(3)
    env = ReasoningGym(rows, rows, make_tokenizer(), equal, TEMPLATE, 2, None, True, 90, 7)
    assert (env.conversation_template, env.data_batch_size_per_gpu, env.accelerator) == (TEMPLATE, 2, None)
    assert (env.return_raw_completions, env.seed, env.success_reward) == (True, 7, 1.0)
    other = ReasoningGym(rows, rows, make_tokenizer(), equal)
    assert (other.data_batch_size_per_gpu, other.seed, other.return_raw_completions) == (8, 42, False)


def test_loaded_rows(make_tokenizer: MakeTokenizer) -> None:
    rows = Dataset.from_list([{"problem": f"{i}", "Solution": f"{i}"} for i in range(6)])
    loaded = load_questions(rows, layout=Questions("problem", TEMPLATE))
    train, test = loaded.split_by_prompt(0.4)
    env = ReasoningGym(train, test, make_tokenizer(), equal, answer_column="Solution")
    batch = next(env.test_batches())
    assert batch["question"] == batch["answer"] == test.dataset["problem"][:]
    assert env.judge(
        QuestionBatch.from_experiences(batch), sampled([[q] for q in batch["question"]], env.tokenizer)
    ) == [[1.0]] * len(test)
    ReasoningGym(train, test, make_tokenizer(), equal, TEMPLATE, answer_column="Solution")
    with pytest.raises(ValueError, match=r"The train dataset was loaded as Questions.*Give the template to load_quest"):
        ReasoningGym(train, test, make_tokenizer(), equal, TEMPLATE[1:], answer_column="Solution")
    pairs = load_preferences(Dataset.from_list([{"prompt": "one", "chosen": "1", "rejected": "2"}]))
    with pytest.raises(DatasetError, match=r"needed are rows of prompts alone\. Load them with load_questions"):
        ReasoningGym(pairs, pairs, make_tokenizer(), equal, answer_column=None)
    with pytest.raises(DatasetError, match="of prompts alone; needed are rows of chosen and rejected"):
        PreferenceGym(train, test, make_tokenizer())


def test_splits(make_tokenizer: MakeTokenizer) -> None:
    rows = rows_of(3)
    env = ReasoningGym(
        rows, rows, make_tokenizer(), equal, final_dataset=rows.select([2]), validation_datasets={"hard": rows}
    )
    assert env.splits == ("train", "test", "final", "validation-hard")
    (final,) = env.test_batches("final")
    assert (final["question"], final["row"].tolist(), final["split"]) == ([rows[2]["question"]], [0], "final")
    assert env.judge(QuestionBatch.from_experiences(final), sampled([["2"]], env.tokenizer)) == [[1.0]]
    assert env.messages("final", 0) == [{"role": "user", "content": rows[2]["question"]}]


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"reward_fn": None}, TypeError, "reward_fn 'NoneType' cannot be called"),
        ({"reward_weights": [1.0, 2.0]}, ValueError, "reward_weights has 2 numbers for 1 reward functions"),
        ({"success_reward": "1"}, TypeError, "success_reward must be a number, got '1'"),
        ({"success_reward": float("nan")}, ValueError, "success_reward must be finite"),
        ({"return_raw_completions": 1}, TypeError, "return_raw_completions must be True or False, got 1"),
        ({"answer_column": 3}, TypeError, "answer_column must be a column's name or None, got 3"),
        ({"conversation_template": "hello {question}"}, TypeError, "must be a list of messages or None"),
        ({"conversation_template": [{"role": "user", "content": "hello"}]}, ValueError, "has no '{question}'"),
        ({"data_batch_size_per_gpu": 0}, ValueError, "data_batch_size_per_gpu must be at least 1"),
        (
            {"conversation_template": [{"role": "user", "content": "{question}{answer}"}], "answer_column": None},
            ValueError,
            "conversation_template has '{answer}', and answer_column=None says",
        ),
    ],
)
def test_bad_arguments_are_found_before_data_is_opened(
    options: dict[str, Any], error: type[Exception], problem: str, make_tokenizer: MakeTokenizer
) -> None:
    with pytest.raises(error, match=problem):
        ReasoningGym("nowhere.jsonl", "nowhere.jsonl", make_tokenizer(), **{"reward_fn": equal, **options})


def test_missing_columns(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    rows, tokenizer = rows_of(3), make_tokenizer()
    with pytest.raises(
        DatasetError, match=r"^test dataset: the column 'answer' of answers is missing; .*Pass answer_co"
    ):
        ReasoningGym(rows, rows.remove_columns("answer"), tokenizer, equal)
    with pytest.raises(DatasetError, match=r"Perhaps answer_column='Answers' is meant\. Pass answer_column"):
        ReasoningGym(rows.rename_column("answer", "Answers"), rows, tokenizer, equal)
    with pytest.raises(
        DatasetError, match=r"^train dataset: required column 'question' is missing; .*'Question' is it"
    ):
        ReasoningGym(rows.rename_column("question", "Question"), rows, tokenizer, equal)
    path = tmp_path / "rows.jsonl"
    rows.remove_columns("answer").to_json(path)
    with pytest.raises(DatasetError, match=rf"^train dataset \({path}\): the column 'answer' of answers is missing"):
        ReasoningGym(path, path, tokenizer, equal)
    env = ReasoningGym(path, path, tokenizer, lambda completion, answer, question: answer is None, answer_column=None)
    env.reset()
    assert env.step([["x"]] * 3)[1].tolist() == [[1.0]] * 3


def test_own_layouts_say_what_was_asked(make_tokenizer: MakeTokenizer) -> None:
    class Shouted(Prompts):
        def asked(self, values: Any) -> str:
            return super().asked(values).upper()

    rows = Dataset.from_list([{"prompt": "hello", "answer": "HELLO"}])
    loaded = load_questions(rows, layout=Shouted())
    env = ReasoningGym(loaded, loaded, make_tokenizer(), lambda completion, answer, question: question == answer)
    assert env.reset()["question"] == ["HELLO"]
    assert env.step([["x"]])[1].tolist() == [[1.0]]
