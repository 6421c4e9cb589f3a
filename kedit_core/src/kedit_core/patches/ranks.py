"""The processes that hold one model between them agree on every step of the stack, so that none waits for another.

Whatever one of them refuses, all refuse, with the same words; and all of them do one and the same thing. A model that
one process holds alone has nobody to agree with, and pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn

from kedit_core import errors
from kedit_core.errors import KeditError, StackOrderError
from kedit_core.models.storage import meshes, reshard


class Ranks:
    """The processes that a model's weights are spread over; none for a model in one process.

    Args:
        groups: process groups that connect all of them, one for each dimension of each mesh.
    """

    def __init__(self, groups: list[Any]) -> None:
        self._groups = groups

    @classmethod
    def of(cls, model: nn.Module) -> Ranks:
        """Those of a model; what FSDP has gathered is given up first."""
        reshard(model)
        return cls([mesh.get_group(dimension) for mesh in meshes(model) for dimension in range(mesh.ndim)])

    def any(self, mine: bool) -> bool:
        """Whether it is so for one of them. Raises StackOrderError when another process takes another step."""
        return any(theirs for theirs in self._told("hash a weight", mine)) if self._groups else mine

    @contextmanager
    def agree(self, step: str) -> Iterator[None]:
        """A step that all processes take, each by itself: when one raises, all do (afterwards, so that all are there).

        ``step`` says which one. Raises StackOrderError when another process takes another step.
        """
        if not self._groups:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        told = self._told(step, None if error is None else _fault(error), error)
        faults = [fault for fault in told if fault is not None]
        if error is not None and _fault(error) == faults[0]:
            raise error
        if faults:
            raise _again(*faults[0]) from error

    def _told(self, step: str, mine: Any, error: Exception | None = None) -> list[Any]:
        """What each process says of a step, this one ``mine``; StackOrderError (from ``error``) for another step."""
        told = self._collected((step, mine))
        if others := [other for other, _ in told if other != step]:
            raise StackOrderError(
                f"this process is about to {step} and another one is about to {others[0]}; the processes that hold a "
                "model between them put on and take off the same patches in the same order"
            ) from error
        return [theirs for _, theirs in told]

    def _collected(self, mine: Any) -> list[Any]:
        """What each process says."""
        found = [mine]
        for group in self._groups:
            parts: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(parts, found, group=group)
            found = [each for part in parts for each in part]
        return found


def _fault(error: Exception) -> tuple[str, str]:
    return type(error).__name__, str(error)


def _again(kind: str, text: str) -> KeditError:
    """An error of another process, as this one raises it."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, KeditError):
        if known.__init__ is KeditError.__init__:
            return known(text)
        return KeditError(text)
    return KeditError(f"another process that holds a part of this model failed ({kind}: {text})")
