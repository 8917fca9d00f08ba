"""Where models come from: the embedded one, and the Hugging Face Hub."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator

from agiledpo.doctor.finding import Finding

_TIMEOUT = 5.0


def check_embedded_model() -> Iterator[Finding]:
    """Whether the embedded model is installed and converted."""
    from agiledpo.embedded.model import EmbeddedModelError, embedded_model_destination, find_gguf

    destination = embedded_model_destination()
    converted = destination.is_dir()
    try:
        weights = find_gguf()
    except EmbeddedModelError as error:
        if converted:
            yield Finding("models", "embedded model", "ok", f"{destination.name}, converted")
        else:
            yield Finding("models", "embedded model", "note", "not installed", str(error))
        return
    said = f"{destination.name}, converted" if converted else f"{weights.name}, converted on first use (half a minute)"
    yield Finding("models", "embedded model", "ok", said)


def check_hub(*, network: bool) -> Iterator[Finding]:
    """What is set about the Hugging Face Hub, and whether it is reached.

    Args:
        network: Try to reach it.
    """
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE

    try:
        models = sum(name.startswith("models--") for name in os.listdir(HF_HUB_CACHE))
    except OSError:
        models = 0
    yield Finding("models", "Hugging Face's cache", "ok", f"{models} models in {HF_HUB_CACHE}")
    offline = HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    if offline:
        yield Finding(
            "models",
            "offline",
            "note",
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: only models that are in the cache or given by path",
            "Unset it to download models.",
        )
    if not network:
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=_TIMEOUT) as response:
            yield Finding("models", "network", "ok", f"{ENDPOINT} answers ({response.status})")
    except urllib.error.HTTPError as error:
        yield Finding(
            "models", "network", "warning", f"{ENDPOINT} answers {error.code}", "Look at proxy and HF_ENDPOINT."
        )
    except OSError as error:
        yield Finding(
            "models",
            "network",
            "warning",
            f"{ENDPOINT} is not reached: {error}",
            "Look at proxy and HF_ENDPOINT; or work with --model embedded, or with models given by path.",
        )
