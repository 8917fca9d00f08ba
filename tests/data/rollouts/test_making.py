"""From a file of rollouts to a file of pairs."""

import gzip
import json
import os
import stat
import tracemalloc
import warnings
from collections import defaultdict

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from agiledpo.data import prepare_rows
from agiledpo.data.errors import DatasetError
from agiledpo.data.rollouts import Distribution, make_pairs, making, writing


@pytest.fixture
def output(tmp_path):
    return tmp_path / "pairs" / "train.jsonl"


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def quietly(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make_pairs(*args, **kwargs)


def recipe_pairs(rollouts, min_gap):
    """NeMo Gym's recipe, written again: grouped by the last user message, the best against the worst."""
    by_prompt = defaultdict(list)
    for rollout in rollouts:
        users = [item for item in rollout["responses_create_params"]["input"] if item["role"] == "user"]
        by_prompt[users[-1]["content"]].append(rollout)
    pairs = []
    for prompt, group in by_prompt.items():
        ranked = sorted(group, key=lambda rollout: -rollout["reward"])
        gap = ranked[0]["reward"] - ranked[-1]["reward"]
        if len(group) > 1 and gap >= min_gap:
            chosen, rejected = (ranked[end]["output"][-1]["content"][0]["text"] for end in (0, -1))
            rewards = {"chosen_reward": ranked[0]["reward"], "rejected_reward": ranked[-1]["reward"]}
            pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "reward_gap": gap, **rewards})
    return pairs


@given(
    lines=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-64, 64)), min_size=1, max_size=30, unique=True),
    gap=st.integers(0, 64),
)
def test_the_recipe_of_the_tutorial_gives_the_same_rows(tmp_path_factory, rollout, read, lines, gap):
    """Where it may be compared: prompts of one user message, no ties, rewards whose differences are exact."""
    rollouts = [
        rollout([{"role": "user", "content": prompt}], f"{prompt} {reward}", reward / 64) for prompt, reward in lines
    ]
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rollouts))
    statistics = quietly(folder / "in.jsonl", folder / "out.jsonl", min_gap=gap / 64, format="text")
    # A gap of nothing is a tie, which is no preference; the recipe would keep it.
    expected = [pair for pair in recipe_pairs(rollouts, gap / 64) if pair["reward_gap"] > 0]
    assert statistics.pairs == len(expected)
    assert (read(folder / "out.jsonl") if expected else []) == expected


def test_rows_of_every_format(rollout, write, read, tmp_path):
    path = write(rollout("Why?", "So.", 1.0), rollout("Why?", "No.", 0.25))
    rewards = {"reward_gap": 0.75, "chosen_reward": 1.0, "rejected_reward": 0.25}
    expected = {
        "messages": {"prompt": user("Why?"), "chosen": assistant("So."), "rejected": assistant("No.")},
        "text": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        "ranked": {
            "context": user("Why?"),
            "completions": [
                {"rank": 0, "completion": assistant("So.")},
                {"rank": 1, "completion": assistant("No.")},
            ],
        },
    }
    for name, row in expected.items():
        make_pairs(path, tmp_path / name, format=name)
        assert read(tmp_path / name) == [row | rewards]


def test_contexts_that_share_the_last_user_turn_stay_apart(rollout, write, output):
    """The recipe would pair answers to "continue" in two different conversations."""
    one = [*user("Count up."), *assistant("1"), *user("continue")]
    other = [*user("Count down."), *assistant("9"), *user("continue")]
    path = write(rollout(one, "2", 1.0), rollout(other, "2", 0.0))
    with pytest.warns(UserWarning, match="no prompt has two rollouts"):
        statistics = make_pairs(path, output)
    assert (statistics.prompts, statistics.single_rollout_prompts, statistics.pairs) == (2, 2, 0)
    assert not output.exists()


@pytest.mark.parametrize("extra", [{"instructions": "Be brief."}, {"tools": [{"type": "function", "name": "add"}]}])
def test_instructions_and_tools_are_part_of_the_prompt(rollout, write, output, extra):
    path = write(rollout("Why?", "So.", 1.0, **extra), rollout("Why?", "No.", 0.0))
    assert quietly(path, output).prompts == 2


