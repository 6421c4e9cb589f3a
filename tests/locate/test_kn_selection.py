"""Which neurons are taken: thresholds, several prompts, facts of one relation; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_blocked import run_without_torch

from kedit_core import EditRequest
from kedit_core.errors import HyperParamsError
from kedit_methods_locate.hparams import KnHyperParams
from kedit_methods_locate.kn import coarse, refined
from kedit_methods_locate.kn.selection import adapted_share, enough, relation, too_common

SCORES = torch.tensor([[0.1, 0.5, -3.0], [1.0, 0.2, 0.21]])


def sets(*groups: str) -> list[frozenset[tuple[int, int]]]:
    """Sets of neurons of block 0, a digit each."""
    return [frozenset((0, int(digit)) for digit in group) for group in groups]


def test_adaptive_is_a_share_of_the_largest_of_the_whole_table() -> None:
    assert coarse(SCORES, "adaptive", 0.2) == {(0, 1), (1, 0), (1, 2)}, "0.2 itself is not above the threshold"
    assert coarse(SCORES, "adaptive", 0.6) == {(1, 0)}


def test_a_threshold_may_be_inclusive() -> None:
    """As in the authors' code; what is not positive never passes."""
    table = torch.tensor([[0.25, 0.5, -3.0], [1.0, 0.2, 0.0]])
    assert coarse(table, "adaptive", 0.25) == {(0, 1), (1, 0)}
    assert coarse(table, "adaptive", 0.25, inclusive=True) == {(0, 0), (0, 1), (1, 0)}
    assert coarse(table, "absolute", 0.5, inclusive=True) == {(0, 1), (1, 0)}
    assert coarse(table, "absolute", 0.0, inclusive=True) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_absolute_and_percentile() -> None:
    assert coarse(SCORES, "absolute", 0.205) == {(0, 1), (1, 0), (1, 2)}
    assert coarse(SCORES, "absolute", 2.0) == frozenset()
    assert coarse(SCORES, "percentile", 50) == {(0, 1), (1, 0), (1, 2)}
    assert coarse(SCORES, "percentile", 99) == frozenset()
    assert len(coarse(torch.arange(1, 1001.0).view(10, 100), "percentile", 99)) == 10
    assert coarse(SCORES, "percentile", 0) == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}, "never a negative score"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_neuron_where_no_score_says_anything(bad: float) -> None:
    assert coarse(-SCORES.abs()) == frozenset()
    assert coarse(torch.zeros(2, 3)) == frozenset()
    broken = SCORES.clone()
    broken[0, 0] = bad
    assert coarse(broken) == frozenset()


@given(
    st.lists(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=4),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
)
def test_a_higher_threshold_never_adds_neurons(table: list[list[float]], low: float, high: float) -> None:
    low, high = sorted((low, high))
    scores = torch.tensor(table)
    assert coarse(scores, "adaptive", high) <= coarse(scores, "adaptive", low)
    assert all(scores[neuron] > 0 for neuron in coarse(scores, "adaptive", low))


def test_refining_asks_for_more_than_a_share_of_the_prompts() -> None:
    prompts = sets("12", "13", "14", "1256")
    assert refined(prompts, 0.5) == sets("1")[0], "neuron 2 is in two of four, which is not more than half"
    assert refined(prompts, 0.49) == sets("12")[0]
    assert refined(prompts, 0.0) == sets("123456")[0]
    assert refined(sets("12"), 0.7) == sets("12")[0], "with one prompt nothing changes"


def test_refining_may_ask_for_a_number_of_prompts() -> None:
    prompts = sets("12", "13", "124", "12")
    assert refined(prompts, 0.0, 3) == sets("12")[0]
    assert refined(prompts, 0.0, 4) == sets("1")[0]
    assert refined(prompts, 0.8, 3) == sets("1")[0], "the share holds beside it"
    assert refined(prompts[:2], 0.0, 3) == sets("1")[0], "fewer prompts than that: all of them"
    assert refined(prompts[:1], 0.0, 3) == sets("12")[0], "with one prompt nothing changes"
    # five neurons in three of four prompts and one in all: the share alone would have to rise
    facts = [sets("01234", "01234", "012345", "5")]
    assert adapted_share(facts, 0.5, 6) == 0.5
    assert adapted_share(facts, 0.5, 6, least=4) == pytest.approx(0.2), "nothing helps, so it goes down"


