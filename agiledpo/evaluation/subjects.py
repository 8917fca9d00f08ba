"""What can be evaluated: checkpoints of agents and of runs, adapters of other libraries, and the base model itself."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from agiledpo.adapters.files import AdapterFileError
from agiledpo.algorithms import DPO
from agiledpo.checkpoint.attributes import read_attributes
from agiledpo.checkpoint.directory import ATTRIBUTES, MANIFEST, settle
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.manifest import Manifest
from agiledpo.checkpoint.run import read_run
from agiledpo.checkpoint.saved_policy import SavedPolicy
from agiledpo.checkpoint.stored_base import loadable
from agiledpo.embedded.model import embedded_model_path

BASE = "base"
EMBEDDED = "embedded"
DEFAULT_BETA = 0.1

ReferenceName = Literal["own", "base"]

_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        name: As it was asked for: a path, or "base".
        saved: The trained policy; None for the base model itself.
        algorithm: What it was trained with; None where nothing says.
        beta: Beta of the DPO that it was trained with; None where nothing says, and for other algorithms, whose beta,
            if they have one, is no scale of preferences.
    """

    name: str
    saved: SavedPolicy | None = field(repr=False)
    algorithm: str | None = None
    beta: float | None = None

    @staticmethod
    def open(name: str | Path) -> "Subject":
        """Find out what a name stands for, and read it.

        Args:
            name: The directory of an agent's checkpoint, of an adapter that PEFT, TRL or AgileRL wrote, of a run's
                checkpoint (its fittest agent is taken) or of a run (its elite, or else the fittest agent of its newest
                checkpoint); or "base".

        Raises:
            CheckpointError: There is none, or it is damaged.
            AdapterFileError: There is no adapter in the directory, or it is damaged.
        """
        path = policy_path(name)
        if path is None:
            return Subject(BASE, None)
        saved = SavedPolicy.read(path)
        if saved.manifest is None:
            return Subject(str(name), saved)
        hyperparameters = read_attributes(saved.path, required=("hyperparameters",))["hyperparameters"]
        beta = hyperparameters.get("beta") if isinstance(hyperparameters, dict) else None
        trained = saved.manifest.algorithm
        return Subject(str(name), saved, trained, _positive(beta) if trained == DPO.__name__ else None)

    @property
    def path(self) -> Path | None:
        """Where the policy was found; None for the base model."""
        return None if self.saved is None else self.saved.path

    def agent(self, model: PreTrainedModel, *, beta: float, batch_size: int, reference: ReferenceName) -> DPO:
        """Make an agent with this policy as its actor.

        Args:
            model: The base model.
            beta: Of the agent.
            batch_size: Pairs in a forward pass.
            reference: "own": the reference that the policy was trained against, or the base if none was saved; "base".

        Raises:
            CheckpointError: The policy is of another base model.
        """
        config = _NO_ADAPTER if self.saved is None else self.saved.adapter.config
        config.inference_mode = False
        agent = DPO(
            actor_network=model,
            lora_config=config,
            beta=beta,
            nll_alpha=0.0,
            batch_size=batch_size,
            gradient_checkpointing=False,
            reference_cache=None,
        )
        try:
            if self.saved is not None:
                agent.load_checkpoint(self.saved.path, overwrite_reference_adapter=False, merge_lora_configs=True)
        except BaseException:
            agent.clean_up()
            raise
        if reference == "base":
            agent.adapters.clear_reference()
        return agent


# Weights that an adapter begins with change nothing.
_NO_ADAPTER = LoraConfig(r=1, lora_alpha=1, target_modules="all-linear", task_type="CAUSAL_LM")


