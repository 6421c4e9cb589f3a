"""RippleEdits: tests that count, edits that took, and both rules of what an answer is."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from metric_tools import ALONE, told
from plugins.datasets.reader_tools import FIXTURES
from plugins.datasets.scripted_answers import Scripted, read_ahead_is_enough, same_when_alone

from kedit_core import Editor, EditRequest, Probe
from kedit_core.errors import InputError
from kedit_core.testing.tiny import tiny
from kedit_datasets.metrics.ripple import RippleMetrics
from kedit_datasets.readers.ripple import read_ripple

NAMES = [f"ripple.{name}{rule}" for rule in ("", "_nocase") for name in ("accuracy", "tests_kept", "edited", "skipped")]
ACCURACY, KEPT, EDITED, SKIPPED = NAMES[:4]


def probe(prompt: str, *targets: Sequence[str], test: int = 0, condition: str = "OR", **conditions: Any) -> Probe:
    """A query; ``conditions`` are prompts (with _ for spaces) and the one answer that the base must give."""
    about = {
        "test": test,
        "condition": condition,
        "targets": [list(each) for each in targets],
        "condition_queries": [
            {"prompt": name.replace("_", " "), "targets": [[text]]} for name, text in conditions.items()
        ],
    }
    return Probe(prompt=prompt, answers=tuple(t for each in targets for t in each), meta={"ripple": about})


def edit(case: str = "1", *, recent: bool = False, locality: Any = None, **criteria: Sequence[Probe]) -> EditRequest:
    return EditRequest(
        prompt=f"{case}: Leo is a citizen of",
        target_new="Syria",
        aliases=("SYR",),
        ground_truth=None if recent else "Italy",
        case_id=case,
        kind="insert" if recent else "modify",
        portability={name: tuple(probes) for name, probes in criteria.items()},
        locality=locality or {},
        meta={"ripple": {"type": "recent" if recent else "popular"}},
    )


def measure(requests: Sequence[EditRequest], base: Scripted, edited: Scripted) -> Mapping[str, Any]:
    context = told("ripple", requests=requests)
    return RippleMetrics().evaluate(context=context, requests=requests, base=base, edited=edited)


def run(request: EditRequest, before: Mapping[str, str], after: Mapping[str, str]) -> Mapping[str, Any]:
    """Of one edit whose original fact is known and that takes, unless said otherwise."""
    base = Scripted({request.prompt: " Italy", **before}, otherwise=" nothing", is_base=True)
    return measure([request], base, Scripted({request.prompt: " Syria now", **after}, otherwise=" nothing"))


# ---------------------------------------------------------------------- the rules, by hand
def test_a_query_asks_for_every_target_in_any_spelling() -> None:
    request = edit(Subject_Aliasing=[probe("two?", ["Syria", "SYR"], ["Paris", "Lutetia"])])
    for text, score in ((" in SYR and Lutetia", 1.0), (" in Syria", 0.0), (" Paris", 0.0), (" syria, paris", 0.0)):
        found = run(request, {}, {"two?": text})
        assert found[ACCURACY].value == score == found[ACCURACY].parts["Subject_Aliasing"], text
    assert run(request, {}, {"two?": " syria, paris"})["ripple.accuracy_nocase"].value == 1.0


@pytest.mark.parametrize(("condition", "scores"), [("OR", [0.0, 1.0, 1.0]), ("AND", [0.0, 0.0, 1.0])])
def test_a_test_is_passed_by_any_or_all_of_its_queries(condition: str, scores: list[float]) -> None:
    queries = [probe(f"{n}?", ["right"], condition=condition) for n in range(2)]
    request = edit(Logical_Generalization=queries)
    found = [run(request, {}, {f"{n}?": " right" for n in range(rights)})[ACCURACY].value for rights in range(3)]
    assert found == scores


def test_tests_count_whose_conditions_the_base_answers() -> None:
    counts = probe("yes?", ["right"], test=0, the_capital_is="Oslo", the_king_is="Harald")
    not_known = probe("no?", ["right"], test=1, the_capital_is="Oslo", the_queen_is="Sonja")
    request = edit(Compositionality_I=[counts, not_known], Compositionality_II=[evolve(not_known, prompt="neither?")])
    before = {"the capital is": " Oslo", "the king is": " Harald V", "the queen is": " Harald"}
    found = run(request, before, {"yes?": " right"})
    assert found[ACCURACY].value == 1.0 and set(found[ACCURACY].parts) == {"Compositionality_I"}
    assert found[KEPT].parts == {"Compositionality_I": 0.5, "Compositionality_II": 0.0}
    assert found[ACCURACY].left_out == 2
    scores = {output["prompt"][0]: output["score"] for output in found[ACCURACY].outputs}
    assert scores == {"yes?": 1.0, "no?": None, "neither?": None}


def test_conditions_are_asked_of_the_base_alone_and_tests_of_the_edited_model_alone() -> None:
    request = edit(
        Compositionality_I=[probe("yes?", ["x"], a_condition="y"), probe("no?", ["x"], test=1, never="y")],
        locality={"Forgetfulness": (probe("stays?", ["Italy"]),)},
    )
    base = Scripted({request.prompt: " Italy", "a condition": " y", "never": " z"}, is_base=True)
    edited = Scripted({request.prompt: " Syria", "yes?": " x", "stays?": " Italy"})
    found = measure([request], base, edited)
    assert found[ACCURACY].parts == {"Compositionality_I": 1.0, "Forgetfulness": 1.0}
    assert {kind for kind, _ in base.asked + edited.asked} == {("raw", 30)}
    assert {prompt for _, prompt in base.asked} == {request.prompt, "a condition", "never"}
    assert {prompt for _, prompt in edited.asked} == {request.prompt, "yes?", "stays?"}, (
        "what does not count is not asked"
    )


def test_what_the_prompt_says_does_not_count() -> None:
    request = edit(Forgetfulness=[probe("Is it right?", ["right"])])
    assert run(request, {}, {"Is it right?": " it is"})[ACCURACY].value == 0.0


def test_edits_with_nothing_to_edit_are_skipped() -> None:
    known = edit("known", recent=True, Subject_Aliasing=[probe("known?", ["x"])])
    new = edit("new", recent=True, Subject_Aliasing=[probe("new?", ["x"])])
    unknown = edit("unknown", Subject_Aliasing=[probe("unknown?", ["x"])])
    untold = evolve(edit("untold", Subject_Aliasing=[probe("untold?", ["x"])]), ground_truth=None)
    requests = [known, new, unknown, untold, edit("old", Subject_Aliasing=[probe("old?", ["x"])])]
    base = Scripted({known.prompt: " SYR", requests[-1].prompt: " Italy"}, otherwise=" nothing", is_base=True)
    edited = Scripted({each.prompt: " Syria" for each in requests}, otherwise=" x")
    found = measure(requests, base, edited)
    assert found[SKIPPED].cases == {"known": 1.0, "new": 0.0, "unknown": 1.0, "untold": 1.0, "old": 0.0}
    assert found[SKIPPED].parts == {"already_known": 0.5, "original_unknown": pytest.approx(2 / 3)}
    assert found[EDITED].cases == found[ACCURACY].cases == {"new": 1.0, "old": 1.0}
    assert found[ACCURACY].left_out == 3 and found[KEPT].value == 1.0


def test_edits_that_did_not_take_are_in_no_criterion_and_reported() -> None:
    failed, took = (edit(case, Subject_Aliasing=[probe(f"{case}?", ["x"])]) for case in ("failed", "took"))
    base = Scripted(otherwise=" Italy", is_base=True)
    edited = Scripted({failed.prompt: " Italy", took.prompt: " Syria"}, otherwise=" x")
    found = measure([failed, took], base, edited)
    assert found[EDITED].cases == {"failed": 0.0, "took": 1.0}
    assert found[ACCURACY].cases == {"took": 1.0} and found[ACCURACY].left_out == 1
    assert found[SKIPPED].value == 0.0


def test_without_regard_to_case_conditions_facts_and_tests_all_are_judged_so() -> None:
    request = edit(Subject_Aliasing=[probe("q?", ["Right"], a_condition="Known")])
    base = Scripted({request.prompt: " ITALY", "a condition": " known"}, is_base=True)
    edited = Scripted({request.prompt: " syria", "q?": " RIGHT"})
    found = measure([request], base, edited)
    assert (found[SKIPPED].value, found[KEPT].value, found[ACCURACY].value) == (1.0, 0.0, None)
    assert [found[f"{name}_nocase"].value for name in (SKIPPED, KEPT, EDITED, ACCURACY)] == [0.0, 1.0, 1.0, 1.0]
    assert found[ACCURACY].tag == "greedy_30.question-only.substring.batch.1+merged"
    assert found[f"{ACCURACY}_nocase"].tag == "greedy_30.question-only.substring_nocase.batch.1+merged"


# ---------------------------------------------------------------------- the dataset, against a plain reference
@pytest.fixture(scope="module")
def dataset() -> list[EditRequest]:
    return list(read_ripple(FIXTURES / "ripple.json"))


def texts_of(requests: Sequence[EditRequest]) -> dict[str, list[str]]:
    """Every prompt of a model of the dataset, with texts that may be said to it: right ones, and others."""
    texts: dict[str, list[str]] = {}
    for request in requests:
        own = [request.target_new, request.target_new.lower(), request.ground_truth or "nobody knows", "nothing"]
        texts.setdefault(request.prompt, []).extend(own)
        for listed in (*request.locality.values(), *request.portability.values()):
            for one in listed:
                about = one.meta["ripple"]
                for prompt, targets in [
                    (one.prompt, about["targets"]),
                    *((each["prompt"], each["targets"]) for each in about["condition_queries"]),
                ]:
                    whole = " and ".join(spellings[-1] for spellings in targets)
                    texts.setdefault(prompt, []).extend([whole, whole, whole.upper(), targets[0][0], "nothing"])
    return texts


def reference(request: EditRequest, before: Mapping[str, str], after: Mapping[str, str]) -> Any:
    """The protocol of the benchmark's runner for one edit, criterion by criterion: scores, or why there are none."""

    def right(text: str, targets: Any) -> bool:
        return not any(not any(name in text for name in names) for names in targets)

    names = [[request.target_new, *request.aliases]]
    if request.meta["ripple"]["type"] == "recent":
        if right(before[request.prompt], names):
            return "skipped"
    elif request.ground_truth is None or request.ground_truth not in before[request.prompt]:
        return "skipped"
    if not right(after[request.prompt], names):
        return "failed"
    scores = {}
    for name, probes in {**request.locality, **request.portability}.items():
        executed = []
        for number in sorted({one.meta["ripple"]["test"] for one in probes}):
            queries = [one for one in probes if one.meta["ripple"]["test"] == number]
            about = queries[0].meta["ripple"]
            if all(right(before[each["prompt"]], each["targets"]) for each in about["condition_queries"]):
                results = [right(after[one.prompt], one.meta["ripple"]["targets"]) for one in queries]
                passed = True in results if about["condition"] == "OR" else False not in results
                executed.append(float(passed))
        if executed:
            scores[name] = sum(executed) / len(executed)
    return scores


