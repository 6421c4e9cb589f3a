"""The memory of edits: text, and in the embedding form a vector for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from attrs import asdict, evolve, fields, frozen
from torch import Tensor

from kedit_core.errors import PatchFormatError
from kedit_core.patches import RouterOperation
from kedit_core.requests import EditRequest
from kedit_methods_memory.fields import mapping, typed
from kedit_methods_memory.serac.checkpoint import Scope, SeracEditor

KIND = "serac.scope"
_EMBEDDINGS = "embeddings"


@frozen(kw_only=True)
class Entry:
    """One edit: its request's id, prompt and target, what the classifier reads, what the counterfactual model reads."""

    id: str
    prompt: str
    target: str
    classifier_text: str
    context_text: str

    @classmethod
    def of(cls, request: EditRequest, scope: Scope) -> Entry:
        """The entry of a request."""
        return cls(
            id=request.id,
            prompt=request.prompt,
            target=request.target_new,
            classifier_text=scope.key(request.prompt, request.target_new),
            context_text=scope.before(request.prompt, request.target_new),
        )

    @classmethod
    def read(cls, values: Any) -> Entry:
        """From JSON. Raises KeyError, TypeError for anything but five texts."""
        known = {each.name for each in fields(cls)}
        if set(mapping(values, "an entry")) != known:
            raise TypeError(f"an entry has {sorted(values)}")
        return cls(**{name: typed(values, name, str) for name in known})


@frozen(eq=False, kw_only=True)
class Memory:
    """All edits of a patch in the order they were made, and how prompts are held against them.

    Attributes:
        scope: how texts are read; ``threshold``: the similarity above which a prompt is in scope.
        keep_all: whether an entry stays when a later one has the very same prompt (else only the later one counts;
            the earlier is still here, so that it comes back when the later is taken out).
        editor: digests of the checkpoint (``sha256``) and of its models' folders.
        entries: the edits.
        embeddings: ``[entries, heads, width / heads]`` float32; None in the cross-attention form.
    """

    scope: Scope
    threshold: float
    keep_all: bool
    editor: dict[str, str]
    entries: tuple[Entry, ...] = ()
    embeddings: Tensor | None = None

    @classmethod
    def empty(cls, editor: SeracEditor, threshold: float, keep_all: bool) -> Memory:
        """Without any edit."""
        digests = {"sha256": editor.digest or "", **editor.parts}
        return cls(scope=editor.scope, threshold=threshold, keep_all=keep_all, editor=digests)

    @cached_property
    def live(self) -> list[int]:
        """Indices of the entries that count."""
        if self.keep_all:
            return list(range(len(self.entries)))
        return sorted({entry.prompt: index for index, entry in enumerate(self.entries)}.values())

    def adding(self, requests: Iterable[EditRequest], editor: SeracEditor) -> Memory:
        """With more edits; only their texts are read by the classifier."""
        new = [Entry.of(request, self.scope) for request in requests]
        if self.scope.cross_attend:
            return evolve(self, entries=(*self.entries, *new))
        vectors = editor.classifier.vectors([entry.classifier_text for entry in new]).cpu()
        self._check_width(vectors)
        kept = [] if self.embeddings is None else [self.embeddings]
        return evolve(self, entries=(*self.entries, *new), embeddings=torch.cat([*kept, vectors]))

    def without(self, request_id: str) -> Memory:
        """Without the edits of this request."""
        kept = [index for index, entry in enumerate(self.entries) if entry.id != request_id]
        embeddings = (
            None if self.embeddings is None or not kept else self.embeddings[torch.tensor(kept, dtype=torch.long)]
        )
        return evolve(self, entries=tuple(self.entries[index] for index in kept), embeddings=embeddings)

    # ------------------------------------------------------------------ deciding
    def decide(self, prompts: Sequence[str], editor: SeracEditor) -> list[Entry | None]:
        """For each prompt the entry in whose scope it is, or None. Without entries the classifier is not called."""
        live = self.live
        if not live or not prompts:
            return [None] * len(prompts)
        index, similarity = self.nearest(prompts, editor)
        inside = (similarity.exp() > self.threshold).tolist()
        return [self.entries[live[i]] if yes else None for i, yes in zip(index.tolist(), inside, strict=True)]

    def nearest(self, prompts: Sequence[str], editor: SeracEditor) -> tuple[Tensor, Tensor]:
        """Of each prompt the nearest of the ``live`` entries: index into these and log-similarity, ``[prompts]``."""
        if self.scope.cross_attend:
            return editor.classifier.best_pairs([self.entries[i].classifier_text for i in self.live], prompts)
        queries = editor.classifier.vectors(prompts)
        self._check_width(queries)
        return self.scope.metric.best(queries, self._keys.to(queries.device))

    @cached_property
    def _keys(self) -> Tensor:
        """Vectors of the live entries."""
        if self.embeddings is None:
            raise PatchFormatError("the patch's memory has no embeddings; it was not made by kedit")
        if len(self.live) == len(self.entries):
            return self.embeddings
        return self.embeddings[torch.tensor(self.live, dtype=torch.long)]

    # ------------------------------------------------------------------ in a patch
    def operation(self) -> RouterOperation:
        """The router operation that holds it."""
        config = {
            "threshold": self.threshold,
            "keep_all": self.keep_all,
            "scope": self.scope.to_json(),
            "editor": self.editor,
            "memory": [asdict(entry) for entry in self.entries],
        }
        tensors = {} if self.embeddings is None else {_EMBEDDINGS: self.embeddings}
        return RouterOperation(kind=KIND, config=config, tensors=tensors)

    @classmethod
    def of(cls, operation: RouterOperation) -> Memory:
        """The memory in an operation. Raises PatchFormatError for one that is not whole."""
        config: dict[str, Any] = dict(operation.config)
        try:
            memory = cls(
                scope=Scope.read(config["scope"], "the patch"),
                threshold=float(typed(config, "threshold", int, float)),
                keep_all=typed(config, "keep_all", bool),
                editor=_digests(config["editor"]),
                entries=tuple(Entry.read(entry) for entry in typed(config, "memory", list, tuple)),
                embeddings=operation.tensors.get(_EMBEDDINGS),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PatchFormatError(f"a {KIND} operation is not whole ({error!r}); it was not made by kedit") from error
        found = memory.embeddings
        wanted = None if memory.scope.cross_attend or not memory.entries else len(memory.entries)
        if (None if found is None else found.shape[0]) != wanted or (
            found is not None
            and (found.dim() != 3 or found.shape[1] != memory.scope.heads or found.dtype != torch.float32)
        ):
            raise PatchFormatError(
                f"a {KIND} operation has {len(memory.entries)} entries and embeddings of shape "
                f"{None if found is None else list(found.shape)}; it was not made by kedit"
            )
        return memory

    def _check_width(self, vectors: Tensor) -> None:
        if self.embeddings is not None and self.embeddings.shape[1:] != vectors.shape[1:]:
            raise PatchFormatError(
                f"the patch has embeddings of {list(self.embeddings.shape[1:])} numbers, and its editor makes "
                f"{list(vectors.shape[1:])}; it was not made with this editor"
            )


def _digests(values: Any) -> dict[str, str]:
    named = mapping(values, "editor")
    return {name: typed(named, name, str) for name in named}
