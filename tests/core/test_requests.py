"""Edit requests: files read whole or refused with every fault, and where the subject stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_blocked import run_without_torch

from kedit_core.errors import KeditError, RequestError
from kedit_core.requests import (
    EditRequest,
    Probe,
    check_requests,
    dump_requests,
    find_subject,
    load_requests,
    parse_requests,
    request_faults,
    request_from_dict,
    request_to_dict,
    subject_span,
)

NATIVE = {
    "case_id": "c-1",
    "subject": "Indonesia",
    "prompt": "The name of the capital of Indonesia is",
    "target_new": "Seoul",
    "ground_truth": "Jakarta",
    "rephrase_prompts": ["The capital city of Indonesia is"],
    "locality": {
        "neighborhood": [],
        "same_relation": [{"prompt": "The capital of Serbia is", "ground_truth": "Belgrade", "meta": {"hop": 1}}],
        "many": [{"prompt": "Answer", "ground_truth": ["one", "two"]}, {"prompt": "None known"}],
    },
    "portability": {"one_hop": [{"prompt": "P", "ground_truth": []}]},
    "generation_prompts": ["Indonesia is"],
    "meta": {"subject_kind": "country", "deep": [1, {"x": None}]},
}
SMALL = {"prompt": "A b is", "target_new": "c"}


def faults(data: bytes | str, ending: str = ".jsonl", **options: Any) -> list[str]:
    with pytest.raises(RequestError) as told:
        parse_requests(data.encode() if isinstance(data, str) else data, ending, source="cases", **options)
    return list(told.value.faults)


def fault(data: Any, **options: Any) -> str:
    (found,) = faults(json.dumps(data), **options)
    return found.removeprefix("line 1, ")


# --- the native shape --------------------------------------------------------------------------------------------


def test_the_native_shape() -> None:
    request = request_from_dict(NATIVE)
    assert request.prompt == NATIVE["prompt"] and request.case_id == "c-1"
    assert request.locality["same_relation"] == (
        Probe(prompt="The capital of Serbia is", answers=("Belgrade",), meta={"hop": 1}),
    )
    assert [probe.answers for probe in request.locality["many"]] == [("one", "two"), ()]
    assert request.locality["neighborhood"] == () and request.portability["one_hop"][0].answers == ()
    assert request.meta == NATIVE["meta"]
    assert request_from_dict(request_to_dict(request)) == request
    assert request_to_dict(request_from_dict(SMALL)) == SMALL


def test_null_is_nothing_where_nothing_may_be() -> None:
    data = {**SMALL, "subject": None, "ground_truth": None, "case_id": None, "subject_span": None}
    assert request_from_dict(data) == EditRequest(prompt="A b is", target_new="c")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": 3}, "prompt: is the number 3, expected text"),
        ({"prompt": None}, "prompt: is null, expected text"),
        ({"prompt": ""}, "prompt: is empty"),
        ({"prompt": " \n"}, "prompt: is empty"),
        ({"target_new": "  "}, "target_new: is empty"),
        ({"target_new": True}, "target_new: is true, expected text"),
        ({"subject": ""}, "subject: is empty; leave it out"),
        ({"ground_truth": ["x"]}, "ground_truth: "),
        ({"case_id": 7}, "case_id: "),
        ({"aliases": "x"}, "aliases: is the text 'x', expected a list of texts"),
        ({"aliases": [1]}, "aliases[0]: is the number 1, expected text"),
        ({"aliases": ["ok", " "]}, "aliases[1]: is empty"),
        ({"rephrase_prompts": [""]}, "rephrase_prompts[0]: is empty"),
        ({"rephrase_prompts": None}, "rephrase_prompts: is null, expected a list"),
        ({"generation_prompts": {"a": 1}}, "generation_prompts: is an object"),
        ({"locality": []}, "locality: is a list, expected an object"),
        ({"locality": {"n": {"prompt": "x"}}}, "locality.n: is an object, expected a list of probes"),
        ({"locality": {"n": ["x"]}}, "locality.n[0]: is the text 'x', expected an object with the fields of a probe"),
        ({"locality": {"n": [{"prompt": ""}]}}, "locality.n[0].prompt: is empty"),
        ({"locality": {"n": [{"ground_truth": "x"}]}}, "locality.n[0].prompt: is missing"),
        ({"locality": {"n": [{"prompt": "x", "ground_truth": 3}]}}, "locality.n[0].ground_truth: is the number 3"),
        ({"locality": {"n": [{"prompt": "x", "ground_truth": [""]}]}}, "locality.n[0].ground_truth: has an empty"),
        ({"locality": {"n": [{"prompt": "x", "answers": "y"}]}}, "locality.n[0]: 'answers' is no field of a probe"),
        ({"portability": {"n": [{"prompt": "x", "meta": 3}]}}, "portability.n[0].meta: is the number 3"),
        ({"meta": []}, "meta: is a list, expected an object"),
        ({"targt_new": "x"}, "'targt_new' is no field of a request; did you mean 'target_new'? If not, put it under"),
        ({"id": "x"}, "'id' is no field of a request; did you mean 'case_id'? If not, put it under"),
        ({"zzz": "x"}, "'zzz' is no field of a request; put it under meta"),
        ({"subject_span": [0]}, "subject_span: is a list, expected a list of two whole numbers"),
        ({"subject_span": [0, True]}, "subject_span: is a list"),
        ({"subject_span": [0, 1.0]}, "subject_span: is a list"),
        ({"subject_span": "0,1"}, "subject_span: is the text '0,1'"),
        ({"subject_span": [0, 7]}, "subject_span: is [0, 7], but the prompt has the characters 0 to 6"),
        ({"subject_span": [-1, 2]}, "subject_span: is [-1, 2]"),
        ({"subject_span": [2, 2]}, "subject_span: is [2, 2]"),
        ({"subject_span": [0, 1], "subject": "b"}, "covers 'A', not the subject 'b'; the subject is at [2, 3]"),
        ({"subject_span": [0, 1], "subject": "Q"}, "covers 'A', not the subject 'Q'"),
    ],
)
def test_faults_name_the_field(change: dict[str, Any], told: str) -> None:
    assert fault({**SMALL, **change}).startswith(told) or told in fault({**SMALL, **change})
    with pytest.raises(RequestError):
        request_from_dict({**SMALL, **change})


def test_missing_fields_are_told_together() -> None:
    assert faults("{}") == ["line 1, prompt: is missing", "line 1, target_new: is missing"]


@pytest.mark.parametrize("data", [None, 3, "text", [], [SMALL]])
def test_a_request_is_an_object(data: Any) -> None:
    with pytest.raises(RequestError, match="expected an object"):
        request_from_dict(data)


def test_the_subject_is_asked_for_only_when_needed() -> None:
    absent = {**SMALL, "subject": "Rome"}
    assert request_from_dict(absent).subject == "Rome"
    assert fault(SMALL, needs_subject=True) == "subject: is missing, and this method needs one"
    assert fault(absent, needs_subject=True) == "subject: 'Rome' does not occur in the prompt 'A b is'"
    assert "the prompt has 'A'" in fault({**SMALL, "subject": "a"}, needs_subject=True)
    inside = {**SMALL, "prompt": "Annapolis is", "subject": "Ann"}
    assert "as a whole word; give its place as subject_span" in fault(inside, needs_subject=True)
    spanned = {**inside, "subject_span": [0, 3]}
    assert subject_span(request_from_dict(spanned)) == (0, 3)
    assert request_faults(request_from_dict(spanned), needs_subject=True) == []
    assert subject_span(request_from_dict(SMALL)) is None


def test_requests_made_in_code_are_checked_too() -> None:
    good, bad = EditRequest(prompt="A", target_new="b"), EditRequest(prompt="", target_new="b")
    check_requests([good])
    with pytest.raises(RequestError, match="request 2, prompt: is empty"):
        check_requests([good, bad])
    with pytest.raises(RequestError, match="1 fault in the edit request:\n  prompt: is empty"):
        check_requests([bad])


# --- files -------------------------------------------------------------------------------------------------------

LINE = json.dumps(SMALL)


def test_every_format_gives_the_same(tmp_path: Path) -> None:
    request = request_from_dict(NATIVE)
    (tmp_path / "one.json").write_text(json.dumps(NATIVE))
    (tmp_path / "list.json").write_text(json.dumps([NATIVE, SMALL], indent=2))
    (tmp_path / "lines.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps(NATIVE).encode() + b"\r\n\r\n \n")
    (tmp_path / "lines.NDJSON").write_text(json.dumps(NATIVE))
    assert load_requests(tmp_path / "one.json") == [request]
    assert load_requests(str(tmp_path / "list.json")) == [request, request_from_dict(SMALL)]
    assert load_requests(tmp_path / "lines.jsonl") == [request]
    assert load_requests(tmp_path / "lines.NDJSON") == [request]
    dump_requests([request, request], tmp_path / "dumped.jsonl")
    assert load_requests(tmp_path / "dumped.jsonl") == [request, request]


def test_other_line_ends_inside_a_text_are_text() -> None:
    (request,) = parse_requests(json.dumps({**SMALL, "prompt": "A\u2028b\x85"}, ensure_ascii=False).encode(), ".jsonl")
    assert request.prompt == "A\u2028b\x85"


def test_elements_of_an_array_have_lines() -> None:
    text = f'[\n  {LINE},\n\n  {{"prompt": "x",\n "target_new": ""}}, 3,\n  {{"prompt": "y"}}\n]\n'
    assert faults(text, ".json") == [
        "line 4 (element 2), target_new: is empty",
        "line 5 (element 3), is the number 3, expected an object with the fields of a request",
        "line 6 (element 4), target_new: is missing",
    ]


@pytest.mark.parametrize(
    ("data", "ending", "told"),
    [
        (b"", ".json", "holds no request"),
        (b" \n\xc2\xa0", ".json", "line 2"),
        (b"", ".jsonl", "holds no request"),
        (b"\n\n", ".jsonl", "holds no request"),
        (b"", ".csv", "holds no request"),
        (b"[]", ".json", "holds no request"),
        (b"\xef\xbb\xbf", ".jsonl", "holds no request"),
        (b"prompt,target_new\n", ".csv", "holds no request"),
        (b"\xff\xfe[\x00]\x00", ".json", "UTF-16 text; save the file as UTF-8"),
        (b"\n\nab\xe9", ".jsonl", "line 3: byte 0xe9 is no UTF-8"),
        (b"{}", ".txt", "the endings known are .json, .jsonl"),
        (b"{}", "", "the endings known are"),
        (f"{LINE}\n{LINE}".encode(), ".json", "line 2: something follows the end of the JSON; if each line"),
        (f"[{LINE}] x".encode(), ".json", "line 1: something follows the end of the array"),
        (f"[{LINE}\n{LINE}]".encode(), ".json", "line 2: expected ',' or ']' after element 1, but found '{'"),
        (f"[{LINE}".encode(), ".json", "after element 1, but the file ends"),
        (f"[{LINE},]".encode(), ".json", "is no JSON"),
        (f"[{LINE},\n {{'a': 1}}]".encode(), ".json", "line 2: is no JSON at column 3"),
        (b"[" * 200_000, ".json", "nested too deeply"),
        (b'{"meta": ' + b"[" * 200_000, ".json", "nested too deeply"),
        (b'{"meta": ' + b"9" * 5000 + b"}", ".json", "too many digits"),
        (b"nonsense", ".json", "is no JSON"),
        (f"[{LINE}]".encode(), ".jsonl", "if the file is one JSON array, call it .json"),
        (f"{LINE} {LINE}".encode(), ".jsonl", "each request on a line of its own"),
        (b"{", ".jsonl", "if the file is one JSON text, call it .json"),
        (b"null", ".jsonl", "is null, expected an object"),
        (b'{"prompt": "a", "prompt": "b", "target_new": "c"}', ".jsonl", "the field 'prompt' is given twice"),
        (b'{"prompt": "a", "target_new": "c", "meta": {"x": NaN}}', ".jsonl", "NaN is no number that JSON has"),
        (b'{"prompt": "a", "target_new": "c", "meta": {"x": -Infinity}}', ".json", "-Infinity is no number"),
        (b'{"prompt": "a", "target_new": "c", "meta": {"x": [1e999]}}', ".json", "meta.x[0]: is inf"),
        (b'{"prompt": "a", "target_new": "\\ud800"}', ".jsonl", "target_new: has half a character"),
        (b'{"prompt": "a", "target_new": "b", "meta": {"\\udfff": 1}}', ".jsonl", "half a character"),
        (b'{"prompt": "a", "target_new": "b", "\\udfff": 1}', ".jsonl", "'\\udfff' is no field"),
    ],
)
def test_files_that_are_refused(data: bytes, ending: str, told: str) -> None:
    found = faults(data, ending)
    assert any(told in each for each in found), found
    str(RequestError("f", found)).encode()


def test_a_broken_line_does_not_hide_the_others() -> None:
    text = f'{LINE}\n{{"prompt": \n{LINE}\n{{"prompt": "", "target_new": "x", "y": NaN}}\n'
    found = faults(text)
    assert [each.split(",")[0] for each in found] == ["line 2", "line 4", "line 4"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        load_requests(tmp_path / "gone.jsonl")
    with pytest.raises(RequestError, match="cannot be read"):
        load_requests(tmp_path)
    with pytest.raises(RequestError, match="cannot be read"):
        load_requests("a\0b.jsonl")


# --- CSV ---------------------------------------------------------------------------------------------------------


def test_csv() -> None:
    text = (
        "\ufeffcase_id,prompt,target_new,subject,aliases,subject_span,locality.near,meta.note\r\n"
        '7,"The capital of ""X"", is",Rome,X,"[""Roma"", ""Urbs""]","[16, 17]",'
        '"[{""prompt"": ""p"", ""ground_truth"": [""a"", ""b""]}]",no\r\n'
        ",,,,,,,\r\n"
        '8,"two\nlines",Oslo,,,,,\r\n'
    )
    first, second = parse_requests(text.encode(), ".csv")
    assert first == EditRequest(
        case_id="7", prompt='The capital of "X", is', target_new="Rome", subject="X", aliases=("Roma", "Urbs"),
        subject_span=(16, 17), locality={"near": (Probe(prompt="p", answers=("a", "b")),)}, meta={"note": "no"},
    )  # fmt: skip
    assert second == EditRequest(case_id="8", prompt="two\nlines", target_new="Oslo")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompt;target_new\na;b\n", "line 1, the columns are separated by semicolons; use commas"),
        ("prompt\ttarget_new\na\tb\n", "separated by tabs"),
        ("a b is,c\n", "line 1, the column 'prompt' is missing"),
        ("prompt,target_new,prompt\n", "the column 'prompt' is there twice"),
        ("prompt,target_new,,x.y\n", "column 3 has no name"),
        ("prompt,target_new,aliases.x\n", "only locality, portability, meta have names after a dot"),
        ("prompt,target_new,locality.\n", "after a dot"),
        ("prompt,target_new,locality,locality.a\n", "'locality' holds the whole of it already"),
        ("prompt,target_new,relation\n", "'relation' is no field of a request; put it under meta, as the column"),
        ("prompt,target_new\na\n", "line 2, has 1 cells, but there are 2 columns"),
        ("prompt,target_new\n\"a\nb\",c\nx,\n", "line 4, target_new: is empty"),
        ("prompt,target_new\n\"a,b\n", "line 2, is no CSV"),
        ("prompt,target_new,aliases\na,b,c\n", 'line 2, aliases: is no JSON; write a list such as ["one", "two"]'),
        ("prompt,target_new,aliases\na,b,3\n", "line 2, aliases: is the number 3"),
        ("prompt,target_new,aliases\na,b,[1] 2\n", "aliases: something follows"),
        ("prompt,target_new,aliases\n,b,[\n", "line 2, prompt: is empty"),
        ("prompt,target_new\n" + "x" * 200_000 + ",y\n", "is no CSV (field larger than field limit"),
    ],
)  # fmt: skip
def test_csv_that_is_refused(text: str, told: str) -> None:
    found = faults(text, ".csv")
    assert any(told in each for each in found), found


# --- round trips and noise ---------------------------------------------------------------------------------------

_text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)
_texts = st.lists(_text, max_size=2).map(tuple)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("ab{\n"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab.", max_size=2), inner, max_size=2),
    max_leaves=4,
)
_meta = st.dictionaries(_text, _json, max_size=2)
_probes = st.lists(st.builds(Probe, prompt=_text, answers=_texts, meta=_meta), max_size=2).map(tuple)
_groups = st.dictionaries(_text, _probes, max_size=2)
_requests = st.builds(
    EditRequest, prompt=_text, target_new=_text, subject=st.none() | _text, ground_truth=st.none() | _text,
    aliases=_texts, case_id=st.none() | _text, rephrase_prompts=_texts, locality=_groups, portability=_groups,
    generation_prompts=_texts, meta=_meta,
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(_requests, min_size=1, max_size=3))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, requests: list[EditRequest]) -> None:
    path = tmp_path_factory.mktemp("dump") / "cases.jsonl"
    dump_requests(requests, path)
    read = load_requests(path)
    assert read == requests
    assert [each.id for each in read] == [each.id for each in requests]
    data = json.dumps([request_to_dict(each) for each in requests], indent=1).encode()
    assert parse_requests(data, ".json") == requests


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    good = EditRequest(prompt="A", target_new="b")
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for bad in (
        EditRequest(prompt="", target_new="b"),
        EditRequest(prompt="\ud800", target_new="b"),
        EditRequest(prompt="A", target_new="b", meta={"x": float("nan")}),
        EditRequest(prompt="A", target_new="b", meta={"x": object()}),
        EditRequest(prompt="A", target_new="b", meta={"x": deep}),
    ):
        with pytest.raises(RequestError, match="request 2, "):
            dump_requests([good, bad], path)
        assert not path.exists()
    with pytest.raises(RequestError, match="cannot be written"):
        dump_requests([good], tmp_path / "no" / "such" / "folder")


_noise = st.one_of(
    st.binary(max_size=80),
    st.text('[]{}",:\\ntruefalsNaN0123e.- \n\r;\tprompt', max_size=60).map(str.encode),
    st.tuples(st.just(json.dumps([NATIVE]).encode()), st.integers(0, 900), st.binary(max_size=3)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]
    ),
    _json.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from([*NATIVE, "subject_span", "x"]), _json, max_size=4).map(
        lambda value: json.dumps({**SMALL, **value}).encode()
    ),
)


@settings(deadline=None)
@given(_noise, st.sampled_from([".json", ".jsonl", ".csv"]), st.booleans())
def test_any_bytes_are_requests_or_an_honest_error(data: bytes, ending: str, needs_subject: bool) -> None:
    try:
        requests = parse_requests(data, ending, needs_subject=needs_subject)
    except KeditError as error:
        str(error).encode()
    else:
        assert requests and all(request_faults(each, needs_subject=needs_subject) == [] for each in requests)


# --- the subject -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "subject", "found"),
    [
        ("The capital of France is", "France", "France"),
        ("France and again France is", "France", (17, 23)),
        ("Ann met Annapolis", "Ann", (0, 3)),
        ("Annapolis", "Ann", None),
        ("Joanne", "anne", None),
        ("Area 51 is", "Area 5", None),
        ("pi_2 pi", "pi", (5, 7)),
        ("U.S.A. of old", "U.S.A.", (0, 6)),
        ("the U.S.'s", "U.S.", (4, 8)),
        ("St. Louis, St.Louis", "St.", (11, 14)),
        ("(Paris)", "Paris", (1, 6)),
        ("l'Italie", "Italie", (2, 8)),
        ("Paris-based", "Paris", (0, 5)),
        ("東京の首都は東京です", "東京", (6, 8)),
        ("서울은 한국의", "서울", (0, 2)),
        ("กรุงเทพเป็น", "กรุงเทพ", (0, 7)),
        ("Tokyoは", "Tokyo", (0, 5)),
        ("Zoë", "Zo", None),
        ("Zoe\u0308", "Zoe", None),
        ("Москва и москва", "Москва", (0, 6)),
        ("Εlládα", "Εlláda", None),
        ("aaa", "aa", None),
        ("a aa a a", "a a", (5, 8)),
        ("-- --", "--", (3, 5)),
        ("x -----", "--", (5, 7)),
        ("C++ and C", "C", (8, 9)),
        ("C and C++", "C++", (6, 9)),
        ("so padded is", " padded ", (3, 9)),
        ("france", "France", None),
        ("anything", "", None),
        ("anything", "  ", None),
        ("", "x", None),
        ("New York", "New York City", None),
    ],
)
def test_find_subject(prompt: str, subject: str, found: Any) -> None:
    span = find_subject(prompt, subject)
    if isinstance(found, str):
        found = (prompt.index(found), prompt.index(found) + len(found))
    assert span == found


def test_a_span_that_is_given_wins() -> None:
    assert find_subject("Annapolis", "Ann", (0, 3)) == (0, 3)
    request = EditRequest(prompt="X and X", target_new="y", subject="X", subject_span=(0, 1))
    assert subject_span(request) == (0, 1)


@settings(deadline=None)
@given(st.text("ab .東é́_", max_size=12), st.text("ab .東é", max_size=4))
def test_what_is_found_is_the_last_that_stands_alone(prompt: str, subject: str) -> None:
    span = find_subject(prompt, subject)
    if span is not None:
        assert prompt[slice(*span)] == subject.strip() != ""
        assert find_subject(prompt[span[1] :], subject) is None or subject.strip() in prompt[span[0] + 1 :]


@settings(deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.text(min_size=1, max_size=8).filter(str.strip))
def test_between_spaces_it_is_always_found(before: str, after: str, subject: str) -> None:
    prompt = f"{before} {subject.strip()} {after}"
    span = find_subject(prompt, subject)
    import unicodedata

    if not unicodedata.category(subject.strip()[0]).startswith("M"):
        assert span is not None and span[0] >= len(before) + 1


def test_it_works_without_torch() -> None:
    code = (
        "from kedit_core.requests import parse_requests\n"
        'print(parse_requests(b\'{"prompt": "a", "target_new": "b"}\', \'.json\')[0].prompt)\n'
    )
    assert run_without_torch(code).strip() == "a"


# --- requests made in Python -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"prompt": 3}, "prompt: is a int, expected text"),
        ({"target_new": ["c"]}, "target_new: is a list, expected text"),
        ({"subject": 3}, "subject: is a int, expected text or None"),
        ({"case_id": 1}, "case_id: is a int, expected text or None"),
        ({"rephrase_prompts": "A b"}, "rephrase_prompts: is a str, expected a tuple, each text"),
        ({"aliases": (1,)}, "aliases[0]: is a int, expected text"),
        ({"subject_span": (0.0, 1.0)}, "subject_span: is (0.0, 1.0), expected two whole numbers, (start, end)"),
        ({"locality": ()}, "locality: is a tuple, expected a mapping: name -> tuple of probes"),
        ({"locality": {"n": Probe(prompt="p")}}, "locality.n: is a Probe, expected a tuple, each a Probe"),
        ({"portability": {"n": ({"prompt": "p"},)}}, "portability.n[0]: is a dict, expected a Probe"),
        (
            {"locality": {"n": (Probe(prompt="p", answers="Paris"),)}},  # type: ignore[arg-type]
            "locality.n[0].answers: is a str, expected a tuple, each text",
        ),
        ({"prompt": "A \ud800 is"}, "prompt: has half a character (a lone surrogate), which no UTF-8 text can hold"),
    ],
)
def test_values_of_wrong_types_are_told_and_never_walked_through(values: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError) as error:
        check_requests([EditRequest(**{**SMALL, **values})])
    assert error.value.faults == (told,)


def test_lists_do_where_tuples_are_meant() -> None:
    check_requests([EditRequest(**SMALL, aliases=["d"], locality={"n": [Probe(prompt="p", answers=["q"])]})])  # type: ignore[arg-type]


def test_what_is_no_request_is_told() -> None:
    with pytest.raises(RequestError, match=r"is a dict, expected an EditRequest \(request_from_dict makes one"):
        check_requests([SMALL])  # type: ignore[list-item]


def test_a_request_has_one_id_prepared_or_not() -> None:
    request = EditRequest(prompt="The capital of France is", subject="France", target_new="Rome")
    prepared = evolve(request, subject_span=subject_span(request))
    assert request.subject_span is None and prepared.subject_span == (15, 21)
    assert prepared.id == request.id
    assert (
        evolve(request, prompt="France: the capital of France is", subject_span=(0, 6)).id
        != evolve(request, prompt="France: the capital of France is").id
    )
