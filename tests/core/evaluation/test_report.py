from __future__ import annotations

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit_core.errors import InputError
from kedit_core.evaluation import Evaluation, combine, core_metrics, metric_result, requests_digest
from kedit_core.evaluation.report import format_value

SCORES = st.floats(0, 1, allow_nan=False)


def evaluate(requests, answers, base, scenario="single"):
    metrics = core_metrics(requests, base, answers, protocols=["gen_free"], scenario=scenario, way="merged")
    return Evaluation(metrics=metrics, manifest={"seed": 0, "n": len(requests)})


def test_cases_evaluated_apart_combine_to_what_they_give_together(scripted, make_request, base_of, oracle_of) -> None:
    requests = [make_request(n) for n in range(4)]
    base = scripted({k: v for r in requests for k, v in base_of(r).items()})
    edited = scripted({k: v for n, r in enumerate(requests) for k, v in (oracle_of if n else base_of)(r).items()})
    whole = evaluate(requests, edited, base)
    combined = combine([evaluate([request], edited, base) for request in requests])
    assert combined.metrics == whole.metrics  # tags too: n is summed
    assert combined.manifest == {"seed": 0, "n": 1}
    assert combine([whole], manifest={"all": True}).manifest == {"all": True}


@given(st.lists(st.dictionaries(st.sampled_from("abc"), SCORES), min_size=1, max_size=5))
def test_no_case_is_lost_when_names_come_twice(groups) -> None:
    parts = [
        Evaluation(
            metrics={
                "m": metric_result(
                    scores,
                    tag="a.b.c.single.1",
                    case_parts={"p": scores},
                    outputs=[{"case": case, "score": score} for case, score in scores.items()],
                    statistics=("max",),
                )
            }
        )
        for scores in groups
    ]
    result = combine(parts)["m"]
    every = sorted(score for scores in groups for score in scores.values())
    assert sorted(result.cases.values()) == every
    assert sorted(result.case_parts.get("p", {}).values()) == every
    assert {output["case"]: output["score"] for output in result.outputs} == dict(result.cases)
    if every:
        assert result.parts["max"] == every[-1]


@pytest.mark.parametrize(
    "other", ["a.b.c.single.1+attached", "a.b.c.batch.1+merged", "a.b.d.single.1+merged", "x.b.c.single.1+merged"]
)
def test_different_tags_are_never_averaged(other: str) -> None:
    one = Evaluation(metrics={"m": metric_result({"x": 1.0}, tag="a.b.c.single.1+merged")})
    two = Evaluation(metrics={"m": metric_result({"y": 1.0}, tag=other)})
    with pytest.raises(InputError, match="never averaged"):
        combine([one, two])
    with pytest.raises(InputError, match="at least one"):
        combine([])


def test_json_there_and_back(scripted, make_request, base_of, oracle_of) -> None:
    request = make_request()
    evaluation = evaluate([request], scripted(oracle_of(request)), scripted(base_of(request)))
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    slim = json.loads(evaluation.to_json(outputs=False))
    assert slim["metrics"]["gen_free.locality"]["outputs"] == []
    assert slim["metrics"]["gen_free.locality"]["case_parts"]["neighborhood"] == {"case-1": 1.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not an evaluation"),
        ('{"format": 2, "metrics": {}, "manifest": {}}', "not an evaluation"),
        ('{"format": 1, "metrics": {"m": {"value": "1", "tag": "t"}}, "manifest": {}}', "metrics"),
        ('{"format": 1, "metrics": {"m": {"value": true, "tag": "t"}}, "manifest": {}}', "metrics"),
        ('{"format": 1, "metrics": {"m": {"value": 1, "tag": "t", "odd": 1}}, "manifest": {}}', "odd"),
        ('{"format": 1, "metrics": {"m": {"value": 1}}, "manifest": {}}', "tag"),
    ],
)
def test_what_is_not_an_evaluation_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Evaluation.from_json(text)


def test_summary_and_table_show_the_same(scripted, make_request, base_of, oracle_of) -> None:
    from rich.console import Console

    request = make_request()
    evaluation = evaluate([request], scripted(oracle_of(request)), scripted(base_of(request)))
    text = evaluation.summary()
    assert re.search(r"^gen_free.reliability +100.0 % +1$", text, re.MULTILINE)
    assert "  neighborhood" in text and "tag: gen_free.question-only.EM.single.1+merged" in text
    console = Console(width=100, file=io.StringIO())
    console.print(evaluation.table("Metrics"))
    drawn = console.file.getvalue()
    for word in ("Metrics", "gen_free.locality", "neighborhood", "100.0 %", "EM.single.1+merged"):
        assert word in drawn


def test_it_is_a_mapping_and_shows_failures(scripted, make_request, base_of) -> None:
    request = make_request()
    evaluation = evaluate([request], scripted(base_of(request)), scripted(base_of(request)))
    assert list(evaluation) == list(evaluation.metrics) and len(evaluation) == 4
    assert evaluation["gen_free.locality"].value == 1.0
    assert evaluation.failures("gen_free.locality") == []
    assert [failure["edited"] for failure in evaluation.failures("gen_free.reliability")] == ["Oslo"]


def test_numbers_in_their_units() -> None:
    assert format_value(None, "share") == "-"
    assert format_value(0.9834, "share") == "98.3 %"
    assert [format_value(v, "seconds") for v in (0.0123, 2.5)] == ["12.3 ms", "2.50 s"]
    sizes = [format_value(v, "bytes") for v in (12, 2048, 3 * 2**20, 5 * 2**30)]
    assert sizes == ["12 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]
    assert format_value(1.25, "bits") == "1.25 bits"


def test_the_digest_sees_every_field_and_no_identity(make_request) -> None:
    one = requests_digest([make_request(1), make_request(2)])
    assert one == requests_digest([make_request(1), make_request(2)])
    assert one != requests_digest([make_request(2), make_request(1)])
    assert one != requests_digest([make_request(1), make_request(2, aliases=())])
    assert len(one) == 64


def test_the_manifest_tells_how_it_was_measured(make_request) -> None:
    import torch

    from kedit_core.evaluation import run_manifest

    model = torch.nn.Linear(2, 2).to(torch.bfloat16)
    found = run_manifest(model, seed=3, requests=[make_request()], model_digest="ab", scenario="batch")
    assert found["versions"]["torch"] == torch.__version__ and "kedit-core" in found["versions"]
    assert (found["devices"], found["dtypes"], found["seed"]) == (["cpu"], ["bfloat16"], 3)
    assert found["model_digest"] == "ab" and found["scenario"] == "batch" and found["requests"] == 1
    assert json.loads(json.dumps(found)) == found
