"""Every field of every record of every format, at any depth: null is absent, and what is unknown is kept.

Exhaustive over the fixtures, beside each reader's random changes (``broken``): one field at a time.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from plugins.datasets.reader_tools import FIXTURES, records_of

from kedit_core.errors import RequestError
from kedit_core.requests import EditRequest, request_to_dict
from kedit_datasets.readers.convsent import read_convsent
from kedit_datasets.readers.counterfact import read_counterfact
from kedit_datasets.readers.fastedit import read_fastedit
from kedit_datasets.readers.knowedit import TASKS, read_knowedit
from kedit_datasets.readers.mquake import read_mquake
from kedit_datasets.readers.qaedit import read_qaedit
from kedit_datasets.readers.ripple import read_ripple
from kedit_datasets.readers.sanitation import read_sanitation
from kedit_datasets.readers.zsre import read_zsre

SURPRISE, VALUE = "surprise_field", {"deep": [1, None, {"deeper": 0}]}
Place = tuple[str | int, ...]


def plain(record: Any) -> Any:
    return [record]


def sanitised(name: str, other: str) -> Callable[[Any], Any]:
    """A document of Sanitation with this item in one of its lists, and one more in each."""
    forgotten = {"question": "What is Brie?", "target_new": "I don't know.", "ground_truth": "Cheese"}
    kept = {"question": "Who wrote it?", "ground_truth": "An author"}
    first, second = (forgotten, kept) if name in ("K_F", "success") else (kept, forgotten)
    return lambda item: {name: [first, item], other: [second]}


@frozen(kw_only=True)
class Format:
    """A reader with its records.

    Attributes:
        whole: the file's content with one record.
        as_it_is: fields that are kept whole, so that a null in them is a null.
    """

    read: Callable[[Path], Sequence[EditRequest]]
    records: Sequence[Any]
    whole: Callable[[Any], Any] = plain
    suffix: str = ".json"
    as_it_is: tuple[str, ...] = ()


def document(form: str) -> Any:
    return json.loads((FIXTURES / f"sanitation_{form}.json").read_text(encoding="utf-8"))


FORMATS: dict[str, Format] = {
    **{
        f"zsre {name}": Format(read=partial(read_zsre, form=form), records=records_of(file), suffix=Path(file).suffix)
        for name, file, form in (
            ("flat", "zsre_flat.json", "flat"),
            ("one hop", "zsre_one_hop.json", "flat"),
            ("mend", "zsre_mend.jsonl", "mend"),
            ("fever", "zsre_fever.jsonl", "mend"),
            ("malmen", "zsre_malmen.json", "malmen"),
            ("malmen fever", "zsre_malmen_fever.json", "malmen_fever"),
        )
    },
    "counterfact": Format(read=read_counterfact, records=records_of("counterfact.json")),
    "counterfact flat": Format(read=read_counterfact, records=records_of("counterfact_flat.json")),
    **{
        f"knowedit {task}": Format(read=partial(read_knowedit, task=task), records=records_of(f"knowedit_{task}.json"))
        for task in TASKS
    },
    "convsent": Format(read=read_convsent, records=records_of("convsent.json")),
    **{
        f"sanitation {name}": Format(read=read_sanitation, records=document(form)[name], whole=sanitised(name, other))
        for form, name, other in (
            ("train", "K_F", "K_R"),
            ("train", "K_R", "K_F"),
            ("test", "success", "locality"),
            ("test", "locality", "success"),
        )
    },
    "mquake": Format(read=read_mquake, records=records_of("mquake.json"), as_it_is=("orig",)),
    "ripple": Format(read=read_ripple, records=records_of("ripple.json"), as_it_is=("original_fact", "previous_fact")),
    "qaedit": Format(read=read_qaedit, records=records_of("qaedit.json")),
    "fastedit": Format(read=read_fastedit, records=records_of("fastedit.json")),
}
each_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture
def outcome(name: str, tmp_path: Path) -> Callable[[Any], tuple[list[Any], tuple[str, ...]]]:
    """What comes of a record: requests as plain data, and faults. One of the two is empty."""
    chosen = FORMATS[name]
    path = tmp_path / f"data{chosen.suffix}"

    def read(record: Any) -> tuple[list[Any], tuple[str, ...]]:
        path.write_text(json.dumps(record if chosen.suffix == ".jsonl" else chosen.whole(record)), encoding="utf-8")
        try:
            return [request_to_dict(request) for request in chosen.read(path)], ()
        except RequestError as error:
            return [], error.faults

    return read


def places(value: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every object in a JSON value with where it is."""
    if isinstance(value, dict):
        yield at, value
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(each, (*at, key))