def test_the_same_prompt_in_other_words_is_the_same(rollout, write, output):
    parts = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Why?"}]}]
    lines = (
        rollout("Why?", "A", 1.0),
        rollout("How?", "B", 0.5),
        rollout(parts, "C", 0.0, temperature=0.3, tools=[], instructions=None),
        rollout([{"content": "Why?", "role": "user"}], "D", 0.5),
    )
    statistics = make_pairs(write(*lines), output)
    assert (statistics.prompts, statistics.single_rollout_prompts, statistics.pairs) == (2, 1, 1)


def test_tools_are_written_with_the_pair(rollout, write, read, output):
    tool = {"type": "function", "name": "add", "parameters": {"type": "object"}}
    make_pairs(write(*(rollout("Why?", answer, len(answer), tools=[tool]) for answer in ("A", "BB"))), output)
    function = {"name": "add", "parameters": {"type": "object"}}
    assert read(output)[0]["tools"] == [{"type": "function", "function": function}]


def test_statistics_in_closed_form(rollout, write, output):
    rewards = {"a": (1.0, 0.0, 0.5), "b": (0.75, 0.25), "c": (0.5, 0.5), "d": (0.5, 0.4), "e": (1.0,)}
    lines = [rollout(name, f"{name}{i}", r) for name, values in rewards.items() for i, r in enumerate(values)]
    lines += [rollout("f", "same", 1.0), rollout("f", "same", 0.0), rollout("g", " ", 0.0)]
    lines += ["\n", rollout("g", [{"type": "function_call", "name": "x", "arguments": "{}"}], 1.0)]
    with warnings.catch_warnings(record=True) as caught:
        statistics = make_pairs(write(*lines), output)
    assert [str(warning.message) for warning in caught] == [
        "1 of 15 lines are left out (empty_response): 13.",
        "1 of 15 lines are left out (multi_step): 15.",
    ]
    figures = json.loads(json.dumps(statistics.to_dict()))
    for name, count in {
        "lines": 15,
        "blank_lines": 1,
        "rollouts": 12,
        "prompts": 6,
        "single_rollout_prompts": 1,
        "ties": 1,
        "small_gaps": 1,
        "identical_completions": 1,
        "pairs": 2,
        "prompts_differ": 0,
    }.items():
        assert figures[name] == count, name
    assert figures["left_out"] == {
        "empty_response": {"count": 1, "lines": [13]},
        "multi_step": {"count": 1, "lines": [15]},
    }
    assert figures["gaps"]["mean"] == 0.75
    assert figures["chosen_rewards"]["mean"] == 0.875
    assert figures["rejected_rewards"]["mean"] == 0.125
    assert figures["gaps"]["quantiles"] == pytest.approx([0.5, 0.55, 0.625, 0.75, 0.875, 0.95, 1.0])
    assert figures["gaps"]["edges"] == pytest.approx([0.5 + 0.05 * i for i in range(11)])
    assert figures["gaps"]["counts"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert figures["spreads"]["quantiles"] == pytest.approx([0, 0.04, 0.1, 0.5, 1.0, 1.0, 1.0])


def test_one_gap_is_one_bin(rollout, write, output):
    gaps = make_pairs(write(rollout("a", "1", 1.0), rollout("a", "2", 0.0)), output).gaps
    assert (gaps.edges, gaps.counts) == ((1.0, 1.0), (1,))


def test_gaps_that_differ_by_rounding_are_one_bin(rollout, write, output):
    """Ten bins between 0.19999999999999998 and 0.2 would have no width."""
    rewards = {"a": (0.3, 0.1), "b": (0.2, 0.0)}
    lines = [rollout(name, f"{name}{reward}", reward) for name, both in rewards.items() for reward in both]
    statistics = make_pairs(write(*lines), output)
    assert statistics.gaps.edges == (0.3 - 0.1, 0.2)
    assert statistics.gaps.edges[0] < 0.2
    assert statistics.gaps.counts == (2,)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=12), st.integers(0, 40))
