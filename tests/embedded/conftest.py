"""Fixtures of the embedded tests: the converted model, once per session, from the user's cache."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.embedded.model import embedded_model_path, load_embedded_model
from agiledpo.embedded.preferences import load_embedded_preferences


@pytest.fixture(scope="session")
def model_path() -> Path:
    return embedded_model_path()


@pytest.fixture(scope="session")
def model_and_tokenizer() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_embedded_model(torch.float32)


@pytest.fixture(scope="session")
def preferences() -> tuple[Dataset, Dataset]:
    return load_embedded_preferences()
