"""Token ids of prompts and completions: exactly the tokenizer's, with one boundary for all completions of a prompt."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from operator import attrgetter
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from agiledpo.data.errors import DatasetError
from agiledpo.data.examples import Example, Form
from agiledpo.data.layout import Layout
from agiledpo.data.pairs import PAIRS
from agiledpo.data.prefixes import common_prefix_length
from agiledpo.data.rendering import RenderedRow, render_chat, render_text

_UNLIMITED_TOKENS = 10**30


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """A prompt with its completions, ready to be batched.

    Attributes:
        row: Number of the row that it was made of.
        prompt: Text of the prompt, as rendered for chat.
        completions: Text of each completion, as rendered for chat.
        prompt_ids: Tokens that all completions follow, at least one; none for a row that prefers neither completion,
            which has no tokens and no texts at all.
        completion_ids: Tokens of each completion, ending its turn.
        lost_header: End of the assistant's header that the chat template writes when it asks for an answer, but not
            where one follows.
    """

    row: int
    prompt: str
    completions: tuple[str, ...]
    prompt_ids: list[int]
    completion_ids: tuple[list[int], ...]
    lost_header: str = ""


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, form: Form) -> None:
    """Refuse a tokenizer that cannot end a sequence or, for chat, has no chat template.

    Raises:
        ValueError: See above.
    """
    if form is not Form.TOKENS and tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-sequence token, so completions could not be ended. "
            'Set tokenizer.eos_token, for example tokenizer.eos_token = "</s>" if the model was trained with it.'
        )
    if form is Form.CHAT and not tokenizer.chat_template:
        raise ValueError(
            "The dataset holds chat messages but the tokenizer has no chat template. Set tokenizer.chat_template, "
            "use the tokenizer of the instruction-tuned model, or render the rows to text yourself."
        )


def isolated_copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Copy a tokenizer without its truncation and padding.

    Every call of a fast tokenizer rewrites the truncation and padding of its backend, which is the caller's.
    """
    tokenizer = copy.deepcopy(tokenizer)
    # The model's context is not our limit, and a warning per long row is not ours to give.
    tokenizer.model_max_length = _UNLIMITED_TOKENS
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def tokenize_rows(
    batch: Mapping[str, Sequence[Any]],
    rows: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    layout: Layout = PAIRS,
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    name: str,
) -> list[TokenizedRow]:
    """Check and tokenise rows.

    The tokens of prompt and completion together are those of `tokenizer(prompt + completion)` for text and of the chat
    template for chat. The prompt is the longest token prefix common to the prompt alone and to all sequences, so where
    a merge crosses the boundary the end of the prompt counts as the beginning of all completions. Text ends with
    exactly one end-of-sequence token; chat ends as the template ends it, with all that it writes after the turn, and
    gets that token only if the template leaves the turn open. Token ids are taken as they are, and nothing is appended.

    Args:
        batch: Columns of the dataset, each with one value per row.
        rows: Row numbers, for messages.
        tokenizer: From `isolated_copy`; passed `check_tokenizer`.
        form: What the values are.
        layout: What is made of them.
        template_kwargs: What the chat template is told for all rows.
        name: The dataset's name, for messages.

    Returns:
        What the rows hold, in order; of a row without a preference one entry without tokens.

    Raises:
        DatasetError: A row cannot be learned from; the message names the first such row.
    """
    columns = list(batch)
    examples: list[tuple[int, Example]] = []
    tokenized: list[TokenizedRow] = []
    for row, *values in zip(rows, *batch.values(), strict=True):
        found = layout.read(form, row, dict(zip(columns, values, strict=True)), name=name)
        examples += [(row, example) for example in found]
        if not found:
            nothing = len(layout.completions)
            tokenized.append(TokenizedRow(row, "", ("",) * nothing, [], ([],) * nothing))
    if form is Form.TOKENS:
        tokenized += _given_tokens(examples, tokenizer, layout.sources, name=name)
    elif examples:
        tokenized += _tokenize_examples(examples, tokenizer, form, layout.sources, template_kwargs or {}, name=name)
    return sorted(tokenized, key=attrgetter("row"))


