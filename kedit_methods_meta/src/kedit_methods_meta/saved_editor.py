"""What an editor of this family is on disk: the weights it edits, its settings, its tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from attrs import asdict
from torch import Tensor, nn
from torch.nn.modules import module as registration

from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_core.hparams import HyperParams
from kedit_core.training import EditorFolder
from kedit_methods_meta.places import Place

ROLE = "editor"  # that a user gives an editor's folder for
_AGAIN = "get the whole folder again"

M = TypeVar("M", bound="SavedEditor")


class SavedEditor(nn.Module):
    """A network that edits the weights at some places of a model.

    Args:
        places: the edited weights, in the model's order.
        settings: kept with the editor.

    Attributes:
        settings_class: of its settings.
    """

    settings_class: ClassVar[type[HyperParams]] = HyperParams

    def __init__(self, places: Sequence[Place], settings: HyperParams) -> None:
        super().__init__()
        self.places, self.settings = tuple(places), settings

    @property
    def bytes(self) -> int:
        """Memory that its tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def config(self) -> dict[str, Any]:
        """What is needed to make this editor again, beside its tensors and the model: JSON."""
        return {"settings": self.settings.to_dict(), "places": [asdict(place) for place in self.places]}

    def tensors(self) -> dict[str, Tensor]:
        """All that is learned and counted, by name: what a checkpoint holds."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`tensors` gave.

        Raises InputError for tensors that are not this editor's, or not numbers.
        """
        _check_shapes(self, tensors)
        broken = [name for name, each in tensors.items() if not _numbers(each)]
        if broken:
            raise InputError(f"the editor's tensor {broken[0]!r} is not of finite numbers; {_AGAIN}, or train it anew")
        self.load_state_dict(dict(tensors))


def made_for(tensors: Mapping[str, Tensor], make: Callable[[], M]) -> M:
    """The editor that ``make`` makes of settings that somebody sent, with these tensors in it.

    It is made without memory first, and only as far as tensors were sent for, so that settings of a network of any size
    cost nothing. Raises InputError for tensors that are not those of such an editor, or not numbers.
    """
    try:
        with _at_most(2 * len(tensors) + 100), torch.device("meta"):
            planned = make()
    except (RuntimeError, OverflowError, TypeError) as error:
        raise InputError(f"the editor's settings are of no network that can be made ({error}); {_AGAIN}") from error
    _check_shapes(planned, tensors)
    made = make()
    made.load(tensors)
    return made


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """A block that may give this many parameters and buffers to modules; InputError for one more."""
    mine, count = threading.get_ident(), 0

    def register(*_: object) -> None:
        nonlocal count
        count += threading.get_ident() == mine
        if count > limit:
            raise InputError(f"the editor's settings are of a larger network than its tensors; {_AGAIN}")

    handles = [
        registration.register_module_parameter_registration_hook(register),
        registration.register_module_buffer_registration_hook(register),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_shapes(editor: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = editor.state_dict()
    wrong = sorted({*own} ^ {*tensors}) or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        raise InputError(f"the editor's tensors do not go with its settings (see {wrong[0]!r}); {_AGAIN}")


def described(config: Mapping[str, Any], settings_class: type[HyperParams]) -> tuple[Any, list[Any]]:
    """Settings and listed places of a :meth:`SavedEditor.config`.

    Raises InputError (HyperParamsError) when it is not one.
    """
    settings, places = config.get("settings"), config.get("places")
    if not isinstance(settings, Mapping) or not isinstance(places, list):
        raise InputError(f"the editor's state has no settings or no places; {_AGAIN}")
    return settings_class.from_dict(settings, "the editor's settings"), places


def check_places(places: Sequence[Place], listed: Sequence[Any]) -> None:
    """InputError unless ``listed``, of an editor's config, are the places that its settings name in this model."""
    if [asdict(place) for place in places] != list(listed):
        raise InputError(
            "the editor's weights are not those that its settings name in this model; use the model it was trained for"
        )


def loaded(context: EditContext, kind: type[M]) -> M:
    """The editor that the user gave for the role ``editor``, on the model's device; read and checked once.

    kind: a class with ``of(view, config, tensors)``. Warns ``half_precision_gradients`` on a float16 model.

    Raises RequirementError, InputError, BaseMismatchError.
    """
    folder = EditorFolder.load(context, ROLE)
    device = context.forward.device

    def read() -> M:
        made: M = kind.of(context.adapter, folder.config, folder.tensors)  # type: ignore[attr-defined]
        return made.to(device)

    warn_of_half_precision(context)
    return context.remember((kind.__qualname__, folder.digest, str(device)), read)


def warn_of_half_precision(context: EditContext) -> None:
    """Warn ``half_precision_gradients`` with the number of parameters in float16, in which gradients vanish."""
    halves = sum(each.numel() for each in context.model.parameters() if each.dtype == torch.float16)
    if halves:
        context.warn(
            "half_precision_gradients",
            float(halves),
            "load the model in bfloat16 or float32",
            "the model is in float16, in which gradients of 1e-7 and less are lost; edits are then incomplete",
        )


def _numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(torch.isfinite(tensor).all())