def load_base(
    subjects: Sequence[Subject],
    model: str | Path | None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the one base model of some subjects, and the tokenizer of the first that has one.

    Args:
        subjects: Who shares it.
        model: Its name or path, or "embedded"; None for what the first subject that names one says.
        dtype: Of its weights; None for what the first subject that says so was trained with, else that of its files.
        device: Where to compute; None for the first GPU, or the CPU.

    Raises:
        ValueError: Nothing says which model, or there is no tokenizer.
    """
    saved = [subject.saved for subject in subjects if subject.saved is not None]
    stored = saved[0].stored_base() if saved and model is None else None
    name = model_path(model) if model is not None else next((one.base_name for one in saved if one.base_name), "")
    if not name and stored is None:
        who = " and ".join(subject.name for subject in subjects)
        raise ValueError(
            f"Nothing says which base model {who} is on; pass model (--model): its name, its path, or 'embedded'."
        )
    trained = [one.manifest.base_model.dtype for one in saved if one.manifest and one.manifest.base_model]
    precision = dtype if dtype is not None else loadable(trained[0]) if trained else "auto"
    loaded: PreTrainedModel = (
        saved[0].load_base(stored, name)
        if stored is not None
        else AutoModelForCausalLM.from_pretrained(name, dtype=precision)
    )
    tokenizer = saved[0].load_tokenizer(name) if saved else AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # fills what nothing reads
    where = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    placed: torch.nn.Module = loaded  # Transformers' own signature of this method hides its arguments
    placed.to(device=where, dtype=dtype)
    return loaded.eval(), tokenizer


def model_path(name: str | Path) -> str:
    """What to load a model from.

    Args:
        name: Its name or path, or "embedded" for the embedded model.

    Raises:
        ValueError: It is the path of no directory.
    """
    path = Path(name).expanduser()
    if str(name) == EMBEDDED and not path.exists():
        return str(embedded_model_path())
    # What is no path is a name on the Hub, which may have one slash.
    if not path.is_dir() and (path.is_absolute() or str(name).startswith(("./", "../")) or len(path.parts) > 2):
        raise ValueError(f"model (--model): there is no directory {str(name)!r}.")
    return str(path) if path.is_dir() else str(name)


def policy_path(name: str | Path) -> Path | None:
    """Where the policy is that a name stands for, as :meth:`Subject.open` takes it; it is not read.

    Args:
        name: The name.

    Returns:
        Its directory; None for the base model.

    Raises:
        CheckpointError: There is none.
        AdapterFileError: The directory holds a whole model.
    """
    path = Path(name).expanduser()
    if str(name) == BASE and not path.exists():
        return None
    if not path.exists():
        settle(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{name} is no directory. Pass the directory of a checkpoint, an adapter or a run, or 'base'."
        )
    return _policy_in(path)


def check_device(device: str | torch.device | None) -> None:
    """Refuse a device that there is none of.

    Args:
        device: Where to compute; None for whatever there is.

    Raises:
        ValueError: This machine, or this build of PyTorch, does not have it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # which of them depends on PyTorch's build
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device (--device) is {str(device)!r}, which cannot be used here ({reason}). Leave it out for the first"
            " GPU or else the CPU, or pass 'cpu', 'cuda' or 'cuda:1'."
        ) from None


def _policy_in(path: Path) -> Path:
    """The directory of one policy in that of a policy, a run's checkpoint or a run."""
    if (path / MANIFEST).exists():
        return _fittest_in(path) if Manifest.read(path).kind == "run" else path
    if (path / "elite" / MANIFEST).exists():
        return path / "elite"
    steps = [step for place in (path / "checkpoints", path) for step in _complete_steps(place)]
    if steps:
        return _fittest_in(max(steps, key=lambda step: Manifest.read(step).created))
    if (path / "config.json").exists():
        raise AdapterFileError(
            f"{path} holds a whole model, not an adapter; evaluate it as the base: base --model {path}."
        )
    return path


def _complete_steps(path: Path) -> list[Path]:
    return [step for step in path.glob("step_*") if _STEP.fullmatch(step.name) and (step / MANIFEST).exists()]


def _fittest_in(path: Path) -> Path:
    """The agent in a run's checkpoint that its last evaluation found fittest."""
    state = read_run(path)
    places = {index: path / "agents" / f"agent_{index}" for index in state["agents"]}
    if state.get("elite") in places:
        return places[state["elite"]]

    def fitness(index: int) -> float:
        history = read_attributes(places[index] / ATTRIBUTES).get("fitness") or [-math.inf]
        return -math.inf if math.isnan(history[-1]) else history[-1]

    return places[max(places, key=fitness)]


def _positive(beta: Any) -> float | None:
    """A beta that can be one; None otherwise."""
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not math.isfinite(beta) or beta <= 0:
        return None
    return float(beta)
