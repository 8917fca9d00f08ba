"""The tokens are the tokenizer's own, with one boundary for both completions and one end."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from agiledpo.data import Form, PreferenceDataError, prepare_rows
from agiledpo.data.messages import without_none
from agiledpo.data.tokenization import isolated_copy, tokenize_rows

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
Message = dict[str, Any]


class Pair(NamedTuple):
    """A tokenised row of two completions."""

    prompt: str
    chosen: str
    rejected: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


# Whatever UTF-8 can hold, with words that merge and tokens that end sequences more often than chance has them.
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(
        ["hello", "hel", "lo", " world", "unbeliev", "able", "\n", " ", "</s>", "<s>", "…", "é", "e\u0301"]
    ),
    max_size=5,
).map("".join)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, chosen: Any, rejected: Any, form: Form = Form.TEXT
) -> Pair:
    columns = {"prompt": [prompt], "chosen": [chosen], "rejected": [rejected]}
    (row,) = tokenize_rows(columns, [0], isolated_copy(tokenizer), form, name="train")
    return Pair(row.prompt, *row.completions, row.prompt_ids, *row.completion_ids)


def ended_once(ids: list[int], eos: int) -> list[int]:
    while ids and ids[-1] == eos:
        ids = ids[:-1]
    return [*ids, eos]


@pytest.fixture(scope="module")
def tokenizers_of_text(make_tokenizer: MakeTokenizer) -> dict[str, PreTrainedTokenizerBase]:
    return {
        "bare": make_tokenizer(),
        "bos": make_tokenizer(bos=True),
        "eos": make_tokenizer(eos=True),
        "bos and eos, padding left": make_tokenizer(bos=True, eos=True, padding_side="left"),
        "python": ByT5Tokenizer(),
    }


KINDS = pytest.mark.parametrize("kind", ["bare", "bos", "eos", "bos and eos, padding left", "python"])


@KINDS
@pytest.mark.filterwarnings("ignore:This sequence already has </s>")  # ByT5, of the texts that end with it
@settings(max_examples=120, deadline=None)
@given(prompt=TEXTS, chosen=TEXTS, rejected=TEXTS)
def test_text_is_tokenised_as_one_piece(
    kind: str,
    prompt: str,
    chosen: str,
    rejected: str,
    tokenizers_of_text: dict[str, PreTrainedTokenizerBase],
) -> None:
    tokenizer = tokenizers_of_text[kind]
    try:
        pair = tokenize(tokenizer, prompt, chosen, rejected)
    except PreferenceDataError as error:
        problem = error.problem
    else:
        problem = ""
    if problem:
        # Only what cannot be learned from is refused.
        empty = not chosen.strip() or not rejected.strip()
        vanishes = any(
            reason in problem for reason in ("no token is left", "no tokens of its own", "are the same tokens")
        )
        assert empty or chosen == rejected or vanishes
        return
    alone = tokenizer(prompt)["input_ids"]
    for completion, ids in ((chosen, pair.chosen_ids), (rejected, pair.rejected_ids)):
        whole = tokenizer(prompt + completion)["input_ids"]
        assert pair.prompt_ids + ids == ended_once(whole, tokenizer.eos_token_id)
        assert len(ids) >= 1
    assert pair.prompt_ids
    assert alone[: len(pair.prompt_ids)] == pair.prompt_ids
    # The prompt is as long as it can be: one token more would not be shared.
    longer = len(pair.prompt_ids) + 1
    wholes = [tokenizer(prompt + completion)["input_ids"] for completion in (chosen, rejected)]
    assert not (len(alone) >= longer and all(whole[:longer] == alone[:longer] for whole in wholes))
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, chosen, rejected)


def test_merge_across_the_boundary(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True)
    hello = tokenizer.convert_tokens_to_ids("hello")
    pair = tokenize(tokenizer, "hel", "lo", "p")
    assert pair.prompt_ids == [tokenizer.bos_token_id]
    assert pair.chosen_ids == [hello, tokenizer.eos_token_id]
    # The whole of "help" is scored on the other side too, so that both sides answer the same prompt.
    assert tokenizer.decode(pair.rejected_ids) == "help</s>"


@pytest.mark.parametrize("merging", ["chosen", "rejected"])
def test_merge_on_one_side_only(merging: str, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True)
    completions = {"chosen": " yes", "rejected": " yes", merging: "lo"}
    pair = tokenize(tokenizer, "world hel", **completions)
    ids = {"chosen": pair.chosen_ids, "rejected": pair.rejected_ids}
    assert tokenizer.decode(pair.prompt_ids) == "<s>world"
    assert tokenizer.decode(ids.pop(merging)) == " hello</s>"
    assert tokenizer.decode(ids.popitem()[1]) == " hel yes</s>"


def test_trailing_space_goes_with_the_completions(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True)
    pair = tokenize(tokenizer, "hello ", "world", "fox")
    assert tokenizer.decode(pair.prompt_ids) == "<s>hello"
    assert pair.chosen_ids == [tokenizer.convert_tokens_to_ids("Ġworld"), tokenizer.eos_token_id]


def test_prompt_tokens_shared_by_completions_stay_with_the_completions(make_tokenizer: MakeTokenizer) -> None:
    """Two completions that begin alike: their common beginning is scored, it is not the prompt's."""
    tokenizer = make_tokenizer(bos=True)
    pair = tokenize(tokenizer, "hello", " yes yes", " yes no")
    assert tokenizer.decode(pair.prompt_ids) == "<s>hello"
    assert tokenizer.decode(pair.chosen_ids) == " yes yes</s>"
    assert tokenizer.decode(pair.rejected_ids) == " yes no</s>"


