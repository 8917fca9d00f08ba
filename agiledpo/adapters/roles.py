"""The adapters of one agent, known by role."""

import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, cast, get_args

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from agiledpo.adapters.files import SavedAdapter
from agiledpo.adapters.layout import AdapterLayout
from agiledpo.adapters.reconcile import (
    ConfigDifferences,
    Prospect,
    compare,
    config_differences,
    has_room,
    merged,
    merged_layout,
)
from agiledpo.adapters.shared_base import SharedBaseModel
from agiledpo.adapters.transplant import Move

Role = Literal["actor", "reference"]
ROLES: tuple[Role, ...] = get_args(Role)


class AgentAdapters:
    """Actor and reference adapters of one agent on a shared base.

    The reference is a frozen adapter, or the bare base model. Agents whose references are equal hold the same frozen
    adapter; one that is about to write to it gets its own first.

    Args:
        base: The base model that carries the adapters.
        config: LoRA configuration of both adapters.
        separate_reference: Keep a frozen ``reference`` adapter; False makes the bare base the reference.
        seed: Seed of the actor's initialisation.
        start: Physical name of the adapter that the actor starts from; None for a fresh one.

    Attributes:
        lora_config: LoRA configuration of all adapters of the agent; :meth:`load_saved` may replace it.
        arrived: What :meth:`load_saved` last multiplied the saved parameters by, by name, where it was not 1.
        move: How the actor's parameters went into those of the last rebuild; None if there was none, or the optimizer
            has followed it.
    """

    def __init__(
        self,
        base: SharedBaseModel,
        config: LoraConfig,
        *,
        separate_reference: bool,
        seed: int,
        start: str | None = None,
    ) -> None:
        self.base = base
        self.lora_config = config
        self.move: Move | None = None
        self.arrived: Mapping[str, float] = {}
        self._seed = seed
        self._held: list[str] = []
        self._used = "actor"
        self._finalizer = weakref.finalize(self, _disown, base, self._held)
        actor = base.add("actor", config, trainable=True, seed=seed)
        self._held.append(actor)
        if start is not None:
            base.copy(start, actor)
        self._names: dict[Role, str | None] = {"actor": actor, "reference": None}
        if separate_reference:
            self._set_reference(base.frozen_copy(actor))
        self.use("actor")

    def name(self, role: str) -> str | None:
        """Physical adapter name of a role; None stands for the bare base.

        Raises:
            ValueError: The agent has no such role.
        """
        for known, name in self._names.items():
            if known == role:
                return name
        raise ValueError(f"There is no adapter {role!r}; this agent has {', '.join(self._names)}.")

    @property
    def owned(self) -> dict[str, str]:
        """Physical name by role, for the roles that have an adapter of their own."""
        return {role: name for role, name in self._names.items() if name is not None}

    def use(self, role: str) -> None:
        """Make a role's adapter the active one."""
        self._used = role
        self.base.activate(self.name(role))

    @contextmanager
    def select(self, role: str) -> Iterator[PeftModel]:
        """Make a role's adapter active inside the context; whatever was active before is restored."""
        with self.base.active(self.name(role)) as model:
            yield model

    @contextmanager
    def evaluate(self, role: str) -> Iterator[PeftModel]:
        """The same for evaluation only: an adapter that adds nothing to the base is left out, which is faster."""
        name = self.name(role)
        with self.base.active(None if name is None or self.base.adds_nothing(name) else name) as model:
            yield model

    def parameters(self, role: str) -> list[nn.Parameter]:
        """The adapter parameters of a role, to be read (none for a reference that is the bare base)."""
        name = self.name(role)
        return [] if name is None else list(self.base.parameters(name).values())

    def own_parameters(self, role: str) -> list[nn.Parameter]:
        """The same, to be written to: a reference that other agents hold becomes this agent's own first."""
        self._writable(role)
        return self.parameters(role)

    def copy_role(self, source: str, target: str) -> None:
        """Copy the weights of one role's adapter onto another's."""
        source_name, target_name = self.name(source), self._writable(target)
        if source_name is None or target_name is None:
            raise ValueError(f"Cannot copy {source!r} onto {target!r}: one of them is the bare base model.")
        self.base.copy(source_name, target_name)

    def mix_role(self, source: str, target: str, weight: float) -> None:
        """Move one role's weights towards another's: ``target <- weight * source + (1 - weight) * target``.

        Every parameter of the adapter is mixed, so with LoRA it is the factors A and B, not their products.
        """
        source_name, target_name = self.name(source), self._writable(target)
        if source_name is None or target_name is None:
            raise ValueError(f"Cannot mix {source!r} into {target!r}: one of them is the bare base model.")
        self.base.mix(source_name, target_name, weight)

    def content(self, role: str, *, portable: bool) -> str:
        """Name what the model computes in a role; see :meth:`SharedBaseModel.content`."""
        return self.base.content(self.name(role), portable=portable)

    def copy_from(self, other: "AgentAdapters") -> None:
        """Become a copy of another agent's adapters on the same base; a frozen reference is held by both."""
        actor, theirs, reference = self.owned["actor"], other.owned["actor"], other.name("reference")
        if (reference is None) is not (self.name("reference") is None):
            raise ValueError("One of the two agents has a separate reference adapter and the other has none.")
        self.base.copy(theirs, actor)
        if reference is not None and reference != self.name("reference"):
            self._set_reference(self.base.frozen_copy(reference))

    def clear_reference(self) -> None:
        """Make the reference add nothing to the base again; agents for which it does hold one adapter.

        Raises:
            ValueError: The reference is the bare base, which has nothing to clear.
        """
        self._set_reference(self.base.shared(self._neutral("reference")))

    def share_reference(self) -> None:
        """Hold the frozen adapter of another agent instead of an equal one of this agent's own."""
        reference = self.name("reference")
        twin = None if reference is None else self.base.hold_equal(reference)
        if twin is not None:
            self._set_reference(twin)
            self.base.sweep()

    @property
    def alone(self) -> bool:
        """Whether no other agent has an adapter on the base model."""
        mine = set(self.owned.values())
        return mine == set(self.base.adapter_names) and not any(self.base.is_shared(name) for name in mine)

    # Saved adapters -------------------------------------------------------------------------------------------------

    def check(self, arriving: Mapping[str, SavedAdapter], *, merge: bool) -> Prospect:
        """Check that :meth:`load_saved` would succeed for one adapter after the other; nothing changes.

        Args:
            arriving: The adapters by role. Each is compared with what those before it will have made of this agent's.
            merge: Whether configurations may be merged.

        Returns:
            What it would do to the actor's parameters.

        Raises:
            AdapterFileError: An adapter is not of this base model, or damaged.
            ValueError: Configurations differ and may not or cannot be merged; they are shown side by side. Or the agent
                has no adapter in that role.
        """
        rebuilt: AdapterLayout | None = None
        grows = rescales = False
        for role, saved in arriving.items():
            name = self._present(role)
            if rebuilt is None and self._matches(name, saved):
                continue
            with self.base.visitor(saved) as visitor:
                live, theirs = rebuilt or self.base.layout(name), self.base.layout(visitor)
                differences, config = self._reconciled(live, visitor, saved, merge=merge)
                if config is not None:
                    rebuilt = merged_layout(live, theirs, config)
                    grows = grows or any(rebuilt.ranks[key] != rank for key, rank in live.ranks.items())
                if role == "actor" and differences.blocking:
                    room = rebuilt or live
                    rescales = any(room.scalings[key] != scaling for key, scaling in theirs.scalings.items())
        return Prospect(grows=grows, rescales=rescales)

    def load_saved(self, role: str, saved: SavedAdapter, *, merge: bool) -> bool:
        """Make a role compute exactly what a saved adapter computed.

        Where the saved adapter has no room in this agent's, all of the agent's adapters are first rebuilt with a merged
        configuration, in which they compute what they did. The optimizer then has to follow the actor's ``move``.

        Args:
            role: Where the adapter goes.
            saved: The adapter.
            merge: Whether the configurations may differ and be merged.

        Returns:
            Whether the agent's adapters were rebuilt.

        Raises:
            AdapterFileError: The adapter is damaged or not of this base model.
            ValueError: As for :meth:`check`. Nothing has changed then.
        """
        name = self._present(role)
        self.arrived = {}
        if self._matches(name, saved):
            keys = self.base.file_keys(name)
            self._write(role, {parameter: saved.tensors[key] for key, parameter in keys.items()})
            if role == "reference":
                self.share_reference()
            return False
        with self.base.visitor(saved) as visitor:
            differences, config = self._reconciled(self.base.layout(name), visitor, saved, merge=merge)
            if differences.kept:
                warnings.warn(_kept(differences, saved), stacklevel=2)
            if config is not None:
                self._rebuild(config)
            fresh = self._neutral(role)
            if differences.blocking:
                self.arrived = self.base.transplant(visitor, fresh)
            else:
                self.base.copy(visitor, fresh)
        if role == "reference":
            self._set_reference(self.base.shared(fresh))
        else:
            self.base.copy(fresh, self.owned[role])
            self.base.disown(fresh)
            self.base.sweep()
        return config is not None

    def _matches(self, name: str, saved: SavedAdapter) -> bool:
        """Whether a saved adapter is of the very configuration of a live one, so that there is nothing to reconcile."""
        live = self.base.parameters(name)
        shapes = {key: live[parameter].shape for key, parameter in self.base.file_keys(name).items()}
        return shapes == {key: tensor.shape for key, tensor in saved.tensors.items()} and not config_differences(
            self.base.config(name), saved.config
        )

    def _reconciled(
        self, live: AdapterLayout, visitor: str, saved: SavedAdapter, *, merge: bool
    ) -> tuple[ConfigDifferences, LoraConfig | None]:
        """The differences to a saved adapter, and the configuration to rebuild with (None: there is room for it)."""
        theirs = self.base.layout(visitor)
        differences = compare(live, theirs)
        if differences.irreconcilable:
            raise ValueError(
                f"The LoRA configuration of {saved.config_file} differs from this agent's in "
                f"{', '.join(differences.irreconcilable)}, which merging cannot reconcile:\n{differences.text}\n"
                "Make the agent with the lora_config of the saved adapter."
            )
        if differences.blocking and not merge:
            raise ValueError(
                f"The LoRA configuration of {saved.config_file} differs from this agent's:\n{differences.text}\n"
                "Pass merge_lora_configs=True to make room for both, or make the agent with the saved lora_config."
            )
        if differences.blocking:
            for adapter in (visitor, *self.owned.values()):
                self.base.check_transplantable(adapter)
        if has_room(live, theirs):
            return differences, None
        return differences, merged(live, theirs, self.base.module_names)

    def _rebuild(self, config: LoraConfig) -> None:
        """Give every role an adapter of another configuration that computes what its own does."""
        old = dict(self.owned)
        new: dict[str, str] = {}
        try:
            for role, name in old.items():
                new[role] = self.base.add_neutral(role, config, trainable=role == "actor", seed=self._seed)
                factors = self.base.transplant(name, new[role])
                if role == "actor":
                    move = Move(self.base.parameters(name), factors)
        except BaseException:
            for name in new.values():
                self.base.disown(name)
            self.base.sweep()
            raise
        if "reference" in new:
            self._set_reference(self.base.shared(new["reference"]))
        self._hold("actor", new["actor"])
        self.lora_config, self.move = config, move

    def _neutral(self, role: str) -> str:
        """A new frozen adapter of a role's configuration that adds nothing to the base."""
        config = self.base.config(self._present(role))
        return self.base.add_neutral(role, config, trainable=False, seed=self._seed)

    def _present(self, role: str) -> str:
        name = self.name(role)
        if name is None:
            raise ValueError(
                f"The {role} is the bare base model, which all agents share and nothing can be loaded onto. "
                "Make the agent with use_separate_reference_adapter=True."
            )
        return name

    def _writable(self, role: str) -> str | None:
        """Physical name of a role's adapter that no other agent holds."""
        name = self.name(role)
        if name is not None and self.base.is_shared(name):
            name = self.base.frozen_copy(name, private=True)
            self._set_reference(name)
        return name

    def _set_reference(self, name: str) -> None:
        self._hold("reference", name)

    def _hold(self, role: Role, name: str) -> None:
        """Hold an adapter in a role instead of the one that is there."""
        held = self._names[role]
        self._names[role] = name
        self._held.append(name)
        if held is not None:
            self._held.remove(held)
            if self._used == role and self.base.active_name == held:
                self.base.activate(name)
            self.base.disown(held)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Parameters of every adapter that the agent owns, by role and by a name that is the same for all agents."""
        return {
            role: {key: parameter.detach() for key, parameter in self.base.parameters(name).items()}
            for role, name in self.owned.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy parameters that :meth:`state_dict` gave into the adapters.

        Raises:
            ValueError: Roles, names or shapes are not this agent's.
        """
        if state.keys() != self.owned.keys():
            raise ValueError(f"The state has the adapters {', '.join(state)}; this agent has {', '.join(self.owned)}.")
        for role, name in self.owned.items():
            parameters = self.base.parameters(name)
            if {key: tensor.shape for key, tensor in state[role].items()} != {
                key: parameter.shape for key, parameter in parameters.items()
            }:
                raise ValueError(f"The state's {role!r} adapter has other parameters; is its lora_config this agent's?")
            self._write(role, state[role])

    @torch.no_grad()
    def _write(self, role: str, tensors: Mapping[str, Tensor]) -> None:
        """Give a role's adapter other weights, by parameter name; a reference that is right already stays shared."""
        parameters = self.base.parameters(self.owned[role])
        arrived = {key: tensors[key].to(parameter) for key, parameter in parameters.items()}
        if all(torch.equal(parameter, arrived[key]) for key, parameter in parameters.items()):
            return
        for key, parameter in self.base.parameters(cast(str, self._writable(role))).items():
            parameter.copy_(arrived[key])

    def release(self) -> None:
        """Remove the adapters now; the agent cannot be used afterwards."""
        self._finalizer()
        self.base.sweep()


def _kept(differences: ConfigDifferences, saved: SavedAdapter) -> str:
    values = ", ".join(
        f"{name}={differences.live[name]} (saved: {differences.saved[name]})" for name in differences.kept
    )
    return f"This agent keeps its own {values} and not that of {saved.config_file}; the function is the saved one's."


def _disown(base: SharedBaseModel, names: list[str]) -> None:
    for name in names:
        base.disown(name)
