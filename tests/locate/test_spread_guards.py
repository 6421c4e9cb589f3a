"""What is said of a doubtful edit by MEMIT, EMMET, PMET and AlphaEdit: each warning with its number and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from locate_tools import MIRA, OREN, PARIS, a_statistic
from plain_spread import deltas_of
from spread_editors import METHODS, codes, spread_editor

from kedit_core.editing import EditWarning
from kedit_core.errors import InputError, KeditError
from kedit_core.testing.snapshot import Snapshot
from kedit_methods_locate import factors, spread_method
from kedit_methods_locate.stats import Statistic

FACTS = (PARIS, MIRA, OREN)


def warnings_of(tmp_path: Path, method: str = "memit", **settings: Any) -> tuple[list[EditWarning], dict[str, Any]]:
    """Of an edit of layer 1; and the patch's record."""
    editor = spread_editor("gpt2", tmp_path, method, **{"layers": [1], **settings})
    result = editor.edit(FACTS, evaluate=False)
    assert all(warning.remedy and warning.message for warning in result.warnings)
    return list(result.warnings), result.patch.state.config


@pytest.mark.parametrize("method", METHODS)
def test_a_search_that_misses_is_told_for_each_fact(method: str, tmp_path: Path) -> None:
    told, config = warnings_of(tmp_path, method)
    missed = [warning for warning in told if warning.code == "target_not_reached"]
    low = [edit["probability"] for edit in config["edits"] if edit["probability"] < 0.5]
    assert low and [warning.number for warning in missed] == low
    assert all(repr(fact.prompt) in str([w.message for w in missed]) for fact in FACTS[: len(low)])