def test_completion_that_is_a_prefix_of_the_other(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True)
    pair = tokenize(tokenizer, "hello", " yes", " yes maybe")
    eos = tokenizer.eos_token_id
    assert pair.rejected_ids[:-2] == pair.chosen_ids[:-1]
    assert (pair.chosen_ids[-1], pair.rejected_ids[-1]) == (eos, eos)
    assert pair.chosen == " yes"
    assert pair.rejected == " yes maybe"


def test_prompts_that_share_a_prefix_do_not_meet(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = isolated_copy(make_tokenizer(bos=True))
    prompts = ["hello", "hello world", "hello world, how"]
    columns = {"prompt": prompts, "chosen": [" yes"] * 3, "rejected": [" no"] * 3}
    pairs = tokenize_rows(columns, range(3), tokenizer, Form.TEXT, name="train")
    assert [tokenizer.decode(pair.prompt_ids) for pair in pairs] == ["<s>" + prompt for prompt in prompts]
    assert len({tuple(pair.completion_ids[0]) for pair in pairs}) == 1


def test_empty_prompt_is_the_beginning_of_sequence_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True)
    assert tokenize(tokenizer, "", "yes", "no").prompt_ids == [tokenizer.bos_token_id]


def test_one_token_completions(word_tokenizer: PreTrainedTokenizerBase) -> None:
    pair = tokenize(word_tokenizer, "hello world", " yes", " no")
    eos = word_tokenizer.eos_token_id
    yes, no = word_tokenizer.convert_tokens_to_ids(["yes", "no"])
    assert pair.prompt_ids == word_tokenizer.convert_tokens_to_ids(["hello", "world"])
    assert (pair.chosen_ids, pair.rejected_ids) == ([yes, eos], [no, eos])


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("written", ["", "</s>", "</s></s>"])
def test_exactly_one_end_of_sequence_token(adds_eos: bool, written: str, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True, eos=adds_eos)
    pair = tokenize(tokenizer, "hello", " yes" + written, " no" + written)
    for ids in (pair.chosen_ids, pair.rejected_ids):
        assert ids.count(tokenizer.eos_token_id) == 1
        assert ids[-1] == tokenizer.eos_token_id
        assert len(ids) == 2
    assert tokenizer.eos_token_id not in pair.prompt_ids