@given(seed=st.integers(0, 10_000))
def test_results_are_those_of_a_plain_reference(dataset: list[EditRequest], seed: int) -> None:
    draw, texts = random.Random(seed), texts_of(dataset)
    before, after = ({prompt: f" {draw.choice(said)}." for prompt, said in texts.items()} for _ in range(2))
    found = measure(dataset, Scripted(before, is_base=True), Scripted(after))
    wanted = {request.case_id: reference(request, before, after) for request in dataset}
    skipped = {case for case, result in wanted.items() if result == "skipped"}
    assert {case for case, score in found[SKIPPED].cases.items() if score} == skipped
    assert {case for case, score in found[EDITED].cases.items() if not score} == {
        case for case, result in wanted.items() if result == "failed"
    }
    by_case = {case: result for case, result in wanted.items() if isinstance(result, dict) and result}
    assert found[ACCURACY].cases.keys() == by_case.keys()
    for case, scores in by_case.items():
        assert found[ACCURACY].cases[case] == pytest.approx(sum(scores.values()) / len(scores))
        assert {name: each[case] for name, each in found[ACCURACY].case_parts.items() if case in each} == scores


def test_a_perfect_model_passes_every_test_and_an_unedited_one_fails_to_be_edited(dataset: list[EditRequest]) -> None:
    right, old = {}, {}
    for request in dataset:
        right[request.prompt] = f" {request.target_new}."
        old[request.prompt] = f" {request.ground_truth}."
        for listed in (*request.locality.values(), *request.portability.values()):
            for one in listed:
                right[one.prompt] = " " + ", ".join(names[0] for names in one.meta["ripple"]["targets"])
                for each in one.meta["ripple"]["condition_queries"]:
                    old[each["prompt"]] = " " + ", ".join(names[0] for names in each["targets"])
    for request in dataset:  # an edit's own prompt may also be a query
        right[request.prompt] += f" {request.target_new}"
        old[request.prompt] = f" {request.ground_truth}."
    perfect = measure(dataset, Scripted(old, is_base=True), Scripted(right, otherwise=" nothing"))
    assert perfect[ACCURACY].value == perfect[EDITED].value == 1.0
    assert perfect[ACCURACY].cases and set(perfect[ACCURACY].parts.values()) == {1.0}
    unedited = measure(dataset, Scripted(old, is_base=True), Scripted(old, otherwise=" nothing"))
    inside = {r.case_id for r in dataset if r.ground_truth and r.target_new in r.ground_truth}  # "male" in "female"
    assert len(inside) == 1 and unedited[EDITED].value == pytest.approx(1 / len(unedited[EDITED].cases))
    assert {case for case, score in unedited[EDITED].cases.items() if score} == inside
    assert set(unedited[ACCURACY].cases) <= inside


