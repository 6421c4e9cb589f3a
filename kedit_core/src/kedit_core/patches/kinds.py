"""What the author of a module or router kind implements (entry-point group ``kedit.operations``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core.errors import KeditError, PluginError
from kedit_core.models.storage import device_of
from kedit_core.patches.operations import ModuleOperation, RouterOperation

if TYPE_CHECKING:
    from kedit_core.forward.scope import PromptScope
    from kedit_core.plugins import Catalogue


@frozen(eq=False, kw_only=True)
class LiveContext:
    """Where a kind is put on.

    Attributes:
        model: the live model.
        scope: says for each row where its prompt ends and keeps decisions from prefill to decode.
        modules: place -> module, for a module operation.
        resources: role -> local path of what the patch requires; digests are checked.
    """

    model: nn.Module
    scope: PromptScope
    modules: Mapping[str, nn.Module] = field(factory=dict)
    resources: Mapping[str, Path] = field(factory=dict)

    def device(self, place: str | None = None) -> torch.device:
        """The device of a place (of the model when there is none): where its first parameter computes."""
        module, prefix = (self.model, "") if place is None else (self.modules[place], f"{place}.")
        first = next(iter(module.named_parameters()), None)
        return torch.device("cpu") if first is None else device_of(self.model, prefix + first[0], first[1])


class ModuleKind(ABC):  # noqa: B024 - both hooks are optional
    """Changes what modules take in or give out, without replacing them.

    One object serves all places of one operation. It must not touch parameters, and keeps what it decides about the
    rows of a run in ``live.scope``, never in itself. Put float maths in the dtype your method needs; the value
    returned has the dtype of the one received.
    """

    versions: ClassVar[tuple[int, ...]] = (1,)

    def __init__(self, operation: ModuleOperation, live: LiveContext) -> None:
        self.operation = operation
        self.live = live

    @property
    def needs_scope(self) -> bool:
        """Whether it reads ``live.scope``; one that does not also acts under beams and the like."""
        return True

    def before(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Called before the module runs; new ``(args, kwargs)``, or None to leave them."""
        return None

    def after(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """Called after the module ran, and after deltas inside it; the new output, or None to leave it.

        A block's output may be a plain tensor ``[batch, seq, hidden]`` or a tuple that starts with it.
        """
        return None

    def to_device(self, devices: Mapping[str, torch.device]) -> None:
        """Called when the model moved: place -> its new device. Tensors you keep go there."""
        return None


@frozen(eq=False)
class RoutedModel:
    """Another model that answers instead, with its tokenizer."""

    model: nn.Module
    tokenizer: Any


@frozen(eq=False)
class Route:
    """How one prompt is answered: text put before it, and by which model (None: the one the stack is on)."""

    context: str = ""
    model: RoutedModel | None = None


class RouterKind(ABC):
    """Decides for each prompt what is read before it and which model answers."""

    versions: ClassVar[tuple[int, ...]] = (1,)

    def __init__(self, operation: RouterOperation, live: LiveContext) -> None:
        self.operation = operation
        self.live = live

    @abstractmethod
    def route(self, prompts: Sequence[str]) -> Sequence[Route]:
        """One route per prompt, in order. ``prompts`` are as the user wrote them, whatever other routers say."""


def kind_error(kind: str, cls: Any, what: str) -> PluginError:
    """A :class:`PluginError` about the class of a kind; ``what`` completes the sentence begun with the kind's name."""
    package = str(getattr(cls, "__module__", "?")).partition(".")[0].replace("_", "-")
    return PluginError(
        f"the kind {kind!r} of {package} {what}", plugin=kind, distribution=package, hook="kedit.operations"
    )


@contextmanager
def blamed(kind: str, cls: Any, what: str) -> Iterator[None]:
    """What a kind's code raises in the block comes out as a PluginError that names it; kedit's own errors pass."""
    try:
        yield
    except KeditError:
        raise
    except Exception as error:
        if type(error).__module__.startswith("torch.utils.checkpoint"):
            raise  # how torch ends a recomputation early: no fault
        raise kind_error(kind, cls, f"{what} ({type(error).__name__}: {error})") from error


def to_all(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """An operation's tensors on a device; for kinds that keep them where the model is."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


class Kinds:
    """The classes of module and router operations: those given, then those that are installed.

    Args:
        catalogue: what is installed; looked up when first needed if it is not given.
        kinds: name -> class.
    """

    def __init__(self, catalogue: Catalogue | None = None, kinds: Mapping[str, type[Any]] | None = None) -> None:
        self._catalogue, self._given = catalogue, dict(kinds or {})

    def add(self, catalogue: Catalogue | None, kinds: Mapping[str, type[Any]] | None) -> None:
        """Use these from now on, in the place of those of equal names."""
        self._catalogue = catalogue or self._catalogue
        self._given |= kinds or {}

    def find(self, kind: str, provider: str | None) -> type[Any]:
        """The class of a kind; ``provider`` is the distribution to name when it is not installed.

        Raises UnknownNameError, PluginError.
        """
        if kind in self._given:
            return self._given[kind]
        if self._catalogue is None:
            from kedit_core.plugins import Catalogue

            self._catalogue = Catalogue.installed()
        return self._catalogue.operation_kind(kind, provider)