def test_truncation_padding_and_model_length_neither_matter_nor_change(
    make_tokenizer: MakeTokenizer, text_rows: Callable[..., Dataset], recwarn: pytest.WarningsRecorder
) -> None:
    plain = make_tokenizer(bos=True)
    fussy = make_tokenizer(bos=True, padding_side="left", truncation_side="left", model_max_length=3)
    fussy.backend_tokenizer.enable_truncation(max_length=3)
    fussy.backend_tokenizer.enable_padding(length=16, pad_token="<pad>", pad_id=plain.pad_token_id, direction="left")
    before = fussy.backend_tokenizer.to_str()
    rows = text_rows(3)
    expected = prepare_rows(rows, plain, name="train").dataset.to_list()
    assert prepare_rows(rows, fussy, name="train").dataset.to_list() == expected
    assert fussy.backend_tokenizer.to_str() == before
    assert (fussy.padding_side, fussy.truncation_side, fussy.model_max_length) == ("left", "left", 3)
    # Also when the tokens do not come from the cache.
    assert tokenize(fussy, "hello one two three", " four", " five").prompt_ids == plain("hello one two three").input_ids
    assert not [warning for warning in recwarn if "length" in str(warning.message)]


@pytest.mark.parametrize("empty", ["</s>", " </s> ", "</s></s>"])
@pytest.mark.parametrize("prompt", ["hello", "hello "])
def test_a_completion_that_only_ends(empty: str, prompt: str, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(PreferenceDataError, match="the completion has no tokens of its own"):
        tokenize(make_tokenizer(bos=True), prompt, empty, " yes")


SYSTEM = {"role": "system", "content": "the lazy dog"}
USER = {"role": "user", "content": "hello, how are you?"}
CONVERSATIONS: dict[str, list[Message]] = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "several turns": [USER, {"role": "assistant", "content": "happy"}, {"role": "user", "content": " and now?\n"}],
    "unicode": [{"role": "user", "content": "Grüße, 世界 🌍\u200d"}],
}


def assistant(content: str) -> list[Message]:
    return [{"role": "assistant", "content": content}]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", ["chatml", "llama3", "gemma"])
def test_chat_has_exactly_the_tokens_of_the_template(
    template: str, conversation: str, make_tokenizer: MakeTokenizer
) -> None:
    if (template, conversation) == ("gemma", "system"):
        conversation = "several turns"  # Gemma's template has no system role
    # A tokenizer that adds tokens by itself: the template writes them, they must not come twice.
    tokenizer = make_tokenizer(bos=True, eos=True, template=template)
    prompt = CONVERSATIONS[conversation]
    pair = tokenize(tokenizer, prompt, assistant("yes"), assistant("yes yes 世"), Form.CHAT)
    expected_prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    assert pair.prompt_ids == expected_prompt
    for ids, content in ((pair.chosen_ids, "yes"), (pair.rejected_ids, "yes yes 世")):
        full = tokenizer.apply_chat_template(prompt + assistant(content), return_dict=False)
        assert pair.prompt_ids + ids == full
    assert pair.prompt == tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    assert pair.prompt + pair.rejected == tokenizer.apply_chat_template(
        prompt + assistant("yes yes 世"), tokenize=False
    )
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}[template]
    assert pair.chosen.rstrip().endswith(end)
    assert tokenizer.eos_token_id not in pair.chosen_ids


@pytest.mark.parametrize("template", ["chatml", "llama3"])
@settings(max_examples=60, deadline=None)
@given(question=TEXTS, chosen=TEXTS.filter(str.strip), rejected=TEXTS.filter(str.strip))
@example(question="", chosen="</s>", rejected="</s>")  # equal, and of no tokens of their own
@example(question="", chosen="</s>", rejected="yes")
def test_any_chat_has_exactly_the_tokens_of_the_template(
    template: str, question: str, chosen: str, rejected: str, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(bos=True, template=template)
    prompt = [{"role": "user", "content": question}]
    try:
        pair = tokenize(tokenizer, prompt, assistant(chosen), assistant(rejected), Form.CHAT)
    except PreferenceDataError as error:
        problem = error.problem
    else:
        problem = ""
    if problem:
        says_nothing = any(not completion.replace("</s>", "").strip() for completion in (chosen, rejected))
        if chosen == rejected:
            assert "are equal" in problem
        elif says_nothing:
            assert "no tokens of its own" in problem
        else:
            assert "are equal" in problem or "are the same tokens" in problem
        return
    assert pair.prompt_ids == tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    for content, ids in ((chosen, pair.chosen_ids), (rejected, pair.rejected_ids)):
        full = tokenizer.apply_chat_template(prompt + assistant(content), return_dict=False)
        assert pair.prompt_ids + ids == full


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>"])
def test_turn_is_ended_once_whatever_the_end_of_sequence_token(end: str, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="chatml", eos_token=end)
    pair = tokenize(tokenizer, [USER], assistant("yes"), assistant("no"), Form.CHAT)
    assert tokenizer.decode(pair.chosen_ids) == "yes<|im_end|>\n"


def test_open_turn_gets_the_end_of_sequence_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True, template="plain")
    pair = tokenize(tokenizer, [USER], assistant("yes\n"), assistant("no"), Form.CHAT)
    full = tokenizer.apply_chat_template([USER, *assistant("yes\n")], return_dict=False)
    assert pair.prompt_ids + pair.chosen_ids == [*full, tokenizer.eos_token_id]
    assert pair.rejected_ids[-1] == tokenizer.eos_token_id
    # "assistant: " and "yes" merge at the space.
    assert tokenizer.decode(pair.chosen_ids) == " yes\n</s>"


