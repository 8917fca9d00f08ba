"""Two LoRA configurations beside each other, and one that has room for both."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

from peft import LoraConfig

from agiledpo.adapters.layout import AdapterLayout, by_pattern, targets

# What a configuration says of where it comes from, of how the weights began, and of how PEFT is to run them.
_LABELS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",  # PEFT sets it by the type of each layer
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}
# What the ranks, scalings and modules of a layout are made from.
_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_RANKS = ("r", "rank_pattern")
_SCALINGS = ("lora_alpha", "use_rslora", "alpha_pattern")
_REGULARISATION = ("lora_dropout",)
# Fields that name modules or parameters in their own way; two adapters can share them but not be reconciled with them.
_OWN_WAYS = ("target_parameters", "trainable_token_indices", "ensure_weight_tying")


@dataclass(frozen=True)
class ConfigDifferences:
    """How a saved adapter's configuration differs from the live one.

    Attributes:
        live: Values of the live configuration by field, where the two differ.
        saved: Values of the saved one.
        blocking: Fields that keep the saved weights from fitting as they are; merging the configurations helps.
        kept: Fields of which merging keeps the live value.
        irreconcilable: Fields for which there is no configuration that has room for both functions.
    """

    live: Mapping[str, str]
    saved: Mapping[str, str]
    blocking: tuple[str, ...]
    kept: tuple[str, ...]
    irreconcilable: tuple[str, ...]

    @property
    def text(self) -> str:
        """Both configurations side by side: a heading and a line for each field that differs."""
        rows = [("", "this agent", "saved"), *((name, self.live[name], self.saved[name]) for name in self.live)]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)


@dataclass(frozen=True)
class Prospect:
    """What loading saved adapters would do to parameters that an optimizer knows.

    Attributes:
        grows: The live actor's factors would get more rows and columns, and another scaling with them.
        rescales: The saved actor's parameters would be multiplied on their way.
    """

    grows: bool
    rescales: bool


def config_differences(live: LoraConfig, saved: LoraConfig) -> list[str]:
    """Fields in which two configurations differ as they are written, without labels.

    How the weights began counts: some ways of beginning change the base model, which then is another one.

    Args:
        live: An agent's configuration.
        saved: Another one.
    """
    mine, theirs = live.to_dict(), saved.to_dict()
    return [
        f"{name}={theirs[name]!r} instead of {mine[name]!r}"
        for name in sorted(mine.keys() & theirs.keys() - (_LABELS - {"init_lora_weights"}))
        if _listed(mine[name]) != _listed(theirs[name])
    ]


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, list, tuple)) else value


def compare(live: AdapterLayout, saved: AdapterLayout) -> ConfigDifferences:
    """Compare two configurations by what they come to on the model, not by how they say it.

    Args:
        live: Layout of the agent's adapters.
        saved: Layout of the saved adapter on the same model.
    """
    common = live.ranks.keys() & saved.ranks.keys()
    ranks = any(live.ranks[key] != saved.ranks[key] for key in common)
    scalings = any(live.scalings[key] != saved.scalings[key] for key in common)
    found: dict[str, tuple[str, str]] = {}
    if live.ranks.keys() != saved.ranks.keys():
        found["target_modules"] = _two_sets(live.ranks.keys(), saved.ranks.keys())
    if live.whole != saved.whole:
        found["modules_to_save"] = _two_sets(live.whole, saved.whole)
    mine, theirs = vars(live.config), vars(saved.config)
    counted = [*(_RANKS if ranks else ()), *(_SCALINGS if scalings else ())]
    blocking = [*found, *(name for name in counted if _differ(mine.get(name), theirs.get(name)))]
    others = (mine.keys() | theirs.keys()) - {
        *_LABELS, *_TARGETS, *_RANKS, *_SCALINGS, *_REGULARISATION, "modules_to_save"
    }  # fmt: skip
    irreconcilable = [
        name for name in sorted(others) if not name.startswith("_") and _differ(mine.get(name), theirs.get(name))
    ]
    if blocking:
        irreconcilable += [name for name in _OWN_WAYS if mine.get(name) and name not in irreconcilable]
    kept = [name for name in _SCALINGS if name in blocking]
    kept += [name for name in _REGULARISATION if mine[name] != theirs[name]]
    for name in dict.fromkeys([*blocking, *irreconcilable, *kept]):
        found.setdefault(name, (_plain(mine.get(name)), _plain(theirs.get(name))))
    return ConfigDifferences(
        live={name: pair[0] for name, pair in found.items()},
        saved={name: pair[1] for name, pair in found.items()},
        blocking=tuple(blocking),
        kept=tuple(kept),
        irreconcilable=tuple(irreconcilable),
    )


def has_room(live: AdapterLayout, saved: AdapterLayout) -> bool:
    """Whether the saved adapter's ranks and modules are within the agent's.

    Args:
        live: Layout of the agent's adapters.
        saved: Layout of the saved adapter on the same model.
    """
    return saved.whole <= live.whole and all(live.ranks.get(key, 0) >= rank for key, rank in saved.ranks.items())


def merged(live: AdapterLayout, saved: AdapterLayout, modules: Iterable[str]) -> LoraConfig:
    """A configuration with room for both adapters: the higher ranks, all modules of both, else the live one's values.

    Args:
        live: Layout of the agent's adapters.
        saved: Layout of the saved adapter on the same model.
        modules: Names of all modules of the model.

    Raises:
        ValueError: A module has LoRA factors in one and is saved whole in the other.
    """
    torn = sorted((live.ranks.keys() & saved.whole) | (saved.ranks.keys() & live.whole))
    if torn:
        raise ValueError(
            f"{torn[0]} is among the target_modules of one LoRA configuration and the modules_to_save of the other; "
            "no configuration has room for both. Make the agent with the lora_config of the saved adapter."
        )
    needed = {key: max(live.ranks.get(key, 0), saved.ranks.get(key, 0)) for key in sorted({*live.ranks, *saved.ranks})}
    config = deepcopy(live.config)
    config.r = max(live.config.r, saved.config.r)
    if live.config.rank_pattern or saved.config.rank_pattern:
        config.rank_pattern = {f"^{re.escape(key)}": rank for key, rank in needed.items() if rank != config.r}
    if live.whole != saved.whole:
        config.modules_to_save = sorted({*(live.config.modules_to_save or ()), *(saved.config.modules_to_save or ())})
    if live.ranks.keys() != saved.ranks.keys():
        _target(config, saved.config, needed.keys(), modules)
    return config


def merged_layout(live: AdapterLayout, saved: AdapterLayout, config: LoraConfig) -> AdapterLayout:
    """What :func:`merged` comes to on the model, before any adapter has been made with it.

    Args:
        live: Layout of the agent's adapters.
        saved: Layout of the saved adapter on the same model.
        config: What :func:`merged` made of the two.
    """
    ranks = {key: by_pattern(config.rank_pattern, key, config.r) for key in {*live.ranks, *saved.ranks}}
    return AdapterLayout(
        config=config,
        ranks=ranks,
        scalings={key: _scaling(config, key, rank) for key, rank in ranks.items()},
        whole=live.whole | saved.whole,
    )


def _scaling(config: LoraConfig, key: str, rank: int) -> float:
    """LoRA's alpha / r, or rank-stabilised alpha / sqrt(r) (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732)."""
    alpha = by_pattern(config.alpha_pattern, key, config.lora_alpha)
    return float(alpha / math.sqrt(rank) if config.use_rslora else alpha / rank)


