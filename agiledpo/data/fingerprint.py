"""Under which name tokenised data is kept."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from agiledpo.data.layout import Layout
from agiledpo.data.pairs import PAIRS

# Raise it whenever the tokens or columns of a prepared row change: old files are then no longer found.
_FORMAT_VERSION = 4


def tokenized_fingerprint(
    dataset_fingerprint: str,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout = PAIRS,
    template_kwargs: Mapping[str, Any] | None = None,
    date: str | None = None,
) -> str:
    """Name the tokenised form of a dataset: equal names mean equal tokens, in this process or any other.

    Hashing the tokenizer object would not do: its bytes change when it is called.

    Args:
        dataset_fingerprint: Fingerprint that datasets keeps of the rows' content.
        tokenizer: From `isolated_copy`, so that truncation and padding do not count.
        layout: What is made of the columns.
        template_kwargs: What the chat template is told for all rows; JSON can hold it.
        date: Today's, if the chat template writes it.

    Returns:
        32 hexadecimal digits.
    """
    parts = {
        **({} if date is None else {"date": date}),
        **_origin(dataset_fingerprint, tokenizer, layout, template_kwargs),
        "libraries": [transformers.__version__, tokenizers.__version__],
    }
    return _digest(json.dumps(parts, sort_keys=True).encode())[:32]


def rows_fingerprint(
    dataset_fingerprint: str,
    tokenizer: PreTrainedTokenizerBase,
    lengths: NDArray[np.int32],
    layout: Layout = PAIRS,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Name the rows that a run learns from, the same under any version of the libraries that makes the same of them.

    Args:
        dataset_fingerprint: Fingerprint that datasets keeps of the rows' content.
        tokenizer: From `isolated_copy`.
        lengths: Tokens of each part of each row, (parts, rows): versions that tokenise differently differ in these.
        layout: What is made of the columns.
        template_kwargs: What the chat template is told for all rows; JSON can hold it.

    Returns:
        32 hexadecimal digits.
    """
    origin = json.dumps(_origin(dataset_fingerprint, tokenizer, layout, template_kwargs), sort_keys=True)
    return _digest(origin.encode(), np.ascontiguousarray(lengths, dtype="<i4").tobytes())[:32]


def _origin(
    dataset_fingerprint: str,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    template_kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    told = {"chat_template_kwargs": dict(template_kwargs)} if template_kwargs else {}
    return {
        **told,
        "format": _FORMAT_VERSION,
        "dataset": dataset_fingerprint,
        "layout": layout.identity,
        "tokenizer": _tokenizer_identity(tokenizer),
    }


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what decides how a tokenizer splits a text: vocabulary, rules, special tokens, chat template.

    Args:
        tokenizer: From `isolated_copy`, so that truncation and padding do not count.
    """
    return _digest(json.dumps(_tokenizer_identity(tokenizer), sort_keys=True).encode())


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "vocabulary": _backend_digest(tokenizer) if tokenizer.is_fast else _vocabulary_digest(tokenizer),
        "special_tokens": {role: str(token) for role, token in tokenizer.special_tokens_map.items()},
        "eos_token_id": tokenizer.eos_token_id,
        "split_special_tokens": tokenizer.split_special_tokens,
        "chat_template": tokenizer.chat_template,
    }


def _backend_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return _digest(tokenizer.backend_tokenizer.to_str().encode())


def _vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of a tokenizer written in Python: its vocabulary and the files that it would save."""
    parts = [json.dumps(sorted(tokenizer.get_vocab().items())).encode()]
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_vocabulary(directory)
        parts += [path.read_bytes() for path in sorted(Path(directory).iterdir())]
    return _digest(*parts)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
