"""The base model and its tokenizer."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.embedded.model import MODEL_NAME, embedded_model_path

EMBEDDED = "embedded"


def open_model(
    name: str = EMBEDDED,
    *,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    tokenizer: str | None = None,
    chat_template: str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    from_pretrained: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model that all agents share, and its tokenizer.

    Args:
        name: Directory or name on the Hub; "embedded" is SmolLM2-135M-Instruct, which needs no network.
        dtype: Type of the weights; "auto" takes that of the files. Adapters and log-probabilities are float32 always.
        tokenizer: Directory or name of another tokenizer than the model's.
        chat_template: File with a Jinja template for chats in place of the tokenizer's, as base models lack one.
        attn_implementation: How attention is computed, such as "sdpa"; null lets Transformers choose.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run code that comes with the model.
        from_pretrained: Other arguments of AutoModelForCausalLM.from_pretrained.

    Raises:
        OSError: There is no such model.
        ValueError: The model does not take what `from_pretrained` says.
    """
    place = str(embedded_model_path()) if name == EMBEDDED else name
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer_source = {"trust_remote_code": trust_remote_code} if tokenizer else source
    try:
        read: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tokenizer or place, **tokenizer_source)
    except OSError as error:
        wanted = f"model.name={name!r}" if tokenizer is None else f"model.tokenizer={tokenizer!r}"
        raise OSError(
            f"{wanted} is neither a directory with a model and its tokenizer nor one that the Hub has for you: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if read.pad_token is None:
        read.pad_token = read.eos_token
    if chat_template is not None:
        read.chat_template = Path(chat_template).read_text(encoding="utf-8")
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            **({} if attn_implementation is None else {"attn_implementation": attn_implementation}),
            **source,
            **(from_pretrained or {}),
        )
    except TypeError as error:  # which is how constructors answer arguments that they do not have
        if not from_pretrained:
            raise
        raise ValueError(
            f"model.from_pretrained={dict(from_pretrained)} is not what {name} takes: {error}. Leave out what is no "
            "argument of its from_pretrained, or is a parameter of model."
        ) from error
    return model.eval(), read


def model_label(name: str) -> str:
    """What to call a model.

    Args:
        name: As configurations give it.
    """
    return MODEL_NAME if name == EMBEDDED else name


def choose_device(device: str | None, accelerator: Accelerator | None) -> str | None:
    """Where agents compute: where they are told, or on a GPU if there is one; with an accelerator it decides."""
    if device is not None or accelerator is not None:
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def launched_accelerator() -> Accelerator | None:
    """Accelerate's handle if a launcher such as ``accelerate launch`` or ``torchrun`` started this process."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    uses_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if processes == 1 and not uses_deepspeed:
        return None
    if torch.cuda.is_available():
        return Accelerator()
    if uses_deepspeed:
        return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    return Accelerator(cpu=True)
