"""Comparisons: numbers are those of a plain loop, intervals cover as often as they say, unlike things are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from bench_made_up import SCENARIOS, made_up_bench
from numpy.typing import NDArray

from kedit_bench.compare import Comparison, Difference, Side, compare
from kedit_bench.compare_view import run_comparison, show_comparison
from kedit_bench.report.comparison import comparison
from kedit_bench.report.difference import change_text, p_text, value_text
from kedit_bench.resampling import bootstrap_intervals, sign_flip_p
from kedit_core.errors import InputError, UnknownNameError

NAME = "gen_free.reliability"


def one(seed: int = 0, **options: Any) -> dict[str, Any]:
    """A bench of one model and the scenario ``single``, through JSON as a real one."""
    given = {
        "models": ("m",),
        "scenarios": SCENARIOS[:1],
        "cases": 20,
        "failing": (),
        "methods": {"rome": 0.6},
        **options,
    }
    made: dict[str, Any] = json.loads(json.dumps(made_up_bench(seed=seed, **given)))
    return made


def set_cases(bench: Mapping[str, Any], cases: Mapping[str, float], name: str = NAME, cell: int = 0) -> None:
    metric = bench["cells"][cell]["evaluation"]["metrics"][name]
    metric |= {"cases": dict(cases), "value": fmean(cases.values())}


def difference(found: Comparison, metric: str = NAME, part: str | None = None, pair: int = 0) -> Difference:
    (one,) = [each for each in found.pairs[pair].differences if (each.metric, each.part) == (metric, part)]
    return one


def refusals(found: Comparison, pair: int = 0) -> dict[str, str]:
    return {refusal.metric: refusal.reason for refusal in found.pairs[pair].refused}


# the numbers


def test_means_and_difference_are_over_the_cases_that_both_have() -> None:
    a, b = one(), one()
    set_cases(a, {"x": 1.0, "y": 0.0, "z": 0.5, "only a": 1.0})
    set_cases(b, {"z": 1.0, "y": 0.25, "x": 0.0, "only b": 0.0, "also b": 0.0})
    found = difference(compare(a, b))
    assert (found.pairs, found.only_a, found.only_b) == (3, 1, 2)
    assert (found.a, found.b) == (0.5, pytest.approx(1.25 / 3))
    assert found.difference == pytest.approx((-1.0 + 0.25 + 0.5) / 3)


def test_pairing_is_by_case_and_not_by_order() -> None:
    a, b = one(), one()
    scores = {f"c{index}": float(index % 2) for index in range(12)}
    set_cases(a, scores)
    set_cases(b, dict(reversed(scores.items())))
    found = difference(compare(a, b))
    assert (found.low, found.high, found.p, found.verdict) == (0.0, 0.0, 1.0, None)


def test_interval_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    columns = rng.normal(size=(17, 2))
    low, high = bootstrap_intervals(columns, samples=700, seed=5, level=0.9)
    again = np.random.default_rng([5, 17])
    means: list[list[float]] = []
    for _ in range(700):
        drawn = [int(index) for index in again.integers(0, 17, size=17)]
        means.append([fmean(float(columns[index, column]) for index in drawn) for column in (0, 1)])
    for column in (0, 1):
        ordered = sorted(mean[column] for mean in means)
        assert low[column] == pytest.approx(at(ordered, 0.05), abs=1e-12)
        assert high[column] == pytest.approx(at(ordered, 0.95), abs=1e-12)


def at(ordered: Sequence[float], share: float) -> float:
    """The quantile, linear between neighbours."""
    place = share * (len(ordered) - 1)
    below = int(place)
    return ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])


@pytest.mark.parametrize("cases", [400, 3000])
def test_blocks_change_nothing(cases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(0).normal(size=(cases, 1))

    def both() -> tuple[Any, ...]:
        return (
            *bootstrap_intervals(columns, samples=200, seed=0, level=0.95),
            sign_flip_p(columns, samples=200, seed=0),
        )

    whole = both()
    monkeypatch.setattr("kedit_bench.resampling._AT_ONCE", 50 * cases)
    np.testing.assert_allclose(np.array(both()), np.array(whole), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["normal", "changed answers"])
def test_intervals_cover_the_truth_as_often_as_they_say(kind: str) -> None:
    """600 made-up benches of 60 cases each: the 95 % interval holds the true mean in about 95 % of them."""
    rng = np.random.default_rng(11)
    if kind == "normal":
        truth, columns = 0.3, rng.normal(0.3, 1.0, size=(60, 600))
    else:  # an answer got worse, stayed, or got better
        truth = 0.3 - 0.1
        columns = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=(60, 600))
    low, high = bootstrap_intervals(columns, samples=1000, seed=0, level=0.95)
    covered = float(((low <= truth) & (truth <= high)).mean())
    assert 0.92 <= covered <= 0.975
    narrow = bootstrap_intervals(columns, samples=1000, seed=0, level=0.5)
    assert 0.44 <= float(((narrow[0] <= truth) & (truth <= narrow[1])).mean()) <= 0.56


def test_sign_flips_of_few_cases_are_exact() -> None:
    values = [0.5, -0.25, 1.0, 0.75, 0.0, -1.0, 0.3]
    far = sum(
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True))) >= abs(sum(values)) - 1e-12
        for signs in product((1, -1), repeat=len(values))
    )
    column: NDArray[np.float64] = np.array(values)[:, None]
    assert sign_flip_p(column, samples=100, seed=0)[0] == far / 2 ** len(values)


def test_sign_flip_p_is_even_when_nothing_differs_and_small_when_all_does() -> None:
    rng = np.random.default_rng(2)
    p = sign_flip_p(rng.normal(size=(40, 500)), samples=400, seed=0)
    assert 0.03 <= float((p <= 0.05).mean()) <= 0.075
    assert sign_flip_p(np.ones((40, 1)), samples=400, seed=0)[0] == 1 / 401


def test_seed_fixes_everything_and_other_metrics_change_nothing() -> None:
    a, b = one(), one(seed=1)
    first = compare(a, b)
    assert compare(a, b) == first
    assert (
        difference(compare(a, b, seed=1)).low != difference(first).low
        or difference(first).high != difference(compare(a, b, seed=1)).high
    )
    for bench in (a, b):
        del bench["cells"][0]["evaluation"]["metrics"]["gen_free.locality"]
    fewer = difference(compare(a, b))
    for name in ("low", "high", "p"):
        assert getattr(fewer, name) == pytest.approx(getattr(difference(first), name), abs=1e-12)


def test_one_pair_has_no_interval() -> None:
    a, b = one(), one()
    set_cases(a, {"x": 1.0})
    set_cases(b, {"x": 0.0})
    found = difference(compare(a, b))
    assert (found.difference, found.low, found.high, found.p, found.verdict) == (-1.0, None, None, None, None)


@pytest.mark.parametrize(
    ("name", "grows", "verdict"),
    [
        ("gen_free.locality", True, "better"),
        ("gen_free.locality", False, "worse"),
        ("efficiency.seconds", True, "worse"),
        ("efficiency.seconds", False, "better"),
        ("errors.missing", True, "higher"),
    ],
)
def test_verdict_follows_the_direction_of_the_metric(name: str, grows: bool, verdict: str) -> None:
    a, b = one(), one()
    low, high = {f"c{i}": 0.1 + i / 1000 for i in range(20)}, {f"c{i}": 0.9 for i in range(20)}
    set_cases(a, low if grows else high, name)
    set_cases(b, high if grows else low, name)
    assert difference(compare(a, b), name).verdict == verdict


def test_interval_and_test_must_agree() -> None:
    """Four cases that all got better: the interval is clear of 0, but one pattern of signs in eight does as well."""
    a, b = one(), one()
    set_cases(a, dict.fromkeys("wxyz", 0.0))
    set_cases(b, dict(zip("wxyz", (0.5, 0.75, 1.0, 0.5), strict=True)))
    found = difference(compare(a, b))
    assert found.low is not None and found.low > 0 and found.p == 2 / 16 and found.verdict is None
    assert difference(compare(a, b, level=0.8)).verdict == "better"


@pytest.mark.parametrize(("scenario", "sure"), [(0, True), (1, False), (2, True)])
def test_costs_that_a_round_shares_have_no_interval(scenario: int, sure: bool) -> None:
    a, b = (one(seed=seed, scenarios=[SCENARIOS[scenario]]) for seed in (0, 1))
    found = compare(a, b)
    assert (difference(found, "efficiency.seconds").low is not None) is sure
    assert difference(found, "efficiency.seconds").difference != 0
    assert difference(found).low is not None


def test_sub_keys_are_compared_too() -> None:
    found = compare(one(), one(seed=1))
    whole, part = difference(found, "gen_free.locality"), difference(found, "gen_free.locality", "neighborhood")
    assert (part.difference, part.low, part.high) == (whole.difference, whole.low, whole.high)
    assert not [each for each in found.pairs[0].differences if each.part in ("median", "p95")]


# what is matched


def test_cells_are_matched_by_model_method_dataset_and_scenario() -> None:
    options: dict[str, Any] = {"methods": {"rome": 0.9, "memit": 0.5}, "scenarios": SCENARIOS, "models": ("m", "n")}
    a, b = one(**options), one(**options)
    b["cells"].reverse()
    found = compare(a, b)
    assert len(found.pairs) == 12 and not found.unmatched
    assert all(pair.label_a == pair.label_b for pair in found.pairs)
    assert all(each.difference == 0 for pair in found.pairs for each in pair.differences)


def test_cells_without_partner_and_failed_ones_are_named() -> None:
    a, b = one(methods={"rome": 0.9, "memit": 0.5, "ft_l": 0.4}), one(methods={"rome": 0.9, "grace": 0.5, "ft_l": 0.4})
    b["cells"][2] |= {"status": "failed", "error": "no", "evaluation": None}
    found = compare(a, b)
    assert [pair.label for pair in found.pairs] == ["rome"]
    assert found.unmatched == (
        "memit on m, factworld, single: bench B has no such cell",
        "ft_l on m, factworld, single: failed in B",
        "grace on m, factworld, single: bench A has no such cell",
    )


def test_two_methods_of_one_bench() -> None:
    bench = one(methods={"rome": 0.9, "memit": 0.3}, cases=60)
    found = compare(bench, bench, method_a="memit", method_b="rome")
    assert [(pair.label_a, pair.label_b) for pair in found.pairs] == [("memit", "rome")]
    assert difference(found).verdict == "better"
    turned = difference(compare(bench, bench, method_a="rome", method_b="memit"))
    assert turned.difference == pytest.approx(-difference(found).difference)


def test_single_cases_are_matched_whatever_the_limit() -> None:
    found = difference(compare(one(cases=10), one(cases=20)))
    assert (found.pairs, found.only_b) == (10, 10)


def test_batches_of_other_sizes_are_other_cells() -> None:
    a = one(scenarios=[{**SCENARIOS[1], "size": 30}])
    b = one(scenarios=[{**SCENARIOS[1], "size": 10}])
    found = compare(a, b)
    assert not found.pairs and len(found.unmatched) == 2


# what is refused


def test_different_tags_are_refused_with_what_differs() -> None:
    a, b = one(), one(ways={"rome": "attached"})
    found = compare(a, b)
    assert not found.pairs[0].differences
    assert "way merged in A, attached in B" in refusals(found)[NAME]
    assert len(found.pairs[0].reasons) == 1


def test_only_the_metric_with_another_tag_is_refused() -> None:
    a, b = one(), one()
    metric = b["cells"][0]["evaluation"]["metrics"][NAME]
    metric["tag"] = metric["tag"].replace("question-only", "chat")
    found = compare(a, b)
    assert list(refusals(found)) == [NAME] and "context question-only in A, chat in B" in refusals(found)[NAME]
    assert difference(found, "gen_free.locality").pairs == 20


def test_metrics_that_one_side_lacks_are_refused() -> None:
    a, b = one(), one()
    del a["cells"][0]["evaluation"]["metrics"]["gen_free.locality"]
    del b["cells"][0]["evaluation"]["metrics"]["gen_free.portability"]
    found = refusals(compare(a, b))
    assert found["gen_free.locality"].startswith("only B") and found["gen_free.portability"].startswith("only A")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"statistics": ["total"]}, "it is a total"),
        ({"value": None, "parts": {}}, "several sources"),
        ({"cases": {"c": float("nan")}}, "no numbers"),
        ({"cases": {"elsewhere": 1.0}}, "no case in common"),
    ],
)
def test_what_is_no_mean_over_common_cases_is_refused(change: dict[str, Any], said: str) -> None:
    a, b = one(), one()
    a["cells"][0]["evaluation"]["metrics"][NAME] |= change
    if said == "no numbers":
        set_cases(b, {"c": 1.0})
    if said == "it is a total":
        b["cells"][0]["evaluation"]["metrics"][NAME] |= change
    assert said in refusals(compare(a, b))[NAME]


def test_a_harmonic_mean_is_compared_by_its_sub_keys() -> None:
    a, b = one(), one(seed=1)
    for bench in (a, b):
        bench["cells"][0]["evaluation"]["metrics"]["gen_free.locality"]["statistics"] = ["harmonic_mean"]
    found = [each.part for each in compare(a, b).pairs[0].differences if each.metric == "gen_free.locality"]
    assert found == ["neighborhood"]


def test_same_case_ids_of_other_requests_are_refused() -> None:
    a, b = one(), one()
    for output in b["cells"][0]["evaluation"]["metrics"][NAME]["outputs"]:
        output["prompt"] = f"another world: {output['prompt']}"
    for output in b["cells"][0]["evaluation"]["metrics"]["tf_token.reliability"]["outputs"]:
        output["prompt"] = f"another world: {output['prompt']}"
    found = compare(a, b)
    assert not found.pairs[0].differences and "case-0 asks something else" in refusals(found)["all"]


@pytest.mark.parametrize(
    "arguments", [{"samples": 99}, {"seed": -1}, {"level": 0.0}, {"level": 1.0}, {"method_a": "rome"}]
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        compare(one(), one(), **arguments)


def test_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"bench B has no method 'rom'.*did you mean 'rome'"):
        compare(one(), one(), method_a="rome", method_b="rom")


# faces


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name, seed in (("a", 0), ("b", 1)):
        bench = one(seed=seed, methods={"rome": 0.9, "<i>x</i>": 0.5})
        (tmp_path / name).mkdir()
        (tmp_path / name / "bench.json").write_text(json.dumps(bench))
    return tmp_path / "a", tmp_path / "b"


def test_sides_are_folders_files_or_folders_with_a_method(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert Side.parse(str(folders[0])).method is None
    assert Side.parse(str(folders[0] / "bench.json")).method is None
    assert Side.parse(f"{folders[0]}:rome").method == "rome"
    odd = tmp_path / "a:rome"
    folders[0].rename(odd)
    assert Side.parse(str(odd)).method is None
    with pytest.raises(InputError, match="there is no bench to read"):
        Side.parse(str(tmp_path / "nowhere"))
    (tmp_path / "b" / "bench.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        Side.parse(str(tmp_path / "b"))


def test_run_shows_and_writes(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = (str(folders[0]), str(folders[1]))
    run_comparison(sides, tmp_path / "out", None)
    said = capsys.readouterr().out
    found = compare(Side.parse(sides[0]).bench, Side.parse(sides[1]).bench)
    assert "rome on m, factworld, single" in said and "gen_free.reliability" in said and "95% interval" in said
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict()))
    assert written["pairs"][0]["differences"][0]["verdict"] == found.pairs[0].differences[0].verdict
    assert (tmp_path / "out" / "comparison.html").read_text() == comparison(found, sides)
    run_comparison((f"{sides[0]}:rome", f"{sides[0]}:<i>x</i>"), tmp_path / "two.html", "-")
    assert json.loads(capsys.readouterr().out)["pairs"][0]["label_b"] == "<i>x</i>"
    assert "<i>x</i>" not in (tmp_path / "two.html").read_text()


def test_page_says_what_the_numbers_are(folders: tuple[Path, Path]) -> None:
    a, b = (Side.parse(str(folder)).bench for folder in folders)
    found = compare(a, b)
    text = comparison(found, ("one <b>", "two"))
    each = difference(found)
    assert each.low is not None and each.high is not None
    assert f"{change_text(each.low, 'share')} to {change_text(each.high, 'share')}" in text
    assert "one &lt;b&gt;" in text and text.count("<script>") == 1
    assert text.count('class="forest') == sum(len(pair.differences) for pair in found.pairs)


def test_screen_names_what_was_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = one(methods={"rome": 0.6, "memit": 0.5}), one(ways={"rome": "attached"})
    show_comparison(compare(a, b), ("A", "B"))
    said = capsys.readouterr().out
    assert "not compared: memit on m, factworld, single: bench B has no such cell" in said
    assert "way merged in A, attached in B" in said


def test_how_differences_are_written() -> None:
    assert [change_text(value, "share") for value in (0.1234, -0.05, 0.0, -0.0001)] == ["+12.3", "−5.0", "0.0", "0.0"]
    assert [change_text(value, "seconds") for value in (1.5, -0.25, 0.0)] == ["+1.50 s", "−250.0 ms", "0.0 ms"]
    assert value_text(0.5, "outputs") == "0.5" and value_text(0.5, "share") == "50.0 %"
    assert [p_text(p) for p in (None, 0.00001, 0.0312, 1.0)] == ["–", "< 0.001", "0.031", "1"]


def test_sequences_of_other_rounds_are_paired_only_where_there_is_none_of_the_same() -> None:
    def bench(*rounds: int) -> dict[str, Any]:
        scenarios = [{"kind": "sequential", "size": 3, "batch_size": size, "checkpoints": [3]} for size in rounds]
        return one(scenarios=scenarios)

    found = compare(bench(1, 3), bench(3, 1))
    assert [pair.scenario for pair in found.pairs] == ["sequence of 3, 1 a round", "sequence of 3, 3 a round"]
    assert all(pair.label_a.split(" #")[0] == pair.label_b.split(" #")[0] for pair in found.pairs)
    (mixed,) = compare(bench(1), bench(3)).pairs
    assert mixed.scenario == "sequence of 3, 1 a round against sequence of 3, 3 a round"


@pytest.mark.parametrize(
    "breaking",
    [
        lambda bench: bench.update(metrics=["a"]),
        lambda bench: bench.update(metrics={"a": "text"}),
        lambda bench: bench.update(manifest=[1]),
        lambda bench: bench["cells"][0].update(ability=[1]),
        lambda bench: bench["cells"][0].update(ability={"tasks": 3}),
        lambda bench: bench["cells"][0]["evaluation"]["metrics"][NAME]["outputs"].append({"case": ["c"]}),
    ],
)
def test_what_is_no_bench_is_refused(breaking: Any) -> None:
    broken = one()
    breaking(broken)
    with pytest.raises(InputError):
        compare(broken, one())


def test_scores_that_no_mean_can_be_taken_of_are_refused() -> None:
    a, b = one(), one()
    cases = a["cells"][0]["evaluation"]["metrics"][NAME]["cases"]
    cases.update(dict.fromkeys(cases, 1e308))
    assert "no numbers" in refusals(compare(a, b))[NAME]
