"""Live models and the Editors of cells: each model is loaded once, and every cell gets it as it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from kedit_bench.cells import Cell, fit_option
from kedit_bench.distributed import own_device
from kedit_bench.spec import ModelSpec
from kedit_core.contract import Way
from kedit_core.editing import Editor
from kedit_core.editing.datasets import open_requests
from kedit_core.errors import KeditError
from kedit_core.evaluation import requests_digest
from kedit_core.files import replacing
from kedit_core.patches import path_digest
from kedit_core.plugins import Catalogue, Host
from kedit_core.requests import EditRequest


@frozen(kw_only=True, eq=False)
class Loaded:
    """A model on this machine, without any patch.

    Attributes:
        digest: of all its weights.
        seconds: that loading and hashing it took.
    """

    spec: ModelSpec
    editor: Editor
    digest: str
    seconds: float

    @classmethod
    def load(cls, spec: ModelSpec, catalogue: Catalogue, cache: Path | None = None) -> Loaded:
        """Load a model. Raises as :meth:`Editor.from_pretrained`."""
        started = time.perf_counter()
        editor = Editor.from_pretrained(
            spec.name,
            dtype=spec.dtype,
            device=own_device(spec.device),
            revision=spec.revision,
            catalogue=catalogue,
            cache=cache,
        )
        digest = editor.stack.weights_digest()
        return cls(spec=spec, editor=editor, digest=digest, seconds=time.perf_counter() - started)

    def check(self) -> None:
        """Raise KeditError when the model is not, bit for bit, what was loaded."""
        if self.editor.stack.patches or self.editor.stack.weights_digest() != self.digest:
            raise KeditError(
                f"the weights of {self.spec.called} are not what they were before the edits; please report this"
            )


def editor_of(cell: Cell, loaded: Loaded, options: Mapping[str, Any], **settings: Any) -> Editor:
    """An Editor of a cell's method on a loaded model. Raises as :class:`Editor`."""
    method, first = cell.method, loaded.editor
    way: Way | None = method.way  # type: ignore[assignment]
    return Editor(
        first.model,
        first.tokenizer,
        method.name,
        method.hparams,
        overrides=method.overrides,
        preset=method.preset,
        seed=cell.seed,
        way=way,
        name=first.name,
        revision=first.revision,
        options=options,
        resources=method.resources,
        catalogue=first.catalogue,
        cache=first.cache,
        keep_base_answers=True,
        **settings,
    )


def given_to(cell: Cell, host: Host, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a cell's method is given beside its settings: its options, and digests of these and of its resources.

    Args:
        folder: where a corpus made from requests is written.
    """
    method = cell.method
    options = {name: _path_or_value(value) for name, value in method.options.items()}
    if method.fit is not None:
        options |= fit_options(cell, host, folder)
    digests: dict[str, Any] = {name: _digest(value) for name, value in options.items()}
    for role, path in method.resources.items():
        digests[f"with {role}"] = _digest(_path_or_value(path))
    return options, digests


def fit_options(cell: Cell, host: Host, folder: Path) -> dict[str, Any]:
    """The option by which a cell's method is fitted on the requests of another dataset (cross-domain).

    ``fit``: the requests themselves; ``corpus``: a file with a document for each request, its prompt and the answer it
    has before the edit (the new one where that is not known).
    """
    requests = tuple(open_requests(str(cell.method.fit), host))
    option = fit_option(cell.info)
    return {str(option): requests if option == "fit" else _corpus(requests, folder)}


def _corpus(requests: Sequence[EditRequest], folder: Path) -> Path:
    texts = [f"{request.prompt} {request.ground_truth or request.target_new}" for request in requests]
    data = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in dict.fromkeys(texts)).encode()
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(data)
    return path


def _path_or_value(value: Any) -> Any:
    """A text that names a file or a folder, as its path."""
    return Path(value) if isinstance(value, str) and Path(value).exists() else value


def _digest(value: Any) -> Any:
    if isinstance(value, Path):
        return path_digest(value)
    if isinstance(value, tuple) and all(isinstance(each, EditRequest) for each in value):
        return requests_digest(value)
    return value
