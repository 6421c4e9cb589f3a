"""The small records of a patch's manifest: method, base, requirements, requests. Each checks itself when built."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from attrs import field, frozen
from torch import Tensor

from kedit_core.errors import PatchFormatError
from kedit_core.models.adapter import Layout
from kedit_core.patches import canonical
from kedit_core.patches.container import MAX_ELEMENTS, MAX_RANK, valid_shape
from kedit_core.patches.operations import LAYOUTS, as_tuple, check_place, own_all

FORMAT = 1
DIGEST_DTYPES = ("float32", "bfloat16", "float16", "float64")
REQUEST_FIELDS = ("prompt", "subject", "subject_span", "target_new", "ground_truth", "case_id")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]*([/:][A-Za-z0-9][\w.-]*)?", re.ASCII)
_WORD = re.compile(r"(?!.*/\.\.(/|$))[A-Za-z0-9][\w.+/:-]*", re.ASCII)  # no part of it is ".."


def as_dict(items: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a mapping, as a dict."""
    return dict(items)


def check_sha256(value: object, what: str) -> None:
    """PatchFormatError unless ``value`` is 64 lower-case hexadecimal digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise PatchFormatError(f"{what} is not a SHA-256 in 64 lower-case hexadecimal digits")


def _check_text(value: object, what: str, pattern: re.Pattern[str], example: str) -> None:
    if not isinstance(value, str) or len(value) > 256 or not pattern.fullmatch(value):
        raise PatchFormatError(f"{what} is {canonical.shown(value)}; it must look like {example} (never a path)")


@frozen(kw_only=True)
class MethodRef:
    """The method that computed a patch: its name, and the distribution and version that provided it."""

    name: str
    distribution: str
    version: str

    def __attrs_post_init__(self) -> None:
        for key in ("name", "distribution", "version"):
            _check_text(getattr(self, key), f"method.{key}", _WORD, "'rome', 'kedit-methods-locate' or '0.1.0'")


@frozen(kw_only=True)
class BaseTensor:
    """A parameter a patch was made for.

    Attributes:
        shape: as the base stores it.
        layout: ``out_in``, ``in_out`` (a delta is added transposed) or ``as_stored``.
        aliases: further names of the same (tied) parameter.
        sha256: dtype name -> digest of the parameter cast to that dtype; empty for quantised weights, which cannot be
            verified.
    """

    shape: tuple[int, ...] = field(converter=as_tuple)
    layout: Layout
    aliases: tuple[str, ...] = field(default=(), converter=as_tuple)
    sha256: Mapping[str, str] = field(factory=dict, converter=as_dict)

    def __attrs_post_init__(self) -> None:
        if not valid_shape(self.shape):
            raise PatchFormatError(
                f"a base tensor's shape is {canonical.shown(self.shape)}; it is a list of at most {MAX_RANK} sizes, "
                f"for {MAX_ELEMENTS} elements at most"
            )
        if not isinstance(self.layout, str) or self.layout not in LAYOUTS:
            raise PatchFormatError(f"layout is {canonical.shown(self.layout)}; it is one of {', '.join(LAYOUTS)}")
        if self.layout == "in_out" and len(self.shape) != 2:
            raise PatchFormatError(f"layout in_out needs two dimensions; the shape is {list(self.shape)}")
        for alias in self.aliases:
            check_place(alias, "aliases")
        for dtype, digest in self.sha256.items():
            if dtype not in DIGEST_DTYPES:
                raise PatchFormatError(
                    f"sha256 has a dtype {canonical.shown(dtype)}; known are {', '.join(DIGEST_DTYPES)}"
                )
            check_sha256(digest, f"sha256.{dtype}")


@frozen(kw_only=True)
class Base:
    """The model a patch was made for; ``name`` is a Hub id or a registered name, never a path."""

    name: str | None = None
    revision: str | None = None
    architecture: str
    config_sha256: str | None = None
    tensors: Mapping[str, BaseTensor] = field(factory=dict, converter=as_dict)

    def __attrs_post_init__(self) -> None:
        if self.name is not None:
            _check_text(self.name, "base.name", _MODEL_NAME, "a Hub id or a registered name such as 'org/model'")
        if self.revision is not None:
            _check_text(self.revision, "base.revision", _WORD, "a commit or a tag")
        _check_text(self.architecture, "base.architecture", _WORD, "a class name such as 'LlamaForCausalLM'")
        if self.config_sha256 is not None:
            check_sha256(self.config_sha256, "base.config_sha256")
        for place in self.tensors:
            check_place(place, "base.tensors")


@frozen(kw_only=True)
class Requirement:
    """Something a patch needs beside itself, given by its role: an editor, an encoder, a counterfactual model."""

    role: str
    name: str | None = None
    revision: str | None = None
    sha256: str | None = None

    def __attrs_post_init__(self) -> None:
        _check_text(self.role, "a requirement's role", _WORD, "'editor'")
        if self.name is not None:
            _check_text(self.name, "a requirement's name", _WORD, "a Hub id or a registered name")
        if self.revision is not None:
            _check_text(self.revision, "a requirement's revision", _WORD, "a commit or a tag")
        if self.sha256 is not None:
            check_sha256(self.sha256, f"the requirement {self.role!r}")


@frozen(kw_only=True)
class PrivateRequests:
    """How many facts a patch edits and the SHA-256 of their canonical JSON, instead of the facts."""

    sha256: str
    count: int

    def __attrs_post_init__(self) -> None:
        check_sha256(self.sha256, "requests.sha256")
        if type(self.count) is not int or self.count < 0:
            raise PatchFormatError(f"requests.count is {canonical.shown(self.count)}; it is a number of requests")

    @classmethod
    def of(cls, facts: Sequence[Mapping[str, Any]]) -> PrivateRequests:
        """The stand-in for these facts (``EditRequest.fact`` each)."""
        text = canonical.dumps(list(facts), "requests")
        return cls(sha256=hashlib.sha256(text).hexdigest(), count=len(facts))


Requests: TypeAlias = tuple[Mapping[str, Any], ...] | PrivateRequests


def plain_object(value: Mapping[str, Any]) -> dict[str, Any]:
    """A plain JSON copy of a mapping; PatchFormatError when it is not one."""
    if not isinstance(value, Mapping):
        raise PatchFormatError(f"a patch's settings are a mapping, not a {type(value).__name__}")
    copied: dict[str, Any] = canonical.plain(value, "the manifest")
    return copied


@frozen(eq=False)
class State:
    """What the method keeps for itself (past keys, optimised values, templates); never installed on a model."""

    config: Mapping[str, Any] = field(factory=dict, converter=plain_object)
    tensors: Mapping[str, Tensor] = field(factory=dict, converter=own_all)

    def __bool__(self) -> bool:
        return bool(self.config or self.tensors)


def check_requests(value: Sequence[Mapping[str, Any]] | PrivateRequests) -> Requests:
    """A plain copy of the facts, each checked; a hash of facts passes as it is."""
    if isinstance(value, PrivateRequests):
        return value
    return tuple(check_fact(fact, f"requests[{i}]") for i, fact in enumerate(value))


def check_fact(fact: Any, what: str) -> dict[str, Any]:
    """A plain copy of one request's fact; PatchFormatError when a field is unknown, missing or of the wrong type."""
    if not isinstance(fact, Mapping):
        raise PatchFormatError(f"{what} is a {type(fact).__name__}; give EditRequest.fact")
    copied: dict[str, Any] = canonical.plain(fact, what)
    if unknown := sorted(set(copied) - set(REQUEST_FIELDS)):
        raise PatchFormatError(
            f"{what} has unknown fields {canonical.shown(unknown)}; known are {', '.join(REQUEST_FIELDS)}"
        )
    for key in ("prompt", "target_new"):
        if not isinstance(copied.get(key), str):
            raise PatchFormatError(f"{what}.{key} must be text")
    for key in ("subject", "ground_truth", "case_id"):
        if not isinstance(copied.get(key), str | None):
            raise PatchFormatError(f"{what}.{key} must be text or null")
    span = copied.get("subject_span")
    if span is not None and not (
        isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span) and 0 <= span[0] <= span[1]
    ):
        raise PatchFormatError(f"{what}.subject_span must be null or two character positions, start <= end")
    return copied
