"""Write an agent as a directory of PEFT adapters plus state."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from agiledpo.adapters.files import WEIGHTS, SavedAdapter, write_adapter, write_config
from agiledpo.algorithms.core.llm import LLMAlgorithm
from agiledpo.algorithms.core.plain import plain
from agiledpo.checkpoint.card import write_card
from agiledpo.checkpoint.directory import ATTRIBUTES, TOKENIZER
from agiledpo.checkpoint.identity import identity_of
from agiledpo.checkpoint.manifest import FORMAT_VERSION, Manifest
from agiledpo.checkpoint.packing import packed
from agiledpo.checkpoint.shared_draft import check_shared, drafted
from agiledpo.checkpoint.stored_base import describe_base
from agiledpo.checkpoint.zero_shards import write_shards, writes_shards
from agiledpo.data.fingerprint import tokenizer_sha256
from agiledpo.data.tokenization import isolated_copy
from agiledpo.disk import disk_errors
from agiledpo.distributed.team import Team


def save_agent(
    agent: LLMAlgorithm,
    path: Path,
    *,
    lora_only: bool = True,
    save_optimizer: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    metrics: Mapping[str, float] | None = None,
    team: Team | None = None,
) -> None:
    """Save an agent.

    The directory holds ``actor/`` (and ``reference/`` if the agent has such an adapter), each an adapter that
    ``PeftModel.from_pretrained(base, path / "actor")`` loads; ``attributes.pt``, which holds hyperparameters and state
    and loads with ``torch.load(..., weights_only=True)``; and ``manifest.json`` with the identity of the base model and
    the checksum of every file. Under ZeRO stages 2 and 3 the optimizer is in ``save_checkpoint/``, each process's share
    in a file of its own (see :mod:`agiledpo.checkpoint.zero_shards`). It is complete or absent. Many processes call
    this together and one of them writes the rest; what can be read does not depend on their number.

    Args:
        agent: What to save.
        path: Directory to write. If a checkpoint is there it is replaced, once the new one is complete.
        lora_only: Adapters only; False also puts the weights of the base model into ``attributes.pt``.
        save_optimizer: Also save the optimizer's state.
        tokenizer: Saved to ``tokenizer/``; None saves none.
        metrics: Figures for the manifest and the model card, by name; None takes the last fitness.
        team: The processes that call this; None for those that share the agent's work.

    Raises:
        FileExistsError: ``path`` exists and is not a checkpoint; in every process.
        OSError: It cannot be written; in every process.
    """
    team = agent.team if team is None else team
    with drafted(team, Path(path)) as draft:
        write_agent(
            agent,
            draft,
            lora_only=lora_only,
            save_optimizer=save_optimizer,
            tokenizer=tokenizer,
            metrics=metrics,
            team=team,
        )


def write_agent(
    agent: LLMAlgorithm,
    draft: Path,
    *,
    lora_only: bool = True,
    save_optimizer: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    metrics: Mapping[str, float] | None = None,
    linked: dict[str, Path] | None = None,
    team: Team | None = None,
) -> Manifest:
    """Write an agent into a directory that somebody else makes complete or absent; see :func:`save_agent`.

    Args:
        agent: What to save.
        draft: An empty directory.
        lora_only: Adapters only.
        save_optimizer: Also save the optimizer's state.
        tokenizer: Saved to ``tokenizer/``.
        metrics: Figures by name.
        linked: Files of adapters that have been written for the same run checkpoint, by physical name of the adapter.
            Agents share equal references: such a file is linked, or copied where links cannot be made. What is written
            here is added.
        team: The processes that call this; None for those that share the agent's work. The leader writes.

    Returns:
        The manifest that was written.
    """
    team = agent.team if team is None else team
    figures = _figures(agent) if metrics is None else dict(metrics)
    # What it takes all processes to know comes before what one of them writes.
    base = identity_of(agent.base)
    attributes = _attributes(agent, lora_only, team.leads)

    def write_files() -> Manifest:
        manifest = Manifest(
            kind="agent",
            algorithm=type(agent).__name__,
            base_model=base,
            tokenizer=None if tokenizer is None else write_tokenizer(tokenizer, draft),
            metrics=figures,
        )
        draft.mkdir(parents=True, exist_ok=True)
        for role, name in agent.adapters.owned.items():
            _save_adapter(agent, name, draft / role, {} if linked is None else linked)
        write_card(
            draft / "actor",
            base=base,
            algorithm=type(agent).__name__,
            hyperparameters=attributes["hyperparameters"],
            metrics=figures,
            optimizer_steps=agent.optimizer_steps,
            rows=agent.steps[-1],
            versions=manifest.versions,
        )
        write_state(_stored(attributes, save_optimizer and not sharded), draft / ATTRIBUTES)
        return manifest

    sharded = writes_shards(agent.stepper)
    manifest = team.leader_does(write_files)
    if save_optimizer and sharded:
        check_shared(team, draft)
        write_shards(agent.stepper, draft)
    return team.leader_does(lambda: manifest.write(draft))  # with the checksum of every file, whoever wrote it


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, draft: Path) -> str:
    """Write a tokenizer into a checkpoint.

    Args:
        tokenizer: The tokenizer.
        draft: The checkpoint's directory.

    Returns:
        SHA-256 over what it does.
    """
    with disk_errors(draft / TOKENIZER):
        tokenizer.save_pretrained(str(draft / TOKENIZER))
    return tokenizer_sha256(isolated_copy(tokenizer))


def write_state(state: Mapping[str, Any], file: Path) -> None:
    """Write a state that ``torch.load(weights_only=True)`` reads.

    Args:
        state: What :func:`agiledpo.algorithms.core.plain.plain` takes.
        file: Where.

    Raises:
        OSError: It could not be written.
        TypeError: Something is in it that cannot be read back; it is named.
    """
    values = plain(state, file.name)
    with disk_errors(file), file.open("wb") as handle:
        torch.save(values, handle)


def _figures(agent: LLMAlgorithm) -> dict[str, float]:
    return {"fitness": agent.fitness[-1]} if agent.fitness else {}


def _save_adapter(agent: LLMAlgorithm, name: str, directory: Path, linked: dict[str, Path]) -> None:
    directory.mkdir()
    adapter = SavedAdapter(agent.base.saved_config(name), agent.base.state(name), directory)
    if name in linked:
        _link(linked[name], directory / WEIGHTS)
        write_config(adapter)
    else:
        write_adapter(adapter)
        linked[name] = directory / WEIGHTS


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _attributes(agent: LLMAlgorithm, lora_only: bool, keep: bool) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "algorithm": type(agent).__name__,
        "seed": agent.seed,
        "init": agent.plain_arguments(),
        "optimizer_type": type(agent.optimizer).__name__,
        "optimizer_parameters": list(agent.base.parameters(agent.adapters.owned["actor"])),
        **agent.state_dict(),
    }
    del attributes["adapters"]  # they have directories of their own
    if not lora_only:
        attributes.update(describe_base(agent.base, keep=keep))
    return attributes


def _stored(attributes: Mapping[str, Any], save_optimizer: bool) -> dict[str, Any]:
    """Attributes as their file has them."""
    stored = dict(attributes)
    optimizer = stored.pop("optimizer")
    return {**stored, "optimizer": packed(optimizer)} if save_optimizer else stored
