"""The adapters of one agent, known by role."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, cast, get_args

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from agiledpo.adapters.shared_base import SharedBaseModel

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

    def _writable(self, role: str) -> str | None:
        """Physical name of a role's adapter that no other agent holds."""
        name = self.name(role)
        if name is not None and self.base.is_shared(name):
            name = self.base.frozen_copy(name, private=True)
            self._set_reference(name)
        return name

    def _set_reference(self, name: str) -> None:
        held = self._names["reference"]
        self._names["reference"] = name
        self._held.append(name)
        if held is not None:
            self._held.remove(held)
            if self._used == "reference" and self.base.active_name == held:
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
            if all(torch.equal(parameter, state[role][key]) for key, parameter in parameters.items()):
                continue  # a reference that is right already stays shared
            for key, parameter in self.base.parameters(cast(str, self._writable(role))).items():
                parameter.copy_(state[role][key])

    def release(self) -> None:
        """Remove the adapters now; the agent cannot be used afterwards."""
        self._finalizer()
        self.base.sweep()


def _disown(base: SharedBaseModel, names: list[str]) -> None:
    for name in names:
        base.disown(name)
