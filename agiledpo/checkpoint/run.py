"""A whole run as a directory: its agents, each a checkpoint of its own, and what the loop has to know to go on."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from transformers import PreTrainedTokenizerBase

from agiledpo.algorithms.core.arguments import plain_ranges
from agiledpo.algorithms.core.construction import ConstructionDifferences, warn_of_rounding
from agiledpo.algorithms.core.registry import HyperparameterConfig
from agiledpo.checkpoint.attributes import read_attributes
from agiledpo.checkpoint.directory import RUN_STATE
from agiledpo.checkpoint.errors import CheckpointError
from agiledpo.checkpoint.identity import identity_of
from agiledpo.checkpoint.manifest import Manifest, now
from agiledpo.checkpoint.matching import match
from agiledpo.checkpoint.restoring import check_restorable, check_whole, differences_to
from agiledpo.checkpoint.save import write_agent, write_state, write_tokenizer
from agiledpo.checkpoint.saved_agent import SavedAgent, check_class, open_agent
from agiledpo.checkpoint.shared_draft import drafted
from agiledpo.distributed.team import Team

if TYPE_CHECKING:
    from agiledpo.algorithms.core.llm import LLMAlgorithm

Agent = TypeVar("Agent", bound="LLMAlgorithm")


def save_run(
    path: Path,
    state: Mapping[str, Any],
    agents: Sequence["LLMAlgorithm"],
    *,
    metrics: Mapping[str, float] | None,
    tokenizer: PreTrainedTokenizerBase,
    run: str | None = None,
    created: str | None = None,
    team: Team | None = None,
) -> None:
    """Save a run.

    The directory holds ``agents/agent_<index>/`` for each agent, as :meth:`LLMAlgorithm.save_checkpoint` writes it,
    ``run.pt``, which ``torch.load(weights_only=True)`` reads, and ``tokenizer/``. It is complete or absent.

    Args:
        path: Directory to write.
        state: What the loop has to know, in tensors and plain values.
        agents: The agents, all on one base model.
        metrics: Figures of the fittest agent, for the manifest; None if the agents have not been measured as they are.
        tokenizer: The tokenizer that the agents' rows were made with.
        run: Name of the run, the same in all its checkpoints.
        created: When it is written, ISO 8601, later than in the checkpoints before; None for now.
        team: The processes that call this, the leader of which writes; None for those that share the agents' work.

    Raises:
        OSError: It could not be written; what was there before is intact. In every process.
    """
    team = agents[0].team if team is None else team
    base = identity_of(agents[0].base)
    with drafted(team, path, "run") as draft:
        linked: dict[str, Path] = {}
        for agent in agents:
            figures = {} if metrics is None else agent.held_out
            write_agent(agent, _place(draft, agent.index), metrics=figures, linked=linked, team=team)

        def write_files() -> None:
            write_state({**state, "agents": [agent.index for agent in agents]}, draft / RUN_STATE)
            Manifest(
                kind="run",
                algorithm=type(agents[0]).__name__,
                base_model=base,
                tokenizer=write_tokenizer(tokenizer, draft),
                metrics=metrics or {},
                run=run,
                created=now() if created is None else created,
            ).write(draft)

        team.leader_does(write_files)


def read_run(path: Path) -> dict[str, Any]:
    """Read what :func:`save_run` was given, once every file has been checked; ``agents`` are their indices.

    Args:
        path: The directory.

    Raises:
        CheckpointError: It is not a run's checkpoint, or not as it was written; the file is named.
    """
    manifest = Manifest.verify(path)
    if manifest.kind != "run":
        raise CheckpointError(
            f"{path} is the checkpoint of one agent, not of a run, so nothing can be resumed from it. Load it with "
            "agent.load_checkpoint, or pass a directory step_<rows> as resume_from."
        )
    return read_attributes(path / RUN_STATE)


def restore_agents(path: Path, indices: Sequence[int], agents: list[Agent], team: Team | None = None) -> None:
    """Bring agents to the state in which a run saved them, bit for bit.

    Selection moves ways of being built from place to place: for each saved agent there has to be one that is built as
    it was, which may be at another place. What is missing is cloned and what is left over is cleaned up.

    Args:
        path: The run's directory, whose files :func:`read_run` has checked.
        indices: The saved agents, in the run's order.
        agents: As many, made as those were that the run began with; changed in place once everything has been found.
        team: The processes that call this; the leader reads. None for those that share the agents' work.

    Raises:
        CheckpointError: No agent is built as a saved one was, or they are on another base model; nothing has changed.

    Warns:
        UserWarning: An agent rounds otherwise than the saved one did.
    """
    team, cls = agents[0].team if team is None else team, type(agents[0])
    # One by one, as each has to be sent.
    saved = [team.leader_does(partial(_verified, _place(path, index), cls)) for index in indices]
    differences = [[differences_to(agent, one) for agent in agents] for one in saved]
    places = [
        _closest_is_too_far(one, row, agents) if place is None else place
        for one, row, place in zip(saved, differences, match(differences), strict=True)
    ]
    found = [check_restorable(agents[place], one) for one, place in zip(saved, places, strict=True)]
    configs = [_config(one, place, agents) for one, place in zip(saved, places, strict=True)]
    rounding = [text for row, place in zip(differences, places, strict=True) for text in row[place].rounding]
    if rounding:
        warn_of_rounding(str(path), rounding)
    for place, agent in enumerate(agents):
        if place not in places:
            agent.clean_up()
    restored = [
        agents[place].clone() if place in places[:number] else agents[place] for number, place in enumerate(places)
    ]
    for agent, state, config in zip(restored, found, configs, strict=True):
        agent.hp_config = config
        state.put_back(agent)
    agents[:] = restored


def _verified(path: Path, cls: type["LLMAlgorithm"]) -> SavedAgent:
    """An agent of a run whose files have been checked with the run's."""
    return check_whole(check_class(open_agent(path, Manifest.read(path)), cls))


def _closest_is_too_far(
    saved: SavedAgent, differences: Sequence[ConstructionDifferences], agents: Sequence["LLMAlgorithm"]
) -> NoReturn:
    closest, agent = min(zip(differences, agents, strict=True), key=lambda pair: len(pair[0].objective))
    raise CheckpointError(
        f"{saved.attributes_file}: no agent of this run is built as the saved one was. Closest is agent {agent.index}; "
        f"the saved one was made with {', '.join(closest.objective)}. Make the agents with the arguments that they had."
    )


def _config(saved: SavedAgent, place: int, agents: Sequence["LLMAlgorithm"]) -> HyperparameterConfig | None:
    """The configuration among those that are there that looks like the saved one; else that of the agent itself.

    Only so a class of the user's own comes back, of which a checkpoint holds the name.
    """
    theirs = saved.attributes.get("hp_config")
    candidates = [agents[place].hp_config, *(agent.hp_config for agent in agents)]
    return next((config for config in candidates if plain_ranges(config) == theirs), candidates[0])


def _place(path: Path, index: int) -> Path:
    return path / "agents" / f"agent_{index}"