def test_header_that_differs_before_an_answer_is_scored(make_tokenizer: MakeTokenizer) -> None:
    """A header that goes on where the answer begins: what both sides share is the prompt, no more."""
    tokenizer = make_tokenizer(template="thinking")
    pair = tokenize(tokenizer, [USER], assistant("yes"), assistant("no"), Form.CHAT)
    assert pair.prompt.endswith("<|im_start|>assistant\n")
    assert pair.chosen == "yes<|im_end|>\n"
    assert tokenizer.decode(pair.prompt_ids) == pair.prompt
    assert tokenizer.decode(pair.chosen_ids) == pair.chosen


def test_messages_pass_through_arrow_unchanged(
    make_tokenizer: MakeTokenizer, chat_rows: Callable[..., Dataset]
) -> None:
    """Arrow gives every message all keys; the template sees those that the user wrote."""
    call = {"role": "assistant", "tool_calls": [{"name": "clock"}]}
    completion = [call, {"role": "assistant", "content": "nine"}]
    rows = chat_rows(2, {1: {"chosen": completion}})
    tokenizer = make_tokenizer(template="tools")
    prepared = prepare_rows(rows, tokenizer, name="train").dataset
    prompt = [{"role": "user", "content": "hello 1?"}]
    assert prepared[1]["prompt"] + prepared[1]["chosen"] == tokenizer.apply_chat_template(
        prompt + completion, tokenize=False
    )
    assert "None" not in prepared[0]["chosen"]
    assert prepared[0]["chosen"] == "yes 0<|im_end|>\n"


def test_absent_keys_are_absent_whatever_the_template_engine_does() -> None:
    messages = [{"role": "user", "content": "hello", "tool_calls": None, "name": ""}]
    assert without_none(messages) == [{"role": "user", "content": "hello", "name": ""}]
    assert "tool_calls" in messages[0]


def test_smollm_chat_and_text(smollm_tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = CONVERSATIONS["several turns"]
    pair = tokenize(smollm_tokenizer, prompt, assistant("Fine, thanks."), assistant("Fine"), Form.CHAT)
    full = smollm_tokenizer.apply_chat_template(prompt + assistant("Fine, thanks."), return_dict=False)
    assert pair.prompt_ids + pair.chosen_ids == full
    assert smollm_tokenizer.decode(pair.prompt_ids).endswith("<|im_start|>assistant\n")
    assert smollm_tokenizer.decode(pair.rejected_ids) == "Fine<|im_end|>\n"
    assert pair.chosen_ids.count(smollm_tokenizer.eos_token_id) == 1
    text = tokenize(smollm_tokenizer, "The capital of France is", " Paris.", " Parisian.")
    assert text.prompt_ids + text.chosen_ids == [
        *smollm_tokenizer("The capital of France is Paris.").input_ids,
        smollm_tokenizer.eos_token_id,
    ]
    assert smollm_tokenizer.decode(text.prompt_ids) == "The capital of France is"


def test_special_tokens_in_an_isolated_copy(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True, template="llama3")
    copy = isolated_copy(tokenizer)
    assert copy.special_tokens_map == tokenizer.special_tokens_map
    assert copy.chat_template == tokenizer.chat_template
    assert isinstance(copy.backend_tokenizer, Tokenizer)
    assert copy("hello </s>").input_ids == tokenizer("hello </s>").input_ids