def changed(record: Any, at: Place, change: Callable[[dict[str, Any]], Any]) -> Any:
    record = copy.deepcopy(record)
    inner = record
    for key in at:
        inner = inner[key]
    change(inner)
    return record


def without_raw(value: Any) -> Any:
    """The same without what is kept of the record as it is, and without its digest."""
    if isinstance(value, dict):
        return {key: without_raw(each) for key, each in value.items() if key not in ("raw", "raw_digest", "id")}
    return [without_raw(each) for each in value] if isinstance(value, list | tuple) else value


def kept_at(value: Any) -> Iterator[Any]:
    """Every value that is kept under the name of the surprise."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == SURPRISE or key.endswith(f".{SURPRISE}"):
                yield each
            else:
                yield from kept_at(each)
    elif isinstance(value, list):
        for each in value:
            yield from kept_at(each)


@each_format
def test_a_field_that_is_null_is_one_that_is_absent(name: str, outcome: Any) -> None:
    seen: set[tuple[str, ...]] = set()
    for record in FORMATS[name].records:
        for at, holder in places(record):
            for key in holder:
                if set(FORMATS[name].as_it_is) & set(at):
                    continue
                null = outcome(changed(record, at, lambda inner, key=key: inner.update({key: None})))
                absent = outcome(changed(record, at, lambda inner, key=key: inner.pop(key)))
                assert without_raw(null) == without_raw(absent), (name, at, key)
                seen.add((*(str(step) for step in at if isinstance(step, str)), key))
    assert max(map(len, seen)) == depth_of(FORMATS[name].records), "not all depths were covered"


@each_format
def test_an_unknown_field_changes_nothing_and_is_kept(name: str, outcome: Any) -> None:
    for record in FORMATS[name].records:
        expected, faults = outcome(record)
        assert faults == ()
        for at, _ in places(record):
            more = changed(record, at, lambda inner: inner.update({SURPRISE: VALUE}))
            requests, faults = outcome(more)
            if faults:  # where any name is one of a sub-key (locality, portability)
                assert all(SURPRISE in fault for fault in faults) and at[-1] in ("locality", "portability"), faults
                continue
            strip = stripped(requests)
            assert without_raw(strip) == without_raw(expected), (name, at)
            # a record that is left out is gone with all it has, and so is a probe
            kept = list(kept_at(requests))
            assert all(each == VALUE for each in kept)
            assert kept or is_left_out(name, record, at, outcome), (name, at)


def stripped(value: Any) -> Any:
    """Without the surprise, where an object is kept whole."""
    if isinstance(value, dict):
        return {key: stripped(each) for key, each in value.items() if key != SURPRISE}
    return [stripped(each) for each in value] if isinstance(value, list) else value


def is_left_out(name: str, record: Any, at: Place, outcome: Any) -> bool:
    """Whether what is at a place can be anything at all without a difference: it is in nothing that is made."""
    requests, faults = outcome(record)
    if not requests:
        return True
    gone, told = outcome(changed(record, at[:-1], lambda inner: inner.pop(at[-1]))) if at else ([], ())
    return not faults and not told and without_raw(requests) == without_raw(gone)


def depth_of(value: Any) -> int:
    """How many names deep the fields of records are nested."""
    if isinstance(value, dict):
        return max((1 + depth_of(each) for each in value.values()), default=0)
    return max((depth_of(each) for each in value), default=0) if isinstance(value, list) else 0