def test_cases_measured_alone_combine_to_the_whole(dataset: list[EditRequest]) -> None:
    draw, texts = random.Random(3), texts_of(dataset)
    before, after = ({prompt: f" {draw.choice(said)}." for prompt, said in texts.items()} for _ in range(2))
    base, edited = Scripted(before, is_base=True), Scripted(after)
    same_when_alone(lambda some: measure(some, base, edited), dataset)


def test_all_is_asked_ahead_and_nothing_unless_wanted(dataset: list[EditRequest]) -> None:
    base, edited = (Scripted(otherwise=" nothing", is_base=flag) for flag in (True, False))
    read_ahead_is_enough(RippleMetrics(), told("ripple"), dataset, base, edited)
    plugin, model = RippleMetrics(), Scripted()
    plugin.read_ahead(context=told("mquake"), requests=dataset, answers=model)
    assert plugin.evaluate(context=told("mquake"), requests=dataset, base=model, edited=model) == {}
    bare = [EditRequest(prompt="x", target_new="y", locality={"near": (Probe(prompt="z"),)})]
    assert plugin.evaluate(context=told("ripple"), requests=bare, base=model, edited=model) == {}
    assert model.asked == []
    infos = plugin.register_metrics()
    assert [info.name for info in infos] == NAMES and all(info.on_request for info in infos)


