"""What the ranks of a test do with an agent's checkpoints and with its reference's cache."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from agiledpo.algorithms import DPO
from agiledpo.algorithms.role_scores import measuring
from agiledpo.checkpoint.shared_draft import check_shared, drafted
from agiledpo.scoring import ReferenceCache
from tests.distributed import work


def learned(handle: Accelerator | None) -> DPO:
    """An agent after three steps."""
    agent = work.dpo(handle)
    for step in range(3):
        agent.learn(work.pairs(5, seed=step))
    return agent


def told(agent: DPO) -> Mapping[str, Any]:
    """Weights, moments and steps of an agent."""
    state = agent.stepper.state_dict()["state"]
    moments = {number: {kind: value.clone() for kind, value in entries.items()} for number, entries in state.items()}
    return {"weights": work.weights(agent), "moments": moments, "steps": agent.optimizer_steps}


def failing(act: Callable[[], Any]) -> tuple[str, str, list[str]]:
    """The error that something raises."""
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error), getattr(error, "__notes__", [])
    raise AssertionError("nothing was raised")


def two_ranks(directory: Path) -> Mapping[str, Any]:
    """All that two ranks go through together. Paths of rank 1 lead nowhere where only the leader's matter."""
    handle = work.accelerator()
    leads = handle.process_index == 0
    own = directory if leads else Path("/nowhere")
    results: dict[str, Any] = {}

    agent = learned(handle)
    agent.save_checkpoint(own / "two")
    agent.save_checkpoint(own / "with_base", lora_only=False)
    results["saved"] = told(agent)

    other = work.dpo(handle)
    other.load_checkpoint(own / "two", load_optimizer=True)
    results["loaded"] = told(other)
    results["made"] = told(DPO.load(own / "two", accelerator=handle, actor_network=work.model()))
    made = DPO.load(own / "with_base", accelerator=handle)
    results["made with its base"] = told(made)
    results["base"] = next(iter(made.base.base_state().values())).clone()

    results["nothing there"] = failing(lambda: agent.load_checkpoint(own / "missing"))
    if leads:
        (directory / "occupied").mkdir()
        (directory / "occupied" / "thesis.txt").write_text("words")
    results["not a checkpoint"] = failing(lambda: agent.save_checkpoint(own / "occupied"))
    results["cannot be made"] = failing(lambda: agent.save_checkpoint(own / "occupied" / "thesis.txt" / "here"))
    results["not shared"] = failing(lambda: _share(agent, own / "unfinished", elsewhere=not leads))
    results["shard"] = failing(lambda: _share(agent, own / "unfinished", full=not leads))
    _share(agent, own / "shards")

    results |= _reference(agent, directory / f"references_of_{handle.process_index}")
    views = [*torch.arange(1_000_000.0).split(100_000), "the end"]
    results["views"] = agent.team.same(views if leads else [])
    return results


def _share(agent: DPO, path: Path, *, elsewhere: bool = False, full: bool = False) -> None:
    """Each process writes a part of a directory."""
    team = agent.team

    def write(draft: Path) -> None:
        if full:
            raise OSError(28, "No space left on device")
        (draft / str(team.rank)).write_text("a shard")

    with drafted(team, path) as draft:
        check_shared(team, Path("/nowhere") / draft.name if elsewhere else draft)
        team.everyone_does(lambda: write(draft))


def _reference(agent: DPO, directory: Path) -> Mapping[str, Any]:
    """Scores of eight pairs, of which rank 0 has four on its disk, computed by that rank before."""
    team, batch, scorer = agent.team, work.pairs(8, seed=3), agent.scorer()
    asked: list[int] = []

    def score(pairs: Any) -> Any:
        with measuring(agent.adapters, "reference", scorer):
            return scorer.score(pairs)

    def shared(pairs: Any) -> Any:
        asked.append(len(pairs))
        assert team.gather(len(pairs)) == [len(pairs)] * team.size  # what would wait for ever otherwise
        return score(pairs)

    cpu = torch.device("cpu")
    known = None
    if team.leads:
        before = ReferenceCache(memory_bytes=2**20, directory=directory)
        # Marked, so that it shows where they come from.
        scores = before.scores(batch.slice(0, 4), "r", lambda pairs: _marked(score(pairs)), cpu)
        known = scores.chosen.logps
        before.flush()
    cache = ReferenceCache(memory_bytes=2**20, directory=directory)
    scores = cache.scores(batch, "r", shared, cpu, team)
    cache.flush()
    again = cache.scores(batch, "r", shared, cpu, team)  # nobody lacks anything now
    assert torch.equal(again.chosen.logps, scores.chosen.logps)
    width = scores.chosen.logps.shape[1]
    padded = None if known is None else torch.nn.functional.pad(known, (0, width - known.shape[1]))
    return {
        "scores": scores.chosen.logps,
        "known": padded,
        "fresh": score(batch).chosen.logps,
        "asked": asked,
        "shards": len(list(directory.rglob("*.safetensors"))),
    }


def _marked(scores: Any) -> Any:
    scores.chosen.logps.add_(1e-6)
    return scores
