from __future__ import annotations

import pytest

from kedit_core.errors import InputError
from kedit_core.evaluation import Evaluation, combine, metric_result

TAG = "nll.x.y.single.1+merged"
PARTS = {"a": {"1": 1.0, "2": 0.8}, "b": {"1": 0.9, "2": 0.3}, "c": {"1": 0.5, "2": 1.0}}


def test_the_spread_is_the_populations() -> None:
    result = metric_result({"1": 1.0, "2": 3.0, "3": 8.0}, tag=TAG, statistics=("std",))
    assert result.parts == {"std": pytest.approx((26 / 3) ** 0.5)}
    assert metric_result({"1": 4.0}, tag=TAG, statistics=("std",)).parts == {"std": 0.0}


def test_a_harmonic_mean_is_of_the_sub_keys_means_not_of_the_cases() -> None:
    cases = {"1": 0.72, "2": 0.53}
    result = metric_result(cases, tag=TAG, case_parts=PARTS, statistics=("harmonic_mean",))
    assert result.parts == {"a": pytest.approx(0.9), "b": pytest.approx(0.6), "c": pytest.approx(0.75)}
    assert result.value == pytest.approx(3 / (1 / 0.9 + 1 / 0.6 + 1 / 0.75))
    assert round(100 * (result.value or 0), 2) == 72.97
    assert result.cases == cases


def test_a_harmonic_mean_with_a_zero_is_zero_and_without_cases_nothing() -> None:
    zero = metric_result(
        {"1": 0.0}, tag=TAG, case_parts={"a": {"1": 0.0}, "b": {"1": 1.0}}, statistics=("harmonic_mean",)
    )
    assert zero.value == 0.0
    assert metric_result({}, tag=TAG, case_parts={"a": {"1": 1.0}}, statistics=("harmonic_mean",)).value is None
    assert metric_result({"1": 1.0}, tag=TAG, statistics=("harmonic_mean",)).value is None


def test_a_total_sums_value_and_parts_but_no_statistics() -> None:
    result = metric_result(
        {"1": 2.0, "2": 3.0}, tag=TAG, case_parts={"a": {"1": 2.0, "2": 1.0}}, statistics=("total", "max")
    )
    assert result.value == 5.0
    assert result.parts == {"a": 3.0, "max": 3.0}
    assert metric_result({}, tag=TAG, statistics=("total",)).value is None


@pytest.mark.parametrize("statistics", [("harmonic_mean",), ("total",), ("std",)])
def test_cases_apart_combine_to_what_they_give_together(statistics: tuple[str, ...]) -> None:
    cases = {"1": 0.72, "2": 0.53}
    whole = metric_result(cases, tag="nll.x.y.single.2+merged", case_parts=PARTS, statistics=statistics)
    apart = [
        metric_result(
            {case: score},
            tag=TAG,
            case_parts={part: {case: scores[case]} for part, scores in PARTS.items()},
            statistics=statistics,
        )
        for case, score in cases.items()
    ]
    combined = combine([Evaluation(metrics={"m": each}) for each in apart])["m"]
    assert combined == whole
    assert Evaluation.from_json(Evaluation(metrics={"m": combined}).to_json())["m"] == whole


def test_two_ways_to_a_value_and_a_taken_name_are_refused() -> None:
    with pytest.raises(InputError, match="total and harmonic_mean at once"):
        metric_result({"1": 1.0}, tag=TAG, statistics=("total", "harmonic_mean"))
    with pytest.raises(InputError, match="also a sub-key's name"):
        metric_result({"1": 1.0}, tag=TAG, case_parts={"total": {"1": 1.0}}, statistics=("total",))
