"""Answers of an unedited model, kept on disk between runs.

One file holds the answers to one batch of questions of one kind, and is found by a digest of the base, the kind and
the questions in their order. So a batch is either read as a whole or taken as a whole, and what is answered
does not depend on which runs came before. A file that is broken, or of another format, counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from kedit_core.evaluation.answers import Answers
from kedit_core.evaluation.questions import Questions, TargetTokens
from kedit_core.files import replacing
from kedit_core.patches.digests import config_digest

FORMAT = 1
_FOLDER = "base-answers"


def base_key(model: nn.Module, tokenizer: Any, weights: str) -> str:
    """A digest of all that a model's answers follow from: weights, configuration, tokenizer, devices, versions.

    Args:
        weights: digest of the weights without any patch.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    words = fast.to_str() if fast is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = {
        "weights": weights,
        "config": config_digest(model.config) if hasattr(model, "config") else None,
        "tokenizer": hashlib.sha256(words.encode()).hexdigest(),
        "devices": sorted({parameter.device.type for parameter in model.parameters()}),
        "versions": [version(name) for name in ("kedit-core", "torch", "transformers")],
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class KeptAnswers:
    """The kept answers of one base model.

    Args:
        folder: where kedit keeps things (the ``cache`` of an Editor); the files lie in a folder of their own in it.
        base: what the answers follow from beside the question; see :func:`base_key`.
    """

    def __init__(self, folder: Path, base: str) -> None:
        self._folder = folder / _FOLDER / base[:16]
        self._base = base
        self._known: dict[tuple[Hashable, Hashable], Any] = {}

    def supply(self, answers: Answers, questions: Questions) -> None:
        """Have ``answers`` know what was asked: from the files, and what is in none is read and kept.

        Kinds of questions whose answers cannot be written as JSON are read, and not kept. Where a file cannot be
        written the answers hold for this run.

        Args:
            answers: of the base, which noted the questions (:meth:`Answers.noting`).
        """
        for kind, (read, items) in questions.kinds.items():
            missing = [item for item in items if (kind, item) not in self._known]
            if missing:
                found = self._load(kind, missing)
                if found is None:
                    found = list(read(missing))
                    self._save(kind, missing, found)
                self._known.update({(kind, item): one for item, one in zip(missing, found, strict=True)})
        answers.supply(self._known)

    def _path(self, kind: Hashable, items: Sequence[Hashable]) -> Path | None:
        try:
            asked = json.dumps([FORMAT, self._base, _plain(kind), [_plain(item) for item in items]])
        except _Unknown:
            return None
        return self._folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"

    def _load(self, kind: Hashable, items: Sequence[Hashable]) -> list[Any] | None:
        path = self._path(kind, items)
        if path is None:
            return None
        try:
            data = json.loads(path.read_bytes())
            if data["format"] != FORMAT or data["sha256"] != _digest(data["answers"]):
                return None
            found = [_read(each) for each in data["answers"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return found if len(found) == len(items) else None

    def _save(self, kind: Hashable, items: Sequence[Hashable], found: Sequence[Any]) -> None:
        path = self._path(kind, items)
        if path is None:
            return
        try:
            written = [_written(each) for each in found]
        except _Unknown:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as stream:
                stream.write(json.dumps({"format": FORMAT, "sha256": _digest(written), "answers": written}).encode())
        except OSError:
            return


class _Unknown(Exception):
    """A question or an answer that cannot be written."""


def _plain(value: Any) -> Any:
    """A question as JSON that is the same in every run."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, frozenset):
        return {"set": sorted((_plain(each) for each in value), key=json.dumps)}
    if attrs.has(type(value)):
        fields = {each.name: _plain(getattr(value, each.name)) for each in attrs.fields(type(value))}
        return {"class": type(value).__qualname__, **fields}
    raise _Unknown


def _written(value: Any) -> Any:
    """An answer as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return {"number": value}
    if isinstance(value, float) and math.isfinite(value):
        return {"number": value}
    if isinstance(value, tuple | list):
        return {"list" if isinstance(value, list) else "tuple": [_written(each) for each in value]}
    if isinstance(value, TargetTokens):
        return {"tokens": [list(value.predicted), list(value.target), value.text]}
    if isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() == 1:
        numbers = value.tolist()  # as doubles, whose shortest texts give the same float32 again
        return {"float32": [each if math.isfinite(each) else repr(each) for each in numbers]}
    raise _Unknown


def _read(value: Any) -> Any:
    if isinstance(value, str):
        return value
    ((kind, held),) = value.items()
    if kind == "number":
        return held
    if kind in ("tuple", "list"):
        listed = [_read(each) for each in held]
        return listed if kind == "list" else tuple(listed)
    if kind == "tokens":
        predicted, target, text = held
        return TargetTokens(predicted=tuple(predicted), target=tuple(target), text=text)
    if kind == "float32":
        return torch.tensor([float(each) for each in held], dtype=torch.float32)
    raise ValueError(f"there are no answers of kind {kind!r}")


def _digest(written: Any) -> str:
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()