def test_every_value_is_in_a_bin(values, ulps):
    values = np.array([*values, values[0] + ulps * np.spacing(values[0])])
    distribution = Distribution.of(values)
    assert sum(distribution.counts) == len(values)
    assert (distribution.edges[0], distribution.edges[-1]) == (values.min(), values.max())


def test_statistics_that_fail_leave_no_file(rollout, write, output, monkeypatch):
    def broken(values):
        raise ArithmeticError

    monkeypatch.setattr(Distribution, "of", broken)
    with pytest.raises(ArithmeticError):
        make_pairs(write(rollout("a", "b", 1.0), rollout("a", "c", 0.0)), output)
    assert not output.exists()


def test_stratified_says_where_prompts_differ(rollout, write, read, output):
    lines = (rollout("a", "good", 0.9), rollout("b", "bad", 0.1), rollout("c", "fair", 0.5))
    with pytest.warns(UserWarning, match="In 1 of 1 pairs the rejected completion answers another prompt"):
        statistics = make_pairs(write(*lines), output, strategy="stratified")
    assert statistics.prompts_differ == 1
    (row,) = read(output)
    assert (row["prompt"], row["rejected"], row["prompts_differ"]) == (user("a"), assistant("bad"), True)


def test_thresholds_forgive_rounding(rollout, write, output):
    high, low = 0.1 + 0.2 + 0.4, 0.1 + 0.2
    assert high > 0.7
    assert low > 0.3
    path = write(rollout("a", "good", 0.7), rollout("a", "bad", low))
    assert make_pairs(path, output, strategy="stratified", high_threshold=high, low_threshold=0.3).pairs == 1


def test_the_final_message_can_stand_for_several_steps(rollout, write, read, output):
    call = {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}"}
    final = {"type": "message", "content": [{"type": "output_text", "text": "2"}]}
    path = write(rollout("1+1", [call, final], 1.0), rollout("1+1", "3", 0.0))
    with pytest.warns(UserWarning, match="Of 1 of 2 rollouts only the last message is used"):
        statistics = make_pairs(path, output, multi_step="final")
    assert statistics.final_only == 1
    assert read(output)[0]["chosen"] == assistant("2")


def test_nothing_usable_gives_advice(rollout, write, output):
    call = {"type": "function_call", "name": "add", "arguments": "{}"}
    statistics = quietly(write(*[rollout("a", [call], 1.0)] * 2), output)
    assert "none of its rollouts is usable (multi_step 2). Use multi_step='final'" in statistics.advice()
    assert statistics.rollouts == statistics.pairs == 0
    assert statistics.rewards is None


@pytest.mark.parametrize(
    ("rewards", "options", "advice"),
    [
        ((0.5, 0.4), {}, r"largest gap within a prompt is 0\.1 \(median 0\.1\)\. Lower min_gap\."),
        ((0.5, 0.5), {}, r"all rollouts of a prompt have the same\. Collect more rollouts per prompt"),
        ((0.5, 0.4), {"strategy": "stratified"}, r"between 0\.4 and 0\.5\. Move high_threshold and low_threshold"),
    ],
)
def test_no_pairs_no_file_but_advice(rollout, write, output, rewards, options, advice):
    path = write(*(rollout("a", f"answer {number}", reward) for number, reward in enumerate(rewards)))
    with pytest.warns(UserWarning, match=advice):
        assert make_pairs(path, output, **options).output is None
    assert not output.exists()


def test_the_line_of_an_error_counts_blank_lines_and_those_before(rollout, write, output):
    path = write("\n", rollout("a", "b", 1.0), " \n", rollout("a", "c", "high"))
    with pytest.raises(DatasetError) as caught:
        make_pairs(path, output)
    assert str(caught.value) == (
        f"rollouts dataset ({path}): line 4, field 'reward': expected a number, got 'high'. Give every rollout the "
        f"number its verifier gave; drop those that were not judged."
    )
    assert not output.parent.exists()


