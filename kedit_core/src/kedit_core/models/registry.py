"""Which adapter is for which model. Importing this imports no torch; binding a model does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kedit_core.errors import DuplicateNameError, KeditError, UnsupportedModelError
from kedit_core.models.adapter import ModelAdapter

if TYPE_CHECKING:
    from torch import nn

    from kedit_core.models.view import ModelView


class AdapterRegistry:
    """Adapters by architecture; the same one given twice counts once.

    Raises:
        DuplicateNameError: two different adapters for one architecture; the message names who provides them.
        KeditError: something that is no adapter.
    """

    def __init__(self, adapters: Iterable[ModelAdapter] = ()) -> None:
        self._by_architecture: dict[str, list[ModelAdapter]] = {}
        for adapter in adapters:
            self.register(adapter)

    def register(self, adapter: ModelAdapter) -> None:
        """Add an adapter under each of its architectures; see the class for what is raised."""
        if not isinstance(adapter, ModelAdapter):
            raise KeditError(
                f"a {type(adapter).__name__} was registered as an adapter; register_adapters returns ModelAdapters"
            )
        for architecture in adapter.architectures:
            known = self._by_architecture.setdefault(architecture, [])
            rivals = [other for other in known if other != adapter and other.only_if == adapter.only_if]
            if rivals:
                raise _clash(architecture, (rivals[0], adapter))
            if adapter not in known:
                known.append(adapter)

    @property
    def architectures(self) -> tuple[str, ...]:
        """Names of all architectures that have an adapter, sorted."""
        return tuple(sorted(self._by_architecture))

    def adapter_for(self, architecture: str, config: Any) -> ModelAdapter | None:
        """The adapter of an architecture whose config is this one, or None.

        Raises:
            DuplicateNameError: two adapters hold for it.
        """
        holding = [
            adapter
            for adapter in self._by_architecture.get(architecture, ())
            if adapter.only_if is None or adapter.only_if.holds(config)
        ]
        if len(holding) > 1:
            raise _clash(architecture, holding)
        return holding[0] if holding else None

    def for_model(self, model: nn.Module) -> ModelView:
        """Bind a model to the adapter of its class, else of the class it derives from, else of the architecture its
        config names; failing all, its structure is found and verified (:func:`~kedit_core.models.discovery.discover`).

        A model wrapped by peft is bound without the wrapper: names are those of ``view.model``.

        Raises:
            UnsupportedModelError: not a transformers model, wrapped in a way that cannot be followed, lacking what its
                adapter names, or of a structure that cannot be made out.
        """
        from kedit_core.models.discovery import discover
        from kedit_core.models.view import ModelView
        from kedit_core.models.wrappers import unwrapped

        inner = unwrapped(model)
        # Sharding and the like derive a class from the model's, so base classes count.
        names = [kind.__name__ for kind in type(inner).__mro__]
        names += [name for name in getattr(inner.config, "architectures", None) or () if name not in names]
        for name in names:
            if (adapter := self.adapter_for(name, inner.config)) is not None:
                return ModelView(adapter, inner)
        try:
            return ModelView(discover(inner), inner)
        except UnsupportedModelError as exc:
            exc.add_note(f"architectures with an adapter: {', '.join(self.architectures) or 'none'}")
            raise


def _clash(architecture: str, adapters: Iterable[ModelAdapter]) -> DuplicateNameError:
    parties = sorted({adapter.distribution or "a distribution that is not named" for adapter in adapters})
    who = f"both {parties[0]} and {parties[1]}" if len(parties) > 1 else f"{parties[0]}, twice and differently,"
    return DuplicateNameError(
        f"an adapter for {architecture} is provided by {who}; uninstall one, or set KEDIT_PLUGINS to the "
        "distributions to use"
    )