@pytest.mark.parametrize(
    "change",
    [
        {"test": "0"},
        {"condition": "XOR"},
        {"targets": []},
        {"targets": [[]]},
        {"targets": [[""]]},
        {"condition_queries": [{"prompt": "x"}]},
    ],
)
def test_odd_material_is_refused_before_anything_is_read(change: dict[str, Any]) -> None:
    good, model = probe("q?", ["x"]), Scripted()
    odd = evolve(good, meta={"ripple": {**good.meta["ripple"], **change}})
    with pytest.raises(InputError, match=r"meta\['ripple'\] of case 'odd'; it must have"):
        RippleMetrics().read_ahead(
            context=told("ripple"), requests=[edit("odd", Subject_Aliasing=[odd])], answers=model
        )
    assert model.asked == []


def test_with_a_real_model(dataset: list[EditRequest]) -> None:
    editor = Editor(*tiny("gpt2"), catalogue=ALONE, plugins=[RippleMetrics()])
    evaluation = editor.evaluate(dataset, metrics=["ripple"])
    assert evaluation[SKIPPED].value is not None and set(NAMES) <= set(evaluation)
    output = evaluation[EDITED].outputs[0]
    assert output["base"] == output["edited"] == editor.generate(dataset[0].prompt, max_new_tokens=30)