def tokenize_prompt(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    template_kwargs: Mapping[str, Any],
    *,
    row: int,
    name: str,
) -> list[int]:
    """Tokenise a prompt without completions.

    Args:
        example: A checked text or messages.
        tokenizer: From `isolated_copy`; passed `check_tokenizer`.
        form: Text or chat.
        template_kwargs: What the chat template is told; what the example says wins.
        row: Row number, for messages.
        name: The dataset's name, for messages.

    Raises:
        DatasetError: The template refuses it, or does not write all of it; or it has no tokens.
    """
    return _tokenize_examples([(row, example)], tokenizer, form, (), template_kwargs, name=name)[0].prompt_ids


def _tokenize_examples(
    examples: Sequence[tuple[int, Example]],
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    sources: Sequence[str],
    template_kwargs: Mapping[str, Any],
    *,
    name: str,
) -> list[TokenizedRow]:
    if form is Form.CHAT:
        rendered = [
            render_chat(example, tokenizer, template_kwargs, row=row, sources=sources, name=name)
            for row, example in examples
        ]
    else:
        rendered = [render_text(example) for _, example in examples]
    # A template writes the special tokens itself.
    encode = partial(_encode, tokenizer=tokenizer, add_special_tokens=form is Form.TEXT)
    if form is Form.CHAT:
        closing = frozenset([*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids])
        end = partial(_end_chat, tokenizer=tokenizer, closing=closing)
    else:
        end = partial(_end_text, tokenizer=tokenizer)
    prompts = encode([text.prompt for text in rendered])
    if form is Form.TEXT and not sources:
        prompts = [_unended(ids, text.prompt, tokenizer) for ids, text in zip(prompts, rendered, strict=True)]
    encoded = zip(
        (row for row, _ in examples),
        rendered,
        prompts,
        *(encode(list(sequences)) for sequences in zip(*(text.sequences for text in rendered), strict=True)),
        strict=True,
    )
    return [
        _assemble(
            row,
            text,
            prompt,
            sequences,
            eos=tokenizer.eos_token_id,
            eos_text=str(tokenizer.eos_token),
            end=end,
            sources=sources,
            name=name,
        )
        for row, text, prompt, *sequences in encoded
    ]


def _given_tokens(
    examples: Sequence[tuple[int, Example]],
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    name: str,
) -> list[TokenizedRow]:
    """Take token ids as they are, if they are the tokenizer's; texts are what they decode to."""
    given = [(row, cast(list[list[int]], [example.prompt, *example.completions])) for row, example in examples]
    vocabulary = len(tokenizer)
    if any(max(ids, default=0) >= vocabulary for _, parts in given for ids in parts):
        vocabulary = vocabulary_size(tokenizer)  # which takes longer to find out
    tokenized = []
    for row, (prompt, *completions) in given:
        for part, ids in zip((None, *sources), (prompt, *completions), strict=True):
            what = "the prompt" if part is None else "the completion"
            error = partial(DatasetError, dataset=name, row=row, column=part)
            if not ids:
                raise error(f"{what} has no tokens", remedy="Drop the row: both sides are needed to learn from it.")
            wrong = [token for token in (min(ids), max(ids)) if not 0 <= token < vocabulary]
            if wrong:
                raise error(
                    f"{what} has the token id {wrong[0]}, and the tokenizer's are 0 to {vocabulary - 1}",
                    remedy="Use the tokenizer that the ids were made with.",
                )
        texts = tokenizer.batch_decode([prompt, *completions], clean_up_tokenization_spaces=False)
        tokenized.append(TokenizedRow(row, texts[0], tuple(texts[1:]), list(prompt), tuple(map(list, completions))))
    return tokenized


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id: ids may have gaps, so that it is beyond their number."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)


