"""Requests from plain data and back, through a strict cattrs converter: nothing is guessed, nothing is dropped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import attrs
from cattrs import Converter
from cattrs.cols import list_structure_factory, mapping_structure_factory
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from kedit_core.errors import RequestError
from kedit_core.requests._checks import request_faults, value_faults
from kedit_core.requests._types import EditRequest, Probe

# names in files that differ from those in code
_FILE_NAMES = {"answers": "ground_truth"}
_MEANT = {"id": "case_id"}  # what is often written for a field and is not near it in letters
_SPAN = "a list of two whole numbers, [start, end]"


class _MisfitError(ValueError):
    """A value of the wrong type; the message completes "<field>: "."""


def request_from_dict(data: Any, source: str = "the edit request") -> EditRequest:
    """A request from the mapping that one line of a cases file holds (docs/requests.md).

    Raises:
        RequestError: every fault, each with its field.
    """
    request, faults = read_request(data)
    if request is None or faults:
        raise RequestError(source, faults)
    return request


def read_request(data: Any, *, needs_subject: bool = False) -> tuple[EditRequest | None, list[str]]:
    """The request, and every fault of it; None when the types do not fit."""
    if not isinstance(data, Mapping):
        return None, [f"is {_kind(data)}, expected an object with the fields of a request"]
    try:
        faults = list(value_faults(data))
        request: EditRequest = _converter().structure(data, EditRequest)
    except BaseValidationError as error:
        return None, faults + [_joined(path, message) for path, message in _leaves(error, "")]
    except RecursionError:
        return None, ["is nested too deeply"]
    return request, faults + request_faults(request, needs_subject=needs_subject)


def request_to_dict(request: EditRequest) -> dict[str, Any]:
    """The mapping that :func:`request_from_dict` reads; fields that hold nothing are left out."""
    data: dict[str, Any] = {}
    for each in attrs.fields(EditRequest):
        value = getattr(request, each.name)
        if each.name in ("locality", "portability"):
            value = {name: [_probe_to_dict(probe) for probe in probes] for name, probes in value.items()}
        elif each.name == "meta":
            value = dict(value)
        elif isinstance(value, (tuple, list)):
            value = list(value)
        if value is not None and value not in ([], {}) and (each.name != "kind" or value != each.default):
            data[each.name] = value
    return data


def _probe_to_dict(probe: Probe) -> dict[str, Any]:
    data: dict[str, Any] = {"prompt": probe.prompt}
    if probe.answers:
        data["ground_truth"] = probe.answers[0] if len(probe.answers) == 1 else list(probe.answers)
    if probe.meta:
        data["meta"] = dict(probe.meta)
    return data


@functools.cache
def _converter() -> Converter:
    """The converter for our two classes, made once: cattrs writes its code on the first use."""
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)

    @converter.register_structure_hook
    def _(value: Any, wanted: type) -> str:
        text: str = _expect(value, str, "text")
        return text

    @converter.register_structure_hook_factory(lambda wanted: wanted == tuple[str, ...] or wanted == tuple[Probe, ...])
    def _(wanted: Any, converter: Converter) -> Callable[[Any, Any], Any]:
        # cattrs walks through anything that can be walked through, text included
        items = list_structure_factory(wanted, converter)
        told = "a list of texts" if wanted == tuple[str, ...] else "a list of probes"
        return lambda value, _: tuple(items(_expect(value, list, told), wanted))

    @converter.register_structure_hook_factory(lambda wanted: wanted == Mapping[str, tuple[Probe, ...]])
    def _(wanted: Any, converter: Converter) -> Callable[[Any, Any], Any]:
        groups = mapping_structure_factory(wanted, converter)
        return lambda value, _: groups(_expect(value, dict, "an object: name -> list of probes"), wanted)

    converter.register_structure_hook_func(
        lambda wanted: wanted == Mapping[str, Any], lambda value, _: _expect(value, dict, "an object")
    )
    converter.register_structure_hook_func(lambda wanted: wanted == tuple[int, int] | None, _span)
    # the inner class first: the outer one's code is written with what is registered by then
    _register_class(converter, Probe, {"answers": override(rename="ground_truth", struct_hook=_answers)})
    _register_class(converter, EditRequest, {})
    return converter


def _register_class(converter: Converter, cls: type[Any], overrides: Mapping[str, Any]) -> None:
    structure = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **overrides
    )
    word = "a request" if cls is EditRequest else "a probe"
    told = f"an object with the fields of {word}"
    converter.register_structure_hook(cls, lambda value, _: structure(_expect(value, dict, told), cls))


def _span(value: Any, _: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    items = _expect(value, list, _SPAN)
    if len(items) != 2 or not all(type(item) is int for item in items):
        raise _MisfitError(f"is {_kind(value)}, expected {_SPAN}")
    return items[0], items[1]


def _answers(value: Any, _: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _MisfitError(f"is {_kind(value)}, expected text or a list of texts")
    return tuple(value)


def _expect(value: Any, kind: type[Any], told: str) -> Any:
    if isinstance(value, kind) or (kind is list and isinstance(value, tuple)):
        return value
    raise _MisfitError(f"is {_kind(value)}, expected {told}")


def _kind(value: Any) -> str:
    """A value as messages show it, by the words of JSON."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return f"the number {value!r:.40}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 40 else value[:37] + '...'!r}"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _leaves(error: BaseException, path: str) -> Iterator[tuple[str, str]]:
    """Path and message of every single fault inside the groups that cattrs raises."""
    if isinstance(error, BaseValidationError):
        for each in error.exceptions:
            yield from _leaves(each, path + _step(each))
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields, key=str):
            yield path, unknown_field(key, error.cl)
    elif isinstance(error, KeyError):
        name = _FILE_NAMES.get(str(error.args[0]), str(error.args[0]))
        yield f"{path.removesuffix(f'.{name}')}.{name}", "is missing"
    else:
        yield path, str(error)


def _step(error: BaseException) -> str:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return f".{_FILE_NAMES.get(note.name, note.name)}"
        if isinstance(note, IterableValidationNote):
            return f"[{note.index}]" if isinstance(note.index, int) else f".{note.index}"
    return ""


def unknown_field(key: str, cls: type[Any]) -> str:
    """The sentence for a field that is none of ours."""
    known = [_FILE_NAMES.get(each.name, each.name) if cls is Probe else each.name for each in attrs.fields(cls)]
    close = [_MEANT[key]] if _MEANT.get(key) in known else get_close_matches(str(key).lower(), known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? If not, " if close else ""
    return f"{key!a} is no field of {'a probe' if cls is Probe else 'a request'}; {hint}put it under meta"


def _joined(path: str, message: str) -> str:
    path = path.removeprefix(".")
    return f"{path}: {message}" if path else message
