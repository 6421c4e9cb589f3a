"""What a method is given beside its requests and settings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from kedit_core.contract import MethodInfo, Scenario, Way
from kedit_core.editing import progress as _progress
from kedit_core.editing.trainable import Masters, trainable
from kedit_core.errors import RequirementError
from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.hparams import HyperParams
from kedit_core.models import ModelView
from kedit_core.patches import EditPatch, Operation, PatchStack, Requirement, path_digest
from kedit_core.requests import EditRequest

if TYPE_CHECKING:
    from kedit_core.evaluation import Protocol
    from kedit_core.plugins import Host

T = TypeVar("T")


@frozen(kw_only=True)
class EditWarning:
    """Something a user should know of an edit that was nevertheless made.

    ``code`` is stable and machine-readable, ``number`` the measured quantity, ``remedy`` what to do about it.
    """

    code: str
    message: str
    number: float | None
    remedy: str


@define(kw_only=True)
class EditContext:
    """One edit's view of its Editor.

    Attributes:
        model, tokenizer: as the user gave them; a method leaves both exactly as found.
        adapter: where layers, projections and norms of this model are.
        forward: capture, inject, tails (see kedit_core.forward); ``tokens`` joins prompts and targets.
        stack: the patches on the model, for reading (``suspended()``, ``base(...)``); ``provisional()`` is for writing.
        generator: a CPU generator, seeded anew with ``seed`` for every compute_patch.
        previous: the patch this Editor computed last and that is still on the model, or None.
        options: what the caller passed for this method beside hparams (``stats``, ``corpus``, ...).
        memory_budget: bytes a method may use beside the model.
        cache: folder for what is worth keeping between runs.
        memo: kept for the Editor's life; only for what follows from the base model, the seed and the key alone, or also
            from patches, if their ids are kept with it and compared before it is used again.
        metrics: groups of metrics on request that are to be measured; :meth:`wants` asks for one.
        records: measurements by name (``edit_seconds``, ...), read by metrics.
        requests: all prepared requests of this edit (a round computes some of them).
    """

    model: nn.Module
    tokenizer: Any
    adapter: ModelView
    forward: ForwardTools
    tokens: TokenBoundary
    stack: PatchStack
    host: Host
    method: MethodInfo | None
    method_version: str | None = None
    method_distribution: str | None = None
    hparams: HyperParams | None = None
    model_name: str | None = None
    revision: str | None = None
    seed: int = 0
    generator: torch.Generator = field(factory=torch.Generator)
    previous: EditPatch | None = None
    options: Mapping[str, Any] = field(factory=dict)
    resources: Mapping[str, Path] = field(factory=dict)
    protocols: tuple[Protocol, ...] = ()
    metrics: frozenset[str] = frozenset()
    scenario: Scenario = "batch"
    way: Way | None = None
    requests: Sequence[EditRequest] = ()
    memory_budget: int = 2 << 30
    cache: Path
    progress: _progress.Progress = _progress.silent
    memo: dict[Hashable, Any] = field(factory=dict)
    records: dict[str, list[float]] = field(factory=dict)
    warnings: list[EditWarning] = field(factory=list)
    _used: dict[str, str] = field(factory=dict, init=False)

    def warn(self, code: str, number: float | None, remedy: str, message: str = "") -> None:
        """Tell the user something that does not stop the edit; it lands in ``result.warnings``, once."""
        warning = EditWarning(code=code, message=message or code.replace("_", " "), number=number, remedy=remedy)
        if warning not in self.warnings:
            self.warnings.append(warning)

    def wants(self, group: str) -> bool:
        """Whether a group of metrics on request (``fluency``, ...) is to be measured."""
        return group in self.metrics

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value kept under ``key``, made on first use; it must follow from the base model, seed and key alone."""
        if key not in self.memo:
            self.memo[key] = make()
        return cast(T, self.memo[key])

    def resource(self, role: str) -> Path:
        """The file or folder the user gave for ``role`` (``--with ROLE=PATH``); its digest goes to the manifest.

        Raises RequirementError when none was given or it is not there.
        """
        if role not in self.resources:
            raise RequirementError(
                f"method {self.method.name if self.method else None!r} needs a file or folder for the role {role!r}, "
                f"and none was given; pass --with {role}=PATH, or resources={{'{role}': path}} (to Editor, or "
                "in a benchmark's spec)"
            )
        path = Path(self.resources[role])
        if not path.exists():
            raise RequirementError(f"the {role} at {path} does not exist; check the path given for it")
        self._used[role] = path_digest(path)
        return path

    def note_resource(self, role: str, digest: str) -> None:
        """Record the digest of something the edit stands on that was not given as a file (cached statistics, ...)."""
        self._used[role] = digest

    def find_resource(self, role: str, key: str) -> Path | None:
        """A file some plugin ships for ``role`` under this content key, or None."""
        return self.host.find_resource(role, key)

    @contextmanager
    def provisional(self) -> Iterator[Any]:
        """A writer whose operations are on the model until the block ends, through the core's own code.

        ``with context.provisional() as writer: writer.add(operations)``: how a method writes one layer before it reads
        the next.
        """
        with self.stack.provisional() as writer:
            yield writer

    def trainable(self, places: Sequence[str]) -> AbstractContextManager[Masters]:
        """Float32 masters of a few parameters for training; everything is put back on exit."""
        return trainable(self.model, places)

    def new_patch(
        self,
        operations: Sequence[Operation],
        requests: Sequence[EditRequest],
        *,
        state_config: Mapping[str, Any] | None = None,
        state_tensors: Mapping[str, Tensor] | None = None,
        requires: Sequence[Requirement] = (),
    ) -> EditPatch:
        """The patch of these operations on this model, with everything a manifest must say filled in.

        ``state_config`` (JSON) and ``state_tensors`` are the method's own, never installed.
        """
        config = dict(state_config or {})
        if self._used:
            config["resources"] = dict(sorted(self._used.items()))
        return EditPatch.build(
            method={
                "name": self.method.name if self.method else "none",
                "distribution": self.method_distribution or "unknown",
                "version": self.method_version or "0",
            },
            hparams=self.hparams.to_dict() if self.hparams is not None else {},
            seed=self.seed,
            parents=self._parents(),
            requires=tuple(requires),
            base=self.stack.base_of(operations, name=self.model_name, revision=self.revision),
            operations=tuple(operations),
            state_config=config,
            state_tensors=dict(state_tensors or {}),
            requests=tuple(request.fact for request in requests),
        )

    def _parents(self) -> tuple[str, ...]:
        """Patches this one is computed on top of; an ``extend`` method's last one is replaced, so it is no parent."""
        replaced = self.previous.id if self.previous and self.method and self.method.state == "extend" else None
        return tuple(entry.patch.id for entry in self.stack.patches if entry.patch.id != replaced)


def seeded(seed: int) -> torch.Generator:
    """A CPU generator in the state that ``seed`` gives."""
    return torch.Generator().manual_seed(seed)