def _encode(texts: list[str], *, tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> list[list[int]]:
    encoding = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return encoding["input_ids"]


def _assemble(
    row: int,
    text: RenderedRow,
    prompt: list[int],
    sequences: Sequence[list[int]],
    *,
    eos: int,
    eos_text: str,
    end: Callable[[list[int], str | None], list[int]],
    sources: Sequence[str],
    name: str,
) -> TokenizedRow:
    boundary = common_prefix_length(prompt, *sequences)
    if boundary == 0:
        wanted = "that the tokenizer keeps apart from the completions" if sequences else "of at least one token"
        raise DatasetError(
            "no token is left for the prompt, so nothing predicts the first token of the completions",
            remedy=f"Give the row a prompt {wanted}, "
            "or use a tokenizer that begins with a beginning-of-sequence token.",
            dataset=name,
            row=row,
        )
    completions: list[list[int]] = []
    for column, ids, content, ending in zip(sources, sequences, text.contents, text.endings, strict=True):
        completion = ids[boundary:]
        if all(token == eos for token in completion) or (content and _only_ends(content, (eos_text, ending or ""))):
            raise DatasetError(
                "the completion has no tokens of its own",
                remedy="The tokenizer or the chat template drops its text: change the row or drop it.",
                dataset=name,
                row=row,
                column=column,
            )
        completions.append(end(completion, ending))
    for (one, first), (other, second) in combinations(zip(sources, completions, strict=True), 2):
        if first == second:
            raise DatasetError(
                f"{one} and {other} differ as text but are the same tokens",
                remedy=f"Drop the row: dataset.filter(lambda row, index: index != {row}, with_indices=True).",
                dataset=name,
                row=row,
            )
    # For text this is the prompt as given; a template may write the assistant's header differently before an answer.
    shared = common_prefix_length(text.prompt, *text.sequences)
    return TokenizedRow(
        row=row,
        prompt=text.prompt[:shared],
        completions=tuple(sequence[shared:] for sequence in text.sequences),
        prompt_ids=prompt[:boundary],
        completion_ids=tuple(completions),
        lost_header=text.lost_header,
    )


def _only_ends(content: str, ends: Sequence[str]) -> bool:
    """Whether a completion says nothing but that it ends."""
    for end in ends:
        if end.strip():
            content = content.replace(end.strip(), "")
    return not content.strip()


def _unended(prompt: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A prompt without the end-of-sequence token that a tokenizer adds to every text: there an answer would be over."""
    ends = len(prompt) > 1 and prompt[-1] == tokenizer.eos_token_id
    return prompt[:-1] if ends and not text.rstrip().endswith(str(tokenizer.eos_token)) else prompt


def _end_text(completion: list[int], ending: str | None, *, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """End with one end-of-sequence token, whether the tokenizer adds it, the text ends with it, both or neither."""
    end = len(completion)
    while end > 0 and completion[end - 1] == tokenizer.eos_token_id:
        end -= 1
    return [*completion[:end], tokenizer.eos_token_id]


def _end_chat(
    completion: list[int], ending: str | None, *, tokenizer: PreTrainedTokenizerBase, closing: frozenset[int]
) -> list[int]:
    """Leave the template's tokens alone unless it leaves the turn open: the last that is not whitespace is a word.

    Where the template writes nothing behind the answer, no token closes the turn but the end-of-sequence token that
    the answer itself may end with. Of a token that closes the turn several times in a row, whitespace between them or
    not, because the answer itself ends with it, one is left.
    """
    if ending is not None and not ending.strip():
        closing = frozenset([cast(int, tokenizer.eos_token_id)])

    def is_blank(token: int) -> bool:
        return not str(tokenizer.decode([token], clean_up_tokenization_spaces=False)).strip()

    last = len(completion) - 1
    # Some vocabularies have added tokens that are runs of newlines: whitespace is looked at first.
    while last >= 0 and is_blank(completion[last]):
        last -= 1
    if last < 0 or completion[last] not in closing:
        return [*completion, tokenizer.eos_token_id]
    first = place = last
    while place and (completion[place - 1] == completion[last] or is_blank(completion[place - 1])):
        place -= 1
        if completion[place] == completion[last]:
            first = place
    return completion[:first] + completion[last:]
