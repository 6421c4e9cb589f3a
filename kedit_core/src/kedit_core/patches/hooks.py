"""What the stack hangs on modules: low-rank branches inside a module's output, then module operations, in stack order.

A module never changes class, name or place. One pair of hooks per module serves everything that is on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kedit_core.errors import StackDisturbedError
from kedit_core.patches.kinds import ModuleKind, blamed
from kedit_core.patches.operations import LowRankDelta
from kedit_core.patches.weights import exact_dtype


@frozen(eq=False)
class Branch:
    """A low-rank delta beside a module. left ``[out, r]``, right ``[r, in]``, on the module's device."""

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, delta: LowRankDelta, device: torch.device, dtype: torch.dtype) -> Branch:
        """The branch of a delta beside a weight of this device and dtype."""
        exact = exact_dtype(dtype) if dtype.is_floating_point else torch.float32
        return cls(delta.left.to(device, exact, copy=True), delta.right.to(device, exact, copy=True))

    def __call__(self, value: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]``, in the factors' dtype."""
        return (value.to(self.right.dtype) @ self.right.T) @ self.left.T


class Site:
    """Everything that the stack has on one module.

    ``live`` says whether it acts now (not while the stack is suspended). A deep copy or a pickle of a hooked model
    holds sites with nothing on them: the copy has a fresh stack.
    """

    def __init__(self, path: str, module: nn.Module | None, live: Callable[[], bool]) -> None:
        self.path = path
        self.module = module
        self.live = live
        self.branches: tuple[Branch, ...] = ()
        self.kinds: tuple[ModuleKind, ...] = ()
        self._handles: tuple[RemovableHandle, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_empty_site, (self.path,))

    def put_on(self) -> None:
        """Register the hooks: last before the module, first after it, so that others see the edited module."""
        if self.module is None or self._handles:
            return
        before = self.module.register_forward_pre_hook(self._before, with_kwargs=True)
        self._handles = (before,)
        after = self.module.register_forward_hook(self._after, with_kwargs=True, prepend=True)
        self._handles = (before, after)

    def take_off(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()

    @property
    def intact(self) -> bool:
        """Whether the hooks are where they were put."""
        if self.module is None or len(self._handles) != 2:
            return False
        before, after = self._handles
        return before.id in self.module._forward_pre_hooks and after.id in self.module._forward_hooks

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.kinds or not self.live():
            return None
        for kind in self.kinds:
            with blamed(kind.operation.kind, type(kind), f"failed before {self.path}"):
                changed = kind.before(self.path, args, kwargs)
                if changed is not None:
                    args, kwargs = changed
        return args, kwargs

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self.live():
            return None
        if self.branches:
            value = args[0] if args else kwargs["input"]
            output = _with_branches(self.branches, value, output)
        for kind in self.kinds:
            with blamed(kind.operation.kind, type(kind), f"failed after {self.path}"):
                changed = kind.after(self.path, args, kwargs, output)
            if changed is not None:
                output = changed
        return output


@frozen(eq=False)
class Hung:
    """What a site is to carry."""

    branches: tuple[Branch, ...] = ()
    kinds: tuple[ModuleKind, ...] = ()


class Sites:
    """All sites of one model."""

    def __init__(self, model: nn.Module, live: Callable[[], bool]) -> None:
        self._model = model
        self._live = live
        self._sites: dict[str, Site] = {}

    def install(self, wanted: Mapping[str, Hung]) -> None:
        """Make the sites carry exactly this; all of it or, when something fails, nothing."""
        before = {path: Hung(site.branches, site.kinds) for path, site in self._sites.items()}
        try:
            self._set(wanted)
        except BaseException:
            self._set(before)
            raise

    def _set(self, wanted: Mapping[str, Hung]) -> None:
        for path in [path for path in self._sites if path not in wanted]:
            self._sites.pop(path).take_off()
        for path, hung in wanted.items():
            site = self._sites.get(path)
            if site is None:
                site = self._sites[path] = Site(path, self._model.get_submodule(path), self._live)
            site.branches, site.kinds = hung.branches, hung.kinds
            site.put_on()

    def check(self) -> None:
        """StackDisturbedError when a module was exchanged or lost its hooks."""
        for path, site in self._sites.items():
            try:
                module = self._model.get_submodule(path)
            except AttributeError:
                module = None
            if module is not site.module or not site.intact:
                raise StackDisturbedError(
                    f"the module {path!r} was exchanged or its hooks were removed by something else; nothing was "
                    "changed, reload the model"
                )


def _with_branches(branches: tuple[Branch, ...], value: Tensor, output: Tensor) -> Tensor:
    """``cast(output.to(A) + ((0 + b1) + b2) + ...)``: one rounding, as for merged deltas."""
    with torch.autocast(output.device.type, enabled=False):
        total = branches[0](value)
        for branch in branches[1:]:
            total = total + branch(value)
        return (output.to(total.dtype) + total).to(output.dtype)


def _empty_site(path: str) -> Site:
    return Site(path, None, _never)


def _never() -> bool:
    return False