def test_a_cut_last_line_has_its_own_remedy(rollout, write, output):
    whole = json.dumps(rollout("a", "b", 1.0))
    with pytest.raises(DatasetError, match=r"line 2: the last line is cut off.*interrupted or is still at work"):
        make_pairs(write(whole + "\n", whole[:-7]), output)
    with pytest.raises(DatasetError, match=r"line 1: it is not JSON \("):
        make_pairs(write(whole[:-7] + "\n", whole), output)


def test_the_last_line_needs_no_line_feed(rollout, write, output):
    path = write(rollout("a", "b", 1.0), json.dumps(rollout("a", "c", 0.0)))
    assert make_pairs(path, output).pairs == 1


def test_invalid_lines_can_be_skipped_and_are_counted(rollout, write, read, output):
    broken = ["{\n"] * 5
    path = write(*broken, rollout("a", "b", 1.0), rollout("a", "x"), rollout("a", "c", None), rollout("a", "d", 0.0))
    with warnings.catch_warnings(record=True) as caught:
        statistics = make_pairs(path, output, on_invalid="skip")
    assert [str(warning.message) for warning in caught] == [
        "5 of 9 lines are left out (not_json): 1, 2, 3 and others.",
        "1 of 9 lines are left out (reward): 8.",
    ]
    assert {reason: entry.count for reason, entry in statistics.left_out.items()} == {"not_json": 5, "reward": 1}
    assert read(output)[0]["rejected"] == assistant("x")


def test_an_invalid_prompt_is_not_taken_for_the_one_before(rollout, write, output):
    """Lines after an invalid request that repeat it are invalid too."""
    bad = rollout([{"role": "bot", "content": "?"}], "b", 1.0)
    lines = (rollout("a", "b", 1.0), bad, bad, rollout("a", "c", 0.0))
    assert quietly(write(*lines), output, on_invalid="skip").left_out["input"].lines == [2, 3]


def test_a_prompt_that_is_no_text_does_not_spoil_the_next(rollout, write, output):
    system = [{"role": "system", "content": "Be brief."}, *user("Why?")]
    path = write(rollout("a", "b", 1.0), rollout(system, "b", 1.0), rollout("a", "c", 0.0))
    statistics = quietly(path, output, format="text", on_invalid="skip")
    assert (statistics.left_out["format"].lines, statistics.rollouts, statistics.pairs) == ([2], 2, 1)


def test_text_is_refused_where_it_would_lose_something(rollout, write, output):
    system = [{"role": "system", "content": "Be brief."}, *user("Why?")]
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    answer = {"type": "message", "content": "So."}
    for line, problem in (
        (rollout(system, "b", 1.0), "a prompt of the messages system, user cannot be written as one text"),
        (rollout("a", "b", 1.0, tools=[{"type": "function", "name": "f"}]), "tools cannot be written"),
        (rollout("a", [thought, answer], 1.0), "reasoning cannot be written"),
    ):
        with pytest.raises(DatasetError, match=rf"line 1, field .*{problem}.*\. Use format='messages'"):
            make_pairs(write(line), output, format="text")


def test_half_a_character_is_refused(rollout, write, output):
    with pytest.raises(DatasetError, match="line 1, field 'output': its text holds half of a surrogate pair"):
        make_pairs(write(rollout("a", "\ud83d", 1.0)), output)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused_with_their_line(rollout, write, output, value):
    tools = [{"type": "function", "name": "f", "parameters": {"maximum": value}}]
    calls = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": value}}}]}]
    good = [rollout("b", "c", 1.0), rollout("b", "d", 0.0)]
    for bad, reason, field in (
        (rollout("a", "b", 1.0, tools=tools), "tools", "tools"),
        (rollout([*calls, *user("a")], "b", 1.0), "input", "input"),
    ):
        path = write(*good, bad)
        message = rf"line 3, field 'responses_create_params\.{field}': it holds NaN or Infinity.*on_invalid='skip'"
        with pytest.raises(DatasetError, match=message):
            make_pairs(path, output, overwrite=True)
        statistics = quietly(path, output, on_invalid="skip", overwrite=True)
        assert (statistics.left_out[reason].lines, statistics.pairs) == ([3], 1)


