"""What a comparison says of metrics whose own value is no mean over cases, and of sub-keys without one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from bench_made_up import SCENARIOS, made_up_bench

from kedit_bench.compare import Comparison, compare
from kedit_bench.compare_view import show_comparison
from kedit_bench.report.comparison import comparison
from kedit_bench.table import rows_of

NAME = "gen_free.locality"


def two() -> tuple[dict[str, Any], dict[str, Any]]:
    made = [
        made_up_bench(seed=seed, models=("m",), scenarios=SCENARIOS[:1], cases=20, failing=(), methods={"rome": 0.6})
        for seed in (0, 1)
    ]
    return json.loads(json.dumps(made[0])), json.loads(json.dumps(made[1]))


def locality(bench: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = bench["cells"][0]["evaluation"]["metrics"][NAME]
    return found


def said(found: Comparison) -> dict[str, str]:
    return {refusal.metric: refusal.reason for refusal in found.pairs[0].refused}


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"statistics": ["harmonic_mean"]}, "its value is a harmonic mean"), ({"value": None}, "are of several sources")],
)
def test_a_metric_whose_sub_keys_alone_are_compared_is_named(
    change: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two()
    for bench in (a, b):
        locality(bench).update(change)
    found = compare(a, b)
    assert [each.part for each in found.pairs[0].differences if each.metric == NAME] == ["neighborhood"]
    assert reason in said(found)[NAME]
    show_comparison(found, ("A", "B"))
    shown = capsys.readouterr().out
    assert any(line.startswith(f"{NAME}: neighborhood ") for line in shown.splitlines())
    assert f"{NAME}: neighborhood" in comparison(found) and reason in comparison(found)


def test_a_sub_key_below_its_metric_stands_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(*two())
    assert NAME not in said(found)
    show_comparison(found, ("A", "B"))
    shown = capsys.readouterr().out
    assert any(line.startswith("  neighborhood ") for line in shown.splitlines()) and f"{NAME}: " not in shown
    assert f"{NAME}: neighborhood" not in comparison(found)


def test_sub_keys_that_cannot_be_compared_are_named() -> None:
    a, b = two()
    del locality(b)["parts"]["neighborhood"]
    assert said(compare(a, b))[f"{NAME}: neighborhood"] == "B has no value of this sub-key"
    assert said(compare(b, a))[f"{NAME}: neighborhood"] == "A has no value of this sub-key"
    a, b = two()
    locality(b)["case_parts"]["neighborhood"] = {"elsewhere": 1.0}
    assert said(compare(a, b))[f"{NAME}: neighborhood"] == "the two have no case in common"


def table(by_source: Mapping[str, Mapping[str, float]], statistics: Sequence[str]) -> list[dict[str, Any]]:
    cases = {"a/1": 1.0, "a/2": 3.0, "a/b/1": 5.0, "c/1": 0.0}
    result = {
        "unit": "", "tag": "t", "value": None, "cases": cases, "parts": {}, "case_parts": {"p": cases},
        "statistics": list(statistics),
    }  # fmt: skip
    names = ("id", "model", "method", "label", "dataset", "status")
    cell = {name: name for name in names} | {
        "scenario": {"kind": "single", "size": 1, "batch_size": 1}, "evaluation": {"metrics": {"x": result}},
        "by_source": by_source, "ability": None,
    }  # fmt: skip
    return [row for row in rows_of([cell]) if "source" in row]


@pytest.mark.parametrize(("statistics", "of_a"), [((), 2.0), (("total",), 4.0)])
def test_source_rows_count_their_own_cases(statistics: tuple[str, ...], of_a: float) -> None:
    rows = table({"a": {"x": of_a}, "a/b": {"x": 5.0}, "c": {}}, statistics)
    assert [(row["source"], row.get("part"), row["value"], row["cases"]) for row in rows] == [
        ("a", None, of_a, 2),
        ("a", "p", of_a, 2),
        ("a/b", None, 5.0, 1),
        ("a/b", "p", 5.0, 1),
        ("c", "p", 0.0, 1),
    ]