@pytest.mark.parametrize(("method", "setting", "remedy"), [
    ("memit", {"mom2_update_weight": 1e6}, "lower mom2_update_weight"),
    ("pmet", {"mom2_update_weight": 1e6}, "lower mom2_update_weight"),
    ("emmet", {"emmet_lambda": 1e5}, "lower emmet_lambda"),
    ("alphaedit", {"l2": 1e6}, "lower l2"),
])  # fmt: skip
def test_a_ridge_that_leaves_little_to_write_is_told(
    method: str, setting: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    told, config = warnings_of(tmp_path, method, **setting)
    (little,) = [warning for warning in told if warning.code == "little_is_written"]
    assert config["solves"][0]["smallest_share"] <= little.number < 0.01  # type: ignore[operator]
    assert remedy in little.remedy
    assert config["gap_left"] > 0.9 * config["turns"][0]["gap"], "and it is so"
    quiet, _ = warnings_of(tmp_path, method)
    assert "little_is_written" not in codes(quiet) or method == "alphaedit"


@pytest.mark.parametrize("method", METHODS)
def test_an_update_larger_than_its_weight_is_told(method: str, tmp_path: Path) -> None:
    told, config = warnings_of(tmp_path, method, v_lr=100.0, clamp_norm_factor=None)
    (large,) = [warning for warning in told if warning.code == "large_update"]
    assert large.number == config["turns"][0]["relative_norm"] > 1


def test_the_relative_norm_is_that_of_the_update(tmp_path: Path) -> None:
    editor = spread_editor("gpt2", tmp_path)
    weights = [editor.adapter.down_weight(layer).detach().clone() for layer in (0, 1)]
    patch = editor.compute(FACTS)
    for weight, operation, turn in zip(weights, patch.operations, patch.state.config["turns"], strict=True):
        delta = operation.left @ operation.right  # type: ignore[union-attr]
        assert turn["relative_norm"] == pytest.approx(float(delta.norm() / weight.norm()))


def test_a_weight_of_zeros_can_be_written(tmp_path: Path) -> None:
    """Added blocks begin with a projection of zeros."""
    editor = spread_editor("gpt2", tmp_path, layers=[1])
    with torch.no_grad():
        editor.adapter.mlp_out(1).weight.zero_()  # type: ignore[union-attr]
    made = editor.edit(FACTS, evaluate=False)
    assert codes(made.warnings)["large_update"] > 1
    assert type(made.patch).from_bytes(made.patch.to_bytes()).id == made.patch.id


def nearly_singular() -> Statistic:
    """Exactly representable, with an exact Cholesky factor, and a smallest eigenvalue 1e-15 of the largest."""
    lower = torch.eye(80, dtype=torch.float64)
    for i in range(24):
        lower[i + 1, i] = 2
    return Statistic.from_sum(1, lower @ lower.T * 2.0**60, 1600, {})


def test_a_solve_that_stays_inaccurate_is_told(tmp_path: Path) -> None:
    told, config = warnings_of(tmp_path, statistics=[nearly_singular()], mom2_update_weight=1.0)
    (solve,) = config["solves"]
    assert solve["tried"] == ["fact", "direct", "lu"]
    (inaccurate,) = [warning for warning in told if warning.code == "inaccurate_solve"]
    assert inaccurate.number == solve["residual"] > 1e-6
    assert "mom2_ridge" in inaccurate.remedy
    ridged, _ = warnings_of(tmp_path, statistics=[nearly_singular()], mom2_update_weight=1.0, mom2_ridge=1e-4)
    assert "inaccurate_solve" not in codes(ridged), "the remedy helps"


@pytest.mark.parametrize("method", METHODS)
def test_the_remedy_of_an_inaccurate_solve_is_one_of_the_method(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors, "TOLERANCE", 0.0)  # no solve is that accurate
    told, config = warnings_of(tmp_path, method)
    (inaccurate,) = [warning for warning in told if warning.code == "inaccurate_solve"]
    assert inaccurate.number == config["solves"][0]["residual"] > 0
    own, others = ("raise l2", "mom2_ridge") if method == "alphaedit" else ("mom2_ridge", "l2")
    assert own in inaccurate.remedy and others not in inaccurate.remedy


def test_alphaedit_says_that_a_ridge_of_the_statistic_does_nothing(tmp_path: Path) -> None:
    told, _ = warnings_of(tmp_path / "a", "alphaedit", mom2_ridge=1e-3)
    assert codes(told)["mom2_ridge_unused"] == 1e-3
    editors = [spread_editor("gpt2", tmp_path, "alphaedit", layers=[1], mom2_ridge=ridge) for ridge in (1e-3, 0.0)]
    ridged, plain = (editor.compute(FACTS) for editor in editors)
    assert all(torch.equal(a, b) for a, b in zip(deltas_of(ridged).values(), deltas_of(plain).values(), strict=True))
    assert "mom2_ridge_unused" not in codes(warnings_of(tmp_path / "b", "alphaedit")[0])
    assert "mom2_ridge_unused" not in codes(warnings_of(tmp_path / "c", "memit", mom2_ridge=1e-3)[0])


@pytest.mark.parametrize("method", METHODS)
def test_doubtful_statistics_are_told(method: str, tmp_path: Path) -> None:
    few = a_statistic(1, 80, tokens=100)
    told, _ = warnings_of(tmp_path, method, statistics=[few])
    assert codes(told)["statistics_few_tokens"] == 100
    assert "statistics_unverified" in codes(told)
    sound = a_statistic(1, 80).sum.clone()
    sound[:3] = 0
    sound[:, :3] = 0
    told, _ = warnings_of(tmp_path, method, statistics=[Statistic(1, sound, 1600, {})])
    if method == "alphaedit":  # never solves with it: dead units are directions that may be written in
        assert not {"statistics_dead_units", "statistics_singular", "statistics_ill_conditioned"} & codes(told).keys()
        return
    assert codes(told)["statistics_dead_units"] == 3
    assert codes(told)["statistics_singular"] >= 1e-7


@pytest.mark.parametrize(
    ("statistic", "why"),
    [
        (a_statistic(1, 32), "of width 32 and the MLP of width 80"),
        (a_statistic(0, 80), r"has no statistic of layer 1, mlp_out.input \(it has 0\)"),
        (evolve(a_statistic(1, 80), record={"weights": "of another model"}), "of other weights than this model's"),
    ],
    ids=["width", "layer", "weights"],
)
def test_statistics_of_no_use_are_refused_before_the_search(
    statistic: Statistic, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*args: Any, **kwargs: Any) -> None:
        raise InputError("searched")

    monkeypatch.setattr(spread_method, "search", search)
    editor = spread_editor("gpt2", tmp_path, layers=[1], statistics=[statistic])
    before = Snapshot(editor.model)
    with pytest.raises(KeditError, match=why):
        editor.edit(FACTS)
    assert before.differences(editor.model) == [] and editor.stack.patches == ()