def _target(config: LoraConfig, other: LoraConfig, wanted: Iterable[str], modules: Iterable[str]) -> None:
    """Make a configuration target exactly the wanted modules: by the short names of both, or else one by one."""
    wanted = set(wanted)
    if not isinstance(config.target_modules, str) and not isinstance(other.target_modules, str):
        modules = list(modules)
        mine, theirs = set(config.target_modules or ()), set(other.target_modules or ())
        for names in (mine, theirs, mine | theirs):
            _set_targets(config, names)
            if {key for key in modules if targets(config, key)} == wanted:
                return
    _set_targets(config, wanted)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None


def _set_targets(config: LoraConfig, names: set[str]) -> None:
    config.target_modules = cast(list[str], names)  # a set is what PEFT makes of a list


def _differ(one: Any, other: Any) -> bool:
    # A field that is not used may be None, False or empty.
    return bool(one or other) and _plain(one) != _plain(other)


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(sorted(map(str, value))) or "none"
    return "none" if value is None or value == {} else str(value)


def _two_sets(live: Iterable[str], saved: Iterable[str]) -> tuple[str, str]:
    """Module names in a few words: by their last parts, or the ones that only one side has where those are the same."""
    live, saved = set(live), set(saved)
    short = [Counter(key.rpartition(".")[2] for key in side) for side in (live, saved)]
    if short[0] != short[1]:
        first, second = (", ".join(f"{name} x{n}" for name, n in sorted(side.items())) or "none" for side in short)
    else:
        first, second = (f"alone {min(side)} (of {len(side)})" for side in (live - saved, saved - live))
    return first, second