def test_what_is_nested_too_deeply_is_refused_with_its_line(rollout, write, output):
    for depth in (600, 20_000):
        line = json.dumps(rollout("a", "b", 1.0, tools=["@"])).replace('"@"', '{"a":' * depth + "1" + "}" * depth)
        path = write(rollout("b", "c", 1.0), rollout("b", "d", 0.0), line + "\n")
        assert quietly(path, output, on_invalid="skip", overwrite=True).pairs == 1


def test_rewards_whose_gap_is_no_number_are_refused(rollout, write, output):
    path = write(rollout("a", "b", 1.7e308), rollout("a", "c", -1.7e308))
    with pytest.raises(DatasetError, match=r"line 1, field 'reward': it is 1\.7e\+308, beyond 1e\+290"):
        make_pairs(path, output)
    path = write(rollout("a", "b", 1e290), rollout("a", "c", -1e290))
    assert make_pairs(path, output).gaps.mean == 2e290


@pytest.mark.parametrize("between", [[], [("z", "x", 1.0)]])
def test_prompts_do_not_depend_on_the_order_of_lines(rollout, write, output, between):
    """True, 1 and 1.0 are equal in Python; in a tool they are not."""
    first, *others = (rollout("a", str(d), i, tools=[{"name": "f", "d": d}]) for i, d in enumerate((True, 1, 1.0)))
    lines = [first]
    for other in others:
        lines += [*(rollout(*line) for line in between), other]
    assert quietly(write(*lines), output).prompts == 3 + len(between)


def test_a_byte_order_mark_and_carriage_returns_are_no_obstacle(rollout, write, read, output):
    path = write(rollout("ä", "ö", 1.0), rollout("ä", "ü", 0.0))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    make_pairs(path, output)
    assert read(output)[0]["chosen"] == assistant("ö")


def test_gzip_gives_the_same_file(rollout, write, output, tmp_path):
    path = write(*(rollout(f"{i // 3}", f"answer {i}", i % 3) for i in range(30)))
    compressed = tmp_path / "rollouts.jsonl.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    make_pairs(path, output)
    make_pairs(compressed, tmp_path / "other.jsonl")
    assert (tmp_path / "other.jsonl").read_bytes() == output.read_bytes()
    compressed.write_bytes(compressed.read_bytes()[:-9])
    with pytest.raises(DatasetError, match="compressed file is damaged or cut off"):
        make_pairs(compressed, tmp_path / "third.jsonl")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file holds no rollouts"),
        (b"\n \n", "the file holds no rollouts"),
        (b"\x28\xb5\x2f\xfd\0", "compressed with Zstandard.*zstd -d"),
        (b"PAR1\0", "is a Parquet file"),
        ("{}".encode("utf-16"), "is in UTF-16.*iconv"),
        (b'{"a": "\xe4"}\n', "line 1: byte 8 is not UTF-8"),
        (b'[{"reward": 1}]\n', r"line 1: expected a JSON object, got list.*jq -c '\.\[\]'"),
        (b'{\n"reward": 1}\n', "line 1: it is not JSON.*jq -c"),
    ],
)
def test_what_is_no_file_of_rollouts(tmp_path, output, content, problem):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=problem):
        make_pairs(path, output)
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "strategy must be one of same_prompt, adjacent, .*, got 'best'"),
        ({"format": "csv"}, "format must be one of messages, text, ranked, got 'csv'"),
        ({"multi_step": "all"}, "multi_step must be one of skip, final, got 'all'"),
        ({"on_invalid": "ignore"}, "on_invalid must be 'raise' or 'skip', got 'ignore'"),
        ({"min_gap": -0.1}, "min_gap must not be negative, got -0.1"),
        ({"min_gap": float("nan")}, "min_gap must be a finite number, got nan"),
        (
            {"high_threshold": 0.4, "strategy": "stratified"},
            r"low_threshold \(0.4\) must be less than high_threshold \(0.4\)",
        ),
        ({"low_threshold": float("inf"), "strategy": "stratified"}, "low_threshold must be a finite number, got inf"),
        ({"max_pairs": 0}, "max_pairs must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_options_are_checked_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_pairs(tmp_path / "missing.jsonl", tmp_path / "out.jsonl", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_gap": "0.2"}, "min_gap must be a number, got '0.2'"),
        ({"min_gap": True}, "min_gap must be a number, got True"),
        ({"high_threshold": None, "strategy": "stratified"}, "high_threshold must be a number, got None"),
        ({"max_pairs": 1.5}, "max_pairs must be an integer, got 1.5"),
        ({"seed": None}, "seed must be an integer, got None"),
    ],
)
def test_types_of_options_are_checked(tmp_path, options, message):
    with pytest.raises(TypeError, match=message):
        make_pairs(tmp_path / "missing.jsonl", tmp_path / "out.jsonl", **options)


