"""Fields of records, files of records, and what is told of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kedit_core.errors import InputError, RequestError
from kedit_core.requests import EditRequest
from kedit_datasets.fields import Dropped, Fault, Fields
from kedit_datasets.files import file_of, json_document, json_records
from kedit_datasets.records import Loaded, Report, convert_records, probe, read_records


def one(record: Fields, index: int) -> Sequence[EditRequest]:
    """A plain conversion: prompt and target of each record."""
    return [
        EditRequest(prompt=record.text("prompt"), target_new=record.text("target"), case_id=record.optional_text("id"))
    ]


def convert(records: Sequence[Any], how: Callable[[Fields, int], Sequence[EditRequest]] = one) -> Loaded:
    return convert_records("test", records, how, Report("test"), "here")


@pytest.mark.parametrize(
    ("ask", "data", "value"),
    [
        (lambda f: f.text("a"), {"a": "  x y \n"}, "x y"),
        (lambda f: f.text("a", "b"), {"a": None, "b": "x"}, "x"),
        (lambda f: f.text("a", empty=True), {"a": " "}, ""),
        (lambda f: f.optional_text("a", "b"), {}, None),
        (lambda f: f.optional_text("a"), {"a": " "}, None),
        (lambda f: f.number("a"), {"a": 3}, 3),
        (lambda f: f.texts("a"), {}, ()),
        (lambda f: f.texts("a"), {"a": "x"}, ("x",)),
        (lambda f: f.texts("a"), {"a": [" x", "", None, "x"]}, ("x", "x")),
        (lambda f: f.answers("a"), {}, ((), False)),
        (lambda f: f.answers("a"), {"a": " x"}, (("x",), False)),
        (lambda f: f.answers("a"), {"a": ["x", "y", "x", ""]}, (("x", "y"), False)),
        (lambda f: f.answers("a"), {"a": [["x", "y"], ["x", "z", None], []]}, (("x", "y", "z"), True)),
        (lambda f: f.objects("a"), {}, []),
        (lambda f: [each.text("b") for each in f.objects("a")], {"a": [{"b": "x"}, {"b": "y"}]}, ["x", "y"]),
        (lambda f: f.object("a").object("b").text("c"), {"a": {"b": {"c": "x"}}}, "x"),
        (
            lambda f: {k: len(v) for k, v in f.group("a").items()},
            {"a": {"n": [{}], "o": None, "p": []}},
            {"n": 1, "p": 0},
        ),
        (lambda f: f.group("a"), {"a": None}, {}),
        (lambda f: f.form({"x": ("a", "b"), "y": ("b", "c", "d")}), {"b": 1, "c": 2}, "y"),
        (lambda f: f.form({"x": ("a", "b"), "y": ("b", "c", "d")}), {"b": None}, "x"),
        (lambda f: f.raw("a"), {"a": [1, {"b": 2}]}, [1, {"b": 2}]),
        (lambda f: (f.has("a"), f.has("b"), f.has("c")), {"a": 0, "b": None}, (True, False, False)),
    ],
)
def test_what_a_field_holds(ask: Callable[[Fields], Any], data: dict[str, Any], value: Any) -> None:
    assert ask(Fields(data)) == value


@pytest.mark.parametrize(
    ("ask", "data", "told"),
    [
        (lambda f: f.text("a"), {}, "a is missing"),
        (lambda f: f.text("a", "b"), {"b": 3}, "b is a number, expected text"),
        (lambda f: f.text("a"), {"a": " "}, "a is empty"),
        (lambda f: f.optional_text("a"), {"a": []}, "a is a list, expected text"),
        (lambda f: f.number("a"), {"a": True}, "a is true or false, expected a whole number"),
        (lambda f: f.number("a"), {"a": 2.0}, "a is a number, expected a whole number"),
        (lambda f: f.number("a"), {}, "a is missing"),
        (lambda f: f.texts("a"), {"a": {"b": 1}}, "a is an object, expected text or a list of texts"),
        (lambda f: f.texts("a"), {"a": ["x", ["y"]]}, "a[1] is a list, expected text"),
        (lambda f: f.texts("a"), {"a": False}, "a is true or false, expected text or a list of texts"),
        (lambda f: f.answers("a"), {"a": [["x", ["y"]]]}, "a[0][1] is a list, expected text"),
        (lambda f: f.answers("a"), {"a": 4}, "a is a number, expected text, a list of texts, or lists of them"),
        (lambda f: f.object("a"), {"a": "x"}, "a is text, expected an object"),
        (lambda f: f.object("a").text("b"), {"a": {}}, "a.b is missing"),
        (lambda f: f.objects("a"), {"a": [{}, None]}, "a[1] is null, expected an object"),
        (lambda f: f.objects("a")[1].text("b"), {"a": [{}, {}]}, "a[1].b is missing"),
        (lambda f: f.form({"x": ("a",), "y": ("b",)}), {"c": 1}, "a is missing, as are all fields of the forms x, y"),
        (lambda f: f.group("a"), {"a": []}, "a is a list, expected an object"),
        (lambda f: f.group("a"), {"a": {"n": "x"}}, "a.n is text, expected a list of objects"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(
    ask: Callable[[Fields], Any], data: dict[str, Any], told: str
) -> None:
    with pytest.raises(Fault) as caught:
        ask(Fields(data))
    assert caught.value.args == (told,)


def test_fields_that_nobody_asked_for_are_known_at_any_depth() -> None:
    data = {"a": "x", "b": {"c": 1, "d": {"e": 2}}, "f": [{"g": 3}, {"g": 4, "h": None}], "i": {"j": [5]}, "k": None}
    fields = Fields(data)
    fields.text("a")
    fields.object("b").number("c")
    fields.object("b").object("d")  # asked twice, but its fields count once
    for each in fields.objects("f"):
        each.number("g")
    fields.raw("i")
    assert fields.unknown() == {"b.d.e": 2, "f[1].h": None, "k": None}


def test_requests_carry_their_origin() -> None:
    record = {"target": "t", "prompt": "Ü", "extra": [1, None]}
    loaded = convert([record])
    raw = '{"extra":[1,null],"prompt":"Ü","target":"t"}'
    assert loaded[0].meta == {
        "dataset": "test",
        "raw_digest": hashlib.sha256(raw.encode()).hexdigest(),
        "raw": {"extra": [1, None]},
    }
    # the order of fields does not matter, their values do
    again, other = convert([dict(reversed(record.items())), record | {"extra": [1]}])
    assert again.meta["raw_digest"] == loaded[0].meta["raw_digest"] != other.meta["raw_digest"]


def test_meta_of_probes_that_says_nothing_is_left_out_and_zero_says_something() -> None:
    found = probe(Fields({}), "p", ["a"], none=None, no=False, yes=True, zero=0, null=0.0, empty="", nothing=[])
    assert found.meta == {"yes": True, "zero": 0, "null": 0.0, "empty": "", "nothing": []}
    assert type(found.meta["zero"]) is int and found.answers == ("a",)


def test_all_faults_are_told_at_once() -> None:
    records: list[Any] = [
        {"prompt": "p", "target": "t"},
        None,
        {"prompt": 3, "id": "ä"},
        {"prompt": "p", "target": "t", "x": [float("inf")]},
        {"prompt": "p", "target": "t", "x": {"y": "\udc00"}},
        {"prompt": "p", "target": "t", "case_id": 7, "\udc00": 1},
    ]
    with pytest.raises(RequestError, match="5 faults in here, read as test") as caught:
        convert(records)
    assert caught.value.faults == (
        "record 1 is null, expected an object",
        "record 2 (id \\xe4): prompt is a number, expected text",
        "record 3: x[0] is inf, but numbers must be finite",
        "record 4: x.y has half a character (a lone surrogate)",
        "record 5 (id 7): '\\udc00' is a name with half a character (a lone surrogate)",
    )


def test_requests_that_cannot_be_used_are_faults_of_their_record() -> None:
    def wrong(record: Fields, index: int) -> Sequence[EditRequest]:
        return [EditRequest(prompt="p", target_new="t", subject_span=(0, 9)), EditRequest(prompt=" ", target_new="t")]

    with pytest.raises(RequestError) as caught:
        convert([{}], wrong)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["record 0"] * 2
    assert caught.value.faults[1] == "record 0: prompt: is empty"


def test_what_is_left_out_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def every_second(record: Fields, index: int) -> Sequence[EditRequest]:
        if index % 2:
            raise Dropped("odd ones")
        return one(record, index)

    with caplog.at_level(logging.INFO, logger="kedit_datasets.records"):
        loaded = convert(
            [{"prompt": "p", "target": "t", "more": 1}, {"prompt": 4}, {"prompt": "q", "target": "t"}], every_second
        )
    assert [r.prompt for r in loaded] == ["p", "q"]
    assert loaded.report.dropped == {"odd ones": 1} and loaded.report.fields == {"prompt": 3, "target": 2, "more": 1}
    assert caplog.messages == ["test: 3 records, 2 requests; left out: 1 odd ones; fields: prompt 3, target 2, more 1"]


def test_records_with_one_id_are_not_one_case() -> None:
    records = [{"prompt": f"p{i}", "target": "t", "id": case} for i, case in enumerate(["a", "b", "a", None, "a"])]
    loaded = convert(records)
    assert [r.case_id for r in loaded] == ["a", "b", "a#2", None, "a#4"]
    assert loaded.report.notes == [
        "there are ids that several records have; the later ones' end with their record's number"
    ]
    # requests of one record stay one case
    both = convert([{}], lambda record, index: [EditRequest(prompt=p, target_new="t", case_id="a") for p in "xy"])
    assert [r.case_id for r in both] == ["a", "a"] and both.report.notes == []


def test_a_loaded_dataset_is_a_sequence() -> None:
    loaded = convert([{"prompt": str(i), "target": "t"} for i in range(4)])
    assert len(loaded) == 4 and loaded[-1].prompt == "3" and [r.prompt for r in loaded[1:3]] == ["1", "2"]
    assert [r.prompt for r in loaded] == ["0", "1", "2", "3"] and loaded.requests[0] in loaded


def test_files_are_arrays_or_lines(tmp_path: Path) -> None:
    records = [{"a": "line\u2028inside\x85"}, {"a": 2}]
    array, lines = tmp_path / "a.json", tmp_path / "b.jsonl"
    array.write_text(json.dumps(records), encoding="utf-8-sig")
    lines.write_text("\n".join(json.dumps(r, ensure_ascii=False) + "\r" for r in records) + "\n\n", encoding="utf-8")
    assert list(json_records(array)) == list(json_records(lines)) == records
    assert json_document(array) == records


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", b"[{]", "is no JSON"),
        ("a.json", b'{"a": 1}', "holds an object, expected an array of records"),
        ("a.json", b"[" * 100_000, "is no JSON"),
        ("a.json", b"[" + b"9" * 10_000 + b"]", "is no JSON"),
        ("a.json", b"\xff\xfe[]", "give a UTF-8 file"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', "line 3 of"),
    ],
)
def test_files_that_are_neither_are_refused(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        list(json_records(path))
    with pytest.raises(InputError, match=told):
        read_records("test", path, one)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_records("test", path, one)
        with pytest.raises(InputError, match="cannot be read"):
            json_document(path)


def test_a_report_has_the_files_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "p", "target": "t"}]')
    assert read_records("test", path, one).report.files == {"a.json": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_folder_stands_for_its_published_file(tmp_path: Path) -> None:
    published: dict[str | None, tuple[str, ...]] = {None: ("a.json", "b.json"), "train": ("c.json",)}
    (tmp_path / "b.json").touch()
    assert file_of(tmp_path, None, published) == tmp_path / "b.json"
    assert file_of(tmp_path / "other.json", "train", published) == tmp_path / "other.json"
    with pytest.raises(InputError, match=r"has no c\.json for split 'train'; give the file itself"):
        file_of(tmp_path, "train", published)
    with pytest.raises(InputError, match="has no file for split 'dev'"):
        file_of(tmp_path, "dev", published)
    (tmp_path / "b.json").unlink()
    with pytest.raises(InputError, match=r"has no a\.json or b\.json; give the file itself"):
        file_of(tmp_path, None, published)
