"""What every reader of a dataset must stand: records with any field taken away, emptied, added or of another type."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from hypothesis import strategies as st

from kedit_core.errors import RequestError
from kedit_core.requests import EditRequest, check_requests, request_from_dict, request_to_dict

FIXTURES = Path(__file__).parent / "fixtures"

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -7,
    2.5,
    10**30,
    float("nan"),
    "",
    " \t",
    " spaced ",
    "{}",
    "plain text",
    "\ud800",  # half a character: JSON can spell it, UTF-8 cannot
    [],
    [None],
    [""],
    ["a", 3],
    ["a", "b"],
    [["a", "b"], ["c"]],
    [["a"], []],
    [{}],
    [{"prompt": "p"}],
    [[[[]]]],
    {},
    {"prompt": None},
    {"str": 4, "id": []},
    {"a": [{"b": {"c": 1}}]},
)


def records_of(name: str) -> list[Any]:
    """The records of a fixture, an array or JSON lines."""
    text = (FIXTURES / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    listed: list[Any] = json.loads(text)
    return listed


def broken(records: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the records with one to three fields, at any depth, removed, replaced, added or repeated in a list."""
    return st.builds(_broken, st.sampled_from(records), st.lists(_CHANGES, min_size=1, max_size=3))


_CHANGES = st.tuples(
    st.sampled_from(("remove", "replace", "replace", "add", "repeat")),
    st.integers(0, 10**6),
    st.sampled_from(ODD_VALUES),
    st.sampled_from(("surprise", "prompt", "id", "", "naïve key")),
)


def _broken(record: Any, changes: Sequence[tuple[str, int, Any, str]]) -> Any:
    record = copy.deepcopy(record)
    for what, where, value, name in changes:
        places = list(_places(record))
        if not places:
            break
        holder, key = places[where % len(places)]
        if what == "remove":
            del holder[key]
        elif what == "add" and isinstance(holder, dict):
            holder[name] = copy.deepcopy(value)
        elif what == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(value)
    return record


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder in a JSON value with every key or index of it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(inside):
        yield value, key
        yield from _places(each)


def stands(
    read: Callable[[Path], Sequence[EditRequest]],
    record: Any,
    known: Sequence[Any],
    *,
    whole: Callable[[Any], Any] = lambda record: [record],
    suffix: str = ".json",
) -> None:
    """Check that a reader gives sound requests for a file of this record, or says which record and field is wrong.

    Args:
        read: the reader, as a function of the file.
        record: any JSON value, :func:`broken` gives such.
        known: records as they should be; a fault must begin with a field that one of them, or a request, has.
        whole: the file's content with this record, where it is no plain array (``.jsonl`` files hold it as a line).
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"data{suffix}")
        text = json.dumps(record if suffix == ".jsonl" else whole(record))
        path.write_text(text, encoding="utf-8")
        try:
            requests = list(read(path))
        except RequestError as error:
            names = _names(known) | {each.name for each in attrs.fields(EditRequest)}
            if isinstance(record, dict):
                names |= set(record) | {"''"}
            for fault in error.faults:
                assert _names_field(fault, names), fault
            return
    check_requests(requests)
    for request in requests:
        assert_round_trip(request)


def assert_round_trip(request: EditRequest) -> None:
    """A request is the same after being written as JSON and read back."""
    text = json.dumps(request_to_dict(request), allow_nan=False, ensure_ascii=False)
    assert request_from_dict(json.loads(text.encode())) == request


def _names_field(fault: str, names: set[str]) -> bool:
    told = re.fullmatch(r"record \d+(?: \(id .{0,60}?\))?(?:: | is )(.+)", fault, re.DOTALL)
    if told is None:
        return False
    if fault.startswith(("record 0 is ", "record 1 is ")):  # the record itself is no object
        return "expected an object" in fault
    return any(name and told[1].startswith(name) for name in names)


def _names(value: Any) -> set[str]:
    """All names of fields in a JSON value."""
    if isinstance(value, dict):
        return set(value).union(*map(_names, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(_names, value))
    return set()