def test_the_share_is_moved_until_facts_have_two_to_five_neurons() -> None:
    # each fact: five neurons in all ten prompts, six more in eight of them
    many = [sets(*["01234"] * 2, *["0123456789"] * 8)]
    assert adapted_share(many, 0.7, 6) == pytest.approx(0.8)
    assert adapted_share(many, 0.7, 1) == pytest.approx(0.75)
    assert adapted_share(many, 0.85, 6) == 0.85
    few = [sets("1", "12", "123", "1234")]
    assert adapted_share(few, 0.8, 6) == pytest.approx(0.7), "neuron 2 is in three of four"
    assert adapted_share([sets("", "")], 0.1, 6) == 0.0


def test_neurons_of_many_facts_are_too_common() -> None:
    others = sets(*["1"] * 3, *["2"] * 1, *["9"] * 34)
    # the edited fact counts twice: 5 and 3 of 40, and 2 for its own
    assert too_common(sets("123")[0], others, 0.1) == sets("1")[0]
    assert too_common(sets("123")[0], others, 0.07) == sets("12")[0]
    assert too_common(sets("123")[0], others, 0.125) == frozenset(), "5 of 40 is not more than 12.5 %"


def test_few_facts_cannot_tell_what_is_common() -> None:
    assert enough(18, 0.1)
    assert not enough(17, 0.1)
    assert too_common(sets("1")[0], sets(*[""] * 18), 0.1) == frozenset()
    assert too_common(sets("1")[0], sets(*[""] * 17), 0.1) == sets("1")[0]


def test_relation_of_a_request() -> None:
    request = EditRequest(prompt="The capital of France is", subject="France", subject_span=(15, 21), target_new="Rome")
    assert relation(request) == "The capital of {} is"
    assert relation(EditRequest(prompt="a b", target_new="c")) == "a b"
    named = EditRequest(prompt="a b", target_new="c", meta={"relation": "capital"})
    assert relation(named) == "capital"
    assert relation(EditRequest(prompt="a b", target_new="c", meta={"relation_id": "P36"})) == "P36"


def test_defaults_of_the_sheet() -> None:
    h = KnHyperParams()
    assert (h.steps, h.grid, h.neuron, h.threshold_rule, h.threshold) == (20, "right", "post", "adaptive", 0.2)
    assert (h.change, h.lambda_rule, h.embedding, h.old_answer) == ("rewrite", "fixed", "input", "given")
    assert (h.lambda_old, h.lambda_new, h.follow_sign) == (None, None, False), "2 and 2 of the fixed rule"
    assert (h.prompts, h.adapt_rounds, h.max_frequency, h.negative_prompts) == ("bare", 0, None, ())


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"grid": "middle"}, {"threshold": 1.0}, {"threshold": -0.1},
     {"threshold_rule": "percentile", "threshold": 100}, {"refine_share": 1.0}, {"max_frequency": 0.0},
     {"negative_prompts": ["{} and {}"]}, {"negative_prompts": [" "]}, {"lambda_old": -1},
     {"lambda_rule": "parity_causal", "lambda_new": 1}, {"change": "erase", "lambda_old": 1}, {"adapt_rounds": 6},
     {"follow_sign": True, "neuron": "pre"}, {"refine_min_prompts": 0, "prompts": "rephrase"},
     {"refine_min_prompts": 3},
     {"layer": 3}],
    ids=str,
)  # fmt: skip
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HyperParamsError):
        KnHyperParams.from_dict(wrong)


def test_thresholds_above_one_are_for_the_other_rules() -> None:
    assert KnHyperParams.from_dict({"threshold_rule": "percentile", "threshold": 99.5}).threshold == 99.5
    assert KnHyperParams.from_dict({"threshold_rule": "absolute", "threshold": 3}).threshold == 3.0


def test_the_settings_import_no_torch() -> None:
    assert "20" in run_without_torch("import kedit_methods_locate.hparams.kn as kn; print(kn.KnHyperParams().steps)")