def test_thresholds_count_only_where_they_apply(rollout, write, output):
    path = write(rollout("a", "b", 1.0), rollout("a", "c", 0.0))
    assert make_pairs(path, output, high_threshold=0.3, low_threshold=float("nan")).pairs == 1


def test_without_pairs_an_earlier_file_is_left_and_named(rollout, write, output):
    path = write(rollout("a", "b", 1.0), rollout("a", "c", 0.5))
    output.parent.mkdir()
    output.write_text("of an earlier run")
    with pytest.warns(UserWarning, match=f"^The file {output} was left as it was: it is not of these rollouts"):
        statistics = make_pairs(path, output, min_gap=0.9, overwrite=True)
    assert (statistics.output, statistics.left_in_place) == (None, str(output))
    assert output.read_text() == "of an earlier run"
    assert make_pairs(path, output, overwrite=True).left_in_place is None


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, overwrite):
    source, link, pipe = tmp_path / "in.jsonl", tmp_path / "link", tmp_path / "pipe"
    source.write_text("never read")
    link.symlink_to(tmp_path / "nowhere")
    os.mkfifo(pipe)
    for place, error, problem in (
        ("/dev/null", FileExistsError, "is no regular file.*; name a file"),
        ("/dev/stdout", FileExistsError, "is no regular file"),
        ("/dev/fd/1", FileExistsError, "is no regular file"),
        (pipe, FileExistsError, "is no regular file"),
        (link, FileExistsError, "is a link to .*nowhere, which does not exist"),
        (source / "pairs.jsonl", NotADirectoryError, "in.jsonl is no directory"),
    ):
        with pytest.raises(error, match=problem):
            make_pairs(source, place, overwrite=overwrite)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match=f"no permission in {tmp_path}; choose another place"):
        make_pairs(source, tmp_path / "new" / "pairs.jsonl", overwrite=overwrite)
    assert link.is_symlink()


