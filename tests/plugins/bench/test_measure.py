"""What is measured beside the evaluation, against plain references."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from attrs import evolve
from bench_tools import catalogue, some_requests

from kedit_bench.measure import (
    UpdateSizes,
    apart,
    by_age,
    by_source,
    counted,
    merged_warnings,
    retention,
    tagged,
    value_over,
)
from kedit_core import Editor, EditPatch
from kedit_core.editing import EditWarning
from kedit_core.evaluation import Evaluation, metric_result
from kedit_core.patches import DenseDelta, Replace
from kedit_core.testing.tiny import tiny

TAG = "gen_free.question-only.EM.sequential.100+merged"


def scores(values: dict[str, float], **more: Any) -> Evaluation:
    costs = metric_result(values, tag="efficiency.x.y.sequential.100+merged", unit="seconds")
    return Evaluation(
        metrics={"gen_free.reliability": metric_result(values, tag=TAG, **more), "efficiency.seconds": costs}
    )


def test_scores_by_age() -> None:
    ages = {f"c{age}": age for age in range(1, 101)}
    evaluation = scores({case: 1 / age for case, age in ages.items()})
    buckets = by_age(evaluation, ages)
    assert [(each["from"], each["to"]) for each in buckets] == [
        (1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 100)
    ]  # fmt: skip
    for each in buckets:
        expected = fmean(1 / age for age in range(each["from"], each["to"] + 1))
        assert each["metrics"] == {"gen_free.reliability": pytest.approx(expected)}
        assert each["edits"] == each["to"] - each["from"] + 1
    assert by_age(evaluation, {}) == []


def test_empty_buckets_are_left_out() -> None:
    assert [(b["from"], b["to"], b["edits"]) for b in by_age(scores({"a": 1, "b": 0}), {"a": 1, "b": 8})] == [
        (1, 1, 1),
        (6, 8, 1),
    ]


def test_immediate_retention_of_a_case_in_two_rounds() -> None:
    found = retention([{"m": {"a": 1.0, "b": 0.0}}, {"m": {"a": 0.0}, "n": {"c": 1.0}}])
    assert found == {"m": {"value": 0.25, "cases": {"a": 0.5, "b": 0.0}}, "n": {"value": 1.0, "cases": {"c": 1.0}}}


def test_a_mix_is_never_averaged() -> None:
    sources = {"x/1": "x", "x/2": "x", "y/1": "y"}
    parts = {"near": {"x/1": 1.0, "y/1": 0.0}, "far": {"x/1": 0.5, "x/2": 0.0}}
    evaluation = scores({"x/1": 1.0, "x/2": 0.0, "y/1": 1.0}, case_parts=parts)
    assert by_source(evaluation, sources) == {
        "x": {"gen_free.reliability": 0.5, "efficiency.seconds": 0.5},
        "y": {"gen_free.reliability": 1.0, "efficiency.seconds": 1.0},
    }
    kept = apart(evaluation, sources)
    reliability = kept["gen_free.reliability"]
    assert reliability.value is None and reliability.cases == evaluation["gen_free.reliability"].cases
    assert reliability.parts == {"far": 0.25}  # of one source alone
    assert kept["efficiency.seconds"].value == pytest.approx(2 / 3)
    assert apart(evaluation, {}) is evaluation


def test_values_over_some_cases_follow_from_the_metrics_own_rule() -> None:
    result = metric_result(
        {"a": 1.0, "b": 2.0, "c": 4.0},
        tag=TAG,
        statistics=("total",),
    )
    assert value_over(result, {"a", "c"}) == 5.0 and value_over(result, {"z"}) is None


def test_tags_say_how_many_facts_were_together() -> None:
    evaluation = scores({"a": 1.0})
    assert tagged(evaluation, "batch", 30)["gen_free.reliability"].tag == TAG.replace("sequential.100", "batch.30")
    assert tagged(evaluation, "single")["gen_free.reliability"].tag == TAG.replace("sequential", "single")


def test_warnings_are_counted_by_kind() -> None:
    warnings = [
        EditWarning(code=code, message=f"{code} {number}", number=1.0, remedy="rest")
        for number, code in enumerate(("big", "odd", "big"))
    ]
    one, other = counted(warnings), counted(warnings[:1])
    assert [(each["code"], each["message"], each["count"]) for each in one] == [
        ("big", "big 0; rest", 2),
        ("odd", "odd 1; rest", 1),
    ]
    assert [(each["code"], each["count"]) for each in merged_warnings([one, other])] == [("big", 3), ("odd", 1)]
    assert one[0]["count"] == 2, "what was given is left alone"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sizes_of_updates_against_dense_matrices(family: str) -> None:
    editor = Editor(*tiny(family), "nudge", catalogue=catalogue())
    patch = editor.edit(some_requests(3), scenario="batch", evaluate=False).patch
    place = patch.places[0]
    base, weight = editor.stack.base(place).double(), editor.model.get_parameter(place).detach().double()
    (told,) = UpdateSizes(editor.stack).of(patch, "a case")
    whole = sum(each.left.double() @ each.right.double() for each in patch.operations)  # type: ignore[union-attr]
    assert told["rank"] == int(torch.linalg.matrix_rank(whole, rtol=1e-6)) > 1
    assert told["case"] == "a case" and told["place"] == place
    assert told["norm"] == pytest.approx(float((weight - base).norm()), rel=1e-4)
    assert told["relative"] == pytest.approx(told["norm"] / float(base.norm()), rel=1e-9)


def with_operation(patch: EditPatch, operation: Any) -> EditPatch:
    return evolve(patch, operations=(operation,))


def test_sizes_of_dense_and_replaced_weights() -> None:
    editor = Editor(*tiny("llama"), "nudge", catalogue=catalogue())
    patch = editor.compute(some_requests(1)[0])
    place = patch.places[0]
    base = editor.stack.base(place)
    values = torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
    sizes = UpdateSizes(editor.stack)
    (dense,) = sizes.of(with_operation(patch, DenseDelta(place=place, values=values)), 1)
    assert dense["norm"] == pytest.approx(float(values.double().norm())) and dense["rank"] is None
    (replaced,) = sizes.of(with_operation(patch, Replace(place=place, values=values)), 1)
    assert replaced["norm"] == pytest.approx(float((values.double() - base.double()).norm()), rel=1e-6)