def test_nothing_is_overwritten_unasked(rollout, write, output, tmp_path):
    path = write(rollout("a", "b", 1.0), rollout("a", "c", 0.0))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is the input"):
        make_pairs(path, path, overwrite=True)
    assert path.read_bytes() == before
    output.parent.mkdir()
    output.write_text("precious")
    with pytest.raises(FileExistsError, match="exists; choose another one, or set overwrite=True"):
        make_pairs(path, output)
    assert output.read_text() == "precious"
    assert make_pairs(path, output, overwrite=True).pairs == 1
    with pytest.raises(FileExistsError, match="exists and is a directory; choose another one"):
        make_pairs(path, tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="written as plain text"):
        make_pairs(path, tmp_path / "pairs.jsonl.gz")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make_pairs(tmp_path / "missing", tmp_path / "new.jsonl")
    with pytest.raises(IsADirectoryError, match="name one file"):
        make_pairs(tmp_path, tmp_path / "new.jsonl")


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "pairs.jsonl"

    def write_both():
        with writing.drafted(path, overwrite=False) as draft:
            draft.write("new")
            path.write_text("precious")

    with pytest.raises(FileExistsError, match="appeared while"):
        write_both()
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["pairs.jsonl"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interrupted_write_leaves_nothing(rollout, write, output, monkeypatch, error):
    path = write(*(rollout(f"{i // 2}", f"answer {i}", i % 2) for i in range(20)))
    rows = []

    def interrupted(*args, **kwargs):
        rows.append(args)
        if len(rows) == 7:
            raise error
        return {}

    monkeypatch.setattr(writing, "pair_row", interrupted)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        make_pairs(path, output)
    assert os.listdir(output.parent) == []


def test_a_source_that_changes_meanwhile_leaves_nothing(rollout, write, output, monkeypatch):
    path = write(rollout("a", "b", 1.0), rollout("a", "c", 0.0))
    pair_row = writing.pair_row

    def growing(*args, **kwargs):
        with open(path, "a") as file:
            file.write("\n")
        return pair_row(*args, **kwargs)

    monkeypatch.setattr(writing, "pair_row", growing)
    with pytest.raises(DatasetError, match="changed while it was read"):
        make_pairs(path, output)
    assert os.listdir(output.parent) == []


def test_a_source_that_is_written_anew_is_said_to_have_changed(rollout, write, output, monkeypatch):
    """What stands at the old places is then half a line of another one."""
    path = write(rollout("a", "b", 1.0), rollout("a", "c", 0.0))
    write_pairs = making.write_pairs

    def rewritten(*args, **kwargs):
        write(rollout("another", "much longer than before", 1.0), rollout("a", "b", 1.0))
        return write_pairs(*args, **kwargs)

    monkeypatch.setattr(making, "write_pairs", rewritten)
    with pytest.raises(DatasetError, match="changed while it was read"):
        make_pairs(path, output)
    assert os.listdir(output.parent) == []


def test_a_change_that_nothing_shows_is_said_with_the_line(rollout, write, output, monkeypatch):
    """Of the same length, and with the time of the file before."""
    path = write("\n", rollout("a", "b", 1.0), rollout("a", "c", 0.0))
    write_pairs = making.write_pairs
    before = path.stat()

    def rewritten(*args, **kwargs):
        path.write_text(path.read_text().replace('"assistant"', '"assistent"'))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return write_pairs(*args, **kwargs)

    monkeypatch.setattr(making, "write_pairs", rewritten)
    with pytest.raises(DatasetError, match=r"line 2, field 'output\[0\]\.role': unknown role 'assistent'"):
        make_pairs(path, output)


def test_the_file_has_ordinary_permissions(rollout, write, output):
    make_pairs(write(rollout("a", "b", 1.0), rollout("a", "c", 0.0)), output)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(output.stat().st_mode) == 0o666 & ~umask


def test_memory_does_not_grow_with_the_texts(rollout, write, output):
    """40 MB of rollouts, of which every one is used, in the memory of the latest 64 and of one row."""
    path = write(*(rollout(f"{i // 2}", f"{i} " + "x" * 40_000, i % 2) for i in range(1000)))
    assert path.stat().st_size > 40_000_000
    tracemalloc.start()
    try:
        assert make_pairs(path, output).pairs == 500
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000
    assert output.stat().st_size > 40_000_000


@pytest.mark.parametrize("name", ["messages", "text"])
def test_the_pairs_can_be_tokenised(rollout, write, output, make_tokenizer, monkeypatch, tmp_path, name):
    """The file that is written is one that the gyms take; the columns beside the three are left alone."""
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path / "cache"))
    lines = [rollout(f"hello {i // 2}", f"yes {i}", i % 2) for i in range(8)]
    make_pairs(write(*lines), output, format=name)
    tokenizer = make_tokenizer(template="chatml")
    rows = Dataset.from_list([json.loads(line) for line in output.read_text().splitlines()])
    prepared = prepare_rows(rows, tokenizer, name="train").dataset
    assert len(prepared) == 4
    chosen = tokenizer.decode(prepared[0]["prompt_ids"] + prepared[0]["chosen_ids"])
    assert [word for word in ("hello 0", "yes 1", "yes 0") if word in chosen] == ["hello 0", "yes 1"]
